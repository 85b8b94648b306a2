"""TIFF behind a URL."""

import re
import socket
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tifffile
from made.stores import BOX, IMAGE, LABELS, crop

import gpu_extract as gx
from gpu_extract.errors import SourceError
from gpu_extract.sources import open_image, open_labels, open_slide, remote_files
from gpu_extract.sources.fingerprints import slide_fingerprint

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

GRAY = {"photometric": "minisblack"}
RGB = np.random.default_rng(2).integers(0, 256, (90, 110, 3)).astype(np.uint8)


class Handler(SimpleHTTPRequestHandler):
    """Serves ranges of the files in a folder, and counts the bytes it sends."""

    folder, serves_ranges, n_sent = "", True, 0

    def __init__(self, *arguments):
        super().__init__(*arguments, directory=self.folder)

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not self.serves_ranges:
            super().do_GET()
            return
        first, last = map(int, wanted.groups())
        with open(self.translate_path(self.path), "rb") as stream:
            content = stream.read()
        part = content[first : last + 1]
        type(self).n_sent += len(part)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_): ...


@pytest.fixture
def served(tmp_path):
    """Return a folder on a local HTTP server, its address and the class that handles its requests."""
    handler = type("Handler", (Handler,), {"folder": str(tmp_path)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


STORED = {
    "raw": {},
    "raw pages": {"metadata": None},
    "big-endian": {"byteorder": ">"},
    "tiles": {"tile": (32, 48), "compression": "zlib"},
    "lzw strips": {"rowsperstrip": 16, "compression": "lzw"},
    "ome": {"ome": True, "metadata": {"axes": "CYX", "Channel": {"Name": ["DNA", "pH3", "actin"]}}},
}


@pytest.mark.parametrize("stored", STORED)
def test_tiff_over_http(served, stored, monkeypatch):
    monkeypatch.setattr("gpu_extract.sources.tiff.REMOTE_STRIP", 2000)  # several strips, the last one smaller
    folder, url, _ = served
    tifffile.imwrite(folder / "a.tif", IMAGE, **GRAY, **STORED[stored])
    raster = open_image(f"{url}/a.tif")
    assert raster.shape == IMAGE.shape
    assert raster.dtype == IMAGE.dtype
    assert raster.names == (("DNA", "pH3", "actin") if stored == "ome" else ())
    np.testing.assert_array_equal(raster.read(*BOX), crop(IMAGE))
    np.testing.assert_array_equal(open_image(f"{url}/a.tif#c=2").read(*BOX), crop(IMAGE[2:]))


def test_a_remote_file_has_a_fingerprint_of_its_version_and_some_pixels(served):
    folder, url, _ = served
    tifffile.imwrite(folder / "a.tif", IMAGE, **GRAY)
    found = slide_fingerprint(open_slide(f"{url}/a.tif", nucleus=LABELS))["image"]
    assert found[f"{url}/a.tif"].keys() == {"bytes", "version"}
    assert found["sample"] == slide_fingerprint(open_slide(IMAGE, nucleus=LABELS))["image"]["sample"]


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "zlib"}])
def test_rgb_over_http(served, options):
    folder, url, _ = served
    tifffile.imwrite(folder / "a.tiff", RGB, photometric="rgb", **options)
    np.testing.assert_array_equal(open_image(f"{url}/a.tiff").read(*BOX), crop(np.moveaxis(RGB, -1, 0)))


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64), "compression": "zlib"}])
def test_only_what_a_box_touches_is_downloaded(served, options):
    folder, url, handler = served
    large = np.random.default_rng(0).integers(0, 60_000, (3000, 2000)).astype(np.uint16)
    tifffile.imwrite(folder / "a.tif", large, **options)
    raster = open_image(f"{url}/a.tif")
    opened = handler.n_sent
    np.testing.assert_array_equal(raster.read(900, 900, 950, 960)[0], large[900:950, 900:960])
    assert opened <= 3 * remote_files.BLOCK
    assert handler.n_sent - opened < 1 << 20 < large.nbytes / 8


def test_cells_over_http_are_those_of_the_disk(served):
    folder, url, _ = served
    tifffile.imwrite(folder / "a.tif", IMAGE, **GRAY)
    labels = np.zeros(LABELS.shape, np.uint16)
    labels[30:40, 30:45], labels[50:62, 70:80] = 3, 9
    tifffile.imwrite(folder / "n.tif", labels, compression="zlib", tile=(32, 32))
    reports = [
        gx.extract(f"{at}/a.tif", nucleus=f"{at}/n.tif", output=folder / f"{n}.h5sc", tile_size=24, device="reference")
        for n, at in enumerate((url, folder))
    ]
    with gx.open_cells(reports[0].path) as remote, gx.open_cells(reports[1].path) as local:
        assert remote.ids.tolist() == [3, 9]
        np.testing.assert_array_equal(remote.read(range(2)), local.read(range(2)))


def test_a_remote_slide_is_read_in_another_process(served, elsewhere):
    folder, url, _ = served
    tifffile.imwrite(folder / "a.tif", IMAGE, tile=(32, 32), compression="zlib", **GRAY)
    (window,) = elsewhere([open_slide(f"{url}/a.tif", nucleus=LABELS)], BOX)
    np.testing.assert_array_equal(window.image, crop(IMAGE))


@pytest.mark.parametrize("address", ["{url}/nothing.tif", "http://127.0.0.1:1/a.tif", "nonsense://a.tif"])
def test_addresses_that_lead_nowhere(served, address):
    address = address.format(url=served[1])
    with pytest.raises(SourceError, match=r"cannot be opened: .*; check the address") as caught:
        open_image(address)
    assert str(caught.value).startswith(f"image {address} ")
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(remote_files, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(SourceError, match="cannot be opened"):
            open_image(f"http://127.0.0.1:{silent.getsockname()[1]}/a.tif")
    assert time.monotonic() - start < 5


def test_a_server_without_ranges_is_refused(served):
    folder, url, handler = served
    handler.serves_ranges = False
    large = np.random.default_rng(0).integers(0, 60_000, (600, 900)).astype(np.uint16)
    tifffile.imwrite(folder / "a.tif", large)
    with pytest.raises(SourceError, match=r"cannot be read by parts: .*; download it and give the file"):
        open_image(f"{url}/a.tif")


def test_damage_is_one_line(served):
    folder, url, _ = served
    tifffile.imwrite(folder / "a.tif", IMAGE, tile=(32, 32), compression="zlib", **GRAY)
    content = bytearray((folder / "a.tif").read_bytes())
    (folder / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError) as caught:
        open_image(f"{url}/a.tif").read(*BOX)
    assert "\n" not in str(caught.value)


def test_several_files_over_http_are_refused(served):
    folder, url, _ = served
    uuid = '<UUID FileName="b.tif">urn:uuid:1</UUID>'
    sizes = 'SizeX="110" SizeY="90" SizeC="2" SizeZ="1" SizeT="1"'
    parts = f'<TiffData FirstC="0"/><TiffData FirstC="1">{uuid}</TiffData>'
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" {sizes}>{parts}</Pixels>'
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">{pixels}</Image></OME>'
    tifffile.imwrite(folder / "a.tif", IMAGE[0], metadata=None, description=xml)
    with pytest.raises(SourceError, match="consists of several files, which are read from disk only"):
        open_image(f"{url}/a.tif")


def test_labels_over_http(served):
    folder, url, _ = served
    tifffile.imwrite(folder / "n.tif", LABELS)
    np.testing.assert_array_equal(open_labels(f"{url}/n.tif", "nucleus").read(*BOX)[0], crop(LABELS))
