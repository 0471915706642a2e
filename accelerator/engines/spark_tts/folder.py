"""The files that a converted Spark-TTS consists of, beside its graphs, and what can be said of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...cache import ContentCache
from ...errors import EngineError

__all__ = [
    "DESCRIPTION",
    "LANGUAGE_MODEL",
    "MELS",
    "PROOF",
    "TOKENIZER",
    "TRACE",
    "VERSION",
    "check",
    "described",
    "digest",
    "found",
    "tokenizer",
]

DESCRIPTION, MELS = "spark-tts.json", "mels.npz"
LANGUAGE_MODEL, TOKENIZER, TRACE = "LLM", "tokenizer.json", "trace.npz"  # a folder, and files in it
PROOF = "proof.npz"  # answers of PyTorch's codec; the trace has those of its language model
VERSION = 2  # of the description; another one is refused
_FOLDER = "onnx"  # of a checkpoint, where a conversion lies unless told otherwise


def found(place: Path) -> Path:
    """The folder of a conversion, or of the checkpoint that it lies in. Raises EngineError."""
    for folder in (place, place / _FOLDER):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise EngineError(
        f"there is no converted Spark-TTS in {place}: `accelerator convert spark-tts --model_dir DIR` makes one of a "
        "checkpoint"
    )


def described(folder: Path) -> Mapping[str, Any]:
    """What is written of a conversion. Raises EngineError for one that cannot speak."""
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


def tokenizer(folder: Path) -> Any:
    """Raises EngineError."""
    path = folder / LANGUAGE_MODEL / TOKENIZER
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError("speaking from a converted Spark-TTS needs tokenizers: pip install tokenizers") from error
    if not path.is_file():
        raise EngineError(f"{path} is missing: convert the checkpoint again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # it has no type of its own
        raise EngineError(f"{path} cannot be read: {error}") from error


def check(folder: Path, names: Iterable[str]) -> None:
    """Raises EngineError for a file that is not there."""
    beside = (MELS, PROOF, f"{LANGUAGE_MODEL}/{TRACE}")
    for path in (folder / name for name in (*names, *beside)):
        if not path.is_file():
            raise EngineError(f"{path} is missing: convert the checkpoint again")


def digest(cache: ContentCache, files: Iterable[Path]) -> str:
    """sha256 over the names and contents of those files that are there; each is read once per change.

    Raises EngineError for one that cannot be read.
    """
    try:
        lines = [f"{file.parent.name}/{file.name} {cache.file_digest(file)}" for file in files if file.is_file()]
    except OSError as error:
        raise EngineError(f"{error.filename} cannot be read: {error}") from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
