"""The OME-XML of a TIFF: channel names, pixel size, and the files of the dataset."""

from __future__ import annotations

import os
from xml.etree import ElementTree as ET

from gpu_extract.errors import SourceError
from gpu_extract.sources.files import SourceFile
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.units import pixel_size

__all__ = ["check_ome_files", "ome_channel_names", "ome_pixel_size"]


def ome_channel_names(xml: str) -> tuple[str, ...]:
    """Return the names of the first image's channels, length C; empty for a channel without a name."""
    root = ET.fromstring(xml)
    pixels = root.find("{*}Image/{*}Pixels")
    channels = [] if pixels is None else pixels.findall("{*}Channel")
    return tuple(channel.get("Name", "") for channel in channels)


def ome_pixel_size(xml: str) -> tuple[float, float] | None:
    """Return the pixel size (y, x) in um of the first image at full resolution; None if it is not given."""
    pixels = ET.fromstring(xml).find("{*}Image/{*}Pixels")
    if pixels is None:
        return None
    y, x = (
        (pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))  # the schema's default
        for axis in "YX"
    )
    return pixel_size(y[0], x[0], y[1], x[1])


def check_ome_files(file: SourceFile, xml: str) -> None:
    """Refuse an OME-TIFF whose other files are missing or outside its folder.

    tifffile would fill missing files with zeros, and open any file that the XML names.

    Raises
    ------
    SourceError
    """
    root = ET.fromstring(xml)
    binary_only = root.find("{*}BinaryOnly")
    if binary_only is not None:
        main = cleaned(binary_only.get("MetadataFile", "another file"))
        raise SourceError(f"{file} is one part of an OME-TIFF that {main} describes; give that file if it is a TIFF")
    folder = os.path.realpath(os.path.dirname(os.path.abspath(file.path)))
    for name in sorted(_other_names(file, root)):
        part = os.path.realpath(os.path.join(folder, name))
        if os.path.dirname(part) != folder:
            raise SourceError(
                f"{file} consists of several files, and {cleaned(name)} is outside its folder; "
                "put all files of an OME-TIFF into one folder and name them without folders"
            )
        if not os.path.isfile(part):
            raise SourceError(
                f"{file} consists of several files, and {cleaned(name)} is missing; copy it to the folder"
            )


def _other_names(file: SourceFile, root: ET.Element) -> set[str]:
    own = root.get("UUID")
    names = set()
    for uuid in root.iterfind("{*}Image/{*}Pixels/{*}TiffData/{*}UUID"):
        name = uuid.get("FileName", "")
        # A renamed file is still recognized by its UUID, if it has one.
        is_self = uuid.text == own if own else name.lower() == os.path.basename(file.path).lower()
        if name and not is_self:
            names.add(name)
    return names
