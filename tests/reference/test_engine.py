import copy
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from accelerator.reference import SIZES, ReferenceEngine, ReferenceEngineError, load
from accelerator.reference.audio import as_learnt, load_audio
from accelerator.reference.tokenizer import unconditional

TEXT = "Hello there."


def frames_of(engine: ReferenceEngine, prompt: np.ndarray, **options) -> np.ndarray:
    return np.stack(list(engine.generate(prompt, **options)), axis=1)  # [1+C, m]


def test_speech_is_audible_and_bounded(tiny):
    audio, sample_rate = tiny.synthesize(TEXT, seed=0)
    assert sample_rate == tiny.sample_rate == 16_000
    assert audio.dtype == np.float32
    assert audio.shape == (tiny.config.max_new_tokens * tiny.hop,) == (64 * 256,)
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() < 1
    assert np.sqrt(np.mean(audio**2)) > 0.01


@pytest.fixture(scope="module")
def named() -> ReferenceEngine:
    """Random weights that take speakers' names, spoken words, and few of them at a time."""
    engine = load("tiny")
    lm = replace(engine.config.language_model, speakers=("ann",), speaker_begin=259)
    codec = replace(engine.config.codec, lag=300)
    config = replace(engine.config, language_model=lm, codec=codec, text="spoken", longest_text=20)
    return ReferenceEngine(config, engine.language_model, engine.codec)


def test_a_speaker_is_a_token_behind_the_start(named, tiny):
    assert (tiny.speakers, tiny.default_speaker) == ((), None)
    assert (named.speakers, named.default_speaker) == (("ann",), "ann")
    by_name = named.encode_text("Hi!", speaker="ann")
    assert by_name[0].tolist() == [256, 259, *b"hi!", 258]
    np.testing.assert_array_equal(named.encode_text("Hi!"), by_name)
    with_reference = named.encode_text("Hi!", np.zeros((4, 1), np.int64), "Two, 2")
    assert with_reference[0].tolist() == [256, *b"two, two.", 258, 260, 257, 256, *b"hi!", 258]
    with pytest.raises(ReferenceEngineError, match="mean nothing else"):  # the second's would be the first code's
        replace(named.config.language_model, speakers=("ann", "bob"))


def test_a_long_text_is_spoken_phrase_after_phrase(named):
    engine = copy.copy(named)
    assert engine.phrases("It is 5 o'clock. Yes, it really is 5 o'clock.") == [
        "it is five o'clock.",
        "yes,",
        "it really is five",
        "o'clock.",
    ]
    said = []
    engine.encode_text = lambda text, *a, **k: said.append((text, k)) or named.encode_text(text, *a, **k)
    options = {"seed": 1, "max_new_tokens": 6}
    whole, _ = engine.synthesize("Hello there Anna. How are you?", speaker="ann", **options)
    assert said == [("hello there anna.", {"speaker": "ann"})]  # six frames were all there may be
    assert whole.size == 6 * 256 - 300
    engine.config = replace(named.config, max_new_tokens=6)
    whole, _ = engine.synthesize("Hello there Anna. How are you?", seed=1)
    chunks = list(engine.stream("Hello there Anna. How are you?", seed=1, chunk_frames=1))
    assert [len(chunk) for chunk in chunks] == [212, 256, 256, 256, 256] * 2  # the lag swallows the first piece
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)
    np.testing.assert_array_equal(whole[:1236], engine.synthesize("Hello there Anna.", seed=1)[0])
    np.testing.assert_array_equal(whole[1236:], engine.synthesize("How are you?", seed=2)[0])


def test_a_reference_is_heard_to_its_end(named):
    engine, seen = copy.copy(named), []
    engine.encode_reference = lambda audio: seen.append(audio) or np.zeros((4, 1), np.int64)
    engine.synthesize("Hi.", np.full(500, 0.1, np.float32), "x", max_new_tokens=1)
    assert seen[0].tolist() == [*[pytest.approx(0.1)] * 500, *[0.0] * 300]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.encode_text("x", speaker="bob"), "unknown speaker 'bob'; there are ann"),
        (lambda e: e.synthesize("x", np.zeros(9, np.float32), "y", speaker="ann"), "a reference or the speaker 'ann'"),
        (lambda e: list(e.stream("x", speaker="bob")), "unknown speaker"),
        (lambda e: e.synthesize("* ~"), "no words to speak"),
        (lambda e: load("tiny").encode_text("x", speaker="ann"), "no named speakers"),
    ],
)
def test_what_cannot_be_spoken(named, call, message):
    with pytest.raises(ReferenceEngineError, match=message):
        call(named)


