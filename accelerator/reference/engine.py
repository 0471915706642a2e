"""The engine: text in, speech out, and each stage in between as a public method.

    encode_text -> generate (frame after frame) -> decode          encode_reference for the voice to imitate

A voice is chosen by name (`speakers`), by a reference, or left to `default_speaker`. A text longer than the voice can
speak in one breath is spoken phrase after phrase. A codec that comes late (`CodecConfig.lag`) is put right here, around
`encode_reference` and `decode`, which are the bare codec.

`synthesize` and `stream` reach the stages only through `self`, so that a shallow copy with a stage replaced is a whole
engine. Arrays at this boundary are numpy; the modules inside take and give torch tensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from .audio import as_learnt, check_waveform, load_audio
from .codec import Codec
from .config import SIZES, EngineConfig
from .errors import ReferenceEngineError
from .language_model import LanguageModel
from .phrases import phrases
from .pronounce import pronounced
from .sampling import Sampling, draw, penalise, repetition_aware
from .spoken import spoken
from .tokenizer import build_prompt, frame_columns, unconditional
from .transformer import KVCache
from .weights import load_weights, random_weights, save_weights

__all__ = ["ReferenceEngine", "load"]


def load(size: str | None = None, *, seed: int = 0, path: str | os.PathLike[str] | None = None) -> ReferenceEngine:
    """An engine of a named size ("tiny" unless told) with random weights, or the one saved at `path`.

    Raises ReferenceEngineError for an unknown size, an unreadable file, or a file of another size than the one named.
    """
    if path is not None:
        config, language_model, codec = load_weights(path)
        if size is not None and size != config.name:
            raise ReferenceEngineError(f"{path} holds an engine of size {config.name!r}, not {size!r}")
        return ReferenceEngine(config, language_model, codec)
    name = "tiny" if size is None else size
    if name not in SIZES:
        raise ReferenceEngineError(f"unknown size {name!r}; there are {', '.join(SIZES)}")
    return ReferenceEngine(SIZES[name], *random_weights(SIZES[name], seed))


class ReferenceEngine:
    """A text-to-speech engine. C codebooks, T columns, m frames, hop samples a frame.

    `language_model` and `codec` are modules; their docstrings list the parameter names, which are stable.
    """

    def __init__(self, config: EngineConfig, language_model: LanguageModel, codec: Codec) -> None:
        self.config = config
        self.language_model = language_model
        self.codec = codec
        self.default_speaker = next(iter(config.language_model.speakers), None)
        if config.text != "as_given":
            pronounced(spoken("Room 1"))  # what reading needs is loaded now, and no request waits for it

    @property
    def speakers(self) -> tuple[str, ...]:
        """The voices that can be chosen by name; none where weights are random."""
        return self.config.language_model.speakers

    @property
    def sample_rate(self) -> int:
        """Samples a second of all audio, in and out."""
        return self.config.codec.sample_rate

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.config.codec.hop

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, as "language_model.*" and "codec.*"."""
        for part, module in (("language_model", self.language_model), ("codec", self.codec)):
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and configuration to one safetensors file, which `load(path=...)` reads."""
        save_weights(path, self.config, self.language_model, self.codec)

    def synthesize(
        self,
        text: str,
        reference_audio: np.ndarray | str | os.PathLike[str] | None = None,
        reference_text: str | None = None,
        *,
        speaker: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int = 30,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
    ) -> tuple[np.ndarray, int]:
        """Speak `text`: (float32 mono [n] in [-1, 1], sample rate). The voice as in `encode_text`, the other options as
        in `generate`; max_new_tokens bounds all phrases together, None each of them."""
        sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
        }
        turns = self._turns(text, reference_audio, reference_text, speaker, seed, max_new_tokens, sampling)
        codebooks, lag = self.config.language_model.codebooks, self.config.codec.lag
        audio = [self.decode(_codes_of(list(frames), codebooks))[lag:] for frames in turns]
        return (audio[0] if len(audio) == 1 else np.concatenate(audio)), self.sample_rate

    def stream(
        self,
        text: str,
        reference_audio: np.ndarray | str | os.PathLike[str] | None = None,
        reference_text: str | None = None,
        *,
        speaker: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int = 30,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        chunk_frames: int = 8,
    ) -> Iterator[np.ndarray]:
        """`synthesize` in chunks of `chunk_frames` frames: float32 mono [<= chunk_frames * hop] each.

        Each chunk is decoded with enough of the frames before it to equal the same part of the whole (exactly, unless
        the codec's receptive field exceeds `config.stream_context`). A codec's lag shortens a phrase's first chunk.
        """
        if chunk_frames < 1:
            raise ReferenceEngineError("chunk_frames must be 1 or more")
        sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
        }
        context = min(self.codec.receptive_field_frames - 1, self.config.stream_context)
        for turn in self._turns(text, reference_audio, reference_text, speaker, seed, max_new_tokens, sampling):
            frames: list[np.ndarray] = []
            done, late = 0, self.config.codec.lag
            while True:
                frames.extend(islice(turn, chunk_frames))
                if done == len(frames):
                    break
                audio = self._decode_behind(frames, done, context)
                if late < len(audio):
                    yield audio[late:]
                late, done = max(0, late - len(audio)), len(frames)

    def encode_text(
        self,
        text: str,
        reference_codes: np.ndarray | None = None,
        reference_text: str | None = None,
        speaker: str | None = None,
    ) -> np.ndarray:
        """The prompt int64 [1+C, T] that makes the model speak `text` as one turn.

        In the voice of reference_codes [C, m], or of the speaker named, or of `default_speaker`. Raises
        ReferenceEngineError for an empty or unencodable text, a reference text without codes, codes out of range, a
        speaker that is not among `speakers`, or one beside a reference.
        """
        if not isinstance(text, str) or not text.strip():
            raise ReferenceEngineError("there is no text to speak")
        if reference_codes is None and reference_text is not None:
            raise ReferenceEngineError("reference_text needs reference audio")
        if reference_codes is not None:
            if speaker is not None:
                raise ReferenceEngineError(f"give a reference or the speaker {speaker!r}, not both")
            reference_codes = self._check_codes(reference_codes)
            named = None
        else:
            named = self._speaker_token(self.default_speaker if speaker is None else speaker)
        said = self._read(reference_text or "")
        try:
            return build_prompt(self._read(text), reference_codes, said, self.config.language_model, named)
        except UnicodeEncodeError as error:
            raise ReferenceEngineError(f"the text is not valid Unicode: {error}") from error

    @torch.inference_mode()
    def generate(
        self,
        prompt: np.ndarray,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int = 30,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        codes_so_far: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the frames after prompt [1+C, T], each int64 [1+C]: the main token, then the codes.

        Ends at the end token (which is not yielded), after max_new_tokens frames (None: the configuration's), or where
        the model's longest sequence ends. `codes_so_far` [C, m] are frames this prompt already gave: generation goes on
        behind them, and max_new_tokens counts new frames only. temperature 0 is greedy; seed None draws a fresh one;
        temperature, top_p and repetition_penalty None are the configuration's. Same seed, same frames. Raises
        ReferenceEngineError for values out of range.
        """
        lm = self.config.language_model
        penalty = lm.repetition_penalty if repetition_penalty is None else repetition_penalty
        sampling = Sampling(
            temperature=self.config.temperature if temperature is None else temperature,
            top_p=self.config.top_p if top_p is None else top_p,
            top_k=top_k,
            repetition_penalty=penalty,
        )
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        columns = self._check_prompt(prompt)
        past: list[int] = []  # first codes, which are also the indices of main tokens among the candidates
        if codes_so_far is not None:
            codes = self._check_codes(codes_so_far)
            past = codes[0].tolist()
            columns = np.concatenate((columns, frame_columns(codes, lm)), axis=1)
        start = columns.shape[1]
        wanted = self.config.max_new_tokens if max_new_tokens is None else max_new_tokens
        if wanted < 1 or start >= lm.max_seq_len:
            raise ReferenceEngineError(
                f"max_new_tokens must be 1 or more, and the prompt below {lm.max_seq_len} columns (it has {start})"
            )
        bound = min(wanted, lm.max_seq_len - start)
        rows = [columns] if self.config.guidance == 1 else [columns, unconditional(columns, lm)]
        cache = self.language_model.slow_cache(start + bound, len(rows))
        fast_cache = self.language_model.fast_cache(len(rows))
        step = torch.from_numpy(np.stack(rows))  # [B, 1+C, T]
        position = 0
        for _ in range(bound):
            logits, hidden = self.language_model.slow(step, cache, position)
            position += step.shape[2]
            choice = self._choose(self._guided(logits), past, sampling, generator)
            if choice == lm.codebook_size:
                return
            past.append(choice)
            frame = self._frame(hidden, choice, fast_cache, sampling, generator)
            yield frame
            step = torch.from_numpy(frame)[None, :, None].expand(len(rows), -1, -1)  # [B, 1+C, 1]

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 [C, m] -> float32 [m * hop] in [-1, 1]. A code beyond its own codebook counts as the last one."""
        codes = self._check_codes(codes)
        if codes.shape[1] == 0:
            return np.zeros(0, dtype=np.float32)
        return self.codec.decode(torch.from_numpy(codes)[None])[0].numpy()

    @torch.inference_mode()
    def encode_reference(self, audio: np.ndarray) -> np.ndarray:
        """Float32 mono [n] at `sample_rate` -> codes int64 [C, ceil(n / hop)]."""
        return self.codec.encode(torch.from_numpy(check_waveform(audio).copy())[None])[0].numpy()

    def _guided(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits to draw from, of the conditioned and, with guidance, the unconditional row: [B, K] -> [K]."""
        if len(logits) == 1:
            return logits[0]
        conditioned, unconditioned = logits.unbind()
        guided, plausible = torch.lerp(unconditioned, conditioned, self.config.guidance), self.config.plausible
        if plausible:
            guided = guided.masked_fill(conditioned < conditioned.max() + math.log(plausible), -math.inf)
        return guided

    def _choose(self, logits: torch.Tensor, past: list[int], sampling: Sampling, generator: torch.Generator) -> int:
        """Index of the next main token among `candidate_ids`; logits [K+1]."""
        lm = self.config.language_model
        recent = past[-lm.repetition_window :]
        logits = penalise(logits, recent, sampling.repetition_penalty)
        if lm.repetition_aware:
            return repetition_aware(logits, sampling, recent, generator, exempt=lm.codebook_size)
        return draw(logits, sampling, generator)

    def _frame(
        self,
        hidden: torch.Tensor,
        first_code: int,
        cache: KVCache,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> np.ndarray:
        """The frame of hidden states [B, D] and its first code, by C-1 steps of the fast transformer."""
        model, lm = self.language_model, self.config.language_model
        codes = [first_code]
        embedded = model.fast_embeddings(torch.tensor([[first_code]] * len(hidden)))  # [B, 1, D]
        x = torch.cat((hidden[:, None], embedded), dim=1)  # positions 0 and 1 at once: nothing is drawn after 0
        position = 0
        while True:
            logits = model.fast(x, cache, position)
            position += x.shape[1]
            codes.append(draw(self._guided(logits), sampling, generator))
            if len(codes) == lm.codebooks:
                return np.array([lm.semantic_begin + first_code, *codes], dtype=np.int64)
            x = model.fast_embeddings(torch.tensor([[codes[-1]]] * len(hidden)))

    def _turns(
        self,
        text: str,
        reference_audio: np.ndarray | str | os.PathLike[str] | None,
        reference_text: str | None,
        speaker: str | None,
        seed: int | None,
        max_new_tokens: int | None,
        sampling: dict[str, Any],
    ) -> Iterator[Iterator[np.ndarray]]:
        """The frames of one phrase after the other; each must be used up before the next is asked for."""
        codes = None
        if reference_audio is not None:
            if isinstance(reference_audio, (str, os.PathLike)):
                reference_audio = load_audio(reference_audio, self.sample_rate)
            codes = self.encode_reference(self.prepared(reference_audio))
        left = max_new_tokens
        for index, phrase in enumerate(self.phrases(text)):
            named = {} if speaker is None else {"speaker": speaker}
            prompt = self.encode_text(phrase, codes, reference_text, **named)
            own_seed = None if seed is None else seed + index
            frames = self.generate(prompt, seed=own_seed, max_new_tokens=left, **sampling)
            if left is None:
                yield frames
                continue
            counter = count()
            yield (frame for frame, _ in zip(frames, counter, strict=False))
            left -= next(counter)
            if left < 1:
                return

    def phrases(self, text: str) -> list[str]:
        """The text as phrases that the voice can speak in one turn, in words; the text itself if it has no bound."""
        longest = self.config.longest_text
        if longest is None or not isinstance(text, str):
            return [text]
        return phrases(self._worded(text), longest) or [text]

    def words(self, text: str) -> str:
        """What the voice says of a text, as words; the text itself for one that reads it as it is given."""
        return text if self.config.text == "as_given" else spoken(text)

    def prepared(self, audio: np.ndarray) -> np.ndarray:
        """A reference [n] for `encode_reference`: as a voice that has learnt to speak has heard its speakers, and
        longer by the codec's lag, so that the codes hold all of it."""
        audio = check_waveform(audio)
        if self.config.text != "as_given":
            audio = as_learnt(audio, self.sample_rate)
        lag = self.config.codec.lag
        return np.concatenate((audio, np.zeros(lag, dtype=np.float32))) if lag else audio

    def _read(self, text: str) -> str:
        """What the model is given of a text. Raises ReferenceEngineError if no word is left of it."""
        words = self._worded(text)
        return pronounced(words) if self.config.text == "sounds" else words

    def _worded(self, text: str) -> str:
        """A text's words, for a voice that has learnt to read words. Raises ReferenceEngineError if there is none."""
        if self.config.text == "as_given" or not text:
            return text
        words = spoken(text)
        if not words:
            raise ReferenceEngineError(f"there are no words to speak in {text!r}")
        return words if words[-1] in ".?!" else f"{words}."

    def _speaker_token(self, speaker: str | None) -> int | None:
        lm = self.config.language_model
        if speaker is None:
            return None
        if speaker not in lm.speakers:
            there = f"there are {', '.join(lm.speakers)}" if lm.speakers else "this voice has no named speakers"
            raise ReferenceEngineError(f"unknown speaker {speaker!r}; {there}")
        return lm.speaker_begin + lm.speakers.index(speaker)

    def _decode_behind(self, frames: list[np.ndarray], done: int, context: int) -> np.ndarray:
        """The audio of frames[done:], decoded together with the `context` frames before them."""
        first = max(0, done - context)
        codes = _codes_of(frames[first:], self.config.language_model.codebooks)
        return self.decode(codes)[(done - first) * self.hop :]

    def _check_codes(self, codes: np.ndarray) -> np.ndarray:
        lm = self.config.language_model
        array = _integers(codes)
        if array.ndim != 2 or array.shape[0] != lm.codebooks:
            raise ReferenceEngineError(f"codes must have the shape [{lm.codebooks}, frames], not {list(array.shape)}")
        if array.size and (array.min() < 0 or array.max() >= lm.codebook_size):
            raise ReferenceEngineError(f"codes must lie in 0..{lm.codebook_size - 1}")
        return array

    def _check_prompt(self, prompt: np.ndarray) -> np.ndarray:
        lm = self.config.language_model
        array = _integers(prompt)
        if array.ndim != 2 or array.shape[0] != 1 + lm.codebooks or array.shape[1] == 0:
            raise ReferenceEngineError(f"a prompt must have the shape [{1 + lm.codebooks}, T], not {list(array.shape)}")
        if array[0].min() < 0 or array[0].max() >= lm.vocab_size:
            raise ReferenceEngineError(f"a prompt's tokens must lie in 0..{lm.vocab_size - 1}")
        self._check_codes(array[1:])
        return array


def _integers(values: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ReferenceEngineError(f"tokens and codes must be integers, not {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _codes_of(frames: list[np.ndarray], codebooks: int) -> np.ndarray:
    """Frames of [1+C] -> codes int64 [C, m]."""
    return np.stack(frames, axis=1)[1:] if frames else np.zeros((codebooks, 0), dtype=np.int64)
