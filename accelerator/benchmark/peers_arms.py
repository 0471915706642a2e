"""The arms of `peers`: an engine as it ships, other runtimes with the same voice, and this package.

A row of `PEERS` has all that is known of an engine here. Packages of engines and peers are imported by the arm that
needs them, in its own process.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import EngineError
from ..runtime.openvino import library

__all__ = ["OURS", "PEERS", "Arm", "Peers", "open_arm", "with_metadata"]

OURS = "accelerator"
_KOKORO = "af_heart"  # ours takes this voice by itself, too, or else the first
# By itself it computes in bfloat16 where a processor has that, in which the numbers of a Piper voice's frames overflow.
_IN_FLOAT32 = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


class Arm(Protocol):
    """about: what it is, in a line. Samples are float32 [n] at sample_rate."""

    about: str

    @property
    def sample_rate(self) -> int: ...

    def whole(self, text: str) -> np.ndarray: ...

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        """raw: not brought to full scale."""
        ...


@dataclass(frozen=True)
class Given:
    """What an arm is opened with. threads: for peers that take a number."""

    checkpoint: Path
    voice: str | None
    threads: int
    scratch: Path


@dataclass(frozen=True)
class Peers:
    """arms: by name, how each is opened. raw: the option of a request to ours by which sentences keep their level;
    None where an engine never changes it. random: writes a checkpoint with random weights into a folder, for an engine
    that can be measured without a trained one."""

    arms: Mapping[str, Callable[[Given], Arm]]
    raw: Mapping[str, Any] | None = None
    random: Callable[[Path], None] | None = None


def open_arm(
    arm: str,
    engine: str,
    checkpoint: Path,
    *,
    voice: str | None,
    threads: int | None,
    cache_dir: Path | None,
    scratch: Path,
) -> Arm:
    """Raises EngineError without the arm's package, and whatever the arm raises."""
    if arm.startswith(OURS):
        return _Ours(engine, checkpoint, voice, threads, cache_dir, arm.removeprefix(OURS).lstrip("-") or "auto")
    from ..hardware import detect

    return PEERS[engine].arms[arm](Given(checkpoint, voice, threads or detect().usable_cores, scratch))


class _Ours:
    def __init__(
        self, engine: str, checkpoint: Path, voice: str | None, threads: int | None, cache: Path | None, precision: Any
    ) -> None:
        from ..optimizer import UniversalOptimizer

        self._optimizer = UniversalOptimizer.from_checkpoint(
            checkpoint, engine, cache_dir=cache, threads=threads, precision=precision
        )
        self._raw: Mapping[str, Any] = PEERS[engine].raw or {}
        self._voice = voice
        status = self._optimizer.prepare().status()
        ways = [
            f"{name}: {part['backend']} {part['precision'] or ''}".rstrip() for name, part in status["parts"].items()
        ]
        if status["segments"] is not None:
            ways.append(f"segments: {status['segments']['backend']}")
        self.about = ", ".join(ways)

    @property
    def sample_rate(self) -> int:
        return self._optimizer.sample_rate

    def whole(self, text: str) -> np.ndarray:
        return self._optimizer.synthesize(text, voice=self._voice).audio

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        for chunk in self._optimizer.stream(text, voice=self._voice, **(self._raw if raw else {})):
            yield chunk.audio


class _Piper:
    """A voice by piper-tts, sentence by sentence."""

    def __init__(self, given: Given) -> None:
        piper = _package("piper", "piper-tts")
        self.voice, self._settings = piper.PiperVoice.load(given.checkpoint), piper.SynthesisConfig
        self.about = f"piper-tts {_version('piper-tts')} as it ships"
        self._speaker = _speaker(self.voice.config.speaker_id_map, given.voice)

    @property
    def sample_rate(self) -> int:
        return int(self.voice.config.sample_rate)

    def whole(self, text: str) -> np.ndarray:
        return np.concatenate(list(self.stream(text, raw=False)))

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        settings = self._settings(speaker_id=self._speaker, normalize_audio=not raw)
        for chunk in self.voice.synthesize(text, settings):
            yield chunk.audio_float_array


