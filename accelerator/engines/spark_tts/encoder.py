"""The encoder as a part: a recording -> codes of what is said, and of who says it.

Most of the engine's weights are here, and a voice is encoded once. So each graph is open only while it runs, on weights
that stay in the mapped file: opening costs some hundredths of a second, and for a hundred frames at a time the products
are as fast without packing them anew. What is said takes two graphs, one after the other.

Who speaks is found in a twentieth of the time of what is said, which is asked for only if somebody wants to know.

    first    values -> states          rest  states -> semantics          speaker  clip -> codes
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...export.component import Built, Component, Progress
from ...export.proof import compare_codes
from ...hardware.pages import return_freed
from ...parts.modules import traced_module
from ...parts.part import Call
from ...parts.traced import traced
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from . import examples
from .modules import Made
from .stages import ENCODER, NOTHING

__all__ = ["components", "load_encoder"]

SPEAKER = "speaker"
_FIRST, _REST = "first", "rest"
_GRAPHS: Mapping[str, tuple[dict[str, dict[int, str]], tuple[str, ...]]] = {
    _FIRST: ({"values": {1: "samples"}}, ("states",)),
    _REST: ({"states": {1: "frames"}}, ("semantics",)),
}
"""Inputs with their axes, and outputs."""
_CODES_EQUAL = 0.99
_PROOF_THREADS = 2

Owner = Callable[[], Any]


def components(
    tokenizer: Owner,
    wav2vec2: Owner,
    bicodec: Owner,
    rate: int,
    identity: Callable[[], str],
    config: Callable[[str], Mapping[str, Any]],
) -> tuple[Component, ...]:
    """Of who speaks, and of what is said. tokenizer: the engine's. config: of a component, by its name."""

    def said() -> Iterator[examples.Example]:
        return examples.said(tokenizer, rate)

    def half_way() -> Iterator[examples.Example]:
        import torch

        first = Made("First", wav2vec2)()
        for (values,), codes in said():
            with torch.no_grad():
                yield (first(torch.from_numpy(values)).numpy(),), codes

    halves = (
        traced_module(_FIRST, Made("First", wav2vec2), said, *_GRAPHS[_FIRST]),
        traced_module(_REST, Made("Rest", wav2vec2, bicodec), half_way, *_GRAPHS[_REST]),
    )

    def build(directory: Path, precision: str, progress: Progress) -> None:
        for half in halves:
            half(directory, precision, progress)

    def prove(built: Built) -> dict[str, Any]:
        options = built.options(threads=_PROOF_THREADS, arena=False, prepack=False)
        return compare_codes([(codes, _said(built.path, values, options)) for (values,), codes in said()], _CODES_EQUAL)

    built = (Made("First"), examples.said, traced_module)
    return (
        traced(
            SPEAKER,
            Made("Globals", bicodec),
            identity,
            config(SPEAKER),
            inputs={"clip": {1: "samples"}},
            outputs=("codes",),
            examples=functools.partial(examples.who, tokenizer, rate),
            codes_equal=_CODES_EQUAL,
        ),
        Component(
            ENCODER,
            identity,
            {**config(ENCODER), "graphs": str(_GRAPHS)},
            ("fp32",),
            build,
            prove,
            built,
            (examples.said,),
        ),
    )


def load_encoder(paths: Mapping[str, Path], options: RunOptions, values: Callable[[np.ndarray], np.ndarray]) -> Call:
    """values: makes wav2vec2's input of a recording. Raises SessionError."""
    plain = replace(options, arena=False, prepack=False)
    for name, place in ((SPEAKER, paths[SPEAKER]), (_FIRST, paths[ENCODER]), (_REST, paths[ENCODER])):
        Session(place / f"{name}.onnx", plain)  # what cannot be opened is to be known now

    def encode(audio: np.ndarray | None, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        semantics = NOTHING if audio is None else _said(paths[ENCODER], values(audio), plain)[0]
        codes = _run(paths[SPEAKER] / f"{SPEAKER}.onnx", "clip", np.asarray(clip, np.float32)[None], plain)
        return_freed()
        return semantics, codes[0]

    return encode


def _said(place: Path, values: np.ndarray, options: RunOptions) -> np.ndarray:
    states = _run(place / f"{_FIRST}.onnx", "values", values, options)
    return _run(place / f"{_REST}.onnx", "states", states, options)


def _run(path: Path, name: str, given: np.ndarray, options: RunOptions) -> np.ndarray:
    return Session(path, options).run({name: np.ascontiguousarray(given)})[0]
