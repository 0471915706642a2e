"""Spark-TTS from the files of a conversion alone: neither PyTorch nor the engine is imported."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...audio.checks import check_audio, load_reference
from ...audio.files import write_wav
from ...errors import EngineError, GenerationError, InvalidOption, InvalidReference, InvalidText
from ...hardware import detect
from ...hardware.tiers import choose_tier
from ...inference.token_sampling import TokenSampler
from ...parts.causal import CAUSAL, EMBEDDINGS, load_causal
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from ...speech import SamplingParams, segment_seed
from ...text.check import check_text
from ...text.segments import split
from .folder import DESCRIPTION, LANGUAGE_MODEL, MELS, TOKENIZER, VERSION
from .recording import clipped, levelled, magnitudes, standardised
from .vocabulary import Vocabulary

__all__ = ["SparkTTSONNX"]

_FOLDER = "onnx"  # of a checkpoint, where a conversion lies unless told otherwise
_SECONDS = (0.2, 60.0)  # of a recording
_COMFORTABLE, _LONGEST = 200, 400  # letters of a segment: a reply may last 60 s
_DRAWS = 2  # of a reply that has no speech
_ANEW = 1_000_000  # number of a reply drawn again: of no segment
_SILENT_S = 0.3


_GENDERS, _LEVELS = ("female", "male"), ("very_low", "low", "moderate", "high", "very_high")


@dataclass(frozen=True)
class _Voice:
    """codes: int64 [G], None for one that is only described so far. semantics: what a recording says, int64 [T].

    style: of a described one, as tokens. begun: what replies in that style begin with, once one was heard.
    """

    codes: np.ndarray | None = None
    semantics: np.ndarray | None = None
    style: str = ""
    begun: tuple[int, ...] = ()


class SparkTTSONNX:
    """Speaks as a recording does, or as is described. Graphs are loaded when first needed; one call at a time."""

    def __init__(self, model_dir: str | Path, *, threads: int | None = None) -> None:
        """model_dir: the folder of a conversion, or the checkpoint that has it in its folder `onnx`.

        threads: of each session; None decides by the machine. Raises EngineError.
        """
        self.folder = _found(Path(model_dir))
        self._said = _described(self.folder)
        self.sample_rate = int(self._said["sample_rate"])
        self._options = RunOptions(threads=threads or choose_tier(detect()).threads)
        self._tokenizer = _tokenizer(self.folder / LANGUAGE_MODEL / TOKENIZER)
        self._vocabulary = Vocabulary(self._tokenizer.get_vocab())
        self._sessions: dict[str, Session] = {}
        self._decoder: Any = None
        self._voice: _Voice | None = None

    def process_prompt(self, path: str | Path) -> None:
        """Speak as this recording from now on. Raises InvalidReference."""
        reference = load_reference(path, sample_rate=self.sample_rate, min_s=_SECONDS[0], max_s=_SECONDS[1])
        audio = reference.audio.astype(np.float64)
        self._voice = self._encoded(levelled(audio) if self._said["volume_normalize"] else audio)

    def inference(
        self,
        text: str,
        prompt_text: str | None = None,
        save_dir: str | Path | None = None,
        prompt_speech_path: str | Path | None = None,
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
        """The text as audio, float32 [n], and: text, sample_rate, tokens, seconds, elapsed_s, path.

        prompt_text: what the recording says, which is then spoken on from. prompt_speech_path: a recording, in place of
        `process_prompt`. save_dir: a folder for a WAV file, whose path is in the answer. gender ("female", "male"),
        pitch and speed ("very_low" to "very_high"): a voice that is described, without a recording. The others: as the
        engine draws unless given. Raises InvalidText, InvalidReference, InvalidOption, GenerationError.
        """
        start = time.perf_counter()
        check_text(text)
        params = SamplingParams(
            seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens
        ).over(SamplingParams(**self._said["sampling"]))
        described = _style(gender, pitch, speed)
        if described and (prompt_text is not None or prompt_speech_path is not None):
            raise InvalidOption("gender describes a voice, and a recording is one: leave either out")
        if prompt_speech_path is not None:
            self.process_prompt(prompt_speech_path)
        voice = _Voice(style=described) if described else self._voice
        if voice is None:
            raise InvalidReference(
                "there is no voice yet: give prompt_speech_path, or call process_prompt before, or give gender, pitch "
                "and speed"
            )
        audio, count = [], 0
        for number, segment in enumerate(split(text, comfortable=_COMFORTABLE, longest=_LONGEST)):
            drawn = segment_seed(params, number)
            voice, semantics = self._reply(segment.text.strip(), voice, prompt_text, drawn)
            audio.append(self._spoken(semantics, voice.codes))
            count += len(semantics)
        whole = np.concatenate(audio)
        info = {
            "text": text,
            "sample_rate": self.sample_rate,
            "tokens": count,
            "seconds": len(whole) / self.sample_rate,
            "path": None if save_dir is None else str(self._saved(whole, Path(save_dir))),
        }
        return whole, {**info, "elapsed_s": time.perf_counter() - start}

    def _encoded(self, audio: np.ndarray) -> _Voice:
        """A recording float64 [n]: the engine's tokenize, graph by graph."""
        said, constants = self._said, np.load(self.folder / MELS)
        features = self._run("wav2vec2", standardised(audio)[None])
        latents = self._run("encoder", features.transpose(0, 2, 1))
        semantics = self._run("quantizer_tokenize", latents.transpose(0, 2, 1))
        clip = clipped(audio, int(said["clip"]))
        mels = magnitudes(clip, constants["window"], constants["filters"], int(said["fft"]), int(said["hop"]))
        return _Voice(self._run("speaker_tokenize", mels[None]).reshape(-1).astype(np.int64), semantics.reshape(-1))

    def _spoken(self, semantics: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        """The engine's detokenize, graph by graph: float32 [n]."""
        assert codes is not None  # a reply without is none
        voice = self._run("speaker_detokenize", codes[None, None])
        hidden = self._run("prenet", self._run("quantizer_detokenize", semantics[None]).transpose(0, 2, 1), voice)
        audio = self._run("decoder", hidden + voice[..., None]).reshape(-1)
        return check_audio(audio, self.sample_rate, silent_s=_SILENT_S)

    def _run(self, name: str, *given: np.ndarray) -> np.ndarray:
        """A graph's first answer."""
        if name not in self._sessions:
            self._sessions[name] = Session(self.folder / f"{name}.onnx", self._options)
        session = self._sessions[name]
        return session.run(dict(zip(session.inputs, map(np.ascontiguousarray, given), strict=True)))[0]

    def _reply(
        self, text: str, voice: _Voice, prompt_text: str | None, params: SamplingParams
    ) -> tuple[_Voice, np.ndarray]:
        """Whose voice it was, and a segment's semantic codes, int64 [n]. Raises InvalidText, GenerationError."""
        prompt = self._prompt(text, voice, prompt_text)
        for again in range(_DRAWS if params.temperature else 1):
            tokens = self._generated(prompt, segment_seed(params, _ANEW + again) if again else params)
            first = next((i for i, token in enumerate(tokens) if self._vocabulary.is_semantic(token)), None)
            if first is None:
                continue
            if voice.codes is None:
                codes = self._vocabulary.globals(tokens[:first])
                if len(codes) != self._said["voice_codes"]:
                    continue  # it speaks before it has said who does
                voice = replace(voice, codes=codes, begun=tuple(tokens[:first]))
            return voice, self._vocabulary.semantics(tokens)
        raise GenerationError(f"the engine produced no audio for {text!r}: try another seed, text or reference")

    def _generated(self, prompt: np.ndarray, params: SamplingParams) -> Sequence[int]:
        if self._decoder is None:
            paths = dict.fromkeys((EMBEDDINGS, CAUSAL), self.folder / LANGUAGE_MODEL)
            self._decoder = load_causal(paths, self._options)
        spec = self._decoder.spec
        if (room := spec.stack.positions - len(prompt)) < 1:
            raise InvalidText(
                f"text and reference are {len(prompt)} tokens, and the model has room for {spec.stack.positions}: "
                "give less of either"
            )
        assert params.max_new_tokens is not None
        sampler = TokenSampler(params, spec.rows, prompt=prompt.tolist())
        return list(self._decoder.generate(prompt, sampler, min(room, params.max_new_tokens)))

    def _prompt(self, text: str, voice: _Voice, prompt_text: str | None) -> np.ndarray:
        """What the model goes on from, int64 [T]: the text, who says it, and what was said before."""
        said = f"<|start_content|>{prompt_text or ''}{text}<|end_content|>"
        if voice.style:
            parts = ["<|task_controllable_tts|>", said, voice.style]
        else:
            assert voice.codes is not None
            parts = ["<|task_tts|>", said, _voiced(voice.codes)]
        if prompt_text and voice.semantics is not None:
            parts += ["<|start_semantic_token|>", *(f"<|bicodec_semantic_{code}|>" for code in voice.semantics)]
        return np.array([*self._tokenizer.encode("".join(parts)).ids, *voice.begun], np.int64)

    def _saved(self, audio: np.ndarray, folder: Path) -> Path:
        path = folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}.wav"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_wav(path, audio, self.sample_rate)
        except OSError as error:
            raise InvalidOption(f"{path} cannot be written ({error}): choose another save_dir") from error
        return path


