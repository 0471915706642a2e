"""Moonshine's process, with a package that stands in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelerator.benchmark import moonshine
from accelerator.benchmark.moonshine import Moonshine
from accelerator.benchmark.process import ArmFailed

DOUBLE = """
import os
import wave


class MoonshineModel:
    def transcribe_wav(self, path):
        with wave.open(path) as file:
            if not file.getnframes():
                raise ValueError("nothing to hear")
            return f"{os.getpid()} {file.getframerate()} {file.getsampwidth()} {file.getnframes()}"
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moonshine:
    (tmp_path / "moonshine_cpp.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(moonshine, "_CLIPS", 2)
    return Moonshine(16_000)


def test_it_is_given_a_file_of_16_bits_and_renewed(model: Moonshine) -> None:
    heard = [model(np.zeros(500 + n, np.float32)).split() for n in range(3)]
    model.close()
    assert [words[1:] for words in heard] == [["16000", "2", str(500 + n)] for n in range(3)]
    processes = [words[0] for words in heard]
    assert processes[0] == processes[1] != processes[2]


def test_what_fails_in_it_is_said(model: Moonshine) -> None:
    with pytest.raises(ArmFailed, match="nothing to hear"):
        model(np.zeros(0, np.float32))
    model.close()