def test_same_seed_same_audio(tiny):
    first, _ = tiny.synthesize(TEXT, seed=7, max_new_tokens=6)
    again, _ = tiny.synthesize(TEXT, seed=7, max_new_tokens=6)
    other, _ = tiny.synthesize(TEXT, seed=8, max_new_tokens=6)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_greedy_needs_no_seed(tiny):
    prompt = tiny.encode_text(TEXT)
    first = frames_of(tiny, prompt, temperature=0, max_new_tokens=10)
    np.testing.assert_array_equal(first, frames_of(tiny, prompt, temperature=0, max_new_tokens=10, seed=3))


def test_same_weights_from_the_same_seed():
    a, b, c = load(seed=1), load(seed=1), load(seed=2)
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert x.equal(y), name
    assert not a.language_model.norm.weight.equal(c.language_model.norm.weight)


def test_prompt_layout(tiny):
    lm = tiny.config.language_model
    codes = np.arange(8).reshape(4, 2)
    prompt = tiny.encode_text("hé", codes, "a")
    assert prompt.dtype == np.int64
    assert prompt.tolist() == [
        [lm.im_start, 97, lm.voice, 260, 261, lm.im_end, lm.im_start, 104, 0xC3, 0xA9, lm.voice],
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 2, 3, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 4, 5, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 6, 7, 0, 0, 0, 0, 0, 0],
    ]


def test_frames_are_tokens_with_their_codes(tiny):
    frames = frames_of(tiny, tiny.encode_text(TEXT), seed=0, max_new_tokens=12)
    assert frames.shape == (5, 12)
    np.testing.assert_array_equal(frames[0] - 260, frames[1])
    assert frames[1:].min() >= 0
    assert frames[1:].max() < 64


def test_the_end_token_ends_speech_and_is_not_yielded():
    engine = load("tiny")
    lm = engine.language_model
    prompt = engine.encode_text(TEXT)
    expected = frames_of(engine, prompt, temperature=0, max_new_tokens=8)
    fifth = int(np.flatnonzero(~np.isin(expected[0], expected[0, :3]))[0])  # a token not seen in the first frames
    lm.output.weight[257] = 1.001 * lm.output.weight[expected[0, fifth]]  # the end token just beats it
    np.testing.assert_array_equal(frames_of(engine, prompt, temperature=0, max_new_tokens=8), expected[:, :fifth])


def test_no_frames_is_no_audio():
    engine = copy.copy(load("tiny"))
    engine.generate = lambda prompt, **options: iter(())
    audio, _ = engine.synthesize(TEXT)
    assert audio.shape == (0,)
    assert list(engine.stream(TEXT)) == []


def test_reference_changes_the_voice(tiny, tmp_path):
    voice = np.sin(np.arange(4000) * 0.1).astype(np.float32) * 0.5
    codes = tiny.encode_reference(voice)
    assert codes.shape == (4, 16)  # ceil(4000 / 256)
    plain, _ = tiny.synthesize(TEXT, seed=0, max_new_tokens=5)
    cloned, _ = tiny.synthesize(TEXT, voice, "Voice.", seed=0, max_new_tokens=5)
    assert not np.array_equal(plain, cloned)
    soundfile.write(tmp_path / "voice.wav", voice, 16_000, subtype="FLOAT")
    from_file, _ = tiny.synthesize(TEXT, tmp_path / "voice.wav", "Voice.", seed=0, max_new_tokens=5)
    np.testing.assert_array_equal(cloned, from_file)


def test_reference_file_is_resampled(tiny, tmp_path):
    tone = 0.1 * np.sin(np.arange(8000, dtype=np.float32) / 10)
    soundfile.write(tmp_path / "voice.wav", np.stack((tone, tone), axis=1), 32_000)
    seen = []
    engine = copy.copy(tiny)
    engine.encode_reference = lambda audio: seen.append(audio) or np.zeros((4, 1), np.int64)
    engine.synthesize(TEXT, str(tmp_path / "voice.wav"), "x", max_new_tokens=1)
    assert seen[0].shape == (4000,)
    assert seen[0].dtype == np.float32


def test_a_reference_file_is_read_as_the_accelerator_reads_it(tmp_path):
    """Channels that cancel each other, and a WAV written into a pipe, whose header says 0 bytes."""
    tone = (0.25 * np.sin(np.arange(4096) / 10)).astype(np.float32)
    soundfile.write(tmp_path / "antiphase.wav", np.stack((tone, -tone), axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "antiphase.wav", 16_000), tone)
    soundfile.write(tmp_path / "streamed.wav", tone, 16_000)
    data = bytearray((tmp_path / "streamed.wav").read_bytes())
    data[4:8] = data[40:44] = bytes(4)
    (tmp_path / "streamed.wav").write_bytes(data)
    np.testing.assert_allclose(load_audio(tmp_path / "streamed.wav", 16_000), tone, atol=4e-5)
    soundfile.write(tmp_path / "silent.wav", np.zeros(4096), 16_000)
    for name, message in (("silent.wav", "silent"), ("none.wav", "does not exist")):
        with pytest.raises(ReferenceEngineError, match=message):
            load_audio(tmp_path / name, 16_000)


