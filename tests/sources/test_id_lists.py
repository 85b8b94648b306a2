"""Lists of ids in text files."""

import numpy as np
import pytest

from gpu_extract import InputError
from gpu_extract.sources.id_lists import read_ids


@pytest.mark.parametrize(
    "text",
    ["3\n12\n7", "3\r\n7\r\n12\r\n", "12 7 3", "3.0\n7.0\n12.0\n", "0\n3\n3\n7\n12\n", "\ufeff3\n7\n12\n"],
)
def test_ids_are_read(tmp_path, text):
    (tmp_path / "classes.csv").write_text(text, encoding="utf-8")
    assert read_ids(tmp_path / "classes.csv") == [3, 7, 12]


def test_ids_written_by_numpy_are_read(tmp_path):
    np.savetxt(tmp_path / "classes.csv", np.array([120.0, 3.0, 0.0]))
    assert read_ids(tmp_path / "classes.csv") == [3, 120]


def test_large_ids_stay_exact(tmp_path):
    (tmp_path / "ids").write_text(f"{2**64 - 1}\n{2**53 + 1}\n{2**63 + 1}.0\n")
    assert read_ids(tmp_path / "ids") == [2**53 + 1, 2**63 + 1, 2**64 - 1]


@pytest.mark.parametrize(
    "entry", ["-1", "1.5", "1e-3", "nan", "1,2", "cell_id", "٣", "1e99", "9" * 5000, str(2**64), "1_0"]
)
def test_other_entries_are_refused(tmp_path, entry):
    (tmp_path / "ids").write_text(f"4\n{entry}\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"^entry 2 of ids .*ids is '.{1,40}'; the file must hold one whole number per"
    ):
        read_ids(tmp_path / "ids")


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_ids(tmp_path / "ids")
    (tmp_path / "ids").write_bytes(b"\x89HDF\xff\x81")
    with pytest.raises(InputError, match="is not a text file"):
        read_ids(tmp_path / "ids")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_ids_are_read_in_the_encodings_of_windows(tmp_path, encoding):
    (tmp_path / "ids").write_bytes("3\r\n7\r\n12\r\n".encode(encoding))  # PowerShell writes UTF-16
    assert read_ids(tmp_path / "ids") == [3, 7, 12]
