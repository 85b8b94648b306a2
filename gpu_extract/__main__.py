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

    try:
        cli.main()
    except SystemExit as done:
        if done.code == 3:
            # A thread may still compile or compute; the interpreter would wait for it.
            sys.stdout.flush()
            os._exit(3)
        raise


if __name__ == "__main__":
    main()
