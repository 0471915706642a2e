import copy
import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from accelerator import UniversalOptimizer
from accelerator.cli import app
from accelerator.engines import adapter_for, vits
from accelerator.engines.base import Job
from accelerator.engines.passthrough import PassThroughAdapter
from accelerator.engines.vits.traceable import exportable
from accelerator.errors import EngineError, InvalidOption, InvalidText
from accelerator.pipeline.selection import Choice
from accelerator.speech import SamplingParams, SpeechRequest, segment_seed
from tests.doubles import joined
from tests.engines.vits.tiny import close, pipeline, transformers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
LONG = "The first sentence is here. And another one follows it, with a clause. " * 8


def test_the_pipeline_answers_as_before(engine, fast):
    transformers.set_seed(3)
    before = engine("hello there, everybody")
    transformers.set_seed(3)
    after = fast("hello there, everybody")
    assert after.keys() == before.keys()
    assert (after["audio"].shape, after["audio"].dtype) == (before["audio"].shape, before["audio"].dtype)
    assert after["sampling_rate"] == before["sampling_rate"]
    close(after["audio"], before["audio"])
    assert isinstance(fast, type(engine))
    texts = ["hello there, everybody", "and again"]
    transformers.set_seed(3)
    before = engine(texts)
    transformers.set_seed(3)
    for one, other in zip(fast(texts), before, strict=True):
        close(one["audio"], other["audio"])


def test_a_seed_says_what_transformers_seed_says(engine, fast):
    transformers.set_seed(7)
    expected = engine("hello there, everybody")["audio"]
    state = torch.random.get_rng_state()
    speech = fast.synthesize("hello there, everybody", seed=7)
    close(speech.audio, expected)
    assert speech.sample_rate == engine.model.config.sampling_rate
    assert speech.metrics["backends"] == {"text": "onnxruntime", "decoder": "onnxruntime"}
    assert speech.metrics["fallback"] == []
    assert speech.metrics["frames"] == expected.size // 16
    assert torch.random.get_rng_state().equal(state), "the process' own random numbers are not touched"
    other = fast.synthesize("hello there, everybody", seed=8).audio
    assert other.shape != speech.audio.shape or np.abs(other - speech.audio).max() > 0.01
    request = SpeechRequest("hello there, everybody", sampling=SamplingParams(seed=7))
    close(next(fast.adapter.original(request)).audio, expected)


def test_a_long_text_is_spoken_by_a_pool_as_one_by_one(fast):
    speech = fast.synthesize(LONG, seed=2)
    stages = fast._bound.stages
    segments = stages.segments(SpeechRequest(LONG), soon=False)
    assert len(segments) > 2
    assert len(speech.metrics["segments"]) == len(segments)
    parts = [
        ([*chain.from_iterable(stages.generate(s, None, Job(segment_seed(SamplingParams(seed=2), i))))], s.pause_s)
        for i, s in enumerate(segments)
    ]
    close(speech.audio, joined(parts, speech.sample_rate))
    chunks = [chunk.audio for chunk in fast.stream(LONG, seed=2)]
    assert len(chunks) > 2


def test_many_threads_say_what_one_says(fast):
    texts = [f"number {'abcdefgh'[i]} is here" for i in range(8)]
    expected = [fast.synthesize(text, seed=i).audio for i, text in enumerate(texts)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: fast.synthesize(texts[i], seed=i).audio, range(8)))
    for one, other in zip(found, expected, strict=True):
        close(one, other)  # the decoder's sums have another order on one thread than on several


@pytest.mark.slow
def test_speakers_by_name(many, cache):
    with UniversalOptimizer(many, cache_dir=cache, probe=False, threads=1) as fast:
        spoken = []
        for name in (None, "0", "2"):
            transformers.set_seed(1)
            options = {} if name is None else {"forward_params": {"speaker_id": int(name)}}
            expected = many("good morning", **options)["audio"]
            speech = fast.synthesize("good morning", voice=name, seed=1)
            close(speech.audio, expected)
            assert speech.metrics["backend"] == "onnxruntime"
            transformers.set_seed(1)
            close(fast("good morning", **options)["audio"], expected)
            spoken.append(speech.audio)
        assert spoken[1].shape != spoken[2].shape or np.abs(spoken[1] - spoken[2]).max() > 0.001
        for name in ("3", "anna", "-1"):
            with pytest.raises(InvalidOption, match="0 to 2"):
                fast.synthesize("good morning", voice=name)