class _PiperInOpenVino(_Piper):
    """piper-tts with the whole graph in OpenVINO instead of ONNX Runtime."""

    def __init__(self, given: Given) -> None:
        openvino = _package("openvino", "openvino", lambda _: library())
        super().__init__(given)
        model = openvino.Core().compile_model(str(given.checkpoint), "CPU", _IN_FLOAT32)
        self.voice = copy.copy(self.voice)
        self.voice.session = _OpenVinoSession(model)
        self.about = (
            f"OpenVINO {_version('openvino')} in float32 in place of the session of piper-tts {_version('piper-tts')}"
        )


class _OpenVinoSession:
    """A compiled model behind the call of an ONNX Runtime session that Piper makes."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, outputs: Any, feed: Mapping[str, Any]) -> list[np.ndarray]:
        answer = self._model(dict(feed))
        return [np.array(answer[output]) for output in self._model.outputs]


class _Sherpa:
    """A Piper voice by sherpa-onnx, which wants what the voice's JSON says within the model.

    From version 2 on it has no espeak, and is given phonemes: by Piper's.
    """

    def __init__(self, given: Given) -> None:
        sherpa = _package("sherpa_onnx", "sherpa-onnx")
        espeak = _package("piper.phonemize_espeak", "piper-tts")
        config = json.loads(Path(f"{given.checkpoint}.json").read_text(encoding="utf-8"))
        model, tokens = given.scratch / "sherpa.onnx", given.scratch / "tokens.txt"
        model.write_bytes(with_metadata(given.checkpoint.read_bytes(), _described(config)))
        lines = (f"{symbol} {ids[0]}\n" for symbol, ids in config["phoneme_id_map"].items())
        tokens.write_text("".join(lines), encoding="utf-8")
        vits = sherpa.OfflineTtsVitsModelConfig(model=str(model), tokens=str(tokens))
        settings = sherpa.OfflineTtsConfig(
            model=sherpa.OfflineTtsModelConfig(vits=vits, num_threads=given.threads),
            max_num_sentences=1,
        )
        self._engine, self._asked = sherpa.OfflineTts(settings), sherpa.GenerationConfig
        self._phonemize, self._language = espeak.EspeakPhonemizer(espeak.ESPEAK_DATA_DIR).phonemize, config["espeak"]
        self._speaker = _speaker(config.get("speaker_id_map") or {}, given.voice) or 0
        self.about = f"sherpa-onnx {_version('sherpa-onnx')}, {given.threads} threads, sentence by sentence"

    @property
    def sample_rate(self) -> int:
        return int(self._engine.sample_rate)

    def whole(self, text: str) -> np.ndarray:
        return np.asarray(self._engine.generate(text, self._request(text)).samples, np.float32)

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        """Never brought to full scale."""
        return _called_back(lambda heard: self._engine.generate(text, self._request(text), heard))

    def _request(self, text: str) -> Any:
        asked = self._asked()
        asked.sid = self._speaker
        asked.silence_scale = 1.0  # or pauses are shortened, and the same work makes less audio
        sentences = self._phonemize(self._language["voice"], text)
        asked.phoneme_codepoints = [[ord(phoneme) for phoneme in sentence] for sentence in sentences]
        return asked


class _Kokoro:
    """A voice by kokoro-onnx: a model file or its folder, with the one file of voices beside it."""

    def __init__(self, given: Given) -> None:
        package = _package("kokoro_onnx", "kokoro-onnx")
        folder = given.checkpoint if given.checkpoint.is_dir() else given.checkpoint.parent
        model = _only(folder, ("*.onnx",)) if given.checkpoint.is_dir() else given.checkpoint
        voices = _only(folder, ("voices*.npz", "voices*.bin"))
        self._engine = package.Kokoro(str(model), str(voices))
        known = self._engine.get_voices()
        self._voice = given.voice or (_KOKORO if _KOKORO in known else known[0])
        self.about = f"kokoro-onnx {_version('kokoro-onnx')} as it ships, voice {self._voice}"
        self.sample_rate = 24_000

    def whole(self, text: str) -> np.ndarray:
        return np.asarray(self._engine.create(text, self._voice)[0], np.float32)

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        import asyncio

        loop, chunks = asyncio.new_event_loop(), self._engine.create_stream(text, self._voice)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(chunks))[0]
                except StopAsyncIteration:
                    return
        finally:
            loop.close()


class _Kitten:
    """A KittenTTS by kittenml, chunk by chunk."""

    def __init__(self, given: Given) -> None:
        self._engine = _package("kittenml", "kittenml").KittenTTS(str(given.checkpoint))
        self._voice = {} if given.voice is None else {"voice": given.voice}
        self.about = f"kittenml {_version('kittenml')} as it ships"
        self.sample_rate = 24_000

    def whole(self, text: str) -> np.ndarray:
        return np.concatenate(list(self.stream(text, raw=False)))  # as `generate` does, which prints

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        for audio in self._engine.generate_stream(text, **self._voice):
            yield np.asarray(audio, np.float32).reshape(-1)


class _KittenInPool(_Kitten):
    """Its own session for several chunks at once: a text's phonemes, then a pool of threads of the usual number.

    The session has the engine's own settings, so that each run has as many threads as there are cores.
    """

    def __init__(self, given: Given) -> None:
        from ..engines.kitten import adapter

        super().__init__(given)
        known = adapter(self._engine)
        self._layout, self._speaker = known.layout, known.voice(given.voice)
        self.about = f"the session of kittenml {_version('kittenml')}, its chunks over a ThreadPoolExecutor()"

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        layout = self._layout
        feeds = [layout.feed(chunk, self._speaker, 1.0) for chunk in layout.chunks(text, False)]
        with ThreadPoolExecutor() as pool:
            for audio in pool.map(lambda feed: layout.speak(layout.session, feed), feeds):
                yield np.asarray(audio, np.float32).reshape(-1)


def _random_kitten(folder: Path) -> None:
    from .random_kitten import write

    write(folder)


def with_metadata(model: bytes, entries: Mapping[str, str]) -> bytes:
    """An ONNX model with these metadata behind its own.

    A protocol buffer's fields may follow each other in any order, and repeated ones are collected: what is appended is
    `ModelProto.metadata_props`, field 14, of a key (field 1) and a value (field 2).
    """
    added = (_field(14, _field(1, key.encode()) + _field(2, value.encode())) for key, value in entries.items())
    return model + b"".join(added)


def _field(number: int, content: bytes) -> bytes:
    length = len(content)
    assert length < 1 << 14, "of a length in two bytes"
    size = bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([number << 3 | 2]) + size + content


def _described(config: Mapping[str, Any]) -> dict[str, str]:
    """What sherpa-onnx asks of a Piper voice's metadata."""
    return {
        "model_type": "vits",
        "comment": "piper",
        "language": str(config.get("language", {}).get("name_english", "")),
        "voice": str(config["espeak"]["voice"]),
        "has_espeak": "1",
        "n_speakers": str(config["num_speakers"]),
        "sample_rate": str(config["audio"]["sample_rate"]),
    }


