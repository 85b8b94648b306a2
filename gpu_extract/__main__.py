"""The command line ``gpu-extract``, or ``python -m gpu_extract``."""

from __future__ import annotations

import os
import sys

from gpu_extract import interrupts

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C stops it from here on, also while the rest is imported."""
    interrupts.install()
    from gpu_extract import cli

    code: object = None
    try:
        cli.main()
    except SystemExit as done:
        code = done.code
    try:
        sys.stdout.flush()
    except OSError as error:
        interrupts.discard_stdout()
        sys.exit(f"gpu-extract: results cannot be printed: {error.strerror}")
    if code == 3:
        os._exit(3)  # a thread may still compile or compute; the interpreter would wait for it
    sys.exit(code)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
