"""Names of the channels of a TIFF, from wherever its writer stored them."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from tifffile import TiffFile, TiffPage

__all__ = ["page_names"]


def page_names(tif: TiffFile, pages: Sequence[TiffPage]) -> tuple[str, ...]:
    """Return the names of the planes: ImageJ's labels, those of a QPTIFF, or the tag PageName; empty if there are none.

    A file without OME-XML has them per page. They are used only if every page has a name of its own.
    """
    labels = (tif.imagej_metadata or {}).get("Labels", [])
    if labels:
        return (labels,) if isinstance(labels, str) else tuple(map(str, labels))
    of_page = _qptiff_name if tif.is_qpi else _tagged_name
    names = tuple(of_page(page) for page in pages)
    return names if all(names) and len(set(names)) == len(names) else ()


def _tagged_name(page: TiffPage) -> str:
    name = page.tags.valueof("PageName", "")
    return name.strip() if isinstance(name, str) else ""


def _qptiff_name(page: TiffPage) -> str:
    """Return the name of the stain; older files call it Biomarker."""
    try:
        root = ET.fromstring(page.description)
    except ET.ParseError:
        return ""
    return (root.findtext("Name") or root.findtext("Biomarker") or "").strip()
