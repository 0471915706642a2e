"""A checkpoint as a folder of ONNX files that speak by themselves: `boundaries` has its graphs, `onnx` speaks.

The folder also has the language model in this package's own form, its tokenizer, the mel spectrogram's constants, and
`spark-tts.json`, which says how they belong together. It appears when all of it is there and proven, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...cache import Entry
from ...cache.disk import is_stale, make_scratch, remove, scratch_name
from ...errors import AcceleratorError, EngineError, ExportError, InvalidOption
from ...export.component import Built, Component, Export, Progress, ProgressEvent, ignore_progress
from ...export.graph.opset import NEWEST_COMMON, lower
from ...export.proof import compare_arrays, compare_codes
from ...export.tracing import on_one_thread, trace
from ...runtime.onnx import Session
from . import examples, prompts
from .adapter import SparkAdapter
from .boundaries import GRAPHS, Graph, Values, passage
from .compiled import FILE, write
from .folder import DESCRIPTION, LANGUAGE_MODEL, MELS, PROOF, TOKENIZER, TRACE, VERSION
from .stored import held

__all__ = ["Verdict", "convert"]

TRACED = 100  # frames; of static graphs the only length
_LENGTHS = (37, 161)  # never traced
_TOLERANCE, _CODES_EQUAL = 1e-4, 0.99  # codes may differ where two are equally near
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Verdict:
    """What became of one file. figures: of its proof, {} if there was none; `error` says why there is no file."""

    name: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and bool(self.figures.get("passed", True))


def convert(
    adapter: SparkAdapter,
    folder: Path,
    *,
    dynamic: bool = True,
    opset: int = 17,
    verify: bool = True,
    precision: Literal["fp32", "int8", "int4"] = "fp32",
    progress: Progress = ignore_progress,
) -> list[Verdict]:
    """Write the folder, in place of an earlier conversion; only if all verdicts have passed.

    dynamic: graphs of any length, else of `TRACED` frames. opset: the operator set of all graphs but the language
    model's. precision: the language model's. Raises InvalidOption where something else is in the folder, EngineError
    where it cannot be written.
    """
    folder = folder.resolve()
    _check_place(folder)
    unfinished = [each for each in folder.parent.glob(f"{folder.name}{_PARTIAL}*") if is_stale(each, time.time())]
    remove(unfinished)  # of processes that were killed
    try:
        partial = make_scratch(folder.parent, f"{folder.name}{_PARTIAL}")
        try:
            with on_one_thread():
                work = _Conversion(adapter, partial, dynamic, opset, verify, progress)
                verdicts = [work.graph(each) for each in GRAPHS]
                spectrum = work.beside_graphs()
                adapter.release()  # the language model takes as much again
                verdicts += work.language_model(precision)
                if all(verdict.passed for verdict in verdicts):
                    work.rest(precision, spectrum)
                    _publish(partial, folder)
        finally:
            remove([partial])
    except OSError as error:
        raise EngineError(f"{folder} cannot be written ({error}): choose another output_dir") from error
    return verdicts


def _check_place(folder: Path) -> None:
    """Raises InvalidOption for what must not be replaced."""
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / DESCRIPTION).is_file()):
        return
    if folder.exists():
        raise InvalidOption(f"{folder} has other files in it than a conversion's: empty it, or choose another folder")


def _publish(partial: Path, folder: Path) -> None:
    if folder.is_dir():  # an earlier conversion, which is replaced whole
        aside = folder.with_name(scratch_name(f"{folder.name}{_PARTIAL}"))
        os.replace(folder, aside)
        os.replace(partial, folder)
        remove([aside])
    else:
        os.replace(partial, folder)


@dataclass(frozen=True)
class _Conversion:
    """One conversion into `place`. Arguments as for `convert`."""

    adapter: SparkAdapter
    place: Path
    dynamic: bool
    opset: int
    verify: bool
    progress: Progress
    _passages: dict[int, Values] = field(default_factory=dict)

    def graph(self, graph: Graph) -> Verdict:
        """Traced, written, and compared with PyTorch's answers."""
        self.progress(ProgressEvent(graph.name, "build"))
        path, engine = self.place / f"{graph.name}.onnx", self.adapter.engine
        try:
            module = graph.module(engine)
            trace(
                module,
                graph.given(self._passage(TRACED)),
                path,
                inputs=tuple(graph.inputs),
                outputs=graph.outputs,
                dynamic={name: axes for name, (_, axes) in graph.inputs.items()} if self.dynamic else {},
                opset=max(self.opset, NEWEST_COMMON),
            )
            lower(path, self.opset)
            if not self.verify:
                return Verdict(graph.name)
            self.progress(ProgressEvent(graph.name, "prove"))
            return Verdict(graph.name, self._compared(graph, module, Session(path)))
        except AcceleratorError as error:  # the others go on, so that one run tells of all
            return Verdict(graph.name, error=str(error))

    def _compared(self, graph: Graph, module: Any, session: Session) -> dict[str, Any]:
        lengths = _LENGTHS if self.dynamic else (TRACED,)
        pairs = []
        for length in lengths:
            given = graph.given(self._passage(length))
            with torch.no_grad():
                answer = module(*given) if graph.answer is None else graph.answer(self.adapter.engine, *given)
            expected = [each.numpy() for each in (answer if isinstance(answer, tuple) else (answer,))]
            feeds = {name: each.numpy() for name, each in zip(session.inputs, given, strict=True)}
            pairs += list(zip(expected, session.run(feeds), strict=True))
        report = compare_codes(pairs, _CODES_EQUAL) if graph.codes else compare_arrays(pairs, _TOLERANCE)
        return {**report, "lengths": list(lengths)}

    def _passage(self, frames: int) -> Values:
        if frames not in self._passages:
            self._passages[frames] = passage(self.adapter.engine, frames)
        return self._passages[frames]

    def language_model(self, precision: str) -> Sequence[Verdict]:
        """Embeddings and graph, in one folder."""
        place = self.place / LANGUAGE_MODEL
        place.mkdir()
        trace = functools.cache(self.adapter.trace)
        made = self.adapter.language_model(trace)
        kept = [(each, precision if precision in each.precisions else "fp32") for each in made]
        verdicts = [self._component(each, place, own) for each, own in kept if own == precision or not each.beside]
        trace().save(place / TRACE)
        return verdicts

    def _component(self, component: Component, place: Path, precision: str) -> Verdict:
        name = f"{LANGUAGE_MODEL}/{component.name}"
        entry = Entry("", name, place, {})
        beside = Export(entry, precision, {}) if component.beside else None
        try:
            component.build(place, precision, self.progress, *([] if beside is None else [beside]))
            if not self.verify:
                return Verdict(name)
            self.progress(ProgressEvent(component.name, "prove", precision=precision))
            with tempfile.TemporaryDirectory(dir=self.place) as scratch:
                report = component.prove(Built(place, precision, Path(scratch), beside))
            return Verdict(name, {**report, "lengths": []})
        except AcceleratorError as error:
            return Verdict(name, error=str(error))

    def beside_graphs(self) -> dict[str, int]:
        """The spectrogram's constants, and answers of PyTorch's; says the sizes of the Fourier transform."""
        audio = self.adapter.engine.audio_tokenizer
        if not getattr(audio.processor, "do_normalize", True):
            raise EngineError("its wav2vec2 is given recordings as they are: this is not Spark-TTS's, convert that")
        self._passages.clear()
        mel = held(audio.model).mel_transformer
        spectrum = mel.spectrogram
        np.savez(self.place / MELS, window=spectrum.window.numpy(), filters=mel.mel_scale.fb.numpy())
        np.savez(self.place / PROOF, allow_pickle=False, **self._answers())
        if self.dynamic:
            with contextlib.suppress(ExportError):  # then the graphs speak everywhere
                write(self.adapter.save_decoder, self.place / FILE)
        return {"fft": int(spectrum.n_fft), "hop": int(spectrum.hop_length)}

    def rest(self, precision: str, spectrum: Mapping[str, int]) -> None:
        """The tokenizer, and the description."""
        adapter, audio = self.adapter, self.adapter.engine.audio_tokenizer
        adapter.engine.tokenizer.save_pretrained(self.place / LANGUAGE_MODEL)
        _check_tokenizer(adapter.engine, self.place / LANGUAGE_MODEL / TOKENIZER)
        description = {
            "version": VERSION,
            "dynamic": self.dynamic,
            "frames": None if self.dynamic else TRACED,
            "opset": self.opset,
            "precision": precision,
            "dtype": adapter.dtype,
            "sample_rate": adapter.sample_rate,
            "clip": len(audio.get_ref_clip(np.zeros(1))),
            "volume_normalize": bool(audio.config["volume_normalize"]),
            **spectrum,
            "unit_s": adapter.unit_s,
            "sizes": list(adapter.sizes),
            "voice_codes": adapter.count,
            "reach": adapter.reach,
            "positions": adapter.positions,
            "ends": list(adapter.ends),
            "sampling": {name: value for name, value in vars(adapter.defaults).items() if value is not None},
        }
        (self.place / DESCRIPTION).write_text(json.dumps(description, indent=2))

    def _answers(self) -> dict[str, np.ndarray]:
        """Of the codec, for a proof where PyTorch is not."""
        adapter, found = self.adapter, dict[str, np.ndarray]()
        for number, (audio, semantics, codes) in enumerate(
            examples.encoded(adapter.engine.audio_tokenizer, adapter.sample_rate)
        ):
            found |= {f"audio{number}": audio, f"semantics{number}": semantics, f"codes{number}": codes}
        for number, ((spoken, voice), heard) in enumerate(adapter.decoded()):
            found |= {f"spoken{number}": spoken[0], f"voice{number}": voice[0], f"heard{number}": heard[0]}
        return found


def _check_tokenizer(engine: Any, path: Path) -> None:
    """Raises ExportError for a file that reads a prompt otherwise than the engine does."""
    from tokenizers import Tokenizer

    prompt = prompts.controlled(engine, examples.PROOF_TEXT, "female", "moderate", "moderate")
    if not path.is_file() or Tokenizer.from_file(str(path)).encode(prompt).ids != prompts.ids(engine, prompt).tolist():
        raise ExportError("the tokenizer cannot be written as one tokenizer.json: give a checkpoint whose LLM has one")
