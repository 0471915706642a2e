"""Tacotron's attention loop: r frames a step, until the stop token says so.

A step answers with frames and the state that the next one needs, so that nothing is kept in a layer. An interrupted
loop goes on elsewhere by running its steps again: with the same masks, and with the frames that are known already.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from .masks import Masks
from .traceable import STATE

__all__ = ["Block", "InONNX", "InTorch", "Sentence", "Stepping", "frames", "loader"]

_NOT_BEFORE = 10  # frames: the engine asks for the stop token only afterwards


class Block(NamedTuple):
    """A step's frames, float32 [80, r], and how much each symbol was attended to, float32 [T]."""

    mel: np.ndarray
    scores: np.ndarray


class Sentence(NamedTuple):
    """What a loop is about: a text's memory [1, T, D] and keys [1, T, A]; the frames it has at most; when it ends."""

    memory: np.ndarray
    keys: np.ndarray
    steps: int
    min_stop_token: int


class Stepping(Protocol):
    """One sentence's way through its steps."""

    def __call__(self, mask1: np.ndarray, mask2: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The next step's mel [80, r], scores [T], and the probability of the end."""
        ...

    def told(self, frame: np.ndarray) -> None:
        """What the last frame was, float32 [80]."""
        ...


def frames(
    begin: Callable[[Sentence], Stepping], sentence: Sentence, masks: Masks, *, resume: Sequence[Block] = ()
) -> Iterator[Block]:
    """A sentence's blocks, after those of `resume`. begin: starts a loop. Raises what its steps raise."""
    step, r, number = begin(sentence), 0, 0
    while number * r < sentence.steps:
        mel, scores, stop = step(*masks.step(number))
        r = mel.shape[1]
        known = number < len(resume)
        if known:
            step.told(resume[number].mel[:, -1])
        else:
            yield Block(mel, scores)
        if stop * 10 > sentence.min_stop_token and number * r > _NOT_BEFORE and number >= len(resume) - 1:
            return
        number += 1


class InTorch:
    """By the engine's own layers. step: a `traceable.Step`."""

    def __init__(self, step: Any, widths: Mapping[str, int], sentence: Sentence) -> None:
        import torch

        self._step, length = step, sentence.memory.shape[1]
        self._text = [torch.from_numpy(each) for each in (sentence.memory, sentence.keys)]
        self._text.append(torch.zeros(1, length))
        self._state = [torch.zeros(1, widths.get(name, length)) for name in STATE]

    def __call__(self, mask1: np.ndarray, mask2: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(mask1), torch.from_numpy(mask2)
            mel, scores, stop, *state = self._step(*self._text, *given, *self._state)
        self._state = state
        return mel[0].numpy(), scores[0].numpy(), float(stop)

    def told(self, frame: np.ndarray) -> None:
        import torch

        self._state[0] = torch.from_numpy(frame[None].copy())


class InONNX:
    """By a graph in ONNX Runtime, which reads and writes fixed arrays: two states in turn."""

    def __init__(self, session: Session, widths: Mapping[str, int], r: int, sentence: Sentence) -> None:
        length, mels = sentence.memory.shape[1], widths["frame"]
        masks = (np.zeros((1, session.inputs[name][1][1]), np.float32) for name in ("mask1", "mask2"))
        self._masks = tuple(masks)
        text = {
            "memory": np.ascontiguousarray(sentence.memory),
            "keys": np.ascontiguousarray(sentence.keys),
            "beyond": np.zeros((1, length), np.float32),
            "mask1": self._masks[0],
            "mask2": self._masks[1],
        }
        self._mel, self._scores = np.zeros((1, mels, r), np.float32), np.zeros((1, length), np.float32)
        self._stop = np.zeros((1, 1), np.float32)
        answer = {"out_mel": self._mel, "out_scores": self._scores, "out_stop": self._stop}
        states = [{name: np.zeros((1, widths.get(name, length)), np.float32) for name in STATE} for _ in range(2)]
        self._runs = [
            session.bind({**text, **states[i]}, {**answer, **{f"out_{name}": states[1 - i][name] for name in STATE}})
            for i in range(2)
        ]
        self._states, self._turn = states, 0

    def __call__(self, mask1: np.ndarray, mask2: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        self._masks[0][:], self._masks[1][:] = mask1, mask2
        self._runs[self._turn].run()
        self._turn = 1 - self._turn
        return self._mel[0].copy(), self._scores[0].copy(), float(self._stop[0, 0])

    def told(self, frame: np.ndarray) -> None:
        self._states[self._turn]["frame"][0] = frame


def loader(widths: Mapping[str, int], r: int) -> Callable[[Mapping[str, Path], RunOptions], Any]:
    """For a backend: how its graph becomes the part's call."""

    def load(paths: Mapping[str, Path], options: RunOptions) -> Any:
        session = Session(paths["loop"] / "loop.onnx", options)
        return functools.partial(frames, functools.partial(InONNX, session, widths, r))

    return load
