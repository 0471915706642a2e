"""The encoder's graphs: what they say of recordings, one of them in memory at a time, and that only while it runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines.spark_tts import encoder
from accelerator.engines.spark_tts.examples import noise
from accelerator.engines.spark_tts.stages import NOTHING, check_encoded
from accelerator.errors import BadOutput, SessionError
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions
from tests.engines.spark_tts.double import RATE


@pytest.fixture
def paths(fast: UniversalOptimizer) -> Mapping[str, Path]:
    choice = fast._routes["encoder"].choice
    assert choice is not None
    return {name: export.path for name, export in choice.exports.items()}


def test_what_is_said_and_by_whom_is_the_engines(fast: UniversalOptimizer, paths: Mapping[str, Path]) -> None:
    adapter: Any = fast.adapter
    call = encoder.load_encoder(paths, RunOptions(), adapter._reading.values)
    for seconds in (0.21, 1.0, 6.7):
        audio = noise(seconds, RATE)
        clip = np.resize(audio, 6 * RATE).astype(np.float32)
        for own, codes in zip(adapter._encode_in_torch(audio, clip), call(audio, clip), strict=True):
            np.testing.assert_array_equal(codes, own)
            assert codes.dtype == np.int64
        unsaid, who = call(None, clip)
        assert unsaid is NOTHING
        np.testing.assert_array_equal(who, call(audio, clip)[1])
        assert adapter._encode_in_torch(None, clip)[0] is NOTHING


def test_no_graph_stays_in_memory(
    fast: UniversalOptimizer, paths: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Session]] = []
    at_once: list[int] = []

    class Watched(Session):
        def __init__(self, path: Path, options: RunOptions) -> None:
            super().__init__(path, options)
            alive.append(weakref.ref(self))
            gc.collect()
            at_once.append(sum(each() is not None for each in alive))
            assert (options.arena, options.prepack) == (False, False), "weights stay in the file"

    monkeypatch.setattr(encoder, "Session", Watched)
    adapter: Any = fast.adapter
    call = encoder.load_encoder(paths, RunOptions(), adapter._reading.values)
    audio = noise(0.5, RATE)
    call(audio, np.resize(audio, 6 * RATE).astype(np.float32))
    gc.collect()
    assert len(alive) == 6, "each is opened to see whether it can be, and to run"
    assert max(at_once) == 1
    assert not any(each() for each in alive)


def test_what_cannot_be_opened_is_known_when_it_is_loaded(paths: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "first.onnx").write_bytes(b"no graph")
    with pytest.raises(SessionError, match=r"cannot load first\.onnx"):
        encoder.load_encoder({**paths, "encoder": tmp_path}, RunOptions(), lambda audio: audio)


def test_codes_that_cannot_be_right_are_refused() -> None:
    good = np.array([0, 3])
    check_encoded((good, good), (4, 4))
    check_encoded((NOTHING, good), (4, 4))
    for answer in ((np.array([4]), good), (good, np.array([-1])), (np.zeros(0, np.int64), good)):
        with pytest.raises(BadOutput):
            check_encoded(answer, (4, 4))
