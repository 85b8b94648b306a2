"""The types that travel through an extraction. All are frozen and checked on construction.

`Slide` -> planning -> `CellTable` -> `Batch` -> one `Window` is read -> backend -> `CellImages` -> store.
Points are (y, x) and boxes are half-open (y0, x0, y1, x1), in pixels of the slide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_extract.errors import InputError, LabelError
from gpu_extract.listing import listed, repeated

__all__ = [
    "Batch",
    "BatchSize",
    "CellImages",
    "CellTable",
    "DropReason",
    "DroppedCells",
    "Raster",
    "Slide",
    "Window",
    "source_text",
    "strips",
]

# Pixel types of images. Any other type would be rounded or reinterpreted on the way.
IMAGE_DTYPES = ("uint8", "uint16", "int16", "uint32", "float16", "float32", "float64")
MASK_NAMES = ("nucleus", "cytosol")
# Files of an image that a message names.
N_FILES = 3


class Raster(Protocol):
    """A lazy stack of P planes of H x W pixels; only `read` reads pixels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, H, W)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type, in native byte order."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the planes, length P; empty if the source has none."""

    @property
    def source(self) -> str:
        """Origin of the pixels as shown to the user: a path, or ``array``."""

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """Return the pixels of a box within the raster, (P, y1 - y0, x1 - x0), C-contiguous or a view."""


def strips(raster: Raster, n_pixels: int, step: int = 1) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a raster from top to bottom in strips of rows.

    Parameters
    ----------
    raster : Raster
    n_pixels : int
        Maximum number of pixels of a plane in a strip; a strip has at least one row.
    step : int
        Read only every ``step``-th strip.

    Yields
    ------
    int
        First row of the strip.
    (P, h, W) array
        Its pixels.
    """
    _, H, W = raster.shape
    rows = max(1, n_pixels // W)
    for y0 in range(0, H, rows * step):
        yield y0, raster.read(y0, 0, min(y0 + rows, H), W)


def source_text(raster: Raster) -> str:
    """Return the source of a raster for a message; of an image in many files, only the first few."""
    return listed(raster.source.split(", "), N_FILES)


@dataclass(frozen=True)
class Slide:
    """One field of view: an image and its label planes, all of the same height and width.

    Parameters
    ----------
    image : Raster, (C, H, W)
    masks : mapping of str to Raster, each (1, H, W)
        Label planes by name: ``nucleus``, ``cytosol`` or both, in this order.
    channel_names : tuple of str, length C
    name : str
        Unique among the slides of a run.
    metadata : mapping of str to str
        Texts that describe the slide, for example ``{"well": "D03"}``.
    ids : (n,) uint64, optional
        Cells to extract, as listed by the segmentation; all by default. Ids without a label are ignored.
    warnings : tuple of str
        Warnings about the source of the slide, one line each.
    pixel_size : (y, x), um, optional
        Size of a pixel; None if unknown.
    scale : (y, x)
        Pixels of the source per pixel of the slide; 1 unless the slide was resampled.
    pixel_size_source : str
        Where in the files the pixel size comes from; empty if it was given, or is not worth a word.

    Raises
    ------
    InputError, LabelError
        If shapes or types do not match, or names are not unique.
    """

    image: Raster
    masks: Mapping[str, Raster]
    channel_names: tuple[str, ...]
    name: str = "slide"
    metadata: Mapping[str, str] = field(default_factory=dict)
    ids: NDArray[np.uint64] | None = None
    warnings: tuple[str, ...] = ()
    pixel_size: tuple[float, float] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    pixel_size_source: str = ""

    def __post_init__(self) -> None:
        if self.image.dtype.name not in IMAGE_DTYPES:
            raise InputError(
                f"image {source_text(self.image)} has pixels of type {self.image.dtype}; "
                f"it must be one of {', '.join(IMAGE_DTYPES)}: convert it"
            )
        if not self.masks:
            raise LabelError("no label plane was given; give nucleus, cytosol or both (--nucleus, --cytosol)")
        if tuple(self.masks) != tuple(name for name in MASK_NAMES if name in self.masks):
            raise ValueError(f"masks are named {tuple(self.masks)}; allowed are {MASK_NAMES}, in this order")
        for name, raster in self.masks.items():
            self._check_labels(name, raster)
        n_channels = self.image.shape[0]
        if len(self.channel_names) != n_channels:
            raise InputError(
                f"{len(self.channel_names)} channel names for an image of {n_channels} channels: "
                f"{listed(self.channel_names)}"
            )
        if len(set(self.channel_names)) != n_channels:
            raise InputError(f"channel names must differ: {listed(repeated(self.channel_names))} occur more than once")

    def __repr__(self) -> str:
        metadata = f", metadata={dict(self.metadata)}" if self.metadata else ""
        n_ids = "" if self.ids is None else f", n_ids={len(self.ids)}"
        return (
            f"Slide(name={self.name!r}, image={_summary(self.image)}, masks={self.mask_names}, "
            f"channel_names={self.channel_names}{metadata}{n_ids})"
        )

    def _check_labels(self, name: str, raster: Raster) -> None:
        where = f"{name} labels {raster.source}"
        if raster.dtype.kind not in "iu":
            remedy = (
                "number the objects first, for example with skimage.measure.label"
                if raster.dtype.kind == "b"
                else "a label plane holds the ids of cells; convert it to an integer type"
            )
            raise LabelError(f"{where} are of type {raster.dtype}; they must be integers: {remedy}")
        planes, height, width = raster.shape
        if planes != 1:
            raise LabelError(f"{where} hold {planes} planes; give one plane (H, W)")
        if (height, width) != self.size:
            H, W = self.size
            hint = _shape_hint((height, width), (H, W))
            if (height, width) == (self.image.shape[0], H):
                hint = "; the image looks like (H, W, channels): give numpy.moveaxis(image, -1, 0)"
            raise LabelError(
                f"{where} are {height} x {width} pixels and the image {source_text(self.image)} is {H} x {W} (H x W); "
                f"they must be equal{hint}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image.shape[1:]

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the label planes, length M."""
        return tuple(self.masks)

    def only(self, ids: NDArray[np.uint64]) -> Slide:
        """Return the slide with extraction restricted to these ids."""
        return replace(self, ids=ids if self.ids is None else np.intersect1d(self.ids, ids))

    def read(self, box: tuple[int, int, int, int]) -> Window:
        """Return the image and label pixels of a box (y0, x0, y1, x1) within the slide."""
        labels = tuple(raster.read(*box)[0] for raster in self.masks.values())
        return Window(self.image.read(*box), labels, y0=box[0], x0=box[1])


