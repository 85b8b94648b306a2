"""The exceptions raised for users.

::

    GpuExtractError
    ├── InputError         the input cannot be extracted; the message says what, where and what to do
    │   ├── SourceError    a file cannot be read, or has unexpected contents
    │   ├── LabelError     a label plane is invalid or does not match its image
    │   ├── RecipeError    a parameter is unknown or out of its range
    │   ├── UnknownCellError  a file has no cell of that id, or several; a KeyError too
    │   └── UnknownOptionError  a function has no option of that name; a TypeError too
    ├── OutputError        the output cannot be written there, or is not a file of cells
    ├── DeviceError        the requested device does not work on this machine
    ├── LibraryError       a library is missing or does not fit the others; an ImportError too
    └── RunStoppedError    the run stopped early (Ctrl-C, SIGTERM, a full disk, an input that cannot be read any more);
                           cells written so far are kept, and a run with ``resume`` goes on with them

Each message is one line: what was given, what is allowed, what to do. The command line prints it and exits
with code 1, or 3 for `RunStoppedError`. What a careful reader should know, and no error, is an `ExtractionWarning`.
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "ExtractionWarning",
    "GpuExtractError",
    "InputError",
    "LabelError",
    "LibraryError",
    "OutputError",
    "RecipeError",
    "RunStoppedError",
    "SourceError",
    "UnknownCellError",
    "UnknownOptionError",
]


class ExtractionWarning(UserWarning):
    """Something about the input, the machine or the result that the user should know."""


class GpuExtractError(Exception):
    """Base class of all errors that a user can act on."""


class InputError(GpuExtractError, ValueError):
    """The input cannot be extracted."""


class SourceError(InputError):
    """A file cannot be read, or has unexpected contents."""


class LabelError(InputError):
    """A label plane is invalid or does not match its image."""


class RecipeError(InputError):
    """A recipe parameter is unknown or out of range."""


class UnknownCellError(InputError, KeyError):
    """A file has no cell with that id, or several."""

    __str__ = Exception.__str__  # KeyError's shows quotes and backslashes


class UnknownOptionError(InputError, TypeError):
    """A function has no option of that name."""


class OutputError(GpuExtractError):
    """The output cannot be written, or a file is not a file of cells."""


class DeviceError(GpuExtractError):
    """The requested device does not work on this machine."""


class LibraryError(GpuExtractError, ImportError):
    """A library that is needed cannot be imported."""


class RunStoppedError(GpuExtractError):
    """The run stopped early; cells written so far are kept next to the output."""
