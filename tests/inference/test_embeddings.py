from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelerator.errors import CorruptEntry
from accelerator.inference import embeddings
from accelerator.inference.embeddings import Table, write_table


def bfloat16(rows: np.ndarray) -> np.ndarray:
    return (rows.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("count", [1, 5, 10, 23])
def test_rows_come_back_bit_for_bit(tmp_path: Path, count: int, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_CHUNK", 5)
    rows = np.random.default_rng(count).standard_normal((count, 7)).astype(np.float32)
    rows = bfloat16(rows) if exact else rows
    write_table(tmp_path / "t.npy", rows)
    table = Table(tmp_path / "t.npy")
    assert table.shape == (count, 7)
    everything = table[np.arange(count)]
    assert everything.dtype == np.float32
    np.testing.assert_array_equal(everything, rows)
    np.testing.assert_array_equal(table[0], rows[0])
    np.testing.assert_array_equal(table[np.array([count - 1, 0, 0])], rows[[count - 1, 0, 0]])
    itemsize = 2 if exact else 4
    assert count * 7 * itemsize <= (tmp_path / "t.npy").stat().st_size <= count * 7 * itemsize + 256


def test_one_weight_that_bfloat16_cannot_hold_keeps_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_CHUNK", 4)
    rows = np.ones((10, 3), np.float32)
    rows[9, 2] = 1.0001
    write_table(tmp_path / "t.npy", rows)
    np.testing.assert_array_equal(Table(tmp_path / "t.npy")[np.arange(10)], rows)


def test_special_values(tmp_path: Path) -> None:
    rows = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, -1.5]], np.float32)
    write_table(tmp_path / "t.npy", rows)
    back = Table(tmp_path / "t.npy")[0]
    np.testing.assert_array_equal(back, rows[0])
    assert np.signbit(back[1])


def test_what_is_handed_out_may_be_changed(tmp_path: Path) -> None:
    for rows in (np.ones((4, 3), np.float32), np.full((4, 3), 1.1, np.float32)):
        write_table(tmp_path / "t.npy", rows)
        table = Table(tmp_path / "t.npy")
        table[np.array([1, 2])][:] = 9
        np.testing.assert_array_equal(table[np.arange(4)], rows)


def test_any_other_file_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    with pytest.raises(CorruptEntry, match=r"t\.npy"):
        Table(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptEntry):
        Table(path)
    path.write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(CorruptEntry):
        Table(path)
    for wrong in (np.zeros((3, 3), np.float64), np.zeros(3, np.float32), np.zeros((2, 2, 2), np.float32)):
        np.save(path, wrong)
        with pytest.raises(CorruptEntry, match="not an embedding table"):
            Table(path)
    np.save(path, np.array([[{"a": 1}]]), allow_pickle=True)
    with pytest.raises(CorruptEntry):
        Table(path)
    write_table(path, np.ones((100, 9), np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptEntry):
        Table(path)