def _called_back(generate: Callable[[Callable[[Any, float], int]], Any]) -> Iterator[np.ndarray]:
    """What a generator that calls back is given, as it is given it, from a thread of its own."""
    import queue
    import threading

    given: queue.Queue[np.ndarray | None] = queue.Queue()

    def heard(samples: Any, _: float) -> int:
        given.put(np.array(samples, np.float32))
        return 1

    def work() -> None:
        try:
            generate(heard)
        finally:
            given.put(None)

    thread = threading.Thread(target=work, name="peer", daemon=True)
    thread.start()
    while (chunk := given.get()) is not None:
        yield chunk
    thread.join()


def _speaker(known: Mapping[str, int], voice: str | None) -> int | None:
    if voice is None:
        return None
    return int(known[voice]) if voice in known else int(voice)


def _only(folder: Path, patterns: Sequence[str]) -> Path:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) != 1:
        raise EngineError(f"{folder} has {len(found)} files like {' or '.join(patterns)}, where one is needed")
    return found[0]


def _package(module: str, name: str, load: Callable[[str], Any] = importlib.import_module) -> Any:
    try:
        return load(module)
    except ImportError as error:
        raise EngineError(f"not measured, as {name} cannot be imported ({error}): pip install {name}") from error


def _version(name: str) -> str:
    return importlib.metadata.version(name)


PEERS: Mapping[str, Peers] = {
    "piper": Peers(
        {"as-shipped": _Piper, "sherpa-onnx": _Sherpa, "openvino": _PiperInOpenVino}, raw={"normalize_audio": False}
    ),
    "kokoro": Peers({"as-shipped": _Kokoro}),
    "kitten": Peers({"as-shipped": _Kitten, "pool": _KittenInPool}, random=_random_kitten),
}
"""Engine -> its arms beside ours; "as-shipped" first."""
