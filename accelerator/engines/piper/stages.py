"""A voice on routed parts, and its stages: sentences as Piper cuts them, spoken on a pool of threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ...audio.reference import Reference
from ...errors import InvalidOption
from ...metrics import current_meter
from ...parts.decoding import Lookahead, Window
from ...parts.onnx_file import Feed
from ...parts.part import Call
from ...speech import SpeechRequest
from ...text.check import Unread
from ...text.segments import Segment
from ..base import Arrays, Job
from ..shadow import shadow

__all__ = ["DECODER", "TEXT", "PiperStages", "settings"]

TEXT, DECODER = "text", "decoder"
_WINDOWS = (96, 192)  # frames: the first second early, then little is computed twice
_SILENT = 1e-8  # below this peak Piper answers with zeros


class _Own(Protocol):
    """What the stages need of the adapter."""

    engine: Any
    reach: int | None

    def speaker(self, name: str | None) -> int | None: ...
    def beside(self, speaker: int | None, text: Call | None = None) -> dict[str, np.ndarray]: ...
    def with_latents(self, latents: np.ndarray, beside: Mapping[str, np.ndarray]) -> Feed: ...


class PiperStages:
    """See `base.Stages`. `engine` is a voice whose session is the routed parts. A unit is a frame of latents [C], a
    voice the number of a speaker, or None.
    """

    schedule: Literal["batched", "pooled"] = "pooled"
    windows: Sequence[int] = _WINDOWS
    unit_s: float | None = None

    def __init__(self, own: _Own, calls: Mapping[str, Call]) -> None:
        self._own, self._calls = own, calls
        self.engine = shadow(own.engine, session=_Session(own.engine.session, self))

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        return Unread()  # espeak names what it cannot read

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        """The engine's own sentences, each with the silence that it is spoken with."""
        with current_meter().stage("phonemes"):
            sentences = self.engine.phonemize(request.text)
        return [Segment("".join(phonemes), None, 0, phonemes, phonemes=True) for phonemes in sentences if phonemes]

    def shortest(self, text: str) -> float:
        return 0.0

    def encode(self, reference: Reference) -> Arrays:
        raise InvalidOption("Piper imitates nobody: leave reference_audio out")

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> int | None:
        return self._own.speaker(request.voice)

    def generate(
        self, segment: Segment, voice: int | None, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        engine, asked = self.engine, job.options
        ids = np.array([engine.phonemes_to_ids(segment.content)], np.int64)
        scales = tuple(
            getattr(engine.config, name) if asked.get(name) is None else asked[name]
            for name in ("noise_scale", "length_scale", "noise_w_scale")
        )
        latents = self.latents(ids, scales, voice, np.random.default_rng(job.sampling.seed), job.exclusive)
        yield list(latents[0].T[len(resume) :])

    def latents(
        self,
        ids: np.ndarray,
        scales: tuple[float, ...],
        speaker: int | None,
        random: np.random.Generator,
        exclusive: bool,
    ) -> np.ndarray:
        """float32 [1, C, L]. scales: of the latents' noise, of durations, of the durations' noise."""
        noise = random.standard_normal((1, 2, ids.shape[1]), np.float32)
        feed = settings(ids, scales, noise, speaker)
        mean, spread = self._calls[TEXT](feed, **({} if exclusive else {"exclusive": False}))[:2]
        drawn = random.standard_normal(mean.shape, np.float32)
        current_meter().add_frames(mean.shape[2])
        return np.asarray(mean + drawn * spread * np.float32(scales[0]), np.float32)

    def decoder(self, voice: int | None, job: Job) -> _Sentence:
        return _Sentence(self.latents_decoder(voice, exclusive=job.exclusive), job.options)

    def latents_decoder(self, speaker: int | None, *, exclusive: bool) -> Lookahead:
        """One sentence's latents [C] each -> raw audio."""
        own, beside = self._own, self._own.beside(speaker, self._calls[TEXT])
        given = {} if exclusive else {"exclusive": False}

        def decode(window: Window) -> np.ndarray:
            answer = self._calls[DECODER](own.with_latents(window.units[None], beside), **given)
            return window.heard(np.asarray(answer[0], np.float32).reshape(-1))

        return Lookahead(decode, own.reach)

    def waits(self, voice: int | None) -> bool:
        return False

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: int | None) -> int | None:
        return voice


class _Sentence:
    """Latents -> audio as Piper hands it out: brought to full scale, unless that is not wanted, then made louder or
    quieter, and clipped. Only a sentence that is not brought to full scale can begin before it is whole.
    """

    def __init__(self, latents: Lookahead, asked: Mapping[str, Any]) -> None:
        self._latents, self._held = latents, list[np.ndarray]()
        self._normalised, volume = asked.get("normalize_audio"), asked.get("volume")
        self._volume = np.float32(1.0 if volume is None else volume)

    def push(self, units: Sequence[np.ndarray], *, final: bool) -> np.ndarray:
        if self._normalised is False:
            return self._loud(self._latents.push(units, final=final))
        self._held += units
        if not final:
            return np.zeros(0, np.float32)
        audio = self._latents.push(self._held, final=True)
        peak = np.abs(audio).max(initial=0)
        return self._loud(np.zeros_like(audio) if peak < _SILENT else audio / peak)

    def _loud(self, audio: np.ndarray) -> np.ndarray:
        return np.clip(audio if self._volume == 1 else audio * self._volume, -1.0, 1.0).astype(np.float32)


class _Session:
    """What a voice calls its session, on the routed parts; whatever else it is asked, the engine's own session."""

    def __init__(self, own: Any, stages: PiperStages) -> None:
        self._own, self._stages = own, stages

    def run(self, outputs: Any, feed: Mapping[str, Any], options: Any = None) -> list[np.ndarray]:
        ids, scales = np.asarray(feed["input"]), np.asarray(feed["scales"])
        if outputs is not None or options is not None or ids.shape[0] != 1 or scales.shape != (3,):
            return list(self._own.run(outputs, feed, options))
        speaker = int(np.asarray(feed["sid"]).reshape(-1)[0]) if "sid" in feed else None
        random = np.random.default_rng()  # as the graph itself: another take each time
        noise, length, noise_w = map(float, scales)
        latents = self._stages.latents(ids, (noise, length, noise_w), speaker, random, True)
        decoder = self._stages.latents_decoder(speaker, exclusive=True)
        return [decoder.push(list(latents[0].T), final=True)[None, None, None]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def settings(
    ids: np.ndarray, scales: tuple[float, ...], noise: np.ndarray, speaker: int | None
) -> dict[str, np.ndarray]:
    """Inputs of the text graph. scales: of the latents' noise, of durations, of the durations' noise."""
    feed = {
        "input": ids,
        "input_lengths": np.array([ids.shape[1]], np.int64),
        "scales": np.array(scales, np.float32),
        "noise_0": noise,
    }
    return feed if speaker is None else {**feed, "sid": np.array([speaker], np.int64)}
