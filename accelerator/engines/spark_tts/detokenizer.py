"""BiCodec's decoding half by compiled kernels: tokens -> audio, in streams; PyTorch is not even loaded.

It computes what the engine computes; `weights` says what is in the file. Windows of any length join to exactly the
whole, and nothing is computed twice, since each layer keeps what it still looks at: see `codec.sliding`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...codec.sliding import Linear, Push, State, Tensors
from ...errors import SessionError
from ...hardware.forks import Lock
from ...hardware.lease import CORES
from ...parts.vocos import Norms, Vocos
from ...parts.wave_decoder import WaveDecoder
from ...parts.weight_file import Opened, Stored, stored
from ...runtime.options import Dtype

__all__ = ["DetokenizeCall", "Detokenizer", "Stream", "takes"]

_LONG = 64  # tokens at a time: large weights are read once for each window, and memory does not grow with the length
_VOICES = 8  # that are remembered


class _Voice(NamedTuple):
    vector: np.ndarray  # [D]
    norms: Norms


class Detokenizer:
    """Layers; safe to call from several threads."""

    def __init__(self, weights: tuple[Stored, Mapping[str, Any]], dtype: Dtype) -> None:
        """dtype: of most multiplications, see `codec.sliding`. Raises SessionError."""
        arrays, config = weights
        tensors = Tensors(arrays, arrays.shapes, dtype)
        *before, last = (
            Vocos(tensors.within(f"backbones.{i}"), count, config["eps"], adaptive=i + 1 == len(config["backbones"]))
            for i, count in enumerate(config["backbones"])
        )
        self.hop = math.prod(rate for rate, _, _ in config["ups"])
        self._table, self._arrays = tensors("table"), arrays
        self.count = tensors.shape("speaker.weight")[1] // tensors.shape("voices")[1]  # codes of who speaks
        self._before, self._last, self._out = before, last, Linear(tensors, "out")
        self._wave = WaveDecoder(tensors.within("wave"), config)
        self._voices: OrderedDict[bytes, _Voice] = OrderedDict()
        self._lock = Lock()

    def voice(self, codes: np.ndarray) -> _Voice:
        """codes: int64 [G]"""
        key = codes.tobytes()
        with self._lock:
            if key not in self._voices:
                self._voices[key] = self._conditioned(codes)
            self._voices.move_to_end(key)
            while len(self._voices) > _VOICES:
                self._voices.popitem(last=False)
            return self._voices[key]

    def _conditioned(self, codes: np.ndarray) -> _Voice:
        """Its weights are read for each new voice, and not kept."""
        arrays = self._arrays
        quantized = arrays["voices"][codes].T.reshape(-1)
        vector = arrays["speaker.weight"] @ quantized + arrays["speaker.bias"]
        norms = arrays["condition.weight"] @ vector + arrays["condition.bias"]
        return _Voice(vector, list(norms.reshape(-1, 2, self._table.shape[1])))

    def push(self, semantics: np.ndarray, voice: _Voice, push: Push) -> np.ndarray:
        """The next tokens' audio, as far as all is known that it depends on."""
        x = self._table[semantics]
        for backbone in self._before:
            x = backbone(x, push)
        x = self._last(x, push, voice.norms)
        hidden = np.repeat(voice.vector[None], len(x), axis=0)
        self._out.add(x, hidden, push.threads)
        return self._wave(hidden, push)


class Stream:
    """One utterance, decoded as its tokens come."""

    def __init__(self, own: Detokenizer, codes: np.ndarray, threads: int) -> None:
        """codes: of who speaks, int64 [G]."""
        self._own, self._voice, self._threads = own, own.voice(codes), threads
        self._state: State = {}

    def push(self, semantics: np.ndarray, *, final: bool) -> np.ndarray:
        """The next tokens int64 [T] -> audio float32 [n]; the rest of it when they are final. Raises SessionError."""
        audio = []
        for begin in range(0, max(1, len(semantics)), _LONG):
            last = final and begin + _LONG >= len(semantics)
            with CORES.lease("codec", self._threads):
                push = Push(self._state, last, self._threads)
                audio.append(self._own.push(semantics[begin : begin + _LONG], self._voice, push))
        return np.concatenate(audio)


class DetokenizeCall:
    """Tokens int64 [T], codes of who speaks int64 [G] -> audio float32 [T * hop].

    The weights are ordered by a thread while the language model loads. The first call waits for it.
    """

    def __init__(self, file: Path, dtype: Dtype, threads: int) -> None:
        """Raises SessionError."""
        self._own, self._threads = _OPENED[dtype](file), threads
        self.hop = self._own.hop
        self._ordering = threading.Thread(target=self._order, name="accelerator-detokenizer-weights")
        self._ordering.start()

    def _order(self) -> None:
        with contextlib.suppress(SessionError):  # the first call fails in the same way, where it is heard
            self._stream(np.zeros(self._own.count, np.int64)).push(np.zeros(1, np.int64), final=True)

    def __call__(self, semantics: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return self.stream(codes).push(semantics, final=True)

    def stream(self, codes: np.ndarray) -> Stream:
        """For tokens that are still to come."""
        self._ordering.join()
        return self._stream(codes)

    def _stream(self, codes: np.ndarray) -> Stream:
        return Stream(self._own, codes, self._threads)


def takes(file: Path) -> bool:
    """Whether there are kernels for the weights in this file, if there are any at all."""
    arrays, config = stored(file)
    tensors = Tensors(arrays, arrays.shapes)
    return (
        all(Vocos.takes(tensors.within(f"backbones.{i}"), n) for i, n in enumerate(config["backbones"]))
        and Linear.takes(tensors.shape("out.weight"))
        and WaveDecoder.takes(tensors.within("wave"), config)
    )


_DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "int16")
_OPENED = {dtype: Opened(functools.partial(Detokenizer, dtype=dtype), stored) for dtype in _DTYPES}
