"""BiCodec by compiled kernels: what the engine says, at any length, in windows, chosen and proven as other backends."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator import UniversalOptimizer, kernels
from accelerator.codec import sliding
from accelerator.engines.base import Job
from accelerator.engines.spark_tts import SparkAdapter, compiled, weights
from accelerator.engines.spark_tts.compiled import FILE, NAME
from accelerator.engines.spark_tts.detokenizer import DetokenizeCall, takes
from accelerator.engines.spark_tts.stages import SparkStages, Spoken
from accelerator.engines.spark_tts.traceable import Audio, made
from accelerator.errors import ExportError, SessionError
from accelerator.export.component import Built
from accelerator.hardware import detect
from accelerator.parts.decoding import continuing
from tests.engines.spark_tts import bicodec, double, toy
from tests.exact_convolutions import decibels

compiles = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}
VOICE = np.array([3, 1, 4, 1])

ALONE = """
import json, sys
import numpy as np
from pathlib import Path
from accelerator.engines.spark_tts.detokenizer import DetokenizeCall
audio = DetokenizeCall(Path(sys.argv[1]), "fp32", 2)(np.arange(9), np.array([3, 1, 4, 1]))
np.save(sys.argv[2], audio)
print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def engine(tokens: Any, speaking: Any) -> Any:
    return bicodec.SparkTTS(tokens, speaking)