def test_what_cannot_be_served_says_why(fast):
    with pytest.raises(InvalidOption, match="temperature is no option of vits: it takes seed only"):
        fast.synthesize("hello", temperature=0.5)
    with pytest.raises(InvalidOption, match="one speaker"):
        fast.synthesize("hello", voice="0")
    with pytest.raises(InvalidOption, match="does not imitate voices"):
        fast.synthesize("hello", (0.1 * np.random.default_rng(0).standard_normal(48_000), 16_000), "hello")
    with pytest.raises(InvalidText, match=r"'日本語' at position 0 \(text\[0:3\]\)\. It speaks the letters abc"):
        fast.synthesize("日本語")
    with pytest.raises(InvalidText, match="nothing of the text"):
        fast.synthesize("日本語", unspeakable="skip")


@pytest.mark.parametrize("part", ["text", "decoder"])
def test_a_part_that_fails_is_pytorchs(fast, part):
    expected = fast.synthesize("hello there, everybody", seed=7).audio

    def broken(*_, **__):
        raise RuntimeError("no")

    route = fast._routes[part]
    route._choice = dataclasses.replace(route.choice, call=broken, shared=broken)
    for text in ("hello there, everybody", LONG):
        speech = fast.synthesize(text, seed=7)
        assert speech.metrics["backends"][part] == "pytorch"
        assert speech.metrics["fallback"][0]["part"] == part
        if text != LONG:
            close(speech.audio, expected)


def test_what_the_graphs_do_not_say_the_engine_says(engine, fast):
    inputs = engine.tokenizer(["hello there", "hi"], padding=True, return_tensors="pt")
    torch.manual_seed(0)
    expected = engine.model(**inputs)
    torch.manual_seed(0)
    assert fast.model(**inputs).waveform.equal(expected.waveform)
    alone = engine.tokenizer("hello there", return_tensors="pt")
    assert len(fast.model(**alone, output_hidden_states=True).hidden_states) == 3
    assert isinstance(fast.model(**alone, return_dict=False), tuple)
    with pytest.raises(NotImplementedError):
        fast.model(**alone, labels=torch.zeros(1, 33, 4))


def test_the_engine_stays_as_it_was(engine, fast):
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    exportable(engine.model)
    after = engine.model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    assert "forward" not in vars(engine.model)
    torch.manual_seed(0)
    assert np.isfinite(engine("still here")["audio"]).all()


def test_other_pipelines_pass_through(engine):
    bark = SimpleNamespace(config=SimpleNamespace(model_type="bark"))
    other = SimpleNamespace(model=bark, sample_rate=24_000, synthesize=None, tts=lambda text: None)
    assert isinstance(vits.adapter(other), PassThroughAdapter)
    half = SimpleNamespace(
        tts=other.tts,
        model=SimpleNamespace(
            config=engine.model.config, parameters=lambda: iter([torch.zeros(1, dtype=torch.float16)])
        ),
    )
    assert isinstance(vits.adapter(half), PassThroughAdapter)
    assert isinstance(adapter_for(engine), vits.VitsAdapter)


