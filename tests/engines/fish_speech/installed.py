"""fish-speech as it is installed, and what it is asked.

The tests marked `engine` run on the real package. Set

    ACCELERATOR_FISH_SPEECH_ROOT        a checkout; one layout per process: what runs S1-mini, or the current one
    ACCELERATOR_FISH_SPEECH_CHECKPOINT  a checkpoint folder for it, with codec.pth; best a tiny one, of random weights
    ACCELERATOR_FISH_SPEECH_CODEC       the codec's configuration in the checkout's configs (default: modded_dac_vq)

The others need PyTorch only.
"""

from __future__ import annotations

import functools
import io
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator.audio.checks import write_wav

ROOT = os.environ.get("ACCELERATOR_FISH_SPEECH_ROOT")
CHECKPOINT = os.environ.get("ACCELERATOR_FISH_SPEECH_CHECKPOINT")
CODEC = os.environ.get("ACCELERATOR_FISH_SPEECH_CODEC", "modded_dac_vq")
TEXT = "Hello world, this is a test."
engine_test = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not ROOT or not CHECKPOINT,
        reason="needs a fish-speech checkout and checkpoint: see tests/engines/fish_speech/installed.py",
    ),
    pytest.mark.filterwarnings("ignore"),  # of the engine and the dozens of packages it imports
]


def real(test: Any) -> Any:
    return functools.reduce(lambda decorated, mark: mark(decorated), engine_test, test)


def tone(seconds: float = 1.3, rate: int = 44100) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t)) * 0.02
    return (0.3 * np.sin(2 * np.pi * 180 * t) * (0.6 + 0.4 * np.sin(9 * t)) + noise).astype(np.float32)


def wav(seconds: float = 1.3, rate: int = 44100) -> bytes:
    file = io.BytesIO()
    write_wav(file, tone(seconds, rate), rate)
    return file.getvalue()


def tts(text: str = TEXT, **options: Any) -> Any:
    from fish_speech.utils.schema import ServeTTSRequest

    return ServeTTSRequest(text=text, **{"max_new_tokens": 24, **options})


class Fault(RuntimeError):
    pass


def break_after(fast: Any, part: str, items: int) -> None:
    """The part's ONNX twin fails; a generator part does after so many items."""
    route = fast._routes[part]
    call = route._choice.call

    def failing(*args: Any, **options: Any) -> Any:
        if not route.part.streams:
            raise Fault(part)
        return failing_stream(*args, **options)

    def failing_stream(*args: Any, **options: Any) -> Any:
        frames = call(*args, **options)
        for _ in range(items):
            yield next(frames)
        raise Fault(part)

    route._choice = replace(route._choice, call=failing)