@pytest.mark.parametrize(("given", "learnt"), [(0.001, 0.1), (0.05, 0.1), (0.2, 0.2), (0.9, 0.3)])
def test_a_trained_voice_hears_no_digital_silence_and_levels_it_knows(given, learnt):
    tone = np.sqrt(2) * np.sin(2 * np.pi * 100 * np.arange(8000) / 16_000)
    silence = np.zeros(1600)
    speech = (given * np.concatenate((silence, tone, silence, silence, tone, silence))).astype(np.float32)
    expected = learnt * np.concatenate((tone, tone))
    np.testing.assert_allclose(as_learnt(speech, 16_000), expected, atol=1e-6)


@pytest.mark.parametrize("audio", [np.zeros(1000), np.zeros(0), np.full(100, 0.001), np.eye(1, 10_000)[0]])
def test_what_has_no_level_is_left_alone(audio):
    np.testing.assert_array_equal(as_learnt(audio.astype(np.float32), 16_000), audio.astype(np.float32))


def test_only_a_trained_voice_is_particular(tiny, named):
    quiet = np.full(500, 0.001, np.float32)
    assert tiny.prepared(quiet)[:500].tolist() == quiet.tolist()
    np.testing.assert_allclose(named.prepared(quiet)[:500], 0.1, rtol=1e-6)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_streaming_equals_blocking(size):
    engine = load(size)
    assert engine.codec.receptive_field_frames - 1 <= engine.config.stream_context
    options = {"seed": 3, "max_new_tokens": 50}
    whole, _ = engine.synthesize(TEXT, **options)
    chunks = list(engine.stream(TEXT, **options, chunk_frames=4))
    hop, lag = engine.hop, engine.config.codec.lag
    assert [len(chunk) for chunk in chunks] == [4 * hop - lag, *[4 * hop] * 11, 2 * hop]
    assert (lag > 0) == (size == "small")
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)


@pytest.mark.parametrize(("repetition_aware", "penalty"), [(False, 1.0), (False, 1.3), (True, 1.0)])
def test_generation_goes_on_from_codes(repetition_aware, penalty):
    engine = load("tiny")
    lm = replace(engine.config.language_model, repetition_aware=repetition_aware, repetition_penalty=penalty)
    engine.config = replace(engine.config, language_model=lm)
    prompt = engine.encode_text(TEXT)
    whole = frames_of(engine, prompt, temperature=0, max_new_tokens=20)
    rest = frames_of(engine, prompt, temperature=0, max_new_tokens=12, codes_so_far=whole[1:, :8])
    np.testing.assert_array_equal(rest, whole[:, 8:])


def test_stages_are_looked_up_on_the_engine(tiny):
    engine = copy.copy(tiny)
    calls = []
    for name in ("encode_text", "generate", "decode", "encode_reference"):
        original = getattr(tiny, name)
        setattr(engine, name, lambda *a, _f=original, _n=name, **k: calls.append(_n) or _f(*a, **k))
    engine.synthesize(TEXT, np.full(300, 0.1, np.float32), "x", max_new_tokens=2)
    assert calls == ["encode_reference", "encode_text", "generate", "decode"]
    calls.clear()
    assert len(list(engine.stream(TEXT, max_new_tokens=3, chunk_frames=2))) == 2
    assert calls == ["encode_text", "generate", "decode", "decode"]