def test_a_checkpoint_folder_speaks(engine, cache, tmp_path):
    folder = tmp_path / "mms"
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    target = tmp_path / "out.wav"
    options = [
        "--engine",
        "vits",
        "--checkpoint",
        str(folder),
        "--cache-dir",
        str(cache),
        "--seed",
        "7",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(app, ["synth", "hello there, everybody", "-o", str(target), *options])
    assert done.exit_code == 0, done.output
    transformers.set_seed(7)
    samples, rate = soundfile.read(target)
    assert rate == engine.model.config.sampling_rate
    np.testing.assert_allclose(samples, engine("hello there, everybody")["audio"].reshape(-1), atol=1e-3)
    with UniversalOptimizer.from_checkpoint(folder, "vits", cache_dir=cache, probe=False) as fast:
        fast.synthesize("hello")
        assert fast.status()["torch_released"] is False
    done = CliRunner().invoke(app, ["bench", "--engine", "vits", "--checkpoint", str(folder)])
    assert done.exit_code == 2
    assert "bench feed-forward" in done.output


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"no config\.json"):
        UniversalOptimizer.from_checkpoint(tmp_path, "vits")
    (tmp_path / "config.json").write_text('{"model_type": "vits"}')
    with pytest.raises(EngineError, match="cannot be opened as a VITS"):
        UniversalOptimizer.from_checkpoint(tmp_path, "vits")


@pytest.mark.parametrize("through", ["the wrapper", "the pipeline"])
@pytest.mark.parametrize(
    ("name", "value"), [("speaking_rate", 0.5), ("noise_scale", 0.1), ("noise_scale_duration", 0.1)]
)
def test_settings_are_obeyed_whoever_sets_them(tmp_path, cache, through, name, value):
    own, plain = pipeline(tmp_path), pipeline(tmp_path)
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        before = fast.synthesize("hello there, everybody", seed=3).audio
        setattr((fast if through == "the wrapper" else own).model, name, value)
        setattr(plain.model, name, value)
        assert getattr(fast.model, name) == getattr(own.model, name) == value
        transformers.set_seed(3)
        expected = plain("hello there, everybody")["audio"]
        after = fast.synthesize("hello there, everybody", seed=3)
        close(after.audio, expected)
        assert after.metrics["fallback"] == []
        assert len(after.audio) != len(before) or np.abs(after.audio - before).max() > 1e-3
        transformers.set_seed(3)
        close(fast("hello there, everybody")["audio"], expected)
        request = SpeechRequest("hello there, everybody", sampling=SamplingParams(seed=3))
        close(next(fast.adapter.original(request)).audio, expected)


def test_a_tokenizer_that_is_replaced_is_used(tmp_path, cache):
    own = pipeline(tmp_path)
    (tmp_path / "upper").mkdir()
    vocabulary = {c: i for i, c in enumerate(" zyxwvutsrqponmlkjihgfedcba'-")}
    (tmp_path / "upper" / "vocab.json").write_text(json.dumps(vocabulary))
    other = transformers.VitsTokenizer(
        str(tmp_path / "upper" / "vocab.json"), phonemize=False, pad_token=" ", unk_token=" "
    )
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        fast.tokenizer = other
        assert own.tokenizer is other
        transformers.set_seed(3)
        expected = own("hello there")["audio"]
        close(fast.synthesize("hello there", seed=3).audio, expected)


@pytest.mark.parametrize("through", ["the wrapper", "the pipeline"])
def test_another_model_is_never_spoken_with_the_old_weights(tmp_path, cache, through):
    own = pipeline(tmp_path)
    other = pipeline(tmp_path).model
    with torch.no_grad():
        other.decoder.conv_post.weight.mul_(0.5)
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        before, routed = own.model, fast.model
        (fast if through == "the wrapper" else own).model = other
        assert fast.model is own.model is other
        transformers.set_seed(3)
        expected = own("hello there")["audio"]
        speech = fast.synthesize("hello there", seed=3)
        close(speech.audio, expected)
        assert "another model than when it was wrapped: wrap the engine again" in reason(speech)
        transformers.set_seed(3)
        close(fast("hello there")["audio"], expected)
        fast.model = routed
        assert own.model is before
        assert fast.synthesize("hello there", seed=3).metrics["fallback"] == []


def reason(speech):
    (fallback,) = speech.metrics["fallback"]
    assert (fallback["part"], fallback["reason"]) == ("engine", "EngineError")
    return fallback["message"]


def test_a_voice_is_the_new_models_once_another_is_set(tmp_path, cache):
    own = pipeline(tmp_path)
    many = {"num_speakers": 3, "speaker_embedding_size": 8}
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        fast.model = pipeline(tmp_path, **many).model
        assert fast.adapter.voices() == ("0", "1", "2")
        transformers.set_seed(3)
        expected = own("hello there", forward_params={"speaker_id": 2})["audio"]
        close(fast.synthesize("hello there", voice="2", seed=3).audio, expected)


