"""A text in segments: one loop, one voice, in a stream as at once; and what becomes of replies without speech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.audio.files import write_wav
from accelerator.audio.reference import Reference
from accelerator.engines.base import Job
from accelerator.engines.spark_tts import SparkAdapter, prompts
from accelerator.engines.spark_tts.stages import SparkStages, Spoken
from accelerator.errors import InvalidText
from accelerator.parts.decoding import Window
from accelerator.speech import SamplingParams, SpeechRequest
from accelerator.text.segments import Segment
from tests.engines.spark_tts import toy
from tests.engines.spark_tts.double import RATE

STYLE = {"gender": "male", "pitch": "high", "speed": "low"}
LONG = " ".join(f"this is the sentence {chr(97 + n)} of a longer text." for n in range(18))


@pytest.fixture
def adapter(engine: Any) -> SparkAdapter:
    return SparkAdapter(engine)


def stages_of(adapter: SparkAdapter, **calls: Any) -> SparkStages:
    return SparkStages(adapter, calls)


def token(adapter: SparkAdapter, name: str) -> int:
    return int(adapter.engine.tokenizer.convert_tokens_to_ids(f"<|{name}|>"))


def test_all_segments_are_spoken_by_the_voice_of_the_first(adapter: SparkAdapter, fast: UniversalOptimizer) -> None:
    heard: list[np.ndarray] = []
    parts = {part.name: part.original for part in adapter.parts()}
    decode = parts["decoder"]

    def listen(semantics: np.ndarray, codes: np.ndarray, *, window: Window | None = None) -> np.ndarray:
        heard.append(codes)
        return np.asarray(decode(semantics, codes, window=window))

    stages = stages_of(adapter, **{**parts, "decoder": listen})
    request = SpeechRequest(LONG, options=STYLE, sampling=SamplingParams(seed=3))
    voice = stages.voice(request, None)
    assert stages.waits(voice)
    for number, segment in enumerate(stages.segments(request, soon=False)):
        job = Job.of(request, number, lambda: False)
        units = [unit for some in stages.generate(segment, voice, job) for unit in some]
        assert len(stages.decoder(voice, job).push(units, final=True)) % 320 == 0
        voice = stages.continued(segment, units, voice) if stages.waits(voice) else voice
    assert len(heard) == 4
    assert all(np.array_equal(codes, heard[0]) for codes in heard)
    assert not stages.waits(voice)

    speech = fast.synthesize(LONG, seed=3, **STYLE)
    assert [each["state"] for each in speech.metrics["segments"]] == ["done"] * 4
    assert "".join(each["text"] for each in speech.metrics["segments"]) == LONG


def test_a_described_voice_stays_in_its_style(adapter: SparkAdapter) -> None:
    """The next reply is begun as the first one was, so that speed and pitch are still asked for."""
    stages = stages_of(adapter)
    begun = [token(adapter, "start_acoustic_token"), *(token(adapter, f"bicodec_global_{i}") for i in (3, 1, 4, 1))]
    units = [*begun, token(adapter, "bicodec_semantic_9"), token(adapter, "bicodec_semantic_10")]
    first = Spoken(style=("male", "high", "low"))
    voice = stages.continued(Segment("one", 0.0, 0), units, first)
    np.testing.assert_array_equal(voice.codes, [3, 1, 4, 1])
    assert voice.begun == tuple(begun)
    prompt = stages._prompt("two", voice)
    own = prompts.ids(adapter.engine, prompts.controlled(adapter.engine, "two", "male", "high", "low"))
    np.testing.assert_array_equal(prompt, [*own, *begun])


def test_a_stream_is_what_is_said_at_once(fast: UniversalOptimizer, recording: Path) -> None:
    for asked in (STYLE, {"reference_audio": recording}):
        speech = fast.synthesize(LONG, seed=4, **asked)
        chunks = [audio for audio, _ in fast.stream(LONG, seed=4, **asked, eager=False)]
        assert len(chunks) >= 4
        np.testing.assert_allclose(np.concatenate(chunks), speech.audio, atol=1e-4)


def test_windows_join_to_the_whole(adapter: SparkAdapter) -> None:
    decode = next(part.original for part in adapter.parts() if part.name == "decoder")
    stages = stages_of(adapter, decoder=decode)
    assert adapter.reach == 8
    assert stages.windows[0] == 24
    voice = Spoken(np.array([1, 2, 3, 4]))
    names = [f"bicodec_semantic_{i}" for i in np.random.default_rng(1).integers(0, toy.SEMANTIC_IDS, 90)]
    units = [token(adapter, name) for name in names]
    whole = stages.decoder(voice, Job()).push(units, final=True)
    decoder, windows = stages.decoder(voice, Job()), []
    for begin in range(0, 90, 18):
        windows.append(decoder.push(units[begin : begin + 18], final=False))
    windows.append(decoder.push([], final=True))
    assert [len(window) // 320 for window in windows] == [10, 18, 18, 18, 18, 8]
    np.testing.assert_allclose(np.concatenate(windows), whole, atol=1e-5)
    np.testing.assert_allclose(whole, decode(np.array(stages._vocabulary.semantics(units)), voice.codes), atol=1e-5)


class Replies:
    """A language model that says one reply after the other."""

    def __init__(self, *replies: Sequence[int]) -> None:
        self.replies, self.asked = list(replies), list[SamplingParams]()

    def __call__(self, prompt: np.ndarray, sampling: SamplingParams, **_: Any) -> Iterator[int]:
        self.asked.append(sampling)
        yield from self.replies[len(self.asked) - 1]


def test_a_reply_without_speech_is_drawn_again(adapter: SparkAdapter) -> None:
    end, bracket, code = (token(adapter, n) for n in ("im_end", "start_semantic_token", "bicodec_semantic_7"))
    model = Replies([bracket, end], [bracket, code, code, end])
    stages = stages_of(adapter, text2semantic=model)
    job, voice = Job(SamplingParams(seed=1)), Spoken(np.zeros(4, np.int64))
    units = [unit for some in stages.generate(Segment("one", 0.0, 0), voice, job) for unit in some]
    assert units == [bracket, code, code]
    assert model.asked[0].seed == 1
    assert model.asked[1].seed not in (1, None)


def test_a_described_voice_with_too_few_codes_is_drawn_again(adapter: SparkAdapter) -> None:
    end, code, who = (token(adapter, n) for n in ("im_end", "bicodec_semantic_7", "bicodec_global_2"))
    model = Replies([who, who, code, end], [who] * 4 + [code, end])
    stages = stages_of(adapter, text2semantic=model)
    voice = Spoken(style=("male", "low", "low"))
    units = [unit for some in stages.generate(Segment("one", 0.0, 0), voice, Job()) for unit in some]
    assert units == [who] * 4 + [code]


def test_what_stays_silent_is_named(engine: Any, tokens: Any) -> None:
    """The model only ever ends: nothing is drawn by its parts, nor by the engine."""
    from accelerator.errors import GenerationError
    from tests.engines.spark_tts.double import SparkTTS

    class Mute(SparkTTS):
        def inference(self, *args: Any, **options: Any) -> np.ndarray:
            raise RuntimeError("Calculated padded input size per channel: (0). Kernel size: (1).")

    own = Mute(tokens, engine.model)
    adapter = SparkAdapter(own)
    model = Replies(*[[adapter.ends[0]]] * 4)
    optimizer = UniversalOptimizer(own, adapter=adapter, probe=False)
    optimizer._bound.stages._calls = {"text2semantic": model}  # type: ignore[union-attr]
    with pytest.raises(GenerationError, match="the engine produced no audio for 'Say this': try another seed"):
        optimizer.synthesize("Say this", **STYLE)
    assert len(model.asked) == 2


def test_a_recording_is_kept_on_disk(
    engine: Any, fast: UniversalOptimizer, recording: Path, tmp_path: Path, exports: Path
) -> None:
    calls = {"voices_dir": tmp_path, "precision": "fp32", "threads": 1, "probe": False}
    with UniversalOptimizer(engine, **calls) as first:
        one = first.synthesize("Hello.", seed=1, reference_audio=recording)
        assert one.metrics["backends"]["encoder"] == "onnxruntime"
    with UniversalOptimizer(engine, **calls) as second:
        two = second.synthesize("Hello.", seed=1, reference_audio=recording.read_bytes(), reference_text=None)
        assert "encoder" not in two.metrics["backends"]
    np.testing.assert_array_equal(one.audio, two.audio)


def test_a_recordings_codes_are_the_engines(engine: Any, adapter: SparkAdapter, recording: Path) -> None:
    import soundfile

    samples, _ = soundfile.read(recording)
    encode = next(part.original for part in adapter.parts() if part.name == "encoder")
    stages = stages_of(adapter, encoder=encode)
    said, unsaid = (Reference(samples.astype(np.float32), RATE, text, "digest") for text in ("It says so.", ""))
    kept = stages.encode(said)
    codes, semantics = engine.audio_tokenizer.tokenize(recording)
    np.testing.assert_array_equal(kept["codes"], codes[0, 0].numpy())
    np.testing.assert_array_equal(kept["semantics"], semantics[0].numpy())
    assert len(kept["semantics"]) == 99
    less = stages.encode(unsaid)
    assert list(less) == ["codes"], "what it says is in a prompt only behind its transcript"
    np.testing.assert_array_equal(less["codes"], kept["codes"])
    assert (stages.kept_as(said), stages.kept_as(unsaid)) == (("digest",), ("digest", "digest-who"))


def test_a_voice_is_encoded_again_only_for_what_it_says(engine: Any, recording: Path, tmp_path: Path) -> None:
    calls: dict[str, Any] = {"precision": "fp32", "threads": 1, "probe": False, "voices_dir": tmp_path}
    with UniversalOptimizer(engine, **calls) as optimizer:
        for text, encodes in ((None, True), (None, False), ("It says so.", True), (None, False), ("Or so.", False)):
            waiting = optimizer.stream("Hello.", recording, text)
            assert waiting.knows_voice is not encodes
            waiting.close()
            speech = optimizer.synthesize("Hello.", recording, text, seed=1)
            assert ("encoder" in speech.metrics["backends"]) is encodes, text
    assert UniversalOptimizer(engine, **calls).stream("Hello.", gender="male", pitch="low", speed="low").knows_voice


def test_what_the_model_has_no_room_for_is_refused(fast: UniversalOptimizer, tmp_path: Path) -> None:
    write_wav(tmp_path / "voice.wav", 0.3 * np.sin(np.arange(59 * RATE) / 20), RATE)
    with pytest.raises(InvalidText, match=r"text and reference are \d+ tokens, and the model has room for 4096"):
        fast.synthesize("word " * 60, tmp_path / "voice.wav", "many words " * 150)