@dataclass(frozen=True)
class Window:
    """The rectangle of a slide that is read for a batch.

    Parameters
    ----------
    image : (C, h, w)
    labels : tuple of M arrays, (h, w), any integer type
    y0, x0 : int, pixels
        Position of the rectangle on the slide. Pixels of a tile outside the window are outside the slide.
    """

    image: NDArray[Any]
    labels: tuple[NDArray[Any], ...]
    y0: int
    x0: int

    def __repr__(self) -> str:
        labels = ", ".join(map(_summary, self.labels))
        return f"Window(image={_summary(self.image)}, labels=[{labels}], y0={self.y0}, x0={self.x0})"


class DropReason(IntEnum):
    """The reason why a cell is dropped, as the code stored in tables."""

    KEPT = 0
    NO_NUCLEUS = 1
    NO_CYTOSOL = 2
    TOUCHES_BORDER = 3
    WINDOW_LEAVES_SLIDE = 4
    NOT_LISTED = 5
    NOT_SELECTED = 6
    SMALLER_NUCLEUS = 7
    VANISHED = 8
    OUTSIDE = 9

    @property
    def text(self) -> str:
        """Text of the reason, as shown to users and stored in files."""
        return REASON_TEXTS[self]

    @classmethod
    def without(cls, mask: str) -> DropReason:
        """Return the reason for a cell without that mask, ``nucleus`` or ``cytosol``."""
        return {"nucleus": cls.NO_NUCLEUS, "cytosol": cls.NO_CYTOSOL}[mask]