def test_generation_stops_at_the_longest_sequence():
    engine = load("tiny")
    lm = replace(engine.config.language_model, max_seq_len=20)
    engine.config = replace(engine.config, language_model=lm)
    prompt = engine.encode_text("0123456789")  # 12 columns
    assert frames_of(engine, prompt, temperature=0).shape[1] == 8
    with pytest.raises(ReferenceEngineError, match="below 20 columns"):
        next(engine.generate(engine.encode_text("x" * 18)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.synthesize("  "), "no text"),
        (lambda e: e.synthesize("\ud800"), "not valid Unicode"),
        (lambda e: e.synthesize("x", None, "words"), "needs reference audio"),
        (lambda e: e.synthesize("x", np.zeros((2, 3), np.float32)), "non-empty mono"),
        (lambda e: e.synthesize("x", np.zeros(0, np.float32)), "non-empty mono"),
        (lambda e: e.synthesize("x", np.full(9, np.nan, np.float32)), "finite"),
        (lambda e: e.synthesize("x", "/nowhere.wav"), "does not exist"),
        (lambda e: e.synthesize("x", temperature=-1.0), "temperature"),
        (lambda e: e.synthesize("x", top_p=0.0), "top_p"),
        (lambda e: e.synthesize("x", top_k=0), "top_k"),
        (lambda e: e.synthesize("x", repetition_penalty=0.5), "repetition_penalty"),
        (lambda e: e.synthesize("x", max_new_tokens=0), "max_new_tokens"),
        (lambda e: list(e.stream("x", chunk_frames=0)), "chunk_frames"),
        (lambda e: e.decode(np.zeros((3, 2), np.int64)), "shape"),
        (lambda e: e.decode(np.zeros((4, 2))), "must be integers"),
        (lambda e: e.decode(np.full((4, 2), 64)), "0..63"),
        (lambda e: e.encode_text("x", np.full((4, 2), -1)), "0..63"),
        (lambda e: next(e.generate(np.zeros((4, 2), np.int64))), "prompt must have the shape"),
        (lambda e: next(e.generate(np.full((5, 2), 336))), "0..335"),
        (lambda e: load("huge"), "unknown size 'huge'; there are tiny, small, s1-mini"),
    ],
)
def test_errors_say_what_is_wrong(tiny, call, message):
    with pytest.raises(ReferenceEngineError, match=message):
        call(tiny)


def test_sizes_are_named():
    assert list(SIZES) == ["tiny", "small", "s1-mini"]
    assert all(name == config.name for name, config in SIZES.items())


def test_guidance_goes_away_from_what_comes_without_the_text(tiny):
    """Greedy frames are those of an extrapolation worked out from two plain runs."""
    lm = replace(tiny.config.language_model, untold=259)
    engine = copy.copy(tiny)
    engine.config = replace(tiny.config, language_model=lm, guidance=2.5)
    prompt = engine.encode_text("Hello there.", np.zeros((4, 3), np.int64), "a voice")
    frames = list(engine.generate(prompt, temperature=0, repetition_penalty=1.0, max_new_tokens=12))
    bare = prompt.copy()
    bare[0, [*range(1, 8), *range(14, 26)]] = 259
    assert unconditional(prompt, lm).tolist() == bare.tolist()
    model, guided = engine.language_model, []
    with torch.inference_mode():
        for at in range(len(frames)):
            logits = []
            for columns in (prompt, bare):
                columns = np.concatenate((columns, *(f[:, None] for f in frames[:at])), axis=1)
                cache = model.slow_cache(columns.shape[1])
                logits.append(model.slow(torch.from_numpy(columns)[None], cache, 0)[0][0])
            guided.append(int((logits[1] + 2.5 * (logits[0] - logits[1]))[:-1].argmax()))
    assert guided == [int(frame[1]) for frame in frames]
    plain = list(tiny.generate(prompt, temperature=0, repetition_penalty=1.0, max_new_tokens=12))
    assert not np.array_equal(frames, plain)


def test_what_is_implausible_without_guidance_is_not_said(tiny):
    """Each greedy code is the guided maximum among those that are plausible in the conditioned row."""
    lm = replace(tiny.config.language_model, untold=259)
    engine = copy.copy(tiny)
    engine.config = replace(tiny.config, language_model=lm, guidance=4.0, plausible=0.6)
    prompt = engine.encode_text("Hello there.")
    frames = list(engine.generate(prompt, temperature=0, repetition_penalty=1.0, max_new_tokens=12))
    model, bound = engine.language_model, 0
    with torch.inference_mode():
        for at, frame in enumerate(frames):
            logits = []
            for columns in (prompt, unconditional(prompt, lm)):
                columns = np.concatenate((columns, *(f[:, None] for f in frames[:at])), axis=1)
                logits.append(model.slow(torch.from_numpy(columns)[None], model.slow_cache(columns.shape[1]), 0)[0][0])
            guided = logits[1] + 4 * (logits[0] - logits[1])
            plausible = logits[0].softmax(0) >= 0.6 * logits[0].softmax(0).max()
            bound += not plausible[guided.argmax()]
            assert int(frame[1]) == int(guided.masked_fill(~plausible, -torch.inf).argmax())
    assert bound > 0


def test_guidance_needs_a_model_that_can_do_without_the_text(tiny):
    with pytest.raises(ReferenceEngineError, match="learnt to do without"):
        replace(tiny.config, guidance=2.0)
    with pytest.raises(ReferenceEngineError, match="guidance must be 0 or more"):
        replace(tiny.config, guidance=-1.0)
    with pytest.raises(ReferenceEngineError, match="plausible must be in"):
        replace(tiny.config, plausible=1.5)
    for taken in (65, 256, 260, 336):
        with pytest.raises(ReferenceEngineError, match="untold token"):
            replace(tiny.config.language_model, untold=taken)
