"""The real engine, wrapped and not. See installed.py for the setup."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines.fish_speech import layouts, weights
from accelerator.inference import sampling
from tests.engines.fish_speech.installed import CHECKPOINT, CODEC, ROOT


@pytest.fixture(scope="module")
def module() -> Any:
    """fish-speech's inference module."""
    assert ROOT is not None
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(ROOT)
        _, inference = layouts.installed()
        from loguru import logger

        logger.remove()
        torch.set_num_threads(2)
        yield inference


@pytest.fixture(scope="module")
def load_engine(module: Any) -> Callable[..., Any]:
    """Makes an engine as fish-speech's own tools do. Its codec has no 32768 x 32768 masks, which nothing reads."""
    from fish_speech.inference_engine import TTSInferenceEngine

    assert CHECKPOINT is not None
    file = Path(CHECKPOINT) / "codec.pth"

    def make(dtype: torch.dtype = torch.float32) -> Any:
        requests = module.launch_thread_safe_queue(CHECKPOINT, "cpu", dtype)
        codec = weights.load_codec(weights.codec_shell(CODEC, file), file)
        return TTSInferenceEngine(llama_queue=requests, decoder_model=codec, precision=dtype, compile=False)

    return make


@pytest.fixture(scope="module")
def engine(load_engine: Any) -> Iterator[Any]:
    engine = load_engine()
    yield engine
    engine.llama_queue.put(None)


@pytest.fixture(scope="module")
def fast(engine: Any) -> Iterator[Any]:
    with UniversalOptimizer(engine, precision="fp32", threads=2, probe=False) as optimizer:
        optimizer.prepare()
        assert {name: part["backend"] for name, part in optimizer.status()["parts"].items()} == {
            "encoder": "onnxruntime",
            "text2semantic": "onnxruntime",
            "decoder": "onnxruntime",
        }, optimizer.status()
        yield optimizer


@pytest.fixture(autouse=True)
def whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to the routes of `fast` is undone."""
    if "fast" not in request.fixturenames:
        yield
        return
    routes = request.getfixturevalue("fast")._routes
    before = {name: route._choice for name, route in routes.items()}
    yield
    for name, route in routes.items():
        route._choice, route._failures = before[name], 0


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Both the engine and its copy draw the most likely token, whatever the request says."""
    monkeypatch.setattr(sampling, "draw", lambda logits, rng, **_: int(logits.argmax()))
    monkeypatch.setattr(
        module, "multinomial_sample_one_no_sync", lambda probs: probs.argmax(dim=-1, keepdim=True).to(torch.int)
    )
