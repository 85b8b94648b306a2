"""Stores at URLs."""

import copy
import itertools
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import zarr
from made.slides import small_slide
from made.stores import BOX, IMAGE, LABELS, crop, write_ome_zarr, write_spatialdata

import gpu_extract as gx
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, zarr_remote


@pytest.fixture
def served(tmp_path):
    """Serve a folder over HTTP, without listings; every tenth request fails. Yield the folder and its URL."""
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")

    class Handler(SimpleHTTPRequestHandler):
        n_requests = itertools.count(1)

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def do_GET(self):
            if next(self.n_requests) % 10 == 0:
                self.close_connection = True
            else:
                super().do_GET()

        def list_directory(self, path):
            self.send_error(404)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_over_http(served, version):
    folder, url = served
    write_ome_zarr(folder / "a.zarr", version=version, labels={"cells": LABELS}, chunks=(16, 16))
    slide = open_slide(f"{url}/a.zarr#c=0,2", nucleus="cells")
    assert (slide.name, slide.channel_names) == ("a", ("DNA", "actin"))
    assert slide.masks["nucleus"].source == f"{url}/a.zarr#label=cells"
    window = slide.read(BOX)
    np.testing.assert_array_equal(window.image, crop(IMAGE[[0, 2]]))
    np.testing.assert_array_equal(window.labels[0], crop(LABELS))


def test_a_slide_at_a_url_is_read_in_another_process(served, elsewhere):
    folder, url = served
    write_ome_zarr(folder / "a.zarr", labels={"nucleus": LABELS}, chunks=(32, 48))
    slide = open_slide(f"{url}/a.zarr")
    assert len(pickle.dumps(slide)) < 20_000
    (window,) = elsewhere([slide], BOX)
    np.testing.assert_array_equal(window.image, crop(IMAGE))
    np.testing.assert_array_equal(window.labels[0], crop(LABELS))
    np.testing.assert_array_equal(copy.deepcopy(slide).read(BOX).image, crop(IMAGE))


def test_absent_chunks_over_http(served):
    folder, url = served
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(folder / "a.zarr", data=labels, chunks=(32, 48))
    raster = open_labels(f"{url}/a.zarr#missing=error", "nucleus")
    with pytest.raises(SourceError, match=r"lacks the chunk c/0/0; .* select #missing=fill"):
        raster.read(*BOX)
    for selection in ("", "#missing=fill"):
        filled = open_labels(f"{url}/a.zarr{selection}", "nucleus")
        np.testing.assert_array_equal(filled.read(*BOX)[0], crop(labels))


@pytest.mark.parametrize(
    ("storage", "line"),
    [
        ({"chunks": (32, 48)}, "lacks 1 of its 6 chunks, which are read as 0"),
        ({"chunks": (16, 24), "shards": (32, 48)}, "lacks 1 of its 6 chunks, which are read as 0"),
        ({"chunks": (5, 5)}, r"lacks 1\d of 63 chunks that were requested, of 252; absent ones are read as 0"),
    ],
)
def test_absent_chunks_over_http_are_a_warning(served, storage, line):
    folder, url = served
    labels = LABELS.copy()
    labels[:32, :48] = 0
    zarr.create_array(folder / "a.zarr", data=labels, **storage)
    slide = open_slide(IMAGE, nucleus=f"{url}/a.zarr")
    assert re.search(line, slide.warnings[0])
    np.testing.assert_array_equal(slide.read(BOX).labels[0], crop(labels))
    assert open_slide(IMAGE, nucleus=f"{url}/a.zarr#missing=fill").warnings == ()


def test_an_array_without_any_chunk_over_http_is_an_error(served):
    folder, url = served
    zarr.create_array(folder / "a.zarr", shape=(70, 90), chunks=(32, 48), dtype="u2")
    with pytest.raises(SourceError, match=r"has none of its 6 chunks; .*, if it is empty, add #missing=fill"):
        open_slide(IMAGE, nucleus=f"{url}/a.zarr")


