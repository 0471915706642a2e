"""What a request says reaches every path, and what cannot be served is refused before anything is generated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.errors import GenerationError, InvalidOption, InvalidReference, InvalidText
from accelerator.reference import ReferenceEngine, load
from accelerator.speech import SamplingParams, SpeechRequest
from accelerator.text.check import Stretch, Unread, readable, stretches
from tests.doubles import pulses, replica

RATE = 16_000
ENGLISH = "The first paragraph is plain."
MIXED = f"{ENGLISH}\n\n这是中文。还有一句。\n\nAnd the last one is, too."
PATHS = ("blocking", "stream", "batch", "retry", "original", "original stream")


@pytest.fixture(scope="module")
def speaking(tiny: Any) -> ReferenceEngine:
    """Random weights that read words, as the trained voice does, and have two voices with names."""
    lm = replace(tiny.config.language_model, speakers=("anna", "bert"), speaker_begin=330)
    config = replace(tiny.config, text="spoken", longest_text=120, language_model=lm)
    plain = load("tiny")
    plain.language_model.config = lm
    return ReferenceEngine(config, plain.language_model, plain.codec)


def voice(seconds: float = 3.0) -> tuple[np.ndarray, int]:
    return pulses(seconds, RATE), RATE


def spied(engine: Any, monkeypatch: pytest.MonkeyPatch, seen: list[dict[str, Any]]) -> None:
    """Note what every prompt is made of, by whichever path."""
    plain = ReferenceEngine.encode_text

    def encode(self: Any, text: str, codes: Any = None, said: Any = None, speaker: str | None = None) -> Any:
        seen.append({"text": text, "codes": codes is not None, "said": said, "speaker": speaker})
        return plain(self, text, codes, said, speaker)

    monkeypatch.setattr(ReferenceEngine, "encode_text", encode)


def ask(engine: Any, path: str, text: str, *reference: Any, **options: Any) -> dict[str, Any]:
    """The metrics of a request that takes the path."""
    broken: dict[str, Callable[..., Any]] = {}
    if path != "blocking" and path not in ("stream", "batch"):
        times = [0]

        def failing(part: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
                times[0] += 1
                if times[0] == 1 or path != "retry":
                    raise MemoryError("by the test")
                yield from part.original(*args, **kwargs)

            return call

        broken["text2semantic"] = failing
    optimizer = replica(engine, **broken)
    if path.startswith("original"):  # not only the part: the routed copy as a whole
        stages: Any = optimizer._bound.stages
        stages.generate = lambda *_, **__: (_ for _ in ()).throw(MemoryError("by the test"))
    if path == "batch":
        return optimizer.synthesize_batch([text], *reference, **options)[0].metrics
    if path.endswith("stream"):
        stream = optimizer.stream(text, *reference, **options)
        list(stream)
        return stream.metrics
    return optimizer.synthesize(text, *reference, **options).metrics


@pytest.mark.parametrize("path", PATHS)
def test_what_a_request_says_reaches_every_path(
    speaking: ReferenceEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    seen: list[dict[str, Any]] = []
    spied(speaking, monkeypatch, seen)
    metrics = ask(speaking, path, ENGLISH, voice="bert", seed=3, max_new_tokens=8)
    assert {each["speaker"] for each in seen} == {"bert"}
    assert {each["text"].lower().rstrip(".") for each in seen} == {ENGLISH.lower().rstrip(".")}
    assert [f["part"] for f in metrics["fallback"]] == {
        "retry": ["text2semantic"],
        "original": ["engine"],
        "original stream": ["engine"],
    }.get(path, [])
    seen.clear()
    ask(speaking, path, ENGLISH, voice(), "what it says", seed=3, max_new_tokens=8)
    assert {(each["codes"], each["said"]) for each in seen} == {(True, "what it says")}


def test_the_original_speaks_each_phrase_with_the_same_bound(speaking: ReferenceEngine) -> None:
    text = "One sentence is here, and it is a long one, as it goes on and on. " * 4
    adapter = UniversalOptimizer(speaking).adapter
    chunks = list(adapter.original(SpeechRequest(text, sampling=SamplingParams(max_new_tokens=6, seed=1))))
    assert len(chunks) == len(speaking.phrases(text)) > 2
    assert {len(chunk.audio) for chunk in chunks} <= {6 * speaking.hop}
    request = SpeechRequest(text, sampling=SamplingParams(seed=1))
    whole = np.concatenate([chunk.audio for chunk in adapter.original(request)])
    np.testing.assert_array_equal(whole, speaking.synthesize(text, seed=1)[0])


# What the voice cannot speak


def test_stretches_are_runs_of_what_is_lacking() -> None:
    text = "ab 你好，世界! cd 中 1"
    found = stretches(text, lambda char: not char.isascii())
    assert found == (Stretch("你好，世界", 3), Stretch("中", 13))
    assert all(text[each.start :].startswith(each.text) for each in found)
    assert stretches("plain", lambda char: not char.isascii()) == ()


def test_what_is_left_out_leaves_the_rest_where_it_was() -> None:
    text = "ab 你好 cd ★"
    unread = Unread((Stretch("你好", 3),), (Stretch("★", 9),), "Latin letters")
    left, skipped = readable(text, unread, "skip")
    assert left == "ab    cd ★"
    assert skipped == (Stretch("你好", 3), Stretch("★", 9))
    with pytest.raises(InvalidText, match=r"'你好' at position 3 \(text\[3:5\]\). It speaks Latin letters"):
        readable(text, unread, "error")
    with pytest.raises(InvalidText, match="nothing of the text"):
        readable("你好!", Unread((Stretch("你好", 0),), (), "Latin letters"), "skip")
    assert readable("plain", Unread(), "error") == ("plain", ())


@pytest.mark.parametrize("text", [MIXED, "Привет, мир.", "Only 日本語 in it", "مرحبا", "x " * 200 + "नमस्ते"])
def test_foreign_text_is_refused_before_anything_is_generated(
    speaking: ReferenceEngine, monkeypatch: pytest.MonkeyPatch, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[str, Any]] = []
    spied(speaking, monkeypatch, seen)
    optimizer = replica(speaking)
    with caplog.at_level(logging.WARNING), pytest.raises(InvalidText, match="cannot speak"):
        optimizer.synthesize(text)
    with pytest.raises(InvalidText, match="cannot speak"):
        optimizer.stream(text)  # not only when it is listened to
    (answer,) = optimizer.synthesize_batch([text], return_exceptions=True)
    assert isinstance(answer, InvalidText)
    assert not seen
    assert not caplog.records
    assert all(not part["errors"] for part in optimizer.status()["parts"].values())


def test_foreign_text_can_be_left_out(speaking: ReferenceEngine) -> None:
    optimizer = replica(speaking, {"unspeakable": "skip"})
    speech = optimizer.synthesize(MIXED, seed=1, max_new_tokens=8)
    assert speech.metrics["skipped"] == [
        {"text": "这是中文。还有一句", "start": MIXED.index("这"), "end": MIXED.index("句") + 1}
    ]
    assert speech.metrics["fallback"] == []
    spoken = "".join(each["text"] for each in speech.metrics["segments"])
    assert spoken.split() == MIXED.replace("这是中文。还有一句", "").split()
    with pytest.raises(InvalidText, match="cannot speak"):
        optimizer.synthesize(MIXED, unspeakable="error")
    assert replica(speaking).stream(MIXED, unspeakable="skip", max_new_tokens=8).metrics["skipped"]
    with pytest.raises(InvalidText, match="nothing of the text"):
        optimizer.synthesize("这是中文。")
    with pytest.raises(InvalidOption, match="'error' or 'skip'"):
        optimizer.synthesize(ENGLISH, unspeakable="ignore")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="'error' or 'skip'"):
        UniversalOptimizer(speaking, unspeakable="no")  # type: ignore[arg-type]


def test_signs_without_a_reading_are_listed(speaking: ReferenceEngine) -> None:
    speech = replica(speaking).synthesize("Well done 🎉 everybody.", seed=1, max_new_tokens=8)
    assert speech.metrics["skipped"] == [{"text": "🎉", "start": 10, "end": 11}]


def test_an_engine_that_reads_every_byte_is_given_every_text(fast: Any) -> None:
    assert fast.synthesize(MIXED, seed=1, max_new_tokens=4).metrics["skipped"] == []


# How long a text is


def test_segments_are_measured_in_words(speaking: ReferenceEngine) -> None:
    text = "The rent is $1,275.50, the deposit $2,551.75 and the fee $349.99."
    speech = replica(speaking).synthesize(text, seed=1, max_new_tokens=4)
    segments = [each["text"] for each in speech.metrics["segments"]]
    assert "".join(segments) == text
    assert len(segments) == 3
    assert max(len(speaking.words(segment)) for segment in segments) <= 120


@pytest.mark.parametrize("text", ["12.5%, " * 40, "5551234567 " * 20, "£3 million and 5 km, " * 12, "9" * 400])
def test_no_segment_has_more_words_than_the_voice_has_learnt(speaking: ReferenceEngine, text: str) -> None:
    speech = replica(speaking).synthesize(text + "end", seed=1, max_new_tokens=1)
    assert "".join(each["text"] for each in speech.metrics["segments"]) == text + "end"
    assert max(len(speaking.words(each["text"])) for each in speech.metrics["segments"]) <= 120


# References


def test_a_voice_that_reads_along_needs_the_transcript(speaking: ReferenceEngine) -> None:
    optimizer = replica(speaking)
    for said in (None, "", "  "):
        with pytest.raises(InvalidReference, match="give reference_text"):
            optimizer.synthesize(ENGLISH, voice(), said)
    with pytest.raises(InvalidReference, match="cannot read"):
        optimizer.synthesize(ENGLISH, voice(), "这是中文")


def test_a_reference_is_no_longer_than_its_engine_takes(speaking: ReferenceEngine) -> None:
    optimizer = replica(speaking)
    longest = optimizer.adapter.cloning.seconds[1]
    with pytest.raises(InvalidReference, match=f"longer than {longest:g} s"):
        optimizer.synthesize(ENGLISH, voice(longest + 1), "it says this")
    with pytest.raises(InvalidReference, match="less than"):
        optimizer.synthesize(ENGLISH, voice(0.4), "it says this")


def test_a_reference_is_as_clear_as_its_engine_needs(speaking: ReferenceEngine, tiny: Any) -> None:
    audio, rate = voice()
    telephone = audio[::2].copy(), rate // 2
    noisy = audio + np.random.default_rng(0).normal(0, 0.05, len(audio)).astype(np.float32), rate
    for path in (replica(speaking).synthesize, replica(speaking).stream):
        for unclear, message in ((telephone, "up to 4 kHz only.*needs 6.5 kHz"), (noisy, "noisy.*needs 32 dB")):
            with pytest.raises(InvalidReference, match=message):
                path(ENGLISH, unclear, "it says this")
    for clear in (telephone, noisy):  # an engine that asks for nothing
        assert replica(tiny).synthesize(ENGLISH, clear, "it says this", max_new_tokens=4).audio.size


# Audio that cannot be the text


def ending(after: list[int]) -> Callable[[Any], Any]:
    """A language model that ends by itself after so many frames, try by try."""

    def make(part: Any) -> Any:
        def call(prompt: np.ndarray, params: Any, *, resume: Any = (), **_: Any) -> Iterator[np.ndarray]:
            count = after.pop(0) if after else 200
            for number in range(len(resume), count):
                yield np.array([260 + number % 32, number % 32, 1, 2, 3])

        return call

    return make


def test_a_segment_that_ends_too_soon_is_spoken_again(speaking: ReferenceEngine) -> None:
    speech = replica(speaking, text2semantic=ending([2])).synthesize(ENGLISH, seed=1)
    assert [each["tries"] for each in speech.metrics["segments"]] == [2]
    assert len(speech.audio) == 200 * speaking.hop
    assert speech.metrics["fallback"] == []
    limited = replica(speaking, text2semantic=ending([2])).synthesize(ENGLISH, seed=1, max_new_tokens=2)
    assert len(limited.audio) == 2 * speaking.hop, "what was asked for"


@pytest.mark.parametrize("streaming", [False, True])
def test_audio_too_short_for_its_text_is_no_answer(
    speaking: ReferenceEngine, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    short = np.full(1000, 0.1, np.float32)
    monkeypatch.setattr(ReferenceEngine, "synthesize", lambda self, *_, **__: (short, RATE))
    optimizer = replica(speaking, text2semantic=ending([2, 2, 2, 2]))
    with pytest.raises(GenerationError, match=r"takes at least 0\.7"):
        list(optimizer.stream(ENGLISH)) if streaming else optimizer.synthesize(ENGLISH)
