"""The table that a notebook shows for an object: what ``_repr_html_`` returns."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["html_table"]


def html_table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values as HTML without styles; rows whose value is an empty text are left out."""
    cells = ((escape(name), escape(str(value))) for name, value in rows)
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells if value)
    return f"<table><caption>{escape(title)}</caption>{body}</table>"
