"""Text files as editors, Excel and shells of all systems write them."""

from __future__ import annotations

import codecs

__all__ = ["decoded"]

BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def decoded(content: bytes) -> str:
    """Return the text of a file: in the encoding that its first bytes state, else UTF-8, else Windows' (cp1252).

    Raises
    ------
    UnicodeDecodeError
        If it is in no encoding of these, or has NUL characters, which no text has.
    """
    encoding = next((name for bom, name in BOMS.items() if content.startswith(bom)), None)
    if encoding is not None:
        text = content.decode(encoding).removeprefix("\ufeff")
    else:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
    if "\0" in text:
        raise UnicodeDecodeError("text", content[:1], 0, 1, "it has NUL characters")
    return text
