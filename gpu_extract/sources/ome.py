"""The OME-XML of a TIFF: its images and their files, channel names and pixel size.

tifffile reads whatever the XML says: it fills missing files and planes with zeros, opens any file that is named,
ignores pages that are not described, and reads an image that it does not understand as an unnamed stack of pages.
The XML is therefore checked here, and cut to the image that is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from tifffile import TiffFile, TiffPage, TiffPageSeries

from gpu_extract.errors import SourceError
from gpu_extract.sources.files import SourceFile
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.tiff_images import ImageInFile, image_index, is_picture
from gpu_extract.sources.units import pixel_size

__all__ = [
    "OmeImage",
    "check_described",
    "chosen_image",
    "companion_xml",
    "ome_channel_names",
    "ome_pixel_size",
    "ome_xml",
]

# Bytes. Companion files hold one line per plane; larger ones are malicious.
MAX_XML = 256 << 20
# tifffile allocates an entry per plane that the XML claims, even if no file has it.
MAX_PLANES = 10_000_000


@dataclass(frozen=True)
class OmeImage:
    """An image that the OME-XML of a TIFF describes.

    Parameters
    ----------
    xml : str
        The OME-XML, without the other images.
    sizes : dict of str to int
        Lengths of the axes T, Z, C, Y and X.
    files : frozenset of str
        Names of its other files.
    n_described : int
        Number of pages that the OME-XML describes for all images together; 0 if images are in several files.
    has_siblings : bool
        Whether the OME-XML describes other images as well.
    """

    xml: str
    sizes: dict[str, int]
    files: frozenset[str]
    n_described: int
    has_siblings: bool


def ome_xml(file: SourceFile, tif: TiffFile) -> str | None:
    """Return the OME-XML that describes a TIFF, from the TIFF or its metadata file; None if there is none.

    Raises
    ------
    SourceError
        If it is damaged, or its metadata file is missing.
    """
    description = tif.pages.first.description
    if not tif.is_ome:
        if "<OME" in description[:1000] and "openmicroscopy" in description[:1000]:
            raise SourceError(f"{file} is damaged: its OME-XML is not complete; copy or export it again")
        return None
    binary_only = ET.fromstring(description).find("{*}BinaryOnly")
    if binary_only is None:
        return str(description)
    return _metadata_file(file, binary_only.get("MetadataFile", ""))


def chosen_image(file: SourceFile, location: Location, xml: str) -> OmeImage:
    """Return the image to read: the one that ``image=`` selects, or the only one, or the only one in this file.

    Raises
    ------
    SourceError
        If it is not clear which one that is, or its other files are missing or outside its folder.
    """
    root = ET.fromstring(xml)
    images = root.findall("{*}Image")
    sizes = [_sizes(file, image) for image in images]
    if not images:
        raise SourceError(f"{file} has OME-XML without an image; export it again")
    named = [_named(image, size) for image, size in zip(images, sizes, strict=True)]
    index = image_index(location, named, _candidates(file, root, images, named))
    files = [_files(file, root, image) for image in images]
    others = frozenset(name for name in files[index] if name is not None)
    if others and file.is_remote:
        raise SourceError(f"{file} consists of several files, which are read from disk only; download all of them")
    _check_files(file, sorted(others))
    n_described = 0
    if len(images) == 1 or all(names <= {None} for names in files):
        n_described = sum(_n_pages(image, size) for image, size in zip(images, sizes, strict=True))
    for number, image in enumerate(images):
        if number != index:
            root.remove(image)
    return OmeImage(ET.tostring(root, encoding="unicode"), sizes[index], others, n_described, len(images) > 1)


def check_described(file: SourceFile, tif: TiffFile, image: OmeImage, series: Sequence[TiffPageSeries]) -> None:
    """Refuse a file whose OME-XML does not fit its pages, or describes only a part of them.

    Raises
    ------
    SourceError
    """
    said = " ".join(f"{axis}={n}" for axis, n in image.sizes.items())
    if len(series) != 1 or series[0].kind != "ome":
        page = tif.pages.first
        raise SourceError(
            f"{file} has OME-XML for an image of {said} that does not fit its {len(tif.pages)} pages of "
            f"Y={page.imagelength} X={page.imagewidth}; correct the XML (tifffile.tiffcomment) or export it again"
        )
    path = tif.filehandle.path
    used = {page.index for page in series[0] if page is not None and page.parent.filehandle.path == path}
    if image.n_described == 0:
        return
    if image.has_siblings:
        used |= set(range(image.n_described))  # the pages of the images follow one another
    keyframe = series[0].keyframe
    unused = [index for index in range(len(tif.pages)) if index not in used]
    extra = [index for index in unused if used and _is_alike(tif.pages[index].aspage(), keyframe)]
    if extra:
        raise SourceError(
            f"{file} has OME-XML ({said}) for {len(used)} of its {len(used) + len(extra)} pages, and not for page "
            f"{extra[0]}; correct the XML (tifffile.tiffcomment) or export it again"
        )


def companion_xml(file: SourceFile) -> str:
    """Return the OME-XML in a companion file, which describes TIFFs in its folder.

    Raises
    ------
    SourceError
        If it is other XML, or names no TIFF.
    """
    with file.open() as stream:
        content = stream.read(MAX_XML)
    root = ET.fromstring(content)
    if not root.tag.endswith("OME"):
        raise SourceError(f"{file} is XML and not an image; give the image file itself")
    if root.find("{*}Image/{*}Pixels/{*}TiffData/{*}UUID[@FileName]") is None:
        raise SourceError(f"{file} is OME-XML that names no TIFF; give the image file itself")
    return ET.tostring(root, encoding="unicode")


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


def _sizes(file: SourceFile, image: ET.Element) -> dict[str, int]:
    pixels = image.find("{*}Pixels")
    sizes = {axis: _length("" if pixels is None else pixels.get(f"Size{axis}", "")) for axis in "TZCYX"}
    wrong = [f"Size{axis}" for axis, n in sizes.items() if n < 1]
    if wrong or sizes["C"] * sizes["Z"] * sizes["T"] > MAX_PLANES:
        said = " ".join(f"{axis}={n}" for axis, n in sizes.items())
        raise SourceError(
            f"{file} has OME-XML for an image of {said}, which is not possible{f' ({wrong[0]})' if wrong else ''}; "
            "correct the XML (tifffile.tiffcomment) or export it again"
        )
    return sizes


def _named(image: ET.Element, sizes: dict[str, int]) -> ImageInFile:
    listed = " ".join(f"{axis}={n}" for axis, n in sizes.items() if n != 1 or axis in "YX")
    return ImageInFile(cleaned(image.get("Name", "")), listed)


def _n_pages(image: ET.Element, sizes: dict[str, int]) -> int:
    """Return the number of pages of an image; interleaved samples of a pixel share one."""
    channel = image.find("{*}Pixels/{*}Channel")
    n_samples = 1 if channel is None else max(_length(channel.get("SamplesPerPixel", "1")), 1)
    return sizes["C"] // n_samples * sizes["Z"] * sizes["T"]


def _length(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0


def _candidates(
    file: SourceFile, root: ET.Element, images: Sequence[ET.Element], named: Sequence[ImageInFile]
) -> list[int]:
    """Return the images that may be meant: those in this file, if some are, and not pictures of the glass slide."""
    indices = list(range(len(images)))
    if file.plane is None:
        indices = [index for index in indices if not is_picture(named[index].name)] or indices
    own = [index for index in indices if None in _files(file, root, images[index])]
    return own or indices


def _files(file: SourceFile, root: ET.Element, image: ET.Element) -> set[str | None]:
    """Return the names of an image's files, None for this file."""
    own = root.get("UUID")
    names: set[str | None] = set()
    for data in image.iterfind("{*}Pixels/{*}TiffData"):
        uuid = data.find("{*}UUID")
        if uuid is None:
            names.add(None)
            continue
        name = uuid.get("FileName", "")
        # A renamed file is still recognized by its UUID, if it has one.
        is_self = not name or name.lower() == os.path.basename(file.path).lower() or (own and uuid.text == own)
        names.add(None if is_self else name)
    return names