def test_a_forward_of_the_owners_is_called(tmp_path, cache):
    own = pipeline(tmp_path)
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        forward = own.model.forward
        own.model.forward = lambda **inputs: (0.5 * forward(**inputs)[0],)
        transformers.set_seed(3)
        expected = own("hello there")["audio"]
        speech = fast.synthesize("hello there", seed=3)
        close(speech.audio, expected)
        assert "forward() was replaced" in reason(speech)
        transformers.set_seed(3)
        close(fast("hello there")["audio"], expected)


@pytest.mark.parametrize("rate", [0.7, 0.9, 1.3, 1.7])
@pytest.mark.parametrize("how", ["set", "passed"])
@torch.inference_mode()
def test_durations_are_rounded_as_the_engine_rounds_them(many, monkeypatch, rate, how):
    """Sounds that last a whole number of frames, but for the last bit: one more or one less is heard."""
    own = vits.VitsAdapter(many)
    bound = own.bind({"text": own._text_in_torch, "decoder": own._decode_in_torch})
    inputs = many.tokenizer("abcdefgh" * 12, return_tensors="pt")
    lasting = (torch.arange(inputs["input_ids"].shape[1]) % 40 + 1) * rate
    monkeypatch.setattr(many.model.duration_predictor, "forward", lambda *_: lasting.log()[None, None])
    options = {"speaking_rate": rate} if how == "passed" else {}
    monkeypatch.setattr(many.model, "speaking_rate", 1.0 if options else rate)
    expected = many.model(**inputs, **options).sequence_lengths
    assert bound.engine.model(**inputs, **options).sequence_lengths.equal(expected)
    assert expected.item() > 16 * lasting.numel()


def test_the_pipelines_own_settings_are_obeyed(tmp_path, cache):
    own = pipeline(tmp_path)
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        whole = fast.synthesize("hello there, everybody", seed=3)
        own.sampling_rate = 8_000
        assert (fast.sample_rate, fast.synthesize("hello", seed=3).sample_rate) == (8_000, 8_000)
        fast.sampling_rate = 22_050
        assert own.sampling_rate == fast.synthesize("hello", seed=3).sample_rate == 22_050

        def check():
            transformers.set_seed(3)
            expected = own("hello there, everybody")["audio"]
            speech = fast.synthesize("hello there, everybody", seed=3)
            close(speech.audio, expected)
            return speech

        own._preprocess_params = {"truncation": True, "max_length": 9}
        speech = check()
        assert speech.metrics["fallback"] == []
        assert len(speech.audio) < len(whole.audio) / 2
        own._preprocess_params = {"padding": "max_length", "max_length": 60}
        assert "what the exports do not answer" in reason(check())
        own._preprocess_params = {}
        own.preprocess = lambda text, **options: type(own).preprocess(own, text[:5], **options)
        assert len(check().audio) < len(whole.audio) / 2
        own.postprocess = lambda audio: {"audio": 0.5 * audio.numpy().squeeze(), "sampling_rate": 22_050}
        assert check().metrics["fallback"] == []


def scaled(model):
    with torch.no_grad():
        model.decoder.conv_post.weight.mul_(0.5)


def loaded(model):
    model.load_state_dict({name: 0.9 * tensor for name, tensor in model.state_dict().items()})


def pointed_elsewhere(model):
    model.decoder.conv_post.weight.data = 0.5 * model.decoder.conv_post.weight.data


def another_part(model):
    model.decoder = copy.deepcopy(model.decoder)
    scaled(model)


