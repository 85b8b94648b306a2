"""Which channel is meant, where it is given by its index or by its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_extract.errors import InputError

__all__ = ["channel_index", "channel_indices"]


def channel_index(wanted: int | str, names: Sequence[str], subject: str) -> int:
    """The index of a channel.

    Parameters
    ----------
    wanted : int or str
        An index from 0, or a name. A text of digits that is no name is an index too, since that is all that a
        command line can give.
    names : sequence of str
        Of all channels, different where they are not empty.
    subject : str
        What has the channels; used in messages.

    Raises
    ------
    InputError
        If there is no such channel, or two are meant: the message names those there are.
    """
    by_name = [index for index, name in enumerate(names) if name == wanted]
    is_number = isinstance(wanted, str) and wanted.isascii() and wanted.isdecimal() and len(wanted) < 10
    index = int(wanted) if is_number or not isinstance(wanted, str) else -1
    by_index = [index] if 0 <= index < len(names) else []
    found = {*by_name, *by_index}
    if len(found) > 1:
        raise InputError(
            f"{subject}: {wanted} is the index of channel {names[index]} and the name of channel {by_name[0]}; "
            "rename the channels, in Python with channel_names="
        )
    if not found:
        listed = ", ".join(f"{name} ({index})" if name else f"{index}" for index, name in enumerate(names))
        raise InputError(f"{subject} has no channel {wanted}; there {'are' if len(names) > 1 else 'is'} {listed}")
    return found.pop()


def channel_indices(wanted: Iterable[int | str], names: Sequence[str], subject: str) -> tuple[int, ...]:
    """The indices of several channels, in the order given.

    Raises
    ------
    InputError
        If one is not there or is given twice, or none is given.
    """
    indices = tuple(channel_index(each, names, subject) for each in wanted)
    if not indices:
        raise InputError(f"{subject}: no channel is chosen; name one, or leave the choice out for all")
    if len(set(indices)) < len(indices):
        twice = next(index for index in indices if indices.count(index) > 1)
        raise InputError(f"{subject}: channel {names[twice] or twice} is chosen twice; give it once")
    return indices