REASON_TEXTS = {
    DropReason.KEPT: "",
    DropReason.NO_NUCLEUS: "no nucleus",
    DropReason.NO_CYTOSOL: "no cytosol",
    DropReason.TOUCHES_BORDER: "mask touches the slide's border",
    DropReason.WINDOW_LEAVES_SLIDE: "window leaves the slide",
    DropReason.NOT_LISTED: "not in the slide's list of ids",
    DropReason.NOT_SELECTED: "not selected",
    DropReason.SMALLER_NUCLEUS: "a larger nucleus is in its cell",
    DropReason.VANISHED: "no pixel left after resampling",
    DropReason.OUTSIDE: "outside the image, where its placement puts it",
}


@dataclass(frozen=True)
class DroppedCells:
    """The ids that are not extracted, each with one reason.

    Parameters
    ----------
    slide : (n,) int64
        Index of each cell's slide.
    ids : (n,) uint64
    reason : (n,) uint8
        Codes of `DropReason`.
    """

    slide: NDArray[np.int64]
    ids: NDArray[np.uint64]
    reason: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"DroppedCells(n={len(self)}, reasons={self.counts()})"

    def part(self, rows: NDArray[Any]) -> DroppedCells:
        """Return a subset, selected by indices or by a boolean mask."""
        return DroppedCells(self.slide[rows], self.ids[rows], self.reason[rows])

    def reasons(self) -> NDArray[np.object_]:
        """Return the text of each cell's reason, (n,)."""
        texts = np.array([reason.text for reason in DropReason], object)  # codes count from 0
        return np.asarray(texts[self.reason])

    def counts(self) -> dict[str, int]:
        """Return the number of cells dropped for each reason, most frequent first."""
        codes, counts = np.unique(self.reason, return_counts=True)
        by_text = {DropReason(code).text: int(n) for code, n in zip(codes, counts, strict=True)}
        return dict(sorted(by_text.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class CellTable:
    """The cells that are extracted, in the order of the rows of the output.

    Parameters
    ----------
    slide : (N,) int64
        Index of each cell's slide.
    ids : (N,) uint64
        Unique within a slide, ascending.
    centers : (N, 2) int64, pixels
        (y, x) of the center, rounded half to even.
    boxes : (N, 4) int64, pixels
        Bounding box of all masks of the cell.
    areas : (N, M) int64, pixels
        Area of each label; 0 if the plane does not have the id.
    truncated : (N,) bool
        Whether a mask does not fit in the tile.
    dropped : DroppedCells
    nuclei : (N, 2) uint64 or None
        If nuclei were paired with cytosols by overlap: the id, in the nucleus plane, of the largest nucleus in the
        cell, and the number of nuclei in the cell; 0 and 0 if there are none.
    """

    slide: NDArray[np.int64]
    ids: NDArray[np.uint64]
    centers: NDArray[np.int64]
    boxes: NDArray[np.int64]
    areas: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    dropped: DroppedCells
    nuclei: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.slide.shape == (n,)
        assert self.centers.shape == (n, 2)
        assert self.boxes.shape == (n, 4)
        assert self.areas.shape[0] == n
        assert self.truncated.shape == (n,)
        assert self.nuclei is None or self.nuclei.shape == (n, 2)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"CellTable(n={len(self)}, ids={_id_range(self.ids)}, n_slides={len(np.unique(self.slide))}, "
            f"n_truncated={np.count_nonzero(self.truncated)}, n_dropped={len(self.dropped)})"
        )

    def digest(self) -> str:
        """Return a digest of all columns, and of those of the dropped cells; equal tables have equal digests."""
        digest = hashlib.blake2b(digest_size=16)
        for table in (self, self.dropped):
            for column in fields(table):
                values = getattr(table, column.name)
                if isinstance(values, np.ndarray):
                    digest.update(f"{column.name} {values.shape}".encode())
                    digest.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).data)
        return digest.hexdigest()

    def part(self, rows: NDArray[Any], dropped: DroppedCells) -> CellTable:
        """Return a subset, selected by indices or by a boolean mask, with the given dropped cells."""
        return CellTable(
            self.slide[rows],
            self.ids[rows],
            self.centers[rows],
            self.boxes[rows],
            self.areas[rows],
            self.truncated[rows],
            dropped,
            None if self.nuclei is None else self.nuclei[rows],
        )


