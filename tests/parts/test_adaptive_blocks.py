"""Residual blocks by compiled kernels between pieces of a graph, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelerator import kernels
from accelerator.errors import ExportError, SessionError
from accelerator.export.graph.rewrite import rewrite_activations
from accelerator.parts import adaptive_blocks
from accelerator.parts.adaptive_blocks import Pieces, write
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions
from tests.export import residual

tiled = pytest.mark.skipif(not kernels.multiplies_chains(), reason="needs AMX or AVX512_BF16, and numba")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = residual.saved(tmp_path_factory.mktemp("whole") / "m.onnx")
    rewrite_activations(path)
    return path


@pytest.fixture(scope="module")
def directory(whole: Path) -> Path:
    (directory := whole.parent / "pieces").mkdir()
    write(whole, directory)
    return directory


@tiled
@pytest.mark.parametrize("length", [1, 40, 512, 1100])
def test_pieces_answer_as_the_whole_graph_does(whole: Path, directory: Path, length: int) -> None:
    """Shorter than a tile, one of them, and several: the norms of all rows are made of those of tiles."""
    feed = residual.feed(length)
    expected, shape = Session(whole).run(feed)
    audio, same = Pieces(directory, RunOptions())(feed)
    np.testing.assert_array_equal(same, shape)
    assert audio.shape == expected.shape
    assert 10 * np.log10(np.square(expected).sum() / np.square(audio - expected).sum()) > 40.0


@tiled
def test_threads_change_nothing(directory: Path) -> None:
    feed = residual.feed(1300)
    answers = [Pieces(directory, RunOptions(threads=threads))(feed)[0] for threads in (1, 2, 3)]
    np.testing.assert_array_equal(answers[1], answers[0])
    np.testing.assert_array_equal(answers[2], answers[0])


@tiled
def test_calls_share_their_weights(directory: Path) -> None:
    one, several = (Pieces(directory, RunOptions(threads=threads)) for threads in (1, 2))
    assert one._blocks is several._blocks


@tiled
def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "blocks.safetensors").write_bytes(b"nothing")
    with pytest.raises(SessionError, match=r"blocks\.safetensors cannot be read"):
        Pieces(tmp_path, RunOptions())


def test_channels_that_tiles_do_not_hold_are_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive_blocks, "CHUNK", 48)
    with pytest.raises(ExportError, match="no residual blocks"):
        write(whole, tmp_path)


@pytest.mark.parametrize("shape", [(3, 700), (700, 3), (256, 256), (1, 1)])
def test_a_signal_is_turned(shape: tuple[int, int]) -> None:
    x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    turned = adaptive_blocks._turned(x)
    np.testing.assert_array_equal(turned, x.T)
    assert turned.flags.c_contiguous
