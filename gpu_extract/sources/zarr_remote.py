"""Zarr stores at URLs: time-outs, and an end of the process without tracebacks of asyncio."""

from __future__ import annotations

import asyncio
import atexit
import inspect
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any
from weakref import WeakSet

from zarr.storage import FsspecStore

__all__ = ["TIMEOUT", "close_at_exit", "remote_store", "url_remedy"]

# Seconds after which a server that sends nothing is given up. A slow download of a large chunk may take longer.
TIMEOUT = 20.0
# A server that is overloaded may drop a request without a word, so each is sent this often in that time.
N_SENT = 2

# File systems of fsspec with open sessions.
_SYSTEMS: WeakSet[Any] = WeakSet()


def remote_store(url: str) -> FsspecStore:
    """Return the store at a URL; nothing is requested yet."""
    return FsspecStore.from_url(url, storage_options=_storage_options(url), read_only=True)


def url_remedy(url: str) -> str:
    """Return what a user can do if a URL cannot be opened."""
    if _scheme(url) in ("s3", "s3a"):
        return (
            "check the address; for a public bucket give its https address, or set FSSPEC_S3_ANON=true; s3 needs pip "
            "install s3fs"
        )
    return "check the address; https needs pip install fsspec aiohttp, s3 needs s3fs; other files must be downloaded"


def close_at_exit(store: FsspecStore) -> None:
    """Close the session of a store at the end of the process.

    Requests that are still running when an error ends the process would otherwise fail in a closed event loop, with
    hundreds of lines of tracebacks.
    """
    if not _SYSTEMS:
        # After the import of zarr, whose own function stops the event loop: functions at exit run in reverse order.
        atexit.register(_close_all)
    _SYSTEMS.add(store.fs)


def _storage_options(url: str) -> dict[str, Any]:
    """Return options of fsspec that limit how long a server may send nothing, unless the user configured them."""
    scheme, wait = _scheme(url), TIMEOUT / N_SENT
    try:
        configured = import_module("fsspec.config").conf.get(scheme, {})
        if scheme in ("http", "https") and "client_kwargs" not in configured:
            limits = import_module("aiohttp").ClientTimeout(total=None, sock_connect=wait, sock_read=wait)
            return {"client_kwargs": {"timeout": limits}}
    except ImportError:  # reported, with what to install, when the store is opened
        return {}
    if scheme in ("s3", "s3a") and "config_kwargs" not in configured:
        config = {"connect_timeout": wait, "read_timeout": wait, "retries": {"max_attempts": 1}}
        return {"config_kwargs": config}
    return {}


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _close_all() -> None:
    from zarr.core.sync import sync

    with suppress(Exception):  # nobody can act on what goes wrong here
        sync(_end(list(_SYSTEMS)), timeout=TIMEOUT / 4)


async def _end(systems: Sequence[Any]) -> None:
    """Cancel the requests that are still running in the event loop of zarr, and close the sessions."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for system in systems:
        for session in (vars(system).get("_session"), vars(system).get("_s3")):  # of aiohttp, of aiobotocore
            close = getattr(session, "close", None)
            closing = close() if callable(close) else None
            if inspect.isawaitable(closing):
                await closing
    await asyncio.sleep(0)  # transports close in the next round of the loop
