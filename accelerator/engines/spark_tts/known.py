"""What was learnt of a checkpoint when its engine was last opened: all that its exports are spoken from by themselves.

A note in the cache, for these files and this code of the engine. It is written where the engine's files say the same as
the engine, see `reading`; otherwise the engine is opened each time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...cache import ContentCache, make_key
from ...export import sources
from ...export.graph.specs import CausalSpec
from .folder import digest

__all__ = ["Facts", "Memory", "code_of"]

_NOTE = "facts"
_PACKAGES = ("spark_tts_lib", "sparktts")  # of the package, and of a checkout
_DESCRIBING = (".json", ".yaml", ".txt")  # files that say what a checkpoint is, beside its weights


@dataclass(frozen=True)
class Facts:
    """Of an engine. tokens: that its language model knows. dtype: what that computes in. sizes: codes in the semantic
    codebook, and in the voice's. count: codes of a voice. reach: see `reach`. unit_s: seconds of a semantic token.
    clip: samples that say who speaks. level: whether recordings are brought to one. code: of the engine, see `code_of`.
    """

    spec: CausalSpec
    tokens: int
    dtype: str
    repetition_penalty: float | None
    sizes: tuple[int, int]
    count: int
    reach: int | None
    sample_rate: int
    unit_s: float
    clip: int
    level: bool
    code: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Facts:
        return cls(**{**data, "spec": CausalSpec.from_dict(data["spec"]), "sizes": tuple(data["sizes"])})


class Memory:
    """The note of a checkpoint folder. Nothing is remembered where the engine's package is not found."""

    def __init__(self, cache: ContentCache, folder: Path) -> None:
        self._cache, self._folder = cache, folder

    def read(self) -> Facts | None:
        key = self._key()
        note = None if key is None else self._cache.read_note(key, _NOTE)
        try:
            return None if note is None else Facts.from_dict(note)
        except (KeyError, TypeError, ValueError):  # written by something else
            return None

    def write(self, facts: Facts) -> None:
        if (key := self._key()) is not None:
            self._cache.write_note(key, _NOTE, facts.to_dict())

    def _key(self) -> str | None:
        places = [place for package in _PACKAGES if (place := _place(package)) is not None]
        if not places:
            return None
        folders = (self._folder, *(self._folder / each for each in ("LLM", "BiCodec", "wav2vec2-large-xlsr-53")))
        files = sorted(file for each in folders for file in each.glob("*") if file.suffix in _DESCRIBING)
        return make_key(
            kind="spark-tts",
            checkpoint=digest(self._cache, files),
            engine=[_digest(place) for place in places],
            transformers=importlib.metadata.version("transformers"),
            code=sources.digest(__name__, f"{__package__}.stored", f"{__package__}.reading"),
        )


def code_of(engine: Any) -> str:
    """sha256 of the engine's own code: of its package, or of the file that its codec is in."""
    module = type(engine.audio_tokenizer).__module__
    package, models, _ = module.partition(".models.")
    place = _place(package) if models else Path(str(getattr(sys.modules.get(module), "__file__", None)))
    return "" if place is None or not place.exists() else _digest(place)


def _place(package: str) -> Path | None:
    """The folder of a package, without importing it."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = None if found is None else found.submodule_search_locations
    return Path(next(iter(places))) if places else None


def _digest(place: Path) -> str:
    total = hashlib.sha256()
    for file in _files(place):
        total.update(f"{file.relative_to(place.parent)}\n".encode() + file.read_bytes())
    return total.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    yield from sorted(place.rglob("*.py")) if place.is_dir() else (place,)
