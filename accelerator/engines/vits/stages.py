"""A pipeline on routed parts, and its stages: a segment's audio is made in one go, on a pool of threads."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...audio.reference import Reference
from ...errors import EngineError, InvalidOption
from ...hardware.forks import Lock
from ...metrics import current_meter
from ...parts.decoding import Joined
from ...parts.part import Call
from ...speech import SpeechRequest
from ...text.check import Unread, is_spoken, stretches
from ...text.segments import Segment, split
from ..base import Arrays, Job
from ..shadow import shadow

__all__ = ["DECODER", "TEXT", "VitsStages"]

logger = logging.getLogger(__name__)

TEXT, DECODER = "text", "decoder"
_COMFORTABLE, _LONGEST = 200, 400  # letters: about a quarter of a minute
_SOON = 80  # letters of a stream's first segment, at most if a clause ends there
_SHOWN = 60  # letters in a message
_ONE_AT_A_TIME = Lock()  # phonemizers are one library for the whole process


@dataclass(frozen=True)
class _Drawing:
    """What a segment asks of the model beside what the pipeline does."""

    generator: torch.Generator  # of the noise
    exclusive: bool


class Wrapped(Protocol):
    """What the stages know of the pipeline that was wrapped; its adapter says it."""

    pipeline: Any
    model: Any  # the one that was exported

    def speaker(self, name: str) -> int: ...
    def embedding(self, speaker: int | None) -> np.ndarray | None: ...
    def outdated(self) -> str | None: ...


class VitsStages:
    """See `base.Stages`. `engine` is a pipeline whose model runs on the routed parts; every setting is the wrapped
    pipeline's, or its model's, own. A unit is a segment's audio, a voice the number of a speaker, or None.
    """

    schedule: Literal["batched", "pooled"] = "pooled"
    windows: Sequence[int] = ()
    unit_s: float | None = None

    def __init__(self, own: Wrapped, calls: Mapping[str, Call]) -> None:
        self._own, self._calls = own, calls
        self.engine = shadow(own.pipeline, model=shadow(own.model, forward=self._forward))
        self._model = self.engine.model

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        """What the tokenizer drops: letters and digits not in its vocabulary, unless it rewrites them first."""
        tokenizer = self.engine.tokenizer
        if not getattr(tokenizer, "normalize", False) or tokenizer.phonemize:
            return Unread()
        romanized = tokenizer.is_uroman and importlib.util.find_spec("uroman") is not None  # letters, but no digits
        known = {char for word in tokenizer.get_vocab() for char in word}
        letters = "".join(sorted(filter(is_spoken, known)))

        def lacks(char: str) -> bool:
            return not (char in known or known.issuperset(char.lower()) or (romanized and char.isalpha()))

        foreign = stretches(text, lacks)
        return Unread(foreign, speaks=f"the letters {letters[:_SHOWN]}{'...' if len(letters) > _SHOWN else ''}")

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        first = _SOON if soon else None
        return split(request.text, comfortable=_COMFORTABLE, longest=_LONGEST, first=first)

    def shortest(self, text: str) -> float:
        return 0.0

    def encode(self, reference: Reference) -> Arrays:
        raise InvalidOption("VITS does not imitate voices: leave reference_audio out")

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> int | None:
        return None if request.voice is None else self._own.speaker(request.voice)

    def generate(
        self, segment: Segment, voice: int | None, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        audio = np.zeros(0, np.float32) if resume else self._say(segment.text.strip(), voice, job)
        if len(audio):
            yield (audio,)

    def decoder(self, voice: int | None, job: Job) -> Joined:
        return Joined()

    def waits(self, voice: int | None) -> bool:
        return False

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: int | None) -> int | None:
        return voice

    def _say(self, text: str, speaker: int | None, job: Job) -> np.ndarray:
        self._check_model()
        generator = torch.Generator()
        if job.sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(job.sampling.seed)
        asked_for: dict[str, Any] = {"drawing": _Drawing(generator, job.exclusive)}
        if speaker is not None:
            asked_for["speaker_id"] = speaker
        engine = self.engine  # whose `__call__` does the same; but phonemizing must not happen twice at once
        own = engine._preprocess_params, engine._forward_params, engine._postprocess_params
        given = engine._sanitize_parameters(forward_params=asked_for)
        reading, speaking, ending = ({**kept, **each} for kept, each in zip(own, given, strict=True))
        with current_meter().stage("text"), _ONE_AT_A_TIME:
            inputs = engine.preprocess(text, **reading)
        answer = engine.postprocess(engine.forward(inputs, **speaking), **ending)
        return np.asarray(answer["audio"], np.float32).reshape(-1)

    def _check_model(self) -> None:
        """Raises EngineError where the pipeline would not ask the parts: then it speaks by itself."""
        if self.engine.model is not self._model:
            raise EngineError("the pipeline has another model than when it was wrapped: wrap the engine again")
        if self._model.forward != self._forward:
            raise EngineError("the model's forward() was replaced after it was wrapped: wrap the engine again")

    def _forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        speaker_id: Any = None,
        speaking_rate: Any = None,
        drawing: _Drawing | None = None,
        **options: Any,
    ) -> Any:
        """`VitsModel.forward` on the routed parts, for one row, which is all that the pipeline asks for."""
        model = self._own.model
        outdated = self._own.outdated()
        whole = attention_mask is None or bool(attention_mask.all())
        known = speaker_id is None or (isinstance(speaker_id, int) and 0 <= speaker_id < model.config.num_speakers)
        one = input_ids is not None and input_ids.shape[0] == 1
        if outdated is not None or not (one and whole and known and _is_plain(model.config, options)):
            if drawing is not None:
                raise EngineError(outdated or "the pipeline asks its model for what the exports do not answer")
            if outdated is not None:
                logger.warning("the pipeline's own model speaks: %s", outdated)
            if speaking_rate is not None:
                options["speaking_rate"] = speaking_rate
            return model(input_ids=input_ids, attention_mask=attention_mask, speaker_id=speaker_id, **options)
        if drawing is not None and input_ids.shape[1] < 2:  # nothing but what stands between letters
            return (torch.zeros(1, 0),)
        from transformers.models.vits.modeling_vits import VitsModelOutput

        audio, spectrogram = self._speak(input_ids.numpy(), speaker_id, speaking_rate, drawing)
        answer: Any = VitsModelOutput
        return answer(
            waveform=torch.from_numpy(audio),
            sequence_lengths=torch.tensor([audio.shape[1]]),
            spectrogram=torch.from_numpy(spectrogram),
        )

    def _speak(
        self, tokens: np.ndarray, speaker: int | None, rate: Any, drawing: _Drawing | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(audio [1, n], latents [1, C, L]). rate: None for the model's own. drawing: None for PyTorch's own noise."""
        generator, exclusive = (None, True) if drawing is None else (drawing.generator, drawing.exclusive)
        config, voice = self._own.model.config, self._own.embedding(speaker)
        model = self._own.model  # its attributes are the user's to change
        noise = np.zeros((1, 2, tokens.shape[1]), np.float32)
        if config.use_stochastic_duration_prediction:
            drawn = torch.randn(1, 2, tokens.shape[1], generator=generator)
            noise = drawn.numpy() * np.float32(model.noise_scale_duration)
        beside = {} if exclusive else {"exclusive": False}
        prior = self._calls[TEXT](tokens, noise, voice, **beside)[0]  # [T, 2C + 1]
        length_scale = 1.0 / (model.speaking_rate if rate is None else rate)  # as transformers rounds it
        lasting = torch.ceil(torch.exp(torch.from_numpy(prior[:, -1].copy())) * length_scale).long().numpy()
        frames = prior.repeat(lasting, axis=0) if lasting.sum() else np.zeros_like(prior[:1])
        means, variances = frames[:, : config.flow_size], frames[:, config.flow_size : -1]
        # As `randn_like` draws for a transposed tensor: another order than for one in order.
        rest = torch.empty(1, *means.shape).transpose(1, 2).normal_(generator=generator)[0].numpy()
        latents = means.T + rest * np.exp(variances.T) * np.float32(model.noise_scale)
        latents = np.ascontiguousarray(latents[None], np.float32)
        audio = self._calls[DECODER](latents, voice, **beside)
        current_meter().add_frames(latents.shape[2])
        return audio, latents


def _is_plain(config: Any, options: Mapping[str, Any]) -> bool:
    """Whether the model is asked for speech and nothing else. options: of its `forward`; None leaves it to `config`."""
    plain = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    asked = {name: getattr(config, name) for name in plain} | {k: v for k, v in options.items() if v is not None}
    return asked.keys() == plain.keys() and all(bool(asked[name]) is plain[name] for name in plain)
