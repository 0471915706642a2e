"""The arms of `peers`: an engine as it ships, other runtimes with the same voice, and this package.

A row of `PEERS` has all that is known of an engine here. Packages of engines and peers are imported by the arm that
needs them, in its own process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.checks import load_reference
from ..errors import EngineError
from ..runtime.openvino import library
from .peer import Arm, Given, Peers, package, recording, version

__all__ = ["OURS", "PEERS", "open_arm", "with_metadata"]

OURS = "accelerator"
_KOKORO = "af_heart"  # ours takes this voice by itself, too, or else the first
# By itself it computes in bfloat16 where a processor has that, in which the numbers of a Piper voice's frames overflow.
_IN_FLOAT32 = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


def open_arm(arm: str, engine: str, given: Given) -> Arm:
    """Raises EngineError without the arm's package, and whatever the arm raises."""
    if arm.startswith(OURS):
        kind = _OursCloning if PEERS[engine].cloning else _Ours
        return kind(engine, given, arm.removeprefix(OURS).lstrip("-") or "auto")
    return PEERS[engine].arms[arm](given)


class _Ours:
    def __init__(self, engine: str, given: Given, precision: Any) -> None:
        from ..optimizer import UniversalOptimizer

        self._optimizer = UniversalOptimizer.from_checkpoint(
            given.checkpoint,
            engine,
            cache_dir=given.cache_dir,
            threads=given.threads,
            precision=precision,
            proof=given.proof,
        )
        self._raw: Mapping[str, Any] = PEERS[engine].raw or {}
        self._asked: dict[str, Any] = {"voice": given.voice}

    @property
    def about(self) -> str:
        status = self._optimizer.prepare().status()
        ways = [
            f"{name}: {part['backend']} {part['precision'] or ''}".rstrip() for name, part in status["parts"].items()
        ]
        if status["segments"] is not None:
            ways.append(f"segments: {status['segments']['backend']}")
        return ", ".join(ways)

    @property
    def sample_rate(self) -> int:
        return self._optimizer.sample_rate

    def whole(self, text: str) -> np.ndarray:
        return self._optimizer.synthesize(text, **self._asked).audio

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        for chunk in self._optimizer.stream(text, **self._asked, **(self._raw if raw else {})):
            yield chunk.audio


class _OursCloning(_Ours):
    """Speaks as a recording. Fails where PyTorch had to help out: that is another arm's figure."""

    def __init__(self, engine: str, given: Given, precision: Any) -> None:
        super().__init__(engine, given, precision)
        self._asked = {"reference_audio": recording(given.scratch), "max_new_tokens": given.frames}

    def whole(self, text: str) -> np.ndarray:
        spoken = self._optimizer.synthesize(text, **self._asked)
        if failed := [each for each in spoken.metrics["fallback"] if each["reason"] != "Slower"]:
            raise EngineError(f"PyTorch had to take over: {failed[0]}")
        return spoken.audio

    def encode(self, path: Path, said: str) -> None:
        stages = self._optimizer._bound.stages
        assert stages is not None
        stages.encode(load_reference(path, said, sample_rate=self.sample_rate))


class _Piper:
    """A voice by piper-tts, sentence by sentence."""

    def __init__(self, given: Given) -> None:
        piper = package("piper", "piper-tts")
        self.voice, self._settings = piper.PiperVoice.load(given.checkpoint), piper.SynthesisConfig
        self.about = f"piper-tts {version('piper-tts')} as it ships"
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
        openvino = package("openvino", "openvino", lambda _: library())
        super().__init__(given)
        model = openvino.Core().compile_model(str(given.checkpoint), "CPU", _IN_FLOAT32)
        self.voice = copy.copy(self.voice)
        self.voice.session = _OpenVinoSession(model)
        self.about = (
            f"OpenVINO {version('openvino')} in float32 in place of the session of piper-tts {version('piper-tts')}"
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
        sherpa = package("sherpa_onnx", "sherpa-onnx")
        espeak = package("piper.phonemize_espeak", "piper-tts")
        config = json.loads(Path(f"{given.checkpoint}.json").read_text(encoding="utf-8"))
        model, tokens = given.scratch / "sherpa.onnx", given.scratch / "tokens.txt"
        model.write_bytes(with_metadata(given.checkpoint.read_bytes(), _described(config)))
        lines = (f"{symbol} {ids[0]}\n" for symbol, ids in config["phoneme_id_map"].items())
        tokens.write_text("".join(lines), encoding="utf-8")
        vits = sherpa.OfflineTtsVitsModelConfig(model=str(model), tokens=str(tokens))
        settings = sherpa.OfflineTtsConfig(
            model=sherpa.OfflineTtsModelConfig(vits=vits, num_threads=given.cores),
            max_num_sentences=1,
        )
        self._engine, self._asked = sherpa.OfflineTts(settings), sherpa.GenerationConfig
        self._phonemize, self._language = espeak.EspeakPhonemizer(espeak.ESPEAK_DATA_DIR).phonemize, config["espeak"]
        self._speaker = _speaker(config.get("speaker_id_map") or {}, given.voice) or 0
        self.about = f"sherpa-onnx {version('sherpa-onnx')}, {given.cores} threads, sentence by sentence"

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
        kokoro = package("kokoro_onnx", "kokoro-onnx")
        folder = given.checkpoint if given.checkpoint.is_dir() else given.checkpoint.parent
        model = _only(folder, ("*.onnx",)) if given.checkpoint.is_dir() else given.checkpoint
        voices = _only(folder, ("voices*.npz", "voices*.bin"))
        self._engine = kokoro.Kokoro(str(model), str(voices))
        known = self._engine.get_voices()
        self._voice = given.voice or (_KOKORO if _KOKORO in known else known[0])
        self.about = f"kokoro-onnx {version('kokoro-onnx')} as it ships, voice {self._voice}"
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
        self._engine = package("kittenml", "kittenml").KittenTTS(str(given.checkpoint))
        self._voice = {} if given.voice is None else {"voice": given.voice}
        self.about = f"kittenml {version('kittenml')} as it ships"
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
        self.about = f"the session of kittenml {version('kittenml')}, its chunks over a ThreadPoolExecutor()"

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        layout = self._layout
        feeds = [layout.feed(chunk, self._speaker, 1.0) for chunk in layout.chunks(text, False)]
        with ThreadPoolExecutor() as pool:
            for audio in pool.map(lambda feed: layout.speak(layout.session, feed), feeds):
                yield np.asarray(audio, np.float32).reshape(-1)


def _spark(dtype: str) -> Callable[[Given], Arm]:
    def opened(given: Given) -> Arm:
        from .peers_spark import Shipped

        return Shipped(given, dtype)

    return opened


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


PEERS: Mapping[str, Peers] = {
    "piper": Peers(
        {"as-shipped": _Piper, "sherpa-onnx": _Sherpa, "openvino": _PiperInOpenVino}, raw={"normalize_audio": False}
    ),
    "kokoro": Peers({"as-shipped": _Kokoro}),
    "kitten": Peers({"as-shipped": _Kitten, "pool": _KittenInPool}, random=_random_kitten),
    "spark-tts": Peers({"as-shipped": _spark("float32"), "as-shipped-bf16": _spark("bfloat16")}, cloning=True),
}
"""Engine -> its arms beside ours; "as-shipped" first."""
