"""A converted Spark-TTS as an engine of its own: its parts run on the files of a conversion, and PyTorch on none.

    encoder        wav2vec2, encoder, quantizer_tokenize; the mel spectrogram in NumPy, speaker_tokenize
    text2semantic  the folder LLM
    decoder        speaker_detokenize, quantizer_detokenize, prenet, decoder; or `detokenizer.safetensors`

Stages, sampling and messages are the wrapped engine's. What the files are worth on this machine is proven by answers
of PyTorch's that lie among them. Where a backend fails, the same files go on in a plain session of ONNX Runtime.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...audio.checks import check_audio
from ...audio.reference import Reference
from ...cache import ContentCache
from ...errors import GenerationError
from ...export.component import Built, Component, Progress
from ...export.proof import compare_arrays, compare_codes
from ...export.trace import Trace
from ...hardware import choose_tier, detect
from ...hardware.forks import Lock
from ...hardware.pages import return_freed
from ...parts.backends import ONNX_RUNTIME, onnx_runtime
from ...parts.causal import CAUSAL, EMBEDDINGS, causal_backends, load_causal, stored_components
from ...parts.decoding import overlapping
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Backend, Call, Part, seconds
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from ...speech import AudioChunk, SamplingParams, SpeechRequest
from ..base import Bound, Cloning, Job
from ..options import Option
from . import compiled
from . import folder as files
from .language_model import generating, seconds_a_token
from .reading import FromFiles
from .recording import clipped, magnitudes
from .stages import (
    CLONING,
    DECODER,
    ENCODER,
    NOTHING,
    OPTIONS,
    SILENT_S,
    SparkStages,
    Spoken,
    check_encoded,
    cut,
    unspoken,
)
from .vocabulary import Vocabulary

__all__ = ["ConvertedAdapter"]

_GRAPHS = {
    ENCODER: ("wav2vec2", "encoder", "quantizer_tokenize", "speaker_tokenize"),
    DECODER: ("speaker_detokenize", "quantizer_detokenize", "prenet", "decoder"),
}
_CODES_EQUAL, _TOLERANCE = 0.99, 1e-4
_PROOF_THREADS = 2
_PROBED_CODES = 100  # two seconds


class ConvertedAdapter:
    """Parts: `encoder`, `text2semantic` and `decoder`, of the folder that `accelerator convert spark-tts` writes."""

    name = "spark-tts-onnx"
    cloning: Cloning | None = CLONING
    options: Mapping[str, Option] | None = OPTIONS

    def __init__(self, place: str | Path, *, cache: ContentCache | None = None) -> None:
        """place: the folder, or the checkpoint that has it as its folder `onnx`. Raises EngineError."""
        self.folder, self._cache = files.found(Path(place)), cache or ContentCache()
        said = self._said = files.described(self.folder)
        self.sample_rate, self.unit_s = int(said["sample_rate"]), float(said["unit_s"])
        self.positions, self.ends = int(said["positions"]), tuple(said["ends"])
        self.count, self.reach = int(said["voice_codes"]), said["reach"]
        self.defaults = SamplingParams(**said["sampling"])
        files.check(self.folder, [f"{graph}.onnx" for graphs in _GRAPHS.values() for graph in graphs])
        self._reading = FromFiles(
            files.tokenizer(self.folder), clip=int(said["clip"]), level=bool(said["volume_normalize"])
        )
        self._own = {
            ENCODER: self._load_encoder,
            LANGUAGE_MODEL: self._load_language_model,
            DECODER: self._load_decoder,
        }
        self._originals = {name: _Deferred(load) for name, load in self._own.items()}

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, cache: ContentCache | None = None) -> ConvertedAdapter:
        """See `__init__`. cache: where digests of the files are kept."""
        return cls(path, cache=cache)

    def parts(self) -> Sequence[Part]:
        probed, codes, voice = (functools.partial(self._example, 0, name) for name in ("audio", "semantics", "codes"))
        decoded = functools.partial(np.resize, new_shape=_PROBED_CODES)
        return (
            self._part(
                ENCODER,
                "reference",
                probe=lambda call: seconds(call, probed(), self._clip(probed())),
                backends=(onnx_runtime((self._component(ENCODER, self._prove_encoder),), self._load_encoder),),
                check=self._check_codes,
            ),
            self._part(
                LANGUAGE_MODEL,
                "generate",
                probe=lambda call: seconds_a_token(call, self._trace().prompt[0]),
                backends=causal_backends(self._language_model(), self._load_language_model),
                streams=True,
            ),
            self._part(
                DECODER,
                "decode",
                probe=lambda call: seconds(call, decoded(codes()), voice()),
                backends=(
                    *self._compiled_decoder(),
                    onnx_runtime((self._component(DECODER, self._prove_decoder),), self._load_decoder),
                ),
                check=lambda audio: check_audio(audio, self.sample_rate, silent_s=SILENT_S),
            ),
        )

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        return Bound(None, SparkStages(self, calls))

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Segment by segment, on plain sessions. Raises GenerationError for a segment without speech."""
        stages = SparkStages(self, self._originals)
        kept = None if request.reference is None else stages.encode(request.reference)
        voice = stages.voice(request, kept)
        for number, segment in enumerate(cut(request.text, whole=request.whole)):
            job = Job.of(request, number, lambda: False)
            units = [unit for some in stages.generate(segment, voice, job) for unit in some]
            audio = stages.decoder(voice, job).push(units, final=True)
            if not len(audio):
                raise GenerationError(unspoken(segment.text.strip()))
            voice = stages.continued(segment, units, voice) if stages.waits(voice) else voice
            yield AudioChunk(audio, self.sample_rate)

    def release(self) -> bool:
        """Close the plain sessions, which the files open again if they are ever needed."""
        for original in self._originals.values():
            original.close()
        return True

    # What the stages ask

    def check(self) -> None:
        """Files are looked at when they are loaded."""

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self._reading.tokens())

    def heard(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        return self._reading.heard(reference)

    def prompt(self, text: str, voice: Spoken) -> np.ndarray:
        return self._reading.prompt(text, voice)

    # Parts

    def _part(self, name: str, stage: Any, **how: Any) -> Part:
        return Part(name, stage, original=self._originals[name], runs_on=ONNX_RUNTIME, **how)

    def _language_model(self) -> tuple[Component, ...]:
        place = self.folder / files.LANGUAGE_MODEL
        return stored_components(
            place,
            self._said["precision"],
            functools.cache(lambda: files.digest(self._cache, sorted(place.iterdir()))),
            self._trace,
            dtype=self._said["dtype"],
        )

    def _component(self, name: str, prove: Callable[[Built], dict[str, Any]]) -> Component:
        """What is said of a part's graphs on this machine: there is nothing to build."""
        needed = [self.folder / f"{graph}.onnx{suffix}" for graph in _GRAPHS[name] for suffix in ("", ".data")]
        beside = [self.folder / each for each in (files.MELS, files.PROOF, files.DESCRIPTION)]
        identity = functools.cache(lambda: files.digest(self._cache, [*needed, *beside]))
        return Component(name, identity, {}, ("fp32",), _write_nothing, prove, in_torch=False)

    def _compiled_decoder(self) -> tuple[Backend, ...]:
        """None where the conversion has no weights for it."""
        file = self.folder / compiled.FILE
        if not file.is_file():
            return ()
        needed = [file, self.folder / files.PROOF]
        component = Component(
            compiled.NAME,
            functools.cache(lambda: files.digest(self._cache, needed)),
            {},
            ("fp32",),
            _write_nothing,
            lambda built: compiled.proof(file, lambda: self._examples("spoken", "voice", "heard")),
            kernels=compiled.kind,
            in_torch=False,
        )
        return compiled.backends(component, lambda _: file)

    def _prove_encoder(self, built: Built) -> dict[str, Any]:
        call = self._load_encoder({}, built.options(threads=_PROOF_THREADS))
        pairs = list[tuple[np.ndarray, np.ndarray]]()
        for audio, *expected in self._examples("audio", "semantics", "codes"):
            pairs += zip(expected, call(audio, self._clip(audio)), strict=True)
        return compare_codes(pairs, _CODES_EQUAL)

    def _prove_decoder(self, built: Built) -> dict[str, Any]:
        call = self._load_decoder({}, built.options(threads=_PROOF_THREADS))
        given = self._examples("spoken", "voice", "heard")
        return compare_arrays([(heard, call(spoken, voice)) for spoken, voice, heard in given], _TOLERANCE)

    def _load_encoder(self, _: Mapping[str, Path], options: RunOptions) -> Call:
        graphs, said = _Closed(self.folder, _GRAPHS[ENCODER], options), self._said
        with np.load(self.folder / files.MELS) as constants:
            window, filters = constants["window"], constants["filters"]

        def encode(audio: np.ndarray | None, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            semantics = NOTHING
            if audio is not None:
                features = graphs.run("wav2vec2", self._reading.values(audio))
                latents = graphs.run("encoder", features.transpose(0, 2, 1))
                semantics = graphs.run("quantizer_tokenize", latents.transpose(0, 2, 1)).reshape(-1)
            mels = magnitudes(clip, window, filters, int(said["fft"]), int(said["hop"]))
            codes = graphs.run("speaker_tokenize", mels[None])
            return_freed()
            return semantics, codes.reshape(-1).astype(np.int64)

        return encode

    def _load_language_model(self, stored: Mapping[str, Path], options: RunOptions) -> Call:
        """stored: the components that were proven, as there may be one that was not."""
        place = self.folder / files.LANGUAGE_MODEL
        return generating(load_causal(dict.fromkeys((EMBEDDINGS, CAUSAL, *stored), place), options), self.defaults)

    def _load_decoder(self, _: Mapping[str, Path], options: RunOptions) -> Call:
        graphs = _Graphs(self.folder, _GRAPHS[DECODER], options)

        def decode(semantics: np.ndarray, codes: np.ndarray) -> np.ndarray:
            voice = graphs.run("speaker_detokenize", codes[None, None])
            quantized = graphs.run("quantizer_detokenize", semantics[None])
            hidden = graphs.run("prenet", quantized.transpose(0, 2, 1), voice)
            return graphs.run("decoder", hidden + voice[..., None]).reshape(-1)

        return overlapping(decode)

    def _check_codes(self, answer: tuple[np.ndarray, np.ndarray]) -> None:
        check_encoded(answer, self._said["sizes"])

    # Proofs

    def _trace(self) -> Trace:
        return Trace.load(self.folder / files.LANGUAGE_MODEL / files.TRACE)

    def _example(self, number: int, name: str) -> np.ndarray:
        with np.load(self.folder / files.PROOF) as recorded:
            return np.asarray(recorded[f"{name}{number}"])

    def _examples(self, *names: str) -> Iterator[Any]:
        with np.load(self.folder / files.PROOF) as recorded:
            for number in range(sum(each.startswith(names[0]) for each in recorded.files)):
                yield [recorded[f"{name}{number}"] for name in names]

    def _clip(self, audio: np.ndarray) -> np.ndarray:
        return clipped(audio, int(self._said["clip"]))


class _Graphs:
    """Graphs of the folder, each in a session."""

    def __init__(self, folder: Path, names: Sequence[str], options: RunOptions) -> None:
        self._sessions = {name: Session(folder / f"{name}.onnx", options) for name in names}

    def run(self, name: str, *given: np.ndarray) -> np.ndarray:
        """A graph's first answer."""
        return _first(self._sessions[name], given)


class _Closed:
    """Graphs of the folder, each open only while it runs, on weights that stay in the mapped file: see `encoder`."""

    def __init__(self, folder: Path, names: Sequence[str], options: RunOptions) -> None:
        self._folder, self._options = folder, replace(options, arena=False, prepack=False)
        for name in names:  # what cannot be opened is to be known now
            self._open(name)

    def run(self, name: str, *given: np.ndarray) -> np.ndarray:
        """A graph's first answer."""
        return _first(self._open(name), given)

    def _open(self, name: str) -> Session:
        return Session(self._folder / f"{name}.onnx", self._options)


def _first(session: Session, given: Sequence[np.ndarray]) -> np.ndarray:
    return session.run(dict(zip(session.inputs, map(np.ascontiguousarray, given), strict=True)))[0]


class _Deferred:
    """A part's original: a plain session, opened when it is first needed. Its weights stay in the mapped file."""

    def __init__(self, load: Callable[[Mapping[str, Path], RunOptions], Call]) -> None:
        self._load, self._lock = load, Lock()
        self._call: Call | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            if self._call is None:
                threads = choose_tier(detect()).threads
                self._call = self._load({}, RunOptions(threads=threads, arena=False, prepack=False))
            call = self._call
        return call(*args, **options)

    def close(self) -> None:
        with self._lock:
            self._call = None


def _write_nothing(directory: Path, precision: str, progress: Progress) -> None:
    (directory / "converted").write_text("")  # an entry has a file