@pytest.fixture(scope="module")
def decode(engine: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return next(part.original for part in SparkAdapter(engine).parts() if part.name == "decoder")


@pytest.fixture(scope="module")
def file(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / FILE
    weights.save(made(Audio, lambda: engine.audio_tokenizer.model), path)
    return path


@pytest.fixture(scope="module")
def exact(file: Path) -> DetokenizeCall:
    return DetokenizeCall(file, "fp32", 1)


def said(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, toy.SEMANTIC_IDS, length)


@compiles
@pytest.mark.parametrize("length", [1, 2, 37, 64, 65, 150])
def test_it_says_what_the_engine_says(exact: DetokenizeCall, decode: Any, length: int) -> None:
    expected, answer = decode(said(length), VOICE), exact(said(length), VOICE)
    assert answer.shape == expected.shape == (320 * length,)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


@compiles
def test_less_than_float32_is_near(file: Path, decode: Any) -> None:
    expected, less = decode(said(70), VOICE), DetokenizeCall(file, compiled.less(), 2)
    assert decibels(torch.from_numpy(less(said(70), VOICE)), torch.from_numpy(expected)) > 40


@compiles
def test_a_stream_is_the_whole(engine: Any, exact: DetokenizeCall) -> None:
    tokens = said(140)
    whole, stream = exact(tokens, VOICE), exact.stream(VOICE)
    parts, sizes = [], (1, 5, 80, 0, 7, 30)
    for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
        parts.append(stream.push(tokens[start : start + size], final=False))
    parts.append(stream.push(tokens[sum(sizes) :], final=True))
    late = 123 - sum(map(len, parts[:-1])) // 320
    reach = SparkAdapter(engine).reach
    assert reach is not None
    assert reach - 4 < late <= reach, "tokens that are not heard before others are known"
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4 * np.abs(whole).max())


@compiles
def test_an_end_without_tokens(exact: DetokenizeCall) -> None:
    whole, stream = exact(said(30), VOICE), exact.stream(VOICE)
    parts = [stream.push(said(30), final=False), stream.push(said(0), final=True)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4 * np.abs(whole).max())


@compiles
def test_windows_decode_each_token_once(engine: Any, file: Path, decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, call = SparkAdapter(engine), DetokenizeCall(file, "fp32", 1)
    pushed = list[int]()
    push = call._own.push

    def counted(semantics: np.ndarray, *more: Any) -> np.ndarray:
        pushed.append(len(semantics))
        return push(semantics, *more)

    call._ordering.join()
    monkeypatch.setattr(call._own, "push", counted)
    stages = SparkStages(adapter, {"decoder": continuing(call)})
    name = "<|bicodec_semantic_{}|>".format
    units = [int(engine.tokenizer.convert_tokens_to_ids(name(code))) for code in said(150)]
    decoder, windows = stages.decoder(Spoken(VOICE), Job()), []
    for begin in range(0, 150, 30):
        windows.append(decoder.push(units[begin : begin + 30], final=begin == 120))
    assert sum(pushed) == 150
    reach = adapter.reach
    assert reach is not None
    heard = [max(0, end - reach) for end in (0, 30, 60, 90, 120)] + [150]
    assert [len(window) // 320 for window in windows] == np.diff(heard).tolist()
    expected = decode(said(150), VOICE)
    np.testing.assert_allclose(np.concatenate(windows), expected, atol=1e-4 * np.abs(expected).max())


@compiles
def test_a_window_that_fails_is_pytorchs_and_the_next_ones_go_on(engine: Any, file: Path, decode: Any) -> None:
    """What has begun is dropped, and begun anew with all that the next window looks at."""
    adapter, call = SparkAdapter(engine), continuing(DetokenizeCall(file, "fp32", 1))
    original = next(part.original for part in adapter.parts() if part.name == "decoder")
    asked = list[int]()

    def route(semantics: np.ndarray, codes: np.ndarray, *, window: Any) -> np.ndarray:
        asked.append(len(semantics))
        if len(asked) == 2:
            call(semantics, codes, window=window)  # and yet it is said that it failed
            window.kept.clear()
            return np.asarray(original(semantics, codes, window=window))
        return np.asarray(call(semantics, codes, window=window))

    stages = SparkStages(adapter, {"decoder": route})
    name = "<|bicodec_semantic_{}|>".format
    units = [int(engine.tokenizer.convert_tokens_to_ids(name(code))) for code in said(200)]
    decoder = stages.decoder(Spoken(VOICE), Job())
    windows = [decoder.push(units[begin : begin + 50], final=begin == 150) for begin in range(0, 200, 50)]
    assert len(asked) == 4
    expected = decode(said(200), VOICE)
    np.testing.assert_allclose(np.concatenate(windows), expected, atol=1e-4 * np.abs(expected).max())


@compiles
def test_it_is_chosen_where_it_was_proven(engine: Any) -> None:
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        part = optimizer.prepare().status()["parts"]["decoder"]
        assert (part["backend"], part["precision"]) == ("native", "fp32")
        proof = part["exports"][NAME]["proof"]
        assert proof["passed"]
        assert proof["lengths"] == [320 * length for length in (37, 9, 120)]
        assert proof[compiled.less()]["passed"]
        speech = optimizer.synthesize("Hello there.", temperature=0, **STYLE)
        stream = [audio for audio, _ in optimizer.stream("Hello there.", temperature=0, **STYLE, eager=False)]
    assert speech.metrics["backends"]["decoder"] == "native"
    assert speech.metrics["fallback"] == []
    expected = engine.inference("Hello there.", temperature=1.0, top_k=1, **STYLE)
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(np.concatenate(stream), expected, atol=1e-4 * np.abs(expected).max())


@compiles
def test_less_than_float32_is_offered_where_it_may_be(engine: Any) -> None:
    from accelerator.hardware import choose_tier
    from accelerator.parts.part import Machine

    part = next(part for part in SparkAdapter(engine).parts() if part.name == "decoder")
    low, exact, _ = part.backends
    for precision, offered in (("auto", True), ("int8", True), ("fp32", False)):
        machine = Machine(detect(), choose_tier(detect()), precision=precision)
        assert bool(low.offers(machine)) is offered
        assert exact.offers(machine)
    (first, *_) = low.offers(Machine(detect(), choose_tier(detect())))
    passed = {NAME: type("Export", (), {"proof": {"passed": True, compiled.less(): {"passed": True}}})()}
    failed = {NAME: type("Export", (), {"proof": {"passed": True, compiled.less(): {"passed": False}}})()}
    assert low.proven(first, passed)  # type: ignore[arg-type]
    assert not low.proven(first, failed)  # type: ignore[arg-type]


@compiles
def test_a_failure_falls_back(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SessionError("a compiled kernel failed")

    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        optimizer.prepare()
        monkeypatch.setattr(sliding, "_snake", fails)
        speech = optimizer.synthesize("one two", temperature=0, **STYLE)
    assert speech.metrics["backends"]["decoder"] == "pytorch"
    assert [each["part"] for each in speech.metrics["fallback"]] == ["decoder"]
    np.testing.assert_allclose(speech.audio, engine.inference("one two", temperature=1.0, top_k=1, **STYLE), atol=1e-6)


@compiles
def test_pytorch_is_not_needed(file: Path, exact: DetokenizeCall, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(file), str(tmp_path / "audio.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    np.testing.assert_allclose(np.load(tmp_path / "audio.npy"), exact(np.arange(9), VOICE), atol=1e-6)


@compiles
def test_calls_on_one_thread_and_on_several_share_their_weights(file: Path, exact: DetokenizeCall) -> None:
    other = DetokenizeCall(file, "fp32", 2)
    assert other._own is exact._own
    np.testing.assert_array_equal(other(said(40), VOICE), exact(said(40), VOICE))


def test_another_codec_is_left_to_onnx_runtime(tokens: Any, speaking: Any, tmp_path: Path) -> None:
    other = double.BiCodec().eval()
    with pytest.raises(ExportError, match="its BiCodec is not built as Spark-TTS's"):
        weights.save(made(Audio, lambda: other), tmp_path / FILE)
    part = next(part for part in SparkAdapter(double.SparkTTS(tokens, speaking)).parts() if part.name == "decoder")
    assert [backend.name for backend in part.backends] == ["native", "native", "onnxruntime"]


def test_sizes_without_kernels_are_refused(file: Path, tmp_path: Path) -> None:
    assert takes(file)
    torch.manual_seed(0)
    narrow = bicodec.BiCodec().eval()
    narrow.decoder = bicodec.Wave(channels=256)  # 16 in the last stage
    weights.save(made(Audio, lambda: narrow), tmp_path / FILE)
    assert not takes(tmp_path / FILE)
    save = functools.partial(weights.save, made(Audio, lambda: narrow))
    component = compiled.exported(save, str, {}, lambda: iter(()), ())
    component.build(tmp_path, "fp32", lambda _: None)
    report = component.prove(Built(tmp_path, "fp32", tmp_path))
    assert not report["passed"], "a rejection is kept, where an error would be found out again by each process"
    assert "multiples of 32" in report["error"]
    with pytest.raises(ExportError, match="multiples of 32"):
        compiled.write(save, tmp_path / "converted")


@pytest.mark.parametrize("change", ["tanh", "rate", "norm"])
def test_modules_that_are_built_otherwise_are_refused(tmp_path: Path, change: str) -> None:
    torch.manual_seed(0)
    other = bicodec.BiCodec().eval()
    if change == "tanh":
        other.prenet.use_tanh_at_final = True  # type: ignore[assignment]
    elif change == "rate":
        other.decoder.model[1].block[1] = nn.ConvTranspose1d(512, 256, 16, stride=8, padding=3)  # type: ignore[index, union-attr]
    else:
        other.prenet.vocos_backbone.final_layer_norm.eps = 1e-3  # type: ignore[union-attr, operator, assignment]
    with pytest.raises(ExportError, match="its BiCodec is not built as Spark-TTS's"):
        weights.save(made(Audio, lambda: other), tmp_path / FILE)


@compiles
@pytest.mark.filterwarnings("ignore")
def test_the_packages_own_classes(tmp_path: Path) -> None:
    pytest.importorskip("spark_tts_lib", reason="pip install --no-deps spark-tts-lib==0.2.1, and what it needs")
    own = _of_the_package()
    weights.save(made(Audio, lambda: own), tmp_path / FILE)
    call = DetokenizeCall(tmp_path / FILE, "fp32", 2)
    for length in (1, 50, 131):
        with torch.no_grad():
            expected = own.detokenize(torch.from_numpy(said(length))[None], torch.from_numpy(VOICE)[None, None])
        expected = expected.numpy().reshape(-1)
        np.testing.assert_allclose(call(said(length), VOICE), expected, atol=1e-4 * np.abs(expected).max())


def _of_the_package() -> Any:
    """BiCodec's own classes, in sizes that there are kernels for."""
    from tests.engines.spark_tts import checkpoint

    vocos = {"vocos_dim": 32, "vocos_intermediate_dim": 64, "vocos_num_layers": 3}
    config = {name: dict(own) for name, own in checkpoint._BICODEC.items()}
    config["prenet"] |= vocos
    config["decoder"] |= {"channels": 512}
    torch.manual_seed(1)
    kinds = {}
    for name, place in checkpoint._CLASSES.items():
        module, _, kind = place.rpartition(".")
        kinds[name] = getattr(importlib.import_module(f"spark_tts_lib.modules.{module}"), kind)(**config[name])
    bicodec = importlib.import_module("spark_tts_lib.models.bicodec").BiCodec(config["mel_params"], **kinds)
    with torch.no_grad():
        for name, parameter in bicodec.named_parameters():
            if "alpha" in name:
                parameter.uniform_(0.5, 2.0)
    return bicodec.eval()
