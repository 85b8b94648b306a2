"""Kernel sources with one barrier removed, to test that the checks detect a missing barrier."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["mutants"]

TOKENS = re.compile(
    r"""//[^\n]* | /\*.*?\*/                                     # comments, which are skipped
    | ^[ \t]*\#[ \t]*line[ \t]+(?P<line>\d+)[ \t]+"(?P<file>[^"]+)"[^\n]*\n
    | (?P<newline>\n)
    | (?P<barrier>__syncthreads\s*\(\s*\) | __syncwarp\s*\([^()]*\))\s*;
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Yield a name, such as ``extract.cu:12 without __syncthreads()``, and the source without that barrier.

    Barriers that return a value (``__syncthreads_or``) are not removed: the source would not compile.
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