def test_spatialdata_over_http(served):
    folder, url = served
    write_spatialdata(folder / "a.zarr", labels={"seg_all_nucleus": LABELS})
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(folder / "a.zarr", zarr_format=3)
    np.testing.assert_array_equal(open_slide(f"{url}/a.zarr").read(BOX).image, crop(IMAGE))


@pytest.mark.parametrize("address", ["{url}/nothing.zarr", "http://127.0.0.1:1/a.zarr", "nonsense://a.zarr"])
def test_invalid_addresses_are_an_error(served, address):
    address = address.format(url=served[1])
    with pytest.raises(SourceError, match=r"(no Zarr store|opened as Zarr: .*); check the address") as caught:
        open_image(address)
    assert str(caught.value).startswith(f"image {address} ")
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_an_error_in_time(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(zarr_remote, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(SourceError, match=r"did not answer within 0\.3 s; check the address and the network"):
            open_image(f"http://127.0.0.1:{silent.getsockname()[1]}/a.zarr")
        assert time.monotonic() - start < 5  # 0.3 s, and the time of imports


@pytest.mark.parametrize("scheme", ["s3", "S3"])
def test_an_error_of_s3_says_how_a_public_bucket_is_read(monkeypatch, scheme):
    def from_url(*arguments, **options):
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(zarr_remote.FsspecStore, "from_url", from_url)
    with pytest.raises(SourceError, match="for a public bucket give its https address, or set FSSPEC_S3_ANON=true"):
        open_image(f"{scheme}://bucket/a.zarr")


FAIL = """
import sys
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image
raster = open_image(sys.argv[1])
try:
    raster.read(0, 0, *raster.shape[1:])
except SourceError:
    sys.exit(1)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_the_process_ends_without_tracebacks_after_an_error(served, attempt):
    """Requests that still run when the first chunk fails end with the process; without care, in one of three runs."""
    folder, url = served
    write_ome_zarr(folder / "a.zarr", np.ones((3, 300, 400), np.uint16), chunks=(16, 16))
    chunks = [file for file in (folder / "a.zarr" / "s0" / "c").rglob("*") if file.is_file()]
    for chunk in chunks[::7]:
        chunk.write_bytes(b"not a chunk")
    run = subprocess.run([sys.executable, "-c", FAIL, f"{url}/a.zarr"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "")


def test_cells_over_http_equal_those_from_disk(served):
    folder, url = served
    image, nucleus, cytosol = small_slide(1, size=(200, 260))
    labels = {"nucleus": nucleus, "cytosol": cytosol}
    write_ome_zarr(folder / "a.zarr", image, labels=labels, chunks=(32, 32))
    reports = [
        gx.extract(place, output=folder / f"{n}.h5sc", tile_size=24, device="cpu")
        for n, place in enumerate((f"{url}/a.zarr", folder / "a.zarr"))
    ]
    with gx.open_cells(reports[0].path) as remote, gx.open_cells(reports[1].path) as local:
        assert len(local) > 5
        np.testing.assert_array_equal(remote.ids, local.ids)
        np.testing.assert_array_equal(remote.read(range(len(remote))), local.read(range(len(local))))


def test_a_damaged_chunk_from_a_server_ends_the_run_with_one_line(served):
    folder, url = served
    image, nucleus, _ = small_slide(1, size=(200, 260))
    write_ome_zarr(folder / "a.zarr", image, labels={"nucleus": nucleus}, chunks=(32, 32))
    for chunk in (folder / "a.zarr" / "s0" / "c" / "1").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"not a chunk")
    with pytest.raises(SourceError, match="cannot be read at rows") as caught:
        gx.extract(f"{url}/a.zarr", output=folder / "a.h5sc", tile_size=24, device="cpu")
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("a.h5sc*"))
