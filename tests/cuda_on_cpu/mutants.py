"""Kernel sources with one barrier taken out: a test that does not warning is not a test of the barriers."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["mutants"]

TOKENS = re.compile(
    r"""//[^\n]* | /\*.*?\*/                                     # comments, which are passed over
    | ^[ \t]*\#[ \t]*line[ \t]+(?P<line>\d+)[ \t]+"(?P<file>[^"]+)"[^\n]*\n
    | (?P<newline>\n)
    | (?P<barrier>__syncthreads\s*\(\s*\) | __syncwarp\s*\([^()]*\))\s*;
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Pairs of a name, such as ``extract.cu:12 without __syncthreads()``, and the source without that barrier.

    Barriers that give a value (``__syncthreads_or``) are left: taken out, the source would not compile.
    """
    file, line = "kernel.cu", 1
    for token in TOKENS.finditer(source):
        if token["file"]:
            file, line = token["file"], int(token["line"])
        else:
            if token["barrier"]:
                name = f"{file}:{line} without {token['barrier']}"
                yield name, f"{source[: token.start()]};{source[token.end() :]}"
            line += token[0].count("\n")