@pytest.mark.parametrize("change", [scaled, loaded, pointed_elsewhere, another_part])
def test_weights_that_are_changed_are_spoken_with(tmp_path, cache, caplog, change):
    own = pipeline(tmp_path)
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        before = fast.synthesize("hello there", seed=3)
        assert before.metrics["fallback"] == []
        change(own.model)
        transformers.set_seed(3)
        expected = own("hello there")["audio"]
        speech = fast.synthesize("hello there", seed=3)
        close(speech.audio, expected)
        assert len(speech.audio) != len(before.audio) or np.abs(speech.audio - before.audio).max() > 1e-3
        assert reason(speech) == "the model's weights were changed after it was wrapped: wrap the engine again"
        for text in ("hello there", LONG):
            assert reason(fast.synthesize(text)) == reason(speech)
        (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert warning.exc_info is None
        assert warning.getMessage() == f"the original vits speaks, from now on without a warning: {reason(speech)}"
        caplog.clear()
        transformers.set_seed(3)
        close(fast("hello there")["audio"], expected)
        assert [r.getMessage() for r in caplog.records if "wrap the engine again" in r.getMessage()] != []


@pytest.mark.slow
def test_weights_that_were_changed_are_exported_once_the_engine_is_wrapped_again(tmp_path, cache):
    own = pipeline(tmp_path)
    scaled(own.model)
    transformers.set_seed(3)
    expected = own("hello there")["audio"]
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as again:
        speech = again.synthesize("hello there", seed=3)
        close(speech.audio, expected)
        assert speech.metrics["fallback"] == []


def test_nothing_is_exported_from_weights_that_were_changed(tmp_path, cache):
    """It would be kept under the name of others."""
    own = pipeline(tmp_path, hidden_act="gelu")
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        scaled(own.model)
        fast.prepare()
        reasons = [part["reason"] for part in fast.status()["parts"].values()]
        assert ["wrap the engine again" in each for each in reasons] == [True, True]


def test_one_after_the_other_a_text_sounds_as_in_the_pool(fast, monkeypatch):
    pooled = fast.synthesize(LONG, seed=3)
    assert len(pooled.metrics["segments"]) > 2
    monkeypatch.setattr(fast._dispatcher.pooling, "_choice", Choice(None, "by the test"))
    assert fast._dispatcher.at_once() == 1
    close(fast.synthesize(LONG, seed=3).audio, pooled.audio)


def test_what_only_learns_may_change(tmp_path, cache):
    own = pipeline(tmp_path)
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        del own.model.posterior_encoder
        assert fast.synthesize("hello there", seed=3).metrics["fallback"] == []


@pytest.mark.parametrize("through", ["the wrapper", "the pipeline"])
def test_a_model_in_training_drops_out_as_in_transformers(tmp_path, cache, through):
    own = pipeline(tmp_path)
    own.model.text_encoder.encoder.layerdrop = 0.0  # NumPy draws for it, which no seed of a request reaches
    with UniversalOptimizer(own, cache_dir=cache, probe=False, threads=2) as fast:
        before = fast.synthesize("hello there", seed=3)
        (fast if through == "the wrapper" else own).model.train()
        assert own.model.training
        transformers.set_seed(3)
        expected = own("hello there")["audio"]
        speech = fast.synthesize("hello there", seed=3)
        close(speech.audio, expected)
        assert len(speech.audio) != len(before.audio) or np.abs(speech.audio - before.audio).max() > 1e-3
        assert "training mode" in reason(speech)
        fast.model.eval()
        after = fast.synthesize("hello there", seed=3)
        assert after.metrics["fallback"] == []
        close(after.audio, before.audio)


def test_copies_of_the_model_are_models_of_the_engines(engine, fast):
    inputs = engine.tokenizer("hello there", return_tensors="pt")
    torch.manual_seed(0)
    expected = engine.model(**inputs).waveform
    made = copy.deepcopy(fast.model)
    assert type(made) is transformers.VitsModel
    assert made.decoder.conv_post.weight.data_ptr() != engine.model.decoder.conv_post.weight.data_ptr()
    torch.manual_seed(0)
    assert made(**inputs).waveform.equal(expected)
    for model in (engine.model, fast.model):  # PyTorch pickles no weights under a norm
        with pytest.raises(RuntimeError, match="only supported through state_dict"):
            pickle.dumps(model)
    with pytest.raises(EngineError, match="neither copied nor pickled"):
        copy.deepcopy(fast)
