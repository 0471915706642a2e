"""Spark-TTS from the files of a conversion alone, in the interface of its first script; PyTorch is not imported.

It stands above the package whose public interface it uses, though it lies with its engine: nothing below imports it.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...audio.checks import load_reference
from ...audio.files import write_wav
from ...errors import InvalidOption, InvalidReference
from ...optimizer import UniversalOptimizer
from .converted import ConvertedAdapter

__all__ = ["SparkTTSONNX"]


class SparkTTSONNX:
    """Speaks as a recording does, or as is described. `optimizer` has all else: streams, batches, asyncio, metrics."""

    def __init__(self, model_dir: str | Path, *, threads: int | None = None, **options: Any) -> None:
        """model_dir: the folder of a conversion, or the checkpoint that has it in its folder `onnx`.

        threads, options: those of `UniversalOptimizer`. Raises EngineError, InvalidOption.
        """
        how: dict[str, Any] = {"threads": threads, **options}
        self.optimizer = UniversalOptimizer.from_checkpoint(model_dir, ConvertedAdapter.name, **how)
        own = self.optimizer.adapter
        assert isinstance(own, ConvertedAdapter)
        self.folder, self.sample_rate, self._token_s = own.folder, own.sample_rate, own.unit_s
        self._voice: tuple[np.ndarray, int] | None = None

    def process_prompt(self, path: Any) -> None:
        """Speak as this recording from now on: a file, or what else `synthesize` takes. Raises InvalidReference."""
        cloning = ConvertedAdapter.cloning
        assert cloning is not None
        least, most = cloning.seconds
        reference = load_reference(path, sample_rate=self.sample_rate, min_s=least, max_s=most)
        self._voice = reference.audio, reference.sample_rate

    def inference(
        self,
        text: str,
        prompt_text: str | None = None,
        save_dir: str | Path | None = None,
        prompt_speech_path: Any = None,
        *,
        gender: str | None = None,
        pitch: str | None = None,
        speed: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The text as audio, float32 [n], and: text, sample_rate, tokens, seconds, elapsed_s, path, metrics.

        prompt_text: what the recording says, which is then spoken on from. prompt_speech_path: a recording, from now on
        in place of that of `process_prompt`. save_dir: a folder for a WAV file, whose path is in the answer. gender
        ("female", "male"), pitch and speed ("very_low" to "very_high"): a voice that is described, without a recording.
        The others: as the engine draws unless given. tokens: those of a reply that are speech. Raises what
        `UniversalOptimizer.synthesize` raises.
        """
        start = time.perf_counter()
        described = {"gender": gender, "pitch": pitch, "speed": speed}
        if prompt_speech_path is not None and not any(described.values()):
            self.process_prompt(prompt_speech_path)
        voice = prompt_speech_path if any(described.values()) else self._voice
        if voice is None and not any(described.values()):
            raise InvalidReference(
                "there is no voice yet: give prompt_speech_path, or call process_prompt before, or give gender, pitch "
                "and speed"
            )
        asked: dict[str, Any] = {
            **described,
            "seed": seed,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
        }
        speech = self.optimizer.synthesize(text, voice, prompt_text, **asked)
        spoken = sum(each["audio_s"] for each in speech.metrics["segments"]) or len(speech.audio) / self.sample_rate
        info = {
            "text": text,
            "sample_rate": self.sample_rate,
            "tokens": round(spoken / self._token_s),
            "seconds": len(speech.audio) / self.sample_rate,
            "path": None if save_dir is None else str(self._saved(speech.audio, Path(save_dir))),
            "metrics": speech.metrics,
        }
        return speech.audio, {**info, "elapsed_s": time.perf_counter() - start}

    def close(self) -> None:
        """Free the sessions."""
        self.optimizer.close()

    def _saved(self, audio: np.ndarray, folder: Path) -> Path:
        path = folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}.wav"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_wav(path, audio, self.sample_rate)
        except OSError as error:
            raise InvalidOption(f"{path} cannot be written ({error}): choose another save_dir") from error
        return path
