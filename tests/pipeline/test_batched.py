"""A long text spoken in stages: nothing lost, one voice, several segments at once, the first audio soon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from accelerator.engines.base import Job, Stages
from accelerator.errors import GenerationError, InvalidText
from accelerator.metrics import Meter
from accelerator.parts.decoding import Decoding, windowed
from accelerator.pipeline.batched import Batched
from accelerator.speech import SamplingParams, SpeechRequest, segment_seed
from accelerator.text.segments import Segment
from tests.doubles import BareStages, replica

HOP = 100
RATE = 1000
KNOWN = "known"
TEXTS = ["One is first. ", "Two comes then. ", "Three is third. ", "Four ends it."]


class Fake(BareStages):
    """Stages whose frames name their text: frame i of a text of n letters is [1, n, i]; audio is a tone of level n."""

    def __init__(self, **faults: Any) -> None:
        self.prompts: list[tuple[str, Any]] = []
        self.log: list[tuple[str, int]] = []  # (text, frame) in the order in which they were drawn
        self.decoded: list[int] = []
        self.finals: list[bool] = []
        self.jobs: list[Any] = []
        self.closed = 0
        self.faults = faults  # text -> frames at which a try fails, or its lengths try by try

    def generate(
        self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        text = segment.text.strip()
        self.prompts.append((text, voice))
        self.jobs.append((text, job.sampling.seed, job.invariant, len(resume)))
        fault = self.faults.get(text, [])
        plan = fault.pop(0) if fault else len(text)
        length = plan if isinstance(plan, int) else len(text)
        try:
            for i in range(len(resume), length):
                if isinstance(plan, Exception) and i >= 5:
                    raise plan
                self.log.append((text, i))
                yield (np.array([1, len(text), i]),)
        finally:
            self.closed += 1

    def decoder(self, voice: Any, job: Job) -> Any:
        decoding, own = Decoding(windowed(self.decode), 2, HOP), self

        class Noted:
            def push(self, units: Sequence[np.ndarray], *, final: bool) -> np.ndarray:
                own.finals.append(final)
                return decoding.push(units, final=final)

        return Noted()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        self.decoded.append(codes.shape[1])
        return tone(codes[0] / 100 + codes[1] / 1e4)

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: Any) -> Any:
        return np.stack(units, axis=1)[1:], segment.text.strip()


def audio_of(text: str) -> np.ndarray:
    n = len(text.strip())
    return tone(n / 100 + np.arange(n) / 1e4)


def tone(levels: np.ndarray) -> np.ndarray:
    """A buzz with a level for each frame."""
    return (np.repeat(levels, HOP) * np.tile([1, -1], len(levels) * HOP // 2)).astype(np.float32)


def speaker(
    stages: Fake,
    texts: Sequence[str] = TEXTS,
    voice: Any = KNOWN,
    *,
    streaming: bool = False,
    sampling: dict[str, Any] | None = None,
    rows: int = 8,
    **options: Any,
) -> Batched:
    starts = np.cumsum([0, *map(len, texts)])
    stages.given = [Segment(t, 0.3, int(s)) for t, s in zip(texts, starts, strict=False)]
    request = SpeechRequest("".join(texts), None, SamplingParams(**sampling or {}), streaming=streaming)
    return Batched(stages, request, voice, RATE, Meter(), rows=rows, **options)


def whole(speaker: Batched) -> np.ndarray:
    return np.concatenate(list(speaker.speak()))


def test_the_fake_has_stages() -> None:
    assert isinstance(Fake(), Stages)


@pytest.mark.parametrize("streaming", [False, True])
def test_segments_come_in_order_with_pauses_and_nothing_else(streaming: bool) -> None:
    stages = Fake()
    said = speaker(stages, streaming=streaming)
    audio = whole(said)
    at = 0
    for text in TEXTS:
        part = audio_of(text)
        found = next(i for i in range(at, len(audio)) if audio[i] == part[0])
        assert found - at in (0, 300), "a pause of 0.3 s"
        np.testing.assert_array_equal(audio[found : found + len(part)], part)
        at = found + len(part)
    assert at == len(audio)
    assert [text for text, _ in stages.prompts] == [t.strip() for t in TEXTS]
    assert [s["state"] for s in said.progress()] == ["done"] * 4
    assert [s["frames"] for s in said.progress()] == [len(t.strip()) for t in TEXTS]
    assert "".join(s["text"] for s in said.progress()) == "".join(TEXTS)


def test_all_segments_are_drawn_together_when_the_voice_is_known() -> None:
    stages = Fake()
    whole(speaker(stages))
    first = [text for text, i in stages.log if i == 0]
    last_of_first = stages.log.index((TEXTS[0].strip(), len(TEXTS[0].strip()) - 1))
    assert len(first) == 4
    assert all(stages.log.index((text, 0)) < 4 for text in first), "they began at the same time"
    assert sum(t != TEXTS[0].strip() for t, _ in stages.log[:last_of_first]) > 3 * 10, "and went on side by side"


def test_no_more_rows_than_allowed() -> None:
    stages = Fake()
    whole(speaker(stages, rows=2))
    running: set[str] = set()
    most = 0
    for text, i in stages.log:
        running.add(text)
        most = max(most, len(running))
        if i == len(text) - 1:
            running.discard(text)
    assert most == 2


def test_without_a_voice_the_first_segment_gives_it() -> None:
    stages = Fake()
    whole(speaker(stages, voice=None))
    (first, none), *rest = stages.prompts
    assert (first, none) == (TEXTS[0].strip(), None)
    for _, voice in rest:
        codes, said = voice
        assert said == TEXTS[0].strip()
        np.testing.assert_array_equal(codes, [[len(said)] * len(said), range(len(said))])
    assert stages.log[: len(first)] == [(first, i) for i in range(len(first))], "the others wait for it"


def test_a_stream_decodes_growing_windows_behind_their_context() -> None:
    text = "x" * 150
    stages = Fake()
    said = speaker(stages, [text], streaming=True)
    chunks = said.speak()
    first = next(chunks)
    assert len(first) == 4 * HOP
    assert len(stages.log) == 4, "no frame more than the first window needs"
    told = {"text": text, "phonemes": None, "frames": 4, "audio_s": 0.4, "tries": 1, "state": "speaking"}
    assert said.progress() == [told]
    audio = np.concatenate([first, *chunks])
    np.testing.assert_array_equal(audio, audio_of(text))
    assert stages.decoded == [4, 2 + 8, 2 + 16, 2 + 32, 2 + 64, 2 + 26]
    assert stages.finals == [False] * 5 + [True]


def test_one_segment_is_decoded_once_and_not_touched() -> None:
    stages = Fake()
    (chunk,) = speaker(stages, ["short"]).speak()
    np.testing.assert_array_equal(chunk, audio_of("short"))
    assert stages.decoded == [5]


def test_a_failing_segment_is_redone_from_where_it_stood() -> None:
    second = TEXTS[1].strip()
    stages = Fake(**{second: [RuntimeError("once")]})
    expected = whole(speaker(Fake()))
    said = speaker(stages)
    np.testing.assert_array_equal(whole(said), expected)
    assert [s["tries"] for s in said.progress()] == [1, 2, 1, 1]
    assert [resumed for text, *_, resumed in stages.jobs if text == second] == [0, 5]
    assert sum(text == second for text, _ in stages.log) == len(second), "no frame is drawn twice"


def test_a_segment_that_fails_again_is_an_error_and_all_are_closed() -> None:
    second = TEXTS[1].strip()
    stages = Fake(**{second: [RuntimeError("once"), RuntimeError("twice")]})
    with pytest.raises(RuntimeError, match="twice"):
        whole(speaker(stages))
    assert stages.closed == 5


def test_a_silent_segment_is_tried_with_another_seed_and_then_refused() -> None:
    second = TEXTS[1].strip()
    stages = Fake(**{second: [0]})
    np.testing.assert_array_equal(whole(speaker(stages, sampling={"seed": 7})), whole(speaker(Fake())))
    seeds = [seed for text, seed, *_ in stages.jobs if text == second]
    assert len(set(seeds)) == 2
    with pytest.raises(GenerationError, match="Two comes then"):
        whole(speaker(Fake(**{second: [0, 0]})))


def test_bad_text_is_not_tried_again() -> None:
    class Strict(Fake):
        def generate(self, *arguments: Any, **options: Any) -> Iterator[Any]:
            raise InvalidText("no")

    with pytest.raises(InvalidText):
        whole(speaker(Strict()))


def test_seeds_are_each_segments_own_and_make_batches_invariant() -> None:
    stages = Fake()
    whole(speaker(stages, sampling={"seed": 3}))
    seeds = [seed for _, seed, *_ in stages.jobs]
    assert seeds[0] == 3
    assert len(set(seeds)) == 4
    assert seeds == [segment_seed(SamplingParams(seed=3), i).seed for i in range(4)]
    assert {invariant for _, _, invariant, _ in stages.jobs} == {True}
    for sampling, invariant in (({}, False), ({"temperature": 0.0}, True), ({"temperature": 0.5}, False)):
        stages = Fake()
        whole(speaker(stages, sampling=sampling))
        assert {i for _, _, i, _ in stages.jobs} == {invariant}


def test_whoever_stops_listening_stops_the_generation() -> None:
    stages = Fake()
    chunks = speaker(stages, streaming=True).speak()
    next(chunks)
    chunks.close()
    assert stages.closed == 1
    stop = False
    stages = Fake()
    chunks = speaker(stages, ["x" * 100], streaming=True, cancelled=lambda: stop).speak()
    next(chunks)
    stop = True
    with pytest.raises(GenerationError, match="nobody listens"):
        next(chunks)
    assert stages.closed == 1


# On a real engine

LONG = "The first sentence is here. " * 4 + "Then there is a second thought, and a third one. " * 4 + "The end."


def test_a_long_text_on_the_reference_engine(tiny: Any) -> None:
    optimizer = replica(tiny)
    speech = optimizer.synthesize(LONG, seed=1, max_new_tokens=24)
    segments = speech.metrics["segments"]
    assert len(segments) > 1
    assert "".join(s["text"] for s in segments) == LONG
    assert speech.metrics["frames"] == sum(s["frames"] for s in segments) == 24 * len(segments)
    assert speech.metrics["fallback"] == []
    stream = optimizer.stream(LONG, seed=1, max_new_tokens=24)
    np.testing.assert_allclose(np.concatenate([c.audio for c in stream]), speech.audio, rtol=0, atol=2e-6)
    again = optimizer.synthesize(LONG, seed=1, max_new_tokens=24)
    np.testing.assert_array_equal(again.audio, speech.audio)


def test_a_text_that_must_not_be_cut(tiny: Any) -> None:
    optimizer = replica(tiny, {"split_text": False})
    speech = optimizer.synthesize(LONG, seed=1, max_new_tokens=24)
    assert [s["text"] for s in speech.metrics["segments"]] == [LONG]
    assert len(speech.audio) == 24 * tiny.hop