def _check_files(file: SourceFile, names: Sequence[str]) -> None:
    """Refuse files that are missing or outside the folder."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(file.path)))
    for name in sorted(names):
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


def _metadata_file(file: SourceFile, name: str) -> str:
    """Return the OME-XML of the metadata file of a TIFF, which is XML or another TIFF."""
    shown = cleaned(name) or "another file"
    folder = os.path.realpath(os.path.dirname(os.path.abspath(file.path)))
    path = os.path.realpath(os.path.join(folder, name))
    if not os.path.isfile(path) or os.path.dirname(path) != folder:
        raise SourceError(f"{file} is one part of an OME-TIFF that {shown} describes; copy that into its folder")
    with open(path, "rb") as stream:
        if stream.read(2) not in (b"II", b"MM"):
            stream.seek(0)
            return stream.read(MAX_XML).decode("utf-8", "replace").lstrip("\ufeff")
    with TiffFile(path) as tif:
        xml = tif.ome_metadata
    if xml is None or ET.fromstring(xml).find("{*}BinaryOnly") is not None:
        raise SourceError(f"{file} is one part of an OME-TIFF, and {shown} does not describe it; export it again")
    return str(xml)


def _is_alike(page: TiffPage, keyframe: TiffPage) -> bool:
    """Return whether a page could be another plane of an image."""
    return not page.is_reduced and (page.shape, page.dtype) == (keyframe.shape, keyframe.dtype)
