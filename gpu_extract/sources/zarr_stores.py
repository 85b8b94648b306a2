"""The structure of Zarr stores: OME-Zarr 0.4 and 0.5, SpatialData, scPortrait projects, and plain arrays."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import zarr

from gpu_extract.errors import SourceError
from gpu_extract.listing import listed
from gpu_extract.sources.files import translated
from gpu_extract.sources.names import cleaned
from gpu_extract.sources.placement import Placement
from gpu_extract.sources.selectors import Location
from gpu_extract.sources.zarr_access import StrictStore
from gpu_extract.sources.zarr_pixel_size import zarr_pixel_sizes
from gpu_extract.sources.zarr_placement import zarr_placements
from gpu_extract.sources.zarr_remote import url_remedy
from gpu_extract.sources.zips import is_zipped_zarr

__all__ = [
    "Multiscale",
    "array_at",
    "array_axes",
    "group_attributes",
    "multiscale",
    "store_labels",
    "store_location",
    "usual_labels",
    "zarr_element",
]

ZARR_KEYS = ("zarr.json", ".zarray", ".zgroup")
# The default image of a store with several: the name that scPortrait uses.
USUAL_IMAGE = "input_image"
# Default names of label planes: scPortrait's, then ours.
USUAL_LABELS = {"nucleus": ("seg_all_nucleus", "nucleus"), "cytosol": ("seg_all_cytosol", "cytosol")}

# The masks of Xenium's cells.zarr.zip.
XENIUM_MASKS = {"nucleus": "masks/0", "cytosol": "masks/1"}

Node = Any  # zarr.Group or zarr.Array


@dataclass(frozen=True)
class Multiscale:
    """An OME-Zarr image or label.

    Parameters
    ----------
    axes : str
        One letter per axis, in the order of the axes of the arrays.
    paths : tuple of str
        Paths of the arrays, largest first.
    names : tuple of str
        Channel names, or empty.
    pixel_sizes : tuple
        Pixel sizes (y, x) of each array in um that are stated; see `zarr_pixel_sizes`.
    placements : tuple
        Placements of each array, one per coordinate system; see `zarr_placements`.
    """

    axes: str
    paths: tuple[str, ...]
    names: tuple[str, ...]
    pixel_sizes: tuple[tuple[tuple[float, float], ...], ...]
    placements: tuple[tuple[Placement, ...], ...] = ()


def store_location(location: Location) -> Location | None:
    """Return the location of a store: the folder itself, or the only store in it; None if there is none.

    Raises
    ------
    SourceError
        If the folder contains several.
    """
    if location.is_url or _is_store(location.path):
        return location
    if not os.path.isdir(location.path):
        return None
    with translated(location, "cannot be opened"), os.scandir(location.path) as entries:
        stores = sorted(entry.name for entry in entries if entry.is_dir() and _is_store(entry.path))
    if len(stores) > 1:
        raise SourceError(f"{location} is a folder of {len(stores)} Zarr stores: {_joined(stores)}; give one of them")
    return replace(location, path=os.path.join(location.path, stores[0])) if stores else None


def zarr_element(location: Location) -> Node:
    """Return the array, or the group with a multiscale, at a location.

    Raises
    ------
    SourceError
        If it does not exist, or the location is ambiguous.
    """
    root = _root(location)
    if isinstance(root, zarr.Array):
        location.selection.refuse(str(location), "level", "image", "label")
        return root
    if location.selection.label is not None:
        return _child(location, _labels(location, root), "label", location.selection.label)
    if location.plane is None or location.selection.image is not None:
        return _image(location, root)
    labels = _labels(location, root)
    if not labels:
        mask = root.get(XENIUM_MASKS[location.plane])
        return mask if isinstance(mask, zarr.Array) else _image(location, root)
    usual = usual_labels(list(labels)).get(location.plane)
    if len(labels) > 1 and usual is None:
        raise SourceError(f"{location} has the labels {_joined(labels)}; choose one: {location.path}#label=NAME")
    return _child(location, labels, "label", usual or next(iter(labels)))


def group_attributes(location: Location, path: str) -> dict[str, Any] | None:
    """Return the OME-Zarr attributes of a group at a path in a store; None if there is no group.

    Parameters
    ----------
    location : Location
        Of the store.
    path : str
        From the root; empty for the root itself.
    """
    node = _root(location)
    if path:
        node = node.get(path) if isinstance(node, zarr.Group) and _is_inside(path) else None
    return _attributes(node) if isinstance(node, zarr.Group) else None


def store_labels(location: Location) -> tuple[str, ...]:
    """Return the names of the labels that belong to the image at a location."""
    root = _root(location)
    return () if isinstance(root, zarr.Array) else tuple(_labels(location, root))


def usual_labels(names: Sequence[str]) -> dict[str, str]:
    """Return the labels with default names, by the name of their label plane."""
    found = {plane: [name for name in usual if name in names] for plane, usual in USUAL_LABELS.items()}
    return {plane: matching[0] for plane, matching in found.items() if matching}


def multiscale(location: Location, group: Any) -> Multiscale | None:
    """Return the OME-Zarr metadata of a group; None if the group is not an image or label.

    Raises
    ------
    SourceError
        If its axes are not some of t, c, z, followed by y, x.
    """
    attributes = _attributes(group)
    found = attributes.get("multiscales")
    if not found:
        return None
    with translated(location, "has damaged OME-Zarr metadata"):
        first = found[0]
        # Before version 0.3 there were always five axes.
        given = [axis["name"] if isinstance(axis, dict) else axis for axis in first.get("axes", "tczyx")]
        paths = tuple(str(dataset["path"]) for dataset in first["datasets"])
        channels = attributes.get("omero", {}).get("channels", [])
        names = tuple(str(channel.get("label", "")) for channel in channels)
        sizes = tuple(zarr_pixel_sizes(first, dataset) for dataset in first["datasets"])
        axes = _axes(location, given)
        placements = tuple(zarr_placements(first, axes, level) for level in range(len(paths)))
    return Multiscale(axes, paths, names, sizes, placements)


def array_axes(location: Location, array: Any) -> str:
    """Return the axes of an array without OME-Zarr metadata: its dimension names, or else (c, y, x) or (y, x).

    Raises
    ------
    SourceError
    """
    named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    lower = [str(name).lower() for name in named or ()]
    if lower and set(lower) <= set("tczyx"):
        return _axes(location, lower)
    if array.ndim not in (2, 3):
        raise SourceError(
            f"{location} is an array of shape {array.shape} without OME-Zarr metadata; it must be (C, H, W) or (H, W)"
        )
    return "cyx"[-array.ndim :]


def array_at(location: Location, group: Any, path: str) -> Any:
    """Return the array at a path that is given in the metadata of its group.

    Raises
    ------
    SourceError
    """
    array = group.get(path) if _is_inside(path) else None
    if not isinstance(array, zarr.Array):
        raise SourceError(f"{location} is damaged: its metadata name the array {cleaned(path)!r}, which does not exist")
    return array


def _is_inside(path: str) -> bool:
    """Return whether a path from a file stays inside its group."""
    return not any(part in ("", ".", "..") for part in path.split("/"))


def _axes(location: Location, names: Sequence[Any]) -> str:
    if len(set(names)) < len(names) or not set(names) <= set("tczyx") or list(names[-2:]) != ["y", "x"]:
        axes = cleaned(listed(names))
        raise SourceError(f"{location} has the axes {axes}; they must be some of t, c, z and then y, x")
    return "".join(names)


def _is_store(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, key)) for key in ZARR_KEYS) or is_zipped_zarr(folder)


def _root(location: Location) -> Node:
    remedy = url_remedy(location.path) if location.is_url else "check the store, or export it again"
    with translated(location, "cannot be opened as Zarr", remedy):
        store, within = StrictStore.at(location), location.inside.strip("/")
        if within and not _is_inside(within):
            raise SourceError(f"{location} leads out of the store; check the path")
        try:
            node = zarr.open(store, mode="r", path=within)
        except FileNotFoundError as error:
            what = "does not exist in the store" if within else "is no Zarr store"
            where = "check the address" if location.is_url else "check the path"
            raise SourceError(f"{location} {what}; {where}") from error
        if location.is_url or isinstance(node, zarr.Array):
            return node
        # Consolidated metadata may be out of date.
        return zarr.open_group(store, mode="r", path=within, use_consolidated=False)


def _attributes(group: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = group.attrs.asdict()
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes  # 0.5 and 0.4


def _image(location: Location, root: Any) -> Node:
    if _is_image(root):
        location.selection.refuse(str(location), "image")
        return root
    images = _images(root)
    name = location.selection.image
    if name is None:
        if len(images) == 1:
            name = next(iter(images))
        elif USUAL_IMAGE in images:
            name = USUAL_IMAGE
        elif images:
            raise SourceError(f"{location} has the images {_joined(images)}; choose one: {location.path}#image=NAME")
        elif {"plate", "well"} & _attributes(root).keys():
            raise SourceError(f"{location} is a plate or a well, which has many images; give the path of a field in it")
        else:
            raise SourceError(f"{location} is a Zarr group without an image; give the path of an image or array in it")
    return _child(location, images, "image", name)


def _images(root: Any) -> dict[str, Node]:
    """Return the images of a SpatialData store, or of a group of OME-Zarr images as written by bioformats2raw."""
    images = root.get("images")
    members = _members(images if isinstance(images, zarr.Group) else root)
    return {name: node for name, node in members.items() if isinstance(node, zarr.Array) or _is_image(node)}


def _labels(location: Location, root: Any) -> dict[str, Node]:
    """Return the labels of the image, or else of its store."""
    own = root if _is_image(root) or location.selection.image is None else _image(location, root)
    for group in (own, root):
        labels = group.get("labels") if isinstance(group, zarr.Group) else None
        if isinstance(labels, zarr.Group):
            # Not every server lists its files, and not every folder declares its labels.
            declared = _attributes(labels).get("labels", []) if location.is_url else []
            nodes = {str(name): labels.get(str(name)) for name in declared if _is_inside(str(name))}
            return {name: node for name, node in nodes.items() if node is not None} or _members(labels)
    return {}


def _members(group: Any) -> dict[str, Node]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns of other files, such as .DS_Store
        return dict(sorted(group.members()))


def _is_image(node: Node) -> bool:
    return isinstance(node, zarr.Group) and bool(_attributes(node).get("multiscales"))


def _child(location: Location, nodes: dict[str, Node], kind: str, name: str) -> Node:
    if name not in nodes:
        available = f"there are {_joined(nodes)}" if nodes else "there are none"
        raise SourceError(f"{location} does not exist: the store has no {kind} {name!r}; {available}")
    return nodes[name]


def _joined(names: Any) -> str:
    return listed([cleaned(name) for name in names])
