"""fish-speech through the wrapper: what the engine answered before is what it answers now. Setup: see installed.py."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import ContentCache, UniversalOptimizer
from accelerator.engines.fish_speech import examples, routed
from accelerator.engines.fish_speech.adapter import FishSpeechAdapter
from accelerator.engines.fish_speech.language_model import with_cache
from accelerator.engines.fish_speech.layouts import HEAD
from accelerator.engines.fish_speech.pytorch import generate
from accelerator.errors import Closed, EngineError, InvalidOption, InvalidText
from accelerator.metrics import Meter, measuring
from accelerator.pipeline.voices import KnownVoices
from accelerator.speech import SamplingParams
from accelerator.voices import DiskVoices
from tests.engines.fish_speech.installed import CHECKPOINT, CODEC, TEXT, Fault, break_after, real, tone, tts, wav

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, top_k=1, repetition_penalty=1.0)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json"):
        FishSpeechAdapter.from_checkpoint(tmp_path)
    with pytest.raises(InvalidOption, match="cpu"):
        FishSpeechAdapter.from_checkpoint(tmp_path, device="cuda")
    with pytest.raises(InvalidOption, match="bf16"):
        FishSpeechAdapter.from_checkpoint(tmp_path, dtype="int4")  # type: ignore[arg-type]


def compare(original: Any, ours: Any) -> list[str]:
    """Two sequences of results hold the same; returns their codes."""
    original, ours = list(original), list(ours)
    assert [r.code for r in ours] == [r.code for r in original]
    for a, b in zip(original, ours, strict=True):
        assert type(a) is type(b)
        assert (type(a.error), str(a.error)) == (type(b.error), str(b.error))
        if a.audio is None:
            assert b.audio is None
            continue
        assert (type(a.audio), a.audio[0], type(a.audio[0])) == (type(b.audio), b.audio[0], type(b.audio[0]))
        assert (a.audio[1].dtype, a.audio[1].shape) == (b.audio[1].dtype, b.audio[1].shape)
        if a.audio[1].dtype == np.float32:
            np.testing.assert_allclose(b.audio[1], a.audio[1], atol=2e-4)
        else:
            np.testing.assert_array_equal(b.audio[1], a.audio[1])
    return [r.code for r in ours]


@real
@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_greedy_codes_equal_the_engines_own_token_for_token(module: Any, fast: Any, backend: str) -> None:
    adapter, count = fast.adapter, 64
    prompt = adapter._proof_prompt()
    options: dict[str, Any] = {"temperature": 0.7, "top_p": 1e-6, "repetition_penalty": 1.0}
    if adapter.layout is HEAD:
        options = {"temperature": 1.0, "top_p": 0.9, "top_k": 1}
    own = module.generate(
        model=with_cache(adapter.model.get(), prompt.shape[1] + count),
        prompt=torch.from_numpy(prompt),
        max_new_tokens=count,
        audio_masks=None,
        audio_parts=None,
        **options,
    )[:, prompt.shape[1] :].numpy()
    call = fast._routes["text2semantic"] if backend == "onnxruntime" else adapter._generate_in_torch
    frames = np.stack(list(call(prompt, replace(GREEDY, max_new_tokens=count))), axis=1)
    np.testing.assert_array_equal(frames, own)
    assert len(set(own[0])) > 10, "a checkpoint that repeats itself proves little"


@real
@pytest.mark.parametrize("streaming", [False, True])
def test_inference_yields_what_it_yielded_before(engine: Any, fast: Any, greedy: None, streaming: bool) -> None:
    request = tts(streaming=streaming, max_new_tokens=40)  # longer than every window
    codes = compare(engine.inference(request), fast.inference(request))
    assert codes == (["header", "segment", "final"] if streaming else ["final"])


@real
def test_several_batches_follow_each_other(
    engine: Any, fast: Any, greedy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # head clamps the codes it decodes in place, while its thread makes the next prompt of them: now and then of those.
    decode = engine.decode_vq_tokens
    monkeypatch.setattr(engine, "decode_vq_tokens", lambda codes: decode(codes=codes.clone()))
    request = tts("<|speaker:0|>One two three. <|speaker:1|>Four five six.", chunk_length=20, streaming=True)
    codes = compare(engine.inference(request), fast.inference(request))
    assert codes.count("segment") == (2 if fast.adapter.layout is HEAD else 1)


@real
@pytest.mark.parametrize("options", [{"text": "word " * 4000}, {"max_new_tokens": 1}, {"max_new_tokens": -3}])
def test_errors_are_yielded_as_before(engine: Any, fast: Any, options: dict[str, Any]) -> None:
    assert compare(engine.inference(tts(**options)), fast.inference(tts(**options))) == ["error", "error"]


@real
def test_references_by_hash_and_id_are_shared(
    engine: Any, fast: Any, greedy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fish_speech.utils.schema import ServeReferenceAudio

    monkeypatch.chdir(tmp_path)
    (tmp_path / "voice.wav").write_bytes(wav(0.9, 22050))
    request = tts(references=[ServeReferenceAudio(audio=wav(), text="some words")], streaming=True)
    assert compare(engine.inference(request), fast.inference(request)) == ["header", "segment", "final"]
    fast.add_reference("someone", str(tmp_path / "voice.wav"), "other words")
    assert engine.list_reference_ids() == fast.list_reference_ids() == ["someone"]
    request = tts(reference_id="someone", use_memory_cache="on")
    assert compare(engine.inference(request), fast.inference(request)) == ["final"]
    assert fast.ref_by_id is engine.ref_by_id
    assert fast.ref_by_hash is engine.ref_by_hash
    assert "someone" in engine.ref_by_id
    fast.delete_reference("someone")
    assert "someone" not in engine.ref_by_id
    unknown = tts(reference_id="nobody")
    assert compare(engine.inference(unknown), fast.inference(unknown)) == ["final"]


@real
@pytest.mark.parametrize("seconds", [0.21, 1.0, 3.7])
def test_reference_codes_are_identical(engine: Any, fast: Any, seconds: float) -> None:
    own = engine.encode_reference(wav(seconds, 22050), True)
    ours = fast.encode_reference(wav(seconds, 22050), True)
    assert (ours.dtype, ours.shape) == (own.dtype, own.shape)
    np.testing.assert_array_equal(ours.numpy(), own.numpy())
    assert fast.encode_reference(None, True) is None
    assert fast.encode_reference(wav(), False) is None


@real
@pytest.mark.parametrize("frames", [1, 2, 31, 75])
def test_audio_equals_at_lengths_never_exported(engine: Any, fast: Any, frames: int) -> None:
    codes = torch.from_numpy(examples.codes(fast.adapter.codec.shell, fast.adapter.spec.codebooks, frames, seed=5))
    with torch.inference_mode():
        own, ours = engine.decode_vq_tokens(codes.clone()), fast.decode_vq_tokens(codes.clone())
    assert (ours.dtype, ours.shape) == (own.dtype, own.shape)
    torch.testing.assert_close(ours, own, atol=1e-4, rtol=0)


@real
def test_the_codec_itself_is_routed_and_keeps_its_type(engine: Any, fast: Any) -> None:
    codec, own = fast.decoder_model, engine.decoder_model
    assert isinstance(codec, type(own))
    assert codec is not own
    assert (codec.sample_rate, codec.frame_length, codec.device) == (own.sample_rate, own.frame_length, own.device)
    audio = torch.from_numpy(np.stack([tone(), tone()[::-1].copy()]))[:, None]
    for batch in (audio[:1], audio):  # several at once are the engine's own business
        lengths = torch.tensor([batch.shape[-1] - 3000] * len(batch))
        with torch.inference_mode():
            for a, b in zip(own.encode(batch, lengths), codec.encode(batch, lengths), strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b)


@real
def test_the_engine_is_left_as_it_was(engine: Any, fast: Any, module: Any) -> None:
    before = dict(vars(engine)), dict(vars(type(engine))), dict(vars(module)), dict(vars(engine.decoder_model))
    caches = [layer.attention.kv_cache for layer in fast.adapter.model.get().layers]
    contents = [cache.k_cache.clone() for cache in caches]
    fast.synthesize(TEXT, (tone(), 44100), "words", seed=1, max_new_tokens=4)
    list(fast.inference(tts(max_new_tokens=4)))
    list(fast.adapter._generate_in_torch(fast.adapter._proof_prompt(), replace(GREEDY, max_new_tokens=3)))
    after = vars(engine), vars(type(engine)), vars(module), vars(engine.decoder_model)
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(new[key] is old[key] for key in old)
    for layer, cache, content in zip(fast.adapter.model.get().layers, caches, contents, strict=True):
        assert layer.attention.kv_cache is cache
        torch.testing.assert_close(cache.k_cache, content)
    assert isinstance(fast, type(engine))


@real
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 6, 15, 16, 17, 18, 25])
def test_the_language_model_may_fail_at_every_frame(fast: Any, at: int, streaming: bool) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6 if at < 7 else 26}  # penalties are on
    expected = fast.synthesize(TEXT, **options)
    assert expected.metrics["fallback"] == []
    break_after(fast, "text2semantic", at)
    if streaming:
        stream = fast.stream(TEXT, **options)
        audio, metrics = np.concatenate([chunk.audio for chunk in stream]), stream.metrics
    else:
        audio, _, metrics = fast.synthesize(TEXT, **options)
    np.testing.assert_allclose(audio, expected.audio, atol=2e-4)
    assert metrics["fallback"] == [{"part": "text2semantic", "reason": "Fault", "message": "text2semantic"}]
    assert metrics["frames"] == expected.metrics["frames"] == options["max_new_tokens"]
    assert metrics["backends"]["text2semantic"] == ("hybrid" if at else "pytorch")


@real
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_codec_may_fail(fast: Any, tmp_path: Path, part: str, streaming: bool) -> None:
    voice = {"reference_audio": (tone(1.1), 44100), "reference_text": "words", "temperature": 0, "max_new_tokens": 12}
    fast._dispatcher.voices._store = KnownVoices(DiskVoices(ContentCache(tmp_path / "1")), "nothing known")
    expected = fast.synthesize(TEXT, **voice)
    fast._dispatcher.voices._store = KnownVoices(DiskVoices(ContentCache(tmp_path / "2")), "nothing known")
    break_after(fast, part, 0)
    stream = fast.stream(TEXT, **voice)
    if streaming:
        audio, metrics = np.concatenate([c.audio for c in stream]), stream.metrics
    else:
        audio, _, metrics = fast.synthesize(TEXT, **voice)
    np.testing.assert_allclose(audio, expected.audio, atol=2e-4)
    assert {f["part"] for f in metrics["fallback"]} == {part}


@real
def test_a_stream_survives_a_window_that_failed(fast: Any) -> None:
    """PyTorch decodes one window in the middle; the decoder with a memory then finds its way again."""
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 70}
    expected = fast.synthesize(TEXT, **options).audio
    route, count = fast._routes["decoder"], 0
    call = route._choice.call

    def sometimes(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise Fault("once")
        return call(*args, **more)

    route._choice = replace(route._choice, call=sometimes)
    stream = fast.stream(TEXT, **options)
    chunks = [chunk.audio for chunk in stream]
    assert [len(c) // 2048 for c in chunks] == [4, 8, 16, 32, 10]
    np.testing.assert_allclose(np.concatenate(chunks), expected, atol=2e-4)
    assert stream.metrics["backends"]["decoder"] == "hybrid"


LONG = "The first of these sentences is here to be spoken. " * 4 + "A second part follows, which has more to say. " * 4


@real
def test_a_long_text_is_spoken_in_segments_with_one_voice(fast: Any) -> None:
    options: dict[str, Any] = {"seed": 5, "max_new_tokens": 12}
    speech = fast.synthesize(LONG, **options)
    segments = speech.metrics["segments"]
    assert len(segments) >= 2
    assert "".join(s["text"] for s in segments) == LONG
    assert speech.metrics["fallback"] == []
    stream = fast.stream(LONG, **options)
    np.testing.assert_allclose(np.concatenate([c.audio for c in stream]), speech.audio, atol=2e-4)


@real
def test_requests_at_once_are_what_they_are_alone(fast: Any) -> None:
    texts = ["Hello.", "How are you today?", "One two three four five.", "Yes.", "The quick brown fox."]
    options: dict[str, Any] = {"seed": 3, "max_new_tokens": 20}
    for text, answer in zip(texts, fast.synthesize_batch(texts, **options), strict=True):
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, **options).audio)


@real
def test_the_pieces_are_what_inference_does(fast: Any) -> None:
    """The engine's own method, through the wrapper, and the wrapper's: the same frames of the same prompt."""
    (final,) = [r for r in fast.inference(tts(max_new_tokens=17, seed=11)) if r.code == "final"]
    speech = fast.synthesize(TEXT, seed=11, max_new_tokens=16)
    np.testing.assert_allclose(speech.audio, final.audio[1], atol=2e-4)


@real
def test_a_voice_that_the_engine_does_not_know_makes_no_folder(fast: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidOption, match="no voice 'nobody'"):
        fast.synthesize(TEXT, voice="nobody")
    assert not (tmp_path / "references" / "nobody").exists()


@real
def test_the_copy_may_fail_as_a_whole(fast: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompt(*_: Any) -> Any:
        raise Fault("all of it")

    monkeypatch.setattr(fast._bound.stages, "_prompt", prompt)
    audio, _, metrics = fast.synthesize(TEXT, (tone(), 44100), "words", max_new_tokens=5, temperature=0.5)
    assert (len(audio), metrics["backends"]["engine"]) == (5 * 2048, "pytorch")
    whole = UniversalOptimizer(engine, precision="fp32", threads=2, probe=False, split_text=False)
    with whole, pytest.raises(InvalidText, match="too long"):
        whole.synthesize("word " * 4000)


@real
def test_a_voice_is_encoded_once(fast: Any, tmp_path: Path) -> None:
    calls: list[int] = []
    route = fast._routes["encoder"]
    encode = route._choice.call
    route._choice = replace(route._choice, call=lambda audio: calls.append(1) or encode(audio))
    fast._dispatcher.voices._store = KnownVoices(DiskVoices(ContentCache(tmp_path)), "nothing known")
    first, second = (fast.synthesize(TEXT, wav(1.2), "words", temperature=0, max_new_tokens=5) for _ in range(2))
    np.testing.assert_array_equal(first.audio, second.audio)
    plain = fast.synthesize(TEXT, temperature=0, max_new_tokens=5)
    assert not np.array_equal(plain.audio, first.audio)
    assert len(calls) == 1
    turns = "<|speaker:0|>" + TEXT  # not spoken in pieces, but in the same voice
    fast._dispatcher.voices._store = KnownVoices(
        DiskVoices(ContentCache(tmp_path)), "nothing known"
    )  # as in another process
    tagged = [fast.synthesize(turns, *voice, temperature=0, max_new_tokens=5) for voice in ((wav(1.2), "words"), ())]
    assert not np.array_equal(tagged[0].audio, tagged[1].audio)
    assert len(calls) == 1


@real
def test_seeds_belong_to_their_requests(fast: Any) -> None:
    def speak(seed: int) -> np.ndarray:
        if seed % 2:
            return fast.synthesize(f"Number {seed}.", seed=seed, max_new_tokens=9).audio
        *_, final = fast.inference(tts(f"Number {seed}.", seed=seed, max_new_tokens=9))
        return final.audio[1]

    serial = [speak(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for alone, beside in zip(serial, pool.map(speak, range(8)), strict=True):
            np.testing.assert_array_equal(alone, beside)
    first, second = (fast.synthesize(TEXT, max_new_tokens=9).audio for _ in range(2))
    assert not np.array_equal(first, second)


@real
def test_requests_are_measured_where_they_are_served(fast: Any) -> None:
    meter = Meter()
    with measuring(meter):
        list(fast.inference(tts(max_new_tokens=7)))
    figures = meter.result()
    assert figures["frames"] == 6, "7 tokens are 6 frames"
    assert figures["stages"]["generate"] > 0
    assert figures["stages"]["decode"] > 0


@real
def test_a_stream_that_is_left_frees_the_model(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []

    class Seen(routed._Request):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            states.append(self)

    monkeypatch.setattr(routed, "_Request", Seen)
    stream = fast.stream("<|speaker:0|>" + TEXT, max_new_tokens=5)
    next(stream)
    assert not states[0].cancelled.is_set()
    stream.close()
    assert states[0].cancelled.is_set()
    meter = Meter()
    with measuring(meter), routed._serving(states[0]):  # as if it had been left sooner
        assert [r.code for r in fast.inference(tts(max_new_tokens=1500))] == ["error", "error"]
    assert meter.result()["frames"] == 0


@real
def test_closing_ends_the_thread_and_leaves_the_engine(engine: Any) -> None:
    optimizer = UniversalOptimizer(engine, precision="fp32", threads=2, probe=False)
    before = {t for t in threading.enumerate() if t.name == "accelerator-fish-speech"}
    copied = optimizer._bound.engine
    optimizer.close()
    with pytest.raises(Closed):
        optimizer.inference(tts())
    with pytest.raises(Closed):
        list(copied.inference(tts()))
    forgotten = UniversalOptimizer(engine, precision="fp32", threads=2, probe=False)
    alive = weakref.ref(forgotten._bound)
    del forgotten, optimizer, copied
    gc.collect()
    assert alive() is None
    for thread in {t for t in threading.enumerate() if t.name == "accelerator-fish-speech"} - before:
        thread.join(10)
        assert not thread.is_alive()
    assert [r.code for r in engine.inference(tts(max_new_tokens=3))] == ["final"]


@real
def test_fish_speechs_server_speaks_through_it(fast: Any, engine: Any, greedy: None) -> None:
    pytest.importorskip("kui")
    from tools.server.inference import inference_wrapper

    request = tts(streaming=True)
    for own, ours in zip(inference_wrapper(request, engine), inference_wrapper(request, fast), strict=True):
        assert type(own) is type(ours)
    whole = next(inference_wrapper(tts(), fast))
    np.testing.assert_allclose(whole, next(inference_wrapper(tts(), engine)), atol=2e-4)


@real
@pytest.mark.slow
def test_an_engine_of_the_server_is_wrapped(monkeypatch: pytest.MonkeyPatch, load_engine: Any, engine: Any) -> None:
    pytest.importorskip("kui")
    from tools.server import model_manager

    monkeypatch.setattr(model_manager, "load_decoder_model", lambda **_: engine.decoder_model)
    monkeypatch.setattr(model_manager.ModelManager, "warm_up", lambda *_: None)  # a minute, for 1,024 tokens
    manager = model_manager.ModelManager("tts", "cpu", False, False, CHECKPOINT, str(CHECKPOINT), CODEC)
    with UniversalOptimizer(manager.tts_inference_engine, precision="fp32", threads=2, probe=False) as optimizer:
        assert optimizer.precision is torch.bfloat16
        audio, _, metrics = optimizer.synthesize(TEXT, seed=1, max_new_tokens=6)
        assert len(audio) == 6 * 2048
        assert metrics["fallback"] == []
        *_, final = optimizer.inference(tts(max_new_tokens=6))
        assert (final.audio[1].dtype, final.audio[1].shape) == (np.float32, (5 * 2048,))
    manager.llama_queue.put(None)


@real
def test_sampling_in_pytorch_depends_on_the_seed_alone(fast: Any) -> None:
    adapter = fast.adapter
    arguments = adapter.module, adapter.layout, adapter.model.get(), adapter.spec, adapter._proof_prompt()
    params = SamplingParams(temperature=0.8, top_p=0.8, top_k=30, repetition_penalty=1.1, seed=5, max_new_tokens=6)
    first = np.stack(list(generate(*arguments, params)))
    torch.rand(3)
    np.testing.assert_array_equal(first, np.stack(list(generate(*arguments, params))))
    assert not np.array_equal(first, np.stack(list(generate(*arguments, replace(params, seed=6)))))
    assert list(generate(*arguments, params, resume=list(first))) == []
