"""What an adapter uses of kittenml 0.9.6 (as of the repository's head) and of kittentts 0.1.3, around a small graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.engines import graph_double as graph

ROWS, TRIMMED = 400, 1000
NAMES = [f"expr-voice-{number}-{kind}" for number in (2, 3, 4, 5) for kind in "mf"]
ALIASES = {"Bella": "expr-voice-2-f", "Leo": "expr-voice-5-f"}


def styles(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {name: random.standard_normal((rows, graph.STYLE)).astype(np.float32) for name in NAMES}


def ids(phonemes: str) -> list[int]:
    words = " ".join(re.findall(r"\w+|[^\w\s]", phonemes))
    return [ord(each) for each in words if ord(each) < graph.IDS]


class Model:
    """What does the work: chunks end at a full stop, and have a comma if they end otherwise."""

    __module__, __qualname__ = "kittenml.kittentts_legacy.onnx_model", "KittenTTS_1_Onnx"

    def __init__(self, session: Any) -> None:
        self.session, self.phonemizer, self.voices = session, graph.Espeak(), styles(ROWS)
        self.available_voices, self.voice_aliases, self.speed_priors = NAMES, ALIASES, {"expr-voice-2-f": 0.5}

    def _prepare_inputs(self, text: str, voice: str, speed: float = 1.0) -> dict[str, np.ndarray]:
        voice = self.voice_aliases.get(voice, voice)
        speed *= self.speed_priors.get(voice, 1.0)
        tokens = [0, *ids(self.phonemizer.phonemize([text])[0]), 10, 0]
        row = min(len(text), len(self.voices[voice]) - 1)
        style = self.voices[voice][row : row + 1]
        return {"input_ids": np.array([tokens]), "style": style, "speed": np.array([speed], np.float32)}

    def generate(self, text: str, voice: str = "x", speed: float = 1.0, clean_text: bool = True) -> np.ndarray:
        return np.concatenate(list(self.generate_stream(text, voice, speed, clean_text)), axis=-1)

    def generate_stream(
        self, text: str, voice: str = "x", speed: float = 1.0, clean_text: bool = True
    ) -> Iterator[np.ndarray]:
        text = text.replace("$", "dollars ") if clean_text else text
        for sentence in re.split(r"(?<=\.)\s+", text.strip()):
            chunk = sentence if sentence.endswith((".", ",")) else f"{sentence},"
            yield self.generate_single_chunk(chunk, voice, speed)

    def generate_single_chunk(self, text: str, voice: str = "x", speed: float = 1.0) -> np.ndarray:
        outputs = self.session.run(None, self._prepare_inputs(text, voice, speed))
        return np.asarray(outputs[0][..., :-TRIMMED])


class KittenTTSOnnx:
    """The facade, which prints."""

    __module__, __qualname__ = "kittenml.kittentts_legacy.model", "KittenTTSOnnx"

    def __init__(self, session: Any = None) -> None:
        self.model = Model(graph.session(graph.model()) if session is None else session)

    def generate(
        self, text: str, voice: str = "expr-voice-5-m", speed: float = 1.0, clean_text: bool = False
    ) -> np.ndarray:
        print(f"Generating audio for text: {text}")
        return self.model.generate(text, voice, speed, clean_text)

    def generate_stream(
        self, text: str, voice: str = "expr-voice-5-m", speed: float = 1.0, clean_text: bool = False
    ) -> Iterator[np.ndarray]:
        yield from self.model.generate_stream(text, voice, speed, clean_text)


class FromHub(KittenTTSOnnx):
    """The facade of the repository's head."""

    __module__, __qualname__ = "kittentts.get_model", "KittenTTS"


class OneFile:
    """kittentts 0.1.3: no chunks, nothing trimmed, one row of style."""

    __module__, __qualname__ = "kittentts", "KittenTTS"

    def __init__(self, session: Any = None) -> None:
        self._session = graph.session(graph.model()) if session is None else session
        self._phonemizer, self._voices, self.available_voices = graph.Espeak(), styles(1), NAMES

    def generate(self, text: str, voice: str = "expr-voice-2-m", speed: float = 1.0) -> np.ndarray:
        tokens = [0, *ids(self._phonemizer.phonemize([text])[0]), 0]
        feed = {"input_ids": np.array([tokens]), "style": self._voices[voice], "speed": np.array([speed], np.float32)}
        return self._session.run(None, feed)[0]  # type: ignore[no-any-return]


class KittenTTS2:
    """A language model behind the same name."""

    __module__, __qualname__ = "kittenml.kittentts2.model", "KittenTTS2"

    def generate(self, text: str) -> np.ndarray:
        raise AssertionError("declined before it is asked")
