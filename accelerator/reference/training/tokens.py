"""The corpus as codes: one compact npz a split, from the trained codec.

DIR/tokens/SPLIT.npz: codes uint16 [C, all frames], frames int32 [clips], codec (its digest); the clips are the
manifest's, in its order.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..codec import Codec
from ..errors import ReferenceEngineError
from .codec import encoding, trained_codec
from .corpus import Clip, open_corpus
from .pause import Pause
from .sentences import SPLITS

__all__ = ["Spoken", "codec_of", "digest", "encode", "open_tokens", "tokenize"]


@dataclass(frozen=True)
class Spoken:
    """A clip and its codes int64 [C, m]."""

    clip: Clip
    codes: np.ndarray


@torch.inference_mode()
def encode(codec: Codec, audio: np.ndarray) -> np.ndarray:
    """Float32 [n] -> codes int64 [C, m], whose decoded audio holds all of it, `lag` samples late."""
    late = np.zeros(codec.config.lag, dtype=np.float32)
    return codec.encode(torch.from_numpy(np.concatenate((audio, late)))[None])[0].numpy()


def digest(codec: Codec) -> str:
    """sha256 of the weights that decide about codes."""
    state = hashlib.sha256()
    for name, tensor in sorted(encoding(codec).items()):
        state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def tokenize(work: Path, *, pause: Pause, codec: Codec | None = None, unfinished: bool = False) -> Path:
    """Encode the splits that this codec has not encoded yet, or that have grown since; the folder of the codes."""
    torch.set_num_threads(1)
    codec = codec or trained_codec(work, unfinished=unfinished)
    own = digest(codec)
    corpus = open_corpus(work)
    folder = work / "tokens"
    folder.mkdir(exist_ok=True)
    for split in ("train", *SPLITS):
        clips, path = corpus.of(split), folder / f"{split}.npz"
        if path.is_file():
            with np.load(path) as file:
                if str(file["codec"]) == own and len(file["frames"]) == len(clips):
                    continue
        codes = []
        for clip in clips:
            pause.wait()
            codes.append(encode(codec, corpus.samples(clip)).astype(np.uint16))
        temporary = folder / f"{split}.tmp.npz"
        joined = np.concatenate(codes, axis=1) if codes else np.zeros((len(codec.quantizer.sizes), 0), np.uint16)
        frames = np.array([c.shape[1] for c in codes], np.int32)
        np.savez_compressed(temporary, codes=joined, frames=frames, codec=np.array(own))
        os.replace(temporary, path)
    return folder


def codec_of(work: Path, split: str) -> str:
    """The digest of the codec that encoded a split."""
    with np.load(work / "tokens" / f"{split}.npz") as file:
        return str(file["codec"])


def open_tokens(work: Path, split: str) -> list[Spoken]:
    """Raises ReferenceEngineError if the corpus is not encoded, or has changed since."""
    path = work / "tokens" / f"{split}.npz"
    if not path.is_file():
        raise ReferenceEngineError(f"there is no {path}: run the command `tokens` first")
    clips = open_corpus(work).of(split)
    with np.load(path) as file:
        codes, frames = file["codes"].astype(np.int64), file["frames"]
    if len(frames) != len(clips):
        raise ReferenceEngineError(f"{path} belongs to another corpus: delete it and run `tokens` again")
    return [Spoken(clip, part) for clip, part in zip(clips, np.split(codes, frames.cumsum()[:-1], axis=1), strict=True)]
