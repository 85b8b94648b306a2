"""Every exception a user can meet.

::

    GpuExtractError
    ├── InputError         what was given cannot be extracted; the message says what, where and what to do
    │   ├── SourceError    a file cannot be read, or does not hold what it should
    │   ├── LabelError     a label plane is not one, or does not fit its image
    │   ├── RecipeError    a parameter is unknown or out of its range
    │   ├── UnknownCellError  a file has no cell of that id, or several; a KeyError too
    │   └── UnknownOptionError  a function has no option of that name; a TypeError too
    ├── OutputError        the output cannot be written there, or is not a file of cells
    ├── DeviceError        the device asked for does not work here
    └── RunStoppedError    stopped half way (Ctrl-C, SIGTERM, a full disk); what was written is kept

Each message is one line: what was given, what is allowed, what to do. The command line prints it and exits
with 1, or with 3 for `RunStoppedError`.
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "GpuExtractError",
    "InputError",
    "LabelError",
    "OutputError",
    "RecipeError",
    "RunStoppedError",
    "SourceError",
    "UnknownCellError",
    "UnknownOptionError",
]


class GpuExtractError(Exception):
    """Whatever stops an extraction for a reason the user can act on."""


class InputError(GpuExtractError, ValueError):
    """What was given cannot be extracted."""


class SourceError(InputError):
    """A file cannot be read, or does not hold what it should."""


class LabelError(InputError):
    """A label plane is not one, or does not fit its image."""


class RecipeError(InputError):
    """A parameter of the recipe is unknown or out of its range."""


class UnknownCellError(InputError, KeyError):
    """A file has no cell of that id, or several."""

    __str__ = Exception.__str__  # KeyError's shows quotes and backslashes


class UnknownOptionError(InputError, TypeError):
    """A function has no option of that name."""


class OutputError(GpuExtractError):
    """The output cannot be written there, or a file is not one of cells."""


class DeviceError(GpuExtractError):
    """The device asked for does not work here."""


class RunStoppedError(GpuExtractError):
    """The run was stopped half way; what was written is kept beside the output's name."""
