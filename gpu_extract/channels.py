"""Lookup of channels by index or name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_extract.errors import InputError
from gpu_extract.listing import listed

__all__ = ["channel_index", "channel_indices"]


def channel_index(wanted: int | str, names: Sequence[str], subject: str) -> int:
    """Return the index of a channel.

    Parameters
    ----------
    wanted : int or str
        An index from 0, or a name. A string of digits that is not a name is an index, since the command line passes
        strings only.
    names : sequence of str
        Names of all channels; unique, except for empty ones.
    subject : str
        Owner of the channels, for messages.

    Raises
    ------
    InputError
        If there is no such channel, or the index of one is the name of another. The message lists the channels.
    """
    by_name = [index for index, name in enumerate(names) if name == wanted]
    is_number = isinstance(wanted, str) and wanted.isascii() and wanted.isdecimal() and len(wanted) < 10
    index = int(wanted) if is_number or not isinstance(wanted, str) else -1
    by_index = [index] if 0 <= index < len(names) else []
    found = {*by_name, *by_index}
    if len(found) > 1:
        raise InputError(
            f"{subject}: {wanted} is the index of channel {names[index]} and the name of channel {by_name[0]}; "
            "rename the channels with --channel-names (channel_names=)"
        )
    if not found:
        known = [f"{name} ({index})" if name else f"{index}" for index, name in enumerate(names)]
        there = f"there {'are' if len(names) > 1 else 'is'} {listed(known)}"
        raise InputError(f"{subject} has no channel {wanted}; {there}")
    return found.pop()


def channel_indices(wanted: Iterable[int | str], names: Sequence[str], subject: str) -> tuple[int, ...]:
    """Return the indices of several channels, in the given order.

    Raises
    ------
    InputError
        If a channel does not exist or is given twice, or if none is given.
    """
    indices = tuple(channel_index(each, names, subject) for each in wanted)
    if not indices:
        raise InputError(f"{subject}: no channel is chosen; name one, or leave the choice out for all")
    if len(set(indices)) < len(indices):
        twice = next(index for index in indices if indices.count(index) > 1)
        raise InputError(f"{subject}: channel {names[twice] or twice} is chosen twice; give it once")
    return indices