@dataclass(frozen=True)
class Batch:
    """The cells of one slide that are read and computed together.

    Parameters
    ----------
    slide : int
        Index of the slide.
    rows : (n,) int64
        Rows in the output; the rows of all batches partition 0..N-1.
    ids : (n,) uint64
    corners : (n, 2) int64, pixels
        (y, x) of each tile's first pixel on the slide; may be outside the slide.
    box : (y0, x0, y1, x1), pixels
        Bounding box of all tiles, clipped to the slide.
    boxes : (n, 4) int64, pixels, or None
        Bounding box of each cell's labels; None if unknown.
    """

    slide: int
    rows: NDArray[np.int64]
    ids: NDArray[np.uint64]
    corners: NDArray[np.int64]
    box: tuple[int, int, int, int]
    boxes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Batch(n={len(self)}, slide={self.slide}, ids={_id_range(self.ids)}, box={self.box})"


@dataclass(frozen=True)
class BatchSize:
    """The maximum size of a batch.

    Parameters
    ----------
    n_cells : int
        The default is large enough to amortize the fixed costs of a batch, and small enough that every core gets
        several batches.
    nbytes : int, bytes
        Maximum size of the window, and of the tiles; a single cell may need more.
    """

    n_cells: int = 64
    nbytes: int = 32 << 20


@dataclass(frozen=True)
class CellImages:
    """The finished tiles of a batch: everything that the store receives.

    Parameters
    ----------
    rows : (n,) int64
    ids : (n,) uint64
    images : (n, K, S, S), the output type, C-contiguous
        In host memory, except from `iter_cells` on a GPU, where they stay on the device.
    limits : (n, C, 2) float64
        Lower and upper value with which each channel was normalized.
    boxes : (n, K, 4) int64, pixels of the tile, or None
        Box (y0, x0, y1, x1) outside which each plane is 0; None if unknown.
    wait_for : callable or None
        Of images on a device: makes the next use of their memory wait for a stream; see `record_stream`.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.uint64]
    images: NDArray[Any]
    limits: NDArray[np.float64]
    boxes: NDArray[np.int64] | None = None
    wait_for: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        n = len(self.rows)
        assert self.ids.shape == (n,)
        assert self.images.shape[0] == n
        assert self.boxes is None or self.boxes.shape == (n, self.images.shape[1], 4)
        assert self.images.flags.c_contiguous
        assert self.limits.shape[0] == n

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"CellImages(n={len(self)}, images={_summary(self.images)}, ids={_id_range(self.ids)})"

    def record_stream(self, stream: int) -> None:
        """Keep the memory of the images until all current work of a CUDA stream is done, as PyTorch's method does.

        Call it after the last operation on that stream that reads the images, and before the last reference to them is
        deleted. Images in host memory need no such call, and it has no effect on them.

        Parameters
        ----------
        stream : int
            The stream's handle: ``torch.cuda.current_stream().cuda_stream`` or
            ``cupy.cuda.get_current_stream().ptr``.
        """
        if self.wait_for is not None:
            self.wait_for(stream)

    def chosen(self, planes: Sequence[int]) -> CellImages:
        """Return the cells with only these planes of their tiles, in this order."""
        order = list(planes)
        boxes = None if self.boxes is None else self.boxes.take(order, axis=1)
        return replace(self, images=self.images.take(order, axis=1), boxes=boxes)


def _summary(array: Any) -> str:
    """Return the shape and dtype of an array on any device, or of a raster, without reading its values."""
    return f"{tuple(array.shape)} {array.dtype}"


def _id_range(ids: NDArray[np.uint64]) -> str:
    """Return the lowest and highest id, for example ``12..9812``."""
    return f"{ids.min()}..{ids.max()}" if len(ids) else "none"


def _shape_hint(labels: tuple[int, int], image: tuple[int, int]) -> str:
    if labels == image[::-1]:
        return "; the labels look transposed"
    factor = round(max(image[0] / max(labels[0], 1), labels[0] / max(image[0], 1)))
    if factor > 1 and all(abs(max(a, b) / factor - min(a, b)) < 1 for a, b in zip(labels, image, strict=True)):
        return f"; one of them looks like a pyramid level, {factor} times smaller than the other"
    if all(abs(a - b) <= 1 for a, b in zip(labels, image, strict=True)):
        return "; one of them looks cropped by one pixel"
    return ""
