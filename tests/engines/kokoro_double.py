"""What an adapter uses of kokoro-onnx 0.6.1, around a small graph: letters are phonemes."""

from __future__ import annotations

import re
import tempfile
import threading
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from accelerator.runtime.quantization import Quantizer
from tests.engines import graph_double as graph

RATE, ROWS = 24_000, 510
CHANNELS, TAPS, INNER = 8, 5, 3


def split_phonemes(phonemes: str, max_length: int = 510) -> list[str]:
    """At sentences where there are some, else at words; each batch as long as may be."""
    if len(phonemes) <= max_length:
        return [phonemes] if phonemes else []
    pieces = [each for mark in (r"(?<=[.!?])\s+", r"\s+") if len(each := re.split(mark, phonemes)) > 1]
    atoms = [atom for piece in pieces[0] for atom in split_phonemes(piece, max_length)]
    batches = [atoms[0]]
    for atom in atoms[1:]:
        fits = len(batches[-1]) + 1 + len(atom) <= max_length
        batches[-1:] = [f"{batches[-1]} {atom}"] if fits else [batches[-1], atom]
    return batches


def pause_after(phonemes: str, sentence: float, clause: float) -> float:
    return {".": sentence, "!": sentence, "?": sentence, ",": clause}.get(phonemes[-1:], 0.0)


class Tokenizer:
    def __init__(self) -> None:
        self.espeak, self._lock = graph.Espeak(), threading.Lock()

    def phonemize(self, text: str, lang: str = "en-us", norm: bool = True) -> str:
        if lang not in ("en-us", "en-gb"):
            raise RuntimeError(f'language "{lang}" is not supported by the espeak backend')
        with self._lock:
            return "".join(self.espeak.phonemize((text.strip() if norm else text).split("\n"))).strip()

    def tokenize(self, phonemes: str) -> list[int]:
        return [ord(each) for each in phonemes if ord(each) < graph.IDS]


class Kokoro:
    __module__, __qualname__ = "kokoro_onnx", "Kokoro"

    def __init__(self, session: Any, names: tuple[str, ...] = ("af_sky", "bm_george")) -> None:
        self.sess, self.tokenizer = session, Tokenizer()
        random = np.random.default_rng(7)
        self.voices = {name: random.standard_normal((ROWS, 1, graph.STYLE)).astype(np.float32) for name in names}
        self.has_timings = "duration" in {output.name for output in session.get_outputs()}

    def get_voices(self) -> list[str]:
        return sorted(self.voices)

    def get_voice_style(self, name: str) -> np.ndarray:
        return self.voices[name]

    def _batches(self, text: str, lang: str, is_phonemes: bool, sentence: float, clause: float) -> Any:
        batches = split_phonemes(" ".join((text if is_phonemes else self.tokenizer.phonemize(text, lang)).split()))
        return [*((each, pause_after(each, sentence, clause)) for each in batches[:-1]), (batches[-1], 0.0)]

    def _batch(self, phonemes: str, voice: Any, speed: float, trim: bool, pause: float) -> np.ndarray:
        tokens = self.tokenizer.tokenize(phonemes)
        style = (self.voices[voice] if isinstance(voice, str) else voice)[min(len(tokens), ROWS) - 1]
        feed = {"tokens": np.array([[0, *tokens, 0]]), "style": style, "speed": np.array([speed], np.float32)}
        audio = np.asarray(self.sess.run(None, feed)[0]).ravel()
        if not trim:
            return audio
        return np.concatenate([audio[100:-100], np.zeros(int(pause * RATE), np.float32)])

    def create(
        self,
        text: str,
        voice: Any,
        speed: float = 1.0,
        lang: str = "en-us",
        is_phonemes: bool = False,
        trim: bool = True,
        sentence_pause: float = 0.25,
        clause_pause: float = 0.1,
        continuous: bool = False,
    ) -> tuple[np.ndarray, int]:
        """A graph that tells durations has a pause at its last mark, too."""
        batches = self._batches(text, lang, is_phonemes, sentence_pause, clause_pause)
        audio = np.concatenate([self._batch(each, voice, speed, trim, pause) for each, pause in batches])
        last = pause_after(batches[-1][0], sentence_pause, clause_pause) if self.has_timings else 0.0
        return np.concatenate([audio, np.zeros(int(last * RATE), np.float32)]), RATE

    def create_timed(self, text: str, voice: Any, **asked: Any) -> tuple[np.ndarray, int, list[str]]:
        return *self.create(text, voice, **asked), text.split()

    async def create_stream(
        self, text: str, voice: Any, speed: float = 1.0, lang: str = "en-us", is_phonemes: bool = False
    ) -> AsyncIterator[tuple[np.ndarray, int]]:
        for phonemes, pause in self._batches(text, lang, is_phonemes, 0.25, 0.1):
            yield self._batch(phonemes, voice, speed, True, pause), RATE


def modules() -> dict[str, types.ModuleType]:
    """What stands for the package."""
    package, chunker = types.ModuleType("kokoro_onnx"), types.ModuleType("kokoro_onnx.chunker")
    chunker.split_phonemes, chunker.pause_after = split_phonemes, pause_after  # type: ignore[attr-defined]
    package.chunker = chunker  # type: ignore[attr-defined]
    return {"kokoro_onnx": package, "kokoro_onnx.chunker": chunker}


def model(*, timed: bool = False) -> bytes:
    return graph.model("tokens", "audio", duration=timed)


def rounded() -> bytes:
    """The model with convolutions behind it, which are quantized dynamically, as in the file that Kokoro ships."""
    proto, random = onnx.load_from_string(model()), np.random.default_rng(11)
    made, value = proto.graph, "quieter"
    made.node.remove(made.node[-1])
    tensors = [numpy_helper.from_array(np.array([1, 1, -1], np.int64), "row")]
    nodes = [helper.make_node("Reshape", [value, "row"], ["/decoder/row"])]
    value, channels, names = "/decoder/row", 1, list[str]()
    for index in range(INNER + 2):
        out, name = 1 if index > INNER else CHANNELS, f"/decoder/conv{index}"
        weight = random.standard_normal((out, channels, TAPS)) / np.sqrt(channels * TAPS)
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w"))
        pads = [TAPS // 2] * 2
        nodes.append(helper.make_node("Conv", [value, f"{name}.w"], [f"{name}.y"], name=name, pads=pads))
        nodes.append(helper.make_node("Tanh", [f"{name}.y"], [f"{name}.t"], name=f"{name}.tanh"))
        names.append(name)
        value, channels = f"{name}.t", out
    nodes.append(helper.make_node("Reshape", [value, "all"], ["audio"]))
    made.node.extend(nodes)
    made.initializer.extend(tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        onnx.save(proto, str(path))
        return Quantizer(path, [], "dynamic").quantized(names)


def kokoro(*, timed: bool = False, content: bytes | None = None, **given: Any) -> Kokoro:
    return Kokoro(graph.session(model(timed=timed) if content is None else content), **given)
