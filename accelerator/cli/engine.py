"""From --engine, --size and --checkpoint to a wrapped engine, and what became of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from ..errors import EngineError
from . import formats
from .console import Output
from .options import SizeName
from .streams import foreign_bytes

if TYPE_CHECKING:
    from ..engines import Adapter
    from ..optimizer import UniversalOptimizer

__all__ = [
    "check_choice",
    "checkpoint_kind",
    "export_errors",
    "open_engine",
    "own_options",
    "part_rows",
    "prepare",
    "split_options",
    "split_providers",
]

ENCODER = "encoder"  # the part that only a reference voice needs
_DOWNLOADS = {
    "fish-speech": "fishaudio/openaudio-s1-mini",
    "kitten": "KittenML/kitten-tts-nano-0.8",
    "spark-tts": "SparkAudio/Spark-TTS-0.5B",
    "vits": "facebook/mms-tts-eng",
}
_FILES = {
    "kokoro": "a model of kokoro-onnx' releases, with voices-v1.0.bin beside it",
    "piper": "a voice of rhasspy/piper-voices, with its .onnx.json beside it",
}
"""Of engines whose checkpoint is a file: what it is."""
_ONNX = (*_FILES, "kitten")
_MODELS = {"mockingbird": ("encoder", "synthesizer", "vocoder")}
"""Of engines whose models are files of their own: what they are."""


def check_choice(
    engine: str, size: SizeName | None, checkpoint: Path | None, models: Mapping[str, Path | None] | None = None
) -> None:
    """Refuse what cannot be meant. models: see `open_engine`.

    Raises BadParameter (wrong usage) and EngineError (nothing there).
    """
    from ..engines import CHECKPOINTS

    known = sorted({"reference", *CHECKPOINTS})
    if engine not in known:
        raise typer.BadParameter(
            f"no engine called {engine!r}; choose one of {', '.join(known)}", param_hint="--engine"
        )
    if engine != "reference":
        if checkpoint is None:
            raise typer.BadParameter(
                f"{engine} needs --checkpoint {checkpoint_kind(engine)}{_download(engine)}", param_hint="--checkpoint"
            )
        if size is not None:
            raise typer.BadParameter("only the reference engine has sizes", param_hint="--size")
    for name, file in (models or {}).items():
        if file is not None and name not in _MODELS.get(engine, ()):
            raise typer.BadParameter(f"{engine} has no {name} of its own", param_hint=f"--{name}")
    if checkpoint is not None and not checkpoint.exists():
        raise EngineError(f"the checkpoint {str(checkpoint)!r} does not exist: give the path of a downloaded one")
    if checkpoint is not None and engine in _ONNX and foreign_bytes(str(checkpoint)) is not None:
        raise EngineError(f"the name {str(checkpoint)!r} is not UTF-8, and ONNX Runtime opens no such file: rename it")


def checkpoint_kind(engine: str) -> str:
    """What its --checkpoint is."""
    return "FILE.onnx" if engine in _FILES else "DIR"


def _download(engine: str) -> str:
    """Where a checkpoint of it comes from, for the end of a sentence."""
    if engine in _FILES:
        return f": {_FILES[engine]}"
    if engine == "spark-tts-onnx":
        return ": `accelerator convert spark-tts --model-dir DIR` makes one of a checkpoint"
    if engine in _MODELS:
        return ": a checkout, `git clone https://github.com/babysor/MockingBird DIR`"
    return f": `hf download {_DOWNLOADS[engine]} --local-dir DIR` fetches one" if engine in _DOWNLOADS else ""


def open_engine(
    out: Output,
    engine: str,
    size: SizeName | None,
    checkpoint: Path | None,
    models: Mapping[str, Path | None] | None = None,
    *,
    voices: str | None = None,
    providers: str | None = None,
    **options: Any,
) -> UniversalOptimizer:
    """The engine, wrapped. models: checkpoint files of an engine that has several, by name. options: those of
    `UniversalOptimizer`. Raises EngineError, BadParameter.
    """
    check_choice(engine, size, checkpoint, models)
    options["providers"] = split_providers(providers)
    from ..engines import checkpoint_options
    from ..optimizer import UniversalOptimizer

    if engine != "reference":
        assert checkpoint is not None
        given: dict[str, Any] = {name: file for name, file in (models or {}).items() if file is not None}
        if voices is not None:
            if "voices" in checkpoint_options(engine):  # where they mean a file of the engine's own
                raise typer.BadParameter(f"{engine} imitates no recordings", param_hint="--voices")
            given["voices"] = voices
        return UniversalOptimizer.from_checkpoint(checkpoint, engine, **given, **options)
    from ..benchmark.demo import open_voice

    voice = open_voice(size.value if size is not None else None, checkpoint)
    if not voice.trained:
        out.note(f"Note: {voice.note}")
    return UniversalOptimizer(voice.engine, voices=voices, **options)


def split_providers(given: str | None) -> list[str] | Literal["auto"] | None:
    """--providers, as `UniversalOptimizer` takes them."""
    if given is None or given == "auto":
        return given  # type: ignore[return-value]
    return [name.strip() for name in given.split(",") if name.strip()]


def split_options(given: Sequence[str] | None) -> dict[str, str]:
    """--option NAME=VALUE, by name. Raises BadParameter."""
    found: dict[str, str] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise typer.BadParameter(f"{each!r} is no NAME=VALUE, as speed=1.2 is", param_hint="--option")
        if name in found:
            raise typer.BadParameter(f"{name} is given twice: leave one out", param_hint="--option")
        found[name] = value
    return found


def own_options(adapter: Adapter, given: Mapping[str, str]) -> dict[str, Any]:
    """What of --option an engine is asked. Raises InvalidOption."""
    from ..engines.options import parse_options

    return parse_options(adapter.name, adapter.options or {}, given)


def prepare(optimizer: UniversalOptimizer, *, encoder: bool = True) -> None:
    """Export, load and probe the parts, without the encoder where no reference voice is spoken in."""
    optimizer.prepare(name for name in optimizer.status()["parts"] if encoder or name != ENCODER)


def export_errors(parts: Mapping[str, Any]) -> dict[str, str]:
    """Part -> why it could not be exported; a part that is merely slower in ONNX Runtime is no error."""
    return {name: part["errors"][-1] for name, part in parts.items() if part["errors"]}


def part_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """Rows for `PART_COLUMNS`, of `UniversalOptimizer.status()["parts"]`."""
    rows = []
    for name, part in parts.items():
        exports = part.get("exports", {})
        proofs = [f"{n}: {formats.figures(e['proof'])}" for n, e in exports.items()]
        rejected = [f"{r['precision']} rejected: {formats.figures(r)}" for e in exports.values() for r in e["rejected"]]
        if (pruned := part.get("pruned")) is not None:
            rejected.append(f"{'pruned' if pruned['used'] else 'not pruned'}: {pruned['reason']}")
        built = "-" if not exports else "built" if any(e["cache"] == "built" for e in exports.values()) else "hit"
        probe = _probe(part.get("probe", {}).get("seconds", {}))
        reason = part.get("reason", "") if part.get("precision") is None else ""  # it stays as it was
        rows.append(
            [
                name,
                part["backend"],
                part.get("precision") or "-",
                "\n".join([*proofs, *rejected]) or "-",
                built,
                "\n".join(filter(None, [*probe, reason])) or "-",
            ]
        )
    return rows


PART_COLUMNS: Sequence[str] = ("part", "backend", "precision", "proof", "cache", "probe, per unit of work")


def _probe(seconds: Mapping[str, float]) -> list[str]:
    lines = []
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        backend, *setting = name.split("-")  # "original", "onnxruntime-2", "onnxruntime-2-spin50"
        backend = {"original": "as it was", "onnxruntime": "ONNX", "onednn": "oneDNN"}.get(backend, backend)
        if setting and setting[0].isdigit():
            setting[0] += " thread" if setting[0] == "1" else " threads"
        lines.append(f"{' '.join([backend, *setting])}: {formats.seconds(value)}")
    return lines
