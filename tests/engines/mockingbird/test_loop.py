"""The attention loop: when it ends, that it goes on elsewhere, and that threads do not meet."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines.mockingbird.loop import Block, Sentence, frames
from accelerator.engines.mockingbird.masks import Masks

NOBODY = np.zeros((1, 3, 4), np.float32)


class Counting:
    """Steps whose frames are their number and what the frame before was; the stop token comes in time."""

    def __init__(self, sentence: Sentence, *, ends: int = 10_000, wrong: bool = False) -> None:
        self.number, self.last, self.ends, self.wrong = 0, 0.0, ends, wrong

    def __call__(self, mask1: np.ndarray, mask2: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        value = self.number + self.last / 1000 + (0.5 if self.wrong else 0.0)
        stop = 0.9 if self.number >= self.ends else 0.1
        self.number, self.last = self.number + 1, value
        return np.full((4, 3), value, np.float32), np.ones(3, np.float32) / 3, stop

    def told(self, frame: np.ndarray) -> None:
        self.last = float(frame[0])


def masks() -> Masks:
    return Masks(0, ((2, 2), (2, 2)), (0.5, 0.5))


def run(steps: int = 60, min_stop_token: int = 5, resume: Any = (), **how: Any) -> list[Block]:
    sentence = Sentence(NOBODY, NOBODY, steps, min_stop_token)
    return list(frames(functools.partial(Counting, **how), sentence, masks(), resume=resume))


@pytest.mark.parametrize(("steps", "blocks"), [(60, 20), (61, 21), (1, 1)])
def test_it_has_so_many_frames_at_most(steps: int, blocks: int) -> None:
    assert len(run(steps)) == blocks


@pytest.mark.parametrize(("ends", "blocks"), [(0, 5), (3, 5), (4, 5), (7, 8)])
def test_the_stop_token_ends_it_but_not_at_once(ends: int, blocks: int) -> None:
    """Not before the step that begins after ten frames, of three a step: the fifth."""
    assert len(run(ends=ends)) == blocks


def test_a_stop_token_must_be_likely_enough() -> None:
    assert len(run(ends=7, min_stop_token=9)) == 20


@pytest.mark.parametrize("known", [1, 6, 8])
def test_it_goes_on_after_what_is_known(known: int) -> None:
    whole = run(ends=12)
    rest = run(ends=12, resume=whole[:known])
    for mine, expected in zip(rest, whole[known:], strict=True):
        np.testing.assert_array_equal(mine.mel, expected.mel)


def test_what_is_known_is_believed_and_not_what_it_would_have_said() -> None:
    whole = run(ends=12)
    rest = run(ends=12, wrong=True, resume=whole[:6])
    assert rest[0].mel[0, 0] == pytest.approx(6 + 0.5 + whole[5].mel[0, 0] / 1000)


def test_a_stop_token_that_ended_what_is_known_ends_it() -> None:
    whole = run(ends=7)
    assert run(ends=7, resume=whole) == []
    assert len(run(ends=7, resume=run(ends=20)[:12])) == 0


@pytest.fixture(scope="module")
def spoken(fast: UniversalOptimizer, voice: np.ndarray) -> Any:
    """text, whose call -> blocks."""
    from accelerator.engines.mockingbird.routed import said

    adapter: Any = fast.adapter
    calls = {
        "onnxruntime": {name: route.choice.call for name, route in fast._routes.items()},
        "pytorch": {name: route.part.original for name, route in fast._routes.items()},
    }

    def speak(text: str, backend: str, seed: int = 3) -> list[Block]:
        symbols = adapter.engine.symbols(text)
        return list(said(adapter, calls[backend], symbols, voice, seed, style_idx=2, min_stop_token=5, steps=50))

    return speak


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_a_seed_gives_the_engines_own_spectrogram(spoken: Any, engine: Any, voice: np.ndarray, backend: str) -> None:
    blocks = spoken("hello there", backend)
    with engine.seeded(3):
        expected = engine.synthesizer._model.generate(
            *_tensors(engine.symbols("hello there"), voice), style_idx=2, min_stop_token=5, steps=50
        )
    mel = np.concatenate([block.mel for block in blocks], axis=1)
    np.testing.assert_allclose(mel, expected[0][0].detach().numpy(), atol=1e-5)
    scores = np.stack([block.scores for block in blocks])
    np.testing.assert_allclose(scores, expected[2][0].detach().numpy(), atol=1e-5)


def _tensors(*arrays: np.ndarray) -> Any:
    import torch

    return [torch.from_numpy(each)[None] for each in arrays]


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_threads_do_not_meet(spoken: Any, backend: str) -> None:
    texts = ["hello there", "one two three four five", "a", "what is this?"] * 3
    alone = [spoken(text, backend) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: spoken(text, backend), texts))
    for one, other in zip(alone, together, strict=True):
        for mine, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine.mel, expected.mel)