def _style(gender: str | None, pitch: str | None, speed: str | None) -> str:
    """A description as tokens, "" without one. Raises InvalidOption."""
    given = {"gender": (gender, _GENDERS), "pitch": (pitch, _LEVELS), "speed": (speed, _LEVELS)}
    if all(value is None for value, _ in given.values()):
        return ""
    for name, (value, known) in given.items():
        if value not in known:
            raise InvalidOption(
                f"{name} is {value!r}: a voice is described by gender, pitch and speed, {name} one of "
                f"{', '.join(known)}"
            )
    numbers = {name: known.index(str(value)) for name, (value, known) in given.items()}
    labels = f"<|pitch_label_{numbers['pitch']}|><|speed_label_{numbers['speed']}|>"
    return f"<|start_style_label|><|gender_{numbers['gender']}|>{labels}<|end_style_label|>"


def _voiced(codes: np.ndarray) -> str:
    return f"<|start_global_token|>{''.join(f'<|bicodec_global_{code}|>' for code in codes)}<|end_global_token|>"


def _found(place: Path) -> Path:
    """Raises EngineError."""
    for folder in (place, place / _FOLDER):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise EngineError(
        f"there is no converted Spark-TTS in {place}: `accelerator convert spark-tts --model_dir DIR` makes one of a "
        "checkpoint"
    )


def _described(folder: Path) -> Mapping[str, Any]:
    """Raises EngineError for what cannot speak."""
    try:
        said: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise EngineError(f"{folder / DESCRIPTION} is damaged ({error}): convert the checkpoint again") from error
    if said.get("version") != VERSION:
        raise EngineError(f"{folder} was made by another version of this package: convert the checkpoint again")
    if not said["dynamic"]:
        raise EngineError(
            f"the graphs in {folder} are static: they take exactly {said['frames']} frames, and no text and no "
            "recording has always as many; convert the checkpoint with --dynamic_axes"
        )
    return said


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError("speaking from a converted Spark-TTS needs tokenizers: pip install tokenizers") from error
    if not path.is_file():
        raise EngineError(f"{path} is missing: convert the checkpoint again")
    return Tokenizer.from_file(str(path))
