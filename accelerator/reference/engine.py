"""The engine: text in, speech out, and each stage in between as a public method.

    encode_text -> generate (frame after frame) -> decode          encode_reference for the voice to imitate

`synthesize` and `stream` reach the stages only through `self`, so that a shallow copy with a stage replaced is a whole
engine. Arrays at this boundary are numpy; the modules inside take and give torch tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch

from .audio import check_waveform, load_audio
from .codec import Codec
from .config import SIZES, EngineConfig
from .errors import ReferenceEngineError
from .language_model import LanguageModel
from .sampling import Sampling, draw, penalise, repetition_aware
from .tokenizer import build_prompt, frame_columns
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
        seed: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.8,
        top_k: int = 30,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
    ) -> tuple[np.ndarray, int]:
        """Speak `text`: (float32 mono [n] in [-1, 1], sample rate). Options as in `generate`."""
        prompt = self._prompt(text, reference_audio, reference_text)
        frames = self.generate(
            prompt,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            max_new_tokens=max_new_tokens,
        )
        return self.decode(_codes_of(list(frames), self.config.language_model.codebooks)), self.sample_rate

    def stream(
        self,
        text: str,
        reference_audio: np.ndarray | str | os.PathLike[str] | None = None,
        reference_text: str | None = None,
        *,
        seed: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.8,
        top_k: int = 30,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        chunk_frames: int = 8,
    ) -> Iterator[np.ndarray]:
        """`synthesize` in pieces of `chunk_frames` frames: float32 mono [<= chunk_frames * hop] each.

        Each piece is decoded behind enough of the frames before it to be what the whole would give (exactly, unless the
        codec's receptive field exceeds `config.stream_context`).
        """
        if chunk_frames < 1:
            raise ReferenceEngineError("chunk_frames must be 1 or more")
        prompt = self._prompt(text, reference_audio, reference_text)
        context = min(self.codec.receptive_field_frames - 1, self.config.stream_context)
        frames: list[np.ndarray] = []
        done = 0
        for frame in self.generate(
            prompt,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            max_new_tokens=max_new_tokens,
        ):
            frames.append(frame)
            if len(frames) - done == chunk_frames:
                yield self._decode_behind(frames, done, context)
                done = len(frames)
        if done < len(frames):
            yield self._decode_behind(frames, done, context)

    def encode_text(
        self, text: str, reference_codes: np.ndarray | None = None, reference_text: str | None = None
    ) -> np.ndarray:
        """The prompt int64 [1+C, T] that makes the model speak `text`, in the voice of reference_codes [C, m] if given.

        Raises ReferenceEngineError for an empty or unencodable text, a reference text without codes, or codes out of
        range.
        """
        if not isinstance(text, str) or not text.strip():
            raise ReferenceEngineError("there is no text to speak")
        if reference_codes is None and reference_text is not None:
            raise ReferenceEngineError("reference_text needs reference audio")
        if reference_codes is not None:
            reference_codes = self._check_codes(reference_codes)
        try:
            return build_prompt(text, reference_codes, reference_text or "", self.config.language_model)
        except UnicodeEncodeError as error:
            raise ReferenceEngineError(f"the text is not valid Unicode: {error}") from error

    @torch.inference_mode()
    def generate(
        self,
        prompt: np.ndarray,
        *,
        seed: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.8,
        top_k: int = 30,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        codes_so_far: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the frames after prompt [1+C, T], each int64 [1+C]: the main token, then the codes.

        Ends at the end token (which is not yielded), after max_new_tokens frames (None: the configuration's), or where
        the model's longest sequence ends. `codes_so_far` [C, m] are frames this prompt already gave: generation goes on
        behind them, and max_new_tokens counts new frames only. temperature 0 is greedy; seed None draws a fresh one;
        repetition_penalty None is the configuration's. Same seed, same frames. Raises ReferenceEngineError for values
        out of range.
        """
        lm = self.config.language_model
        penalty = lm.repetition_penalty if repetition_penalty is None else repetition_penalty
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=penalty)
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
        count = min(wanted, lm.max_seq_len - start)
        cache, fast_cache = self.language_model.slow_cache(start + count), self.language_model.fast_cache()
        step = torch.from_numpy(columns)[None]  # [1, 1+C, T]
        position = 0
        for _ in range(count):
            logits, hidden = self.language_model.slow(step, cache, position)
            position += step.shape[2]
            choice = self._choose(logits[0], past, sampling, generator)
            if choice == lm.codebook_size:
                return
            past.append(choice)
            frame = self._frame(hidden, choice, fast_cache, sampling, generator)
            yield frame
            step = torch.from_numpy(frame)[None, :, None]  # [1, 1+C, 1]

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
        """The frame of hidden state [1, D] and its first code, by C-1 steps of the fast transformer."""
        model, lm = self.language_model, self.config.language_model
        codes = [first_code]
        embedded = model.fast_embeddings(torch.tensor([[first_code]]))  # [1, 1, D]
        x = torch.cat((hidden[:, None], embedded), dim=1)  # positions 0 and 1 at once: nothing is drawn after 0
        position = 0
        while True:
            logits = model.fast(x, cache, position)
            position += x.shape[1]
            codes.append(draw(logits[0], sampling, generator))
            if len(codes) == lm.codebooks:
                return np.array([lm.semantic_begin + first_code, *codes], dtype=np.int64)
            x = model.fast_embeddings(torch.tensor([[codes[-1]]]))

    def _prompt(
        self, text: str, reference_audio: np.ndarray | str | os.PathLike[str] | None, reference_text: str | None
    ) -> np.ndarray:
        if reference_audio is None:
            return self.encode_text(text, None, reference_text)
        if isinstance(reference_audio, (str, os.PathLike)):
            reference_audio = load_audio(reference_audio, self.sample_rate)
        return self.encode_text(text, self.encode_reference(reference_audio), reference_text)

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
