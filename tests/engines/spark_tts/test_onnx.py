"""A converted Spark-TTS speaks: as the engine does, from its files alone, without PyTorch."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer, kernels
from accelerator.audio.checks import read_audio
from accelerator.engines.spark_tts import ConvertedAdapter, SparkAdapter, SparkTTSONNX
from accelerator.engines.spark_tts.convert import Verdict, convert
from accelerator.engines.spark_tts.folder import PROOF, VERSION
from accelerator.errors import Closed, EngineError, InvalidOption, InvalidReference, InvalidText, SessionError
from accelerator.metrics import Meter
from accelerator.parts import causal

TEXT = "is this one said"
SAYS = "what it says."
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}
CLOSE = 1e-5

SPEAK = """
import json, sys
from accelerator.engines.spark_tts import SparkTTSONNX
engine = SparkTTSONNX(sys.argv[1], threads=1, cache_dir=sys.argv[4])
engine.process_prompt(sys.argv[2])
audio, info = engine.inference(sys.argv[3], temperature=0)
foreign = [name for name in ("torch", "transformers", "spark_tts_lib", "torchaudio") if name in sys.modules]
print(json.dumps({"samples": len(audio), "tokens": info["tokens"], "foreign": foreign,
                  "backends": info["metrics"]["backends"]}))
"""


@pytest.fixture(scope="module")
def alone(converted: tuple[Path, list[Verdict]]) -> Iterator[SparkTTSONNX]:
    engine = SparkTTSONNX(converted[0], threads=1, probe=False)
    yield engine
    engine.close()


def of_the_engine(engine: Any, **given: Any) -> np.ndarray:
    return np.asarray(engine.inference(TEXT, temperature=1.0, top_k=1, **given))


@pytest.mark.parametrize("says", [None, SAYS])
def test_a_recording_is_spoken_as_the_engine_does(
    alone: SparkTTSONNX, convertible: Any, recording: Path, says: str | None
) -> None:
    audio, info = alone.inference(TEXT, says, None, recording, temperature=0)
    expected = of_the_engine(convertible, prompt_speech_path=recording, prompt_text=says)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, expected, atol=CLOSE)
    assert info["tokens"] == len(audio) // 320
    assert info["seconds"] == len(audio) / info["sample_rate"] == len(audio) / 16_000
    assert (info["text"], info["path"]) == (TEXT, None)


def test_a_described_voice_is_spoken_as_the_engine_does(alone: SparkTTSONNX, convertible: Any) -> None:
    audio, _ = alone.inference(TEXT, temperature=0, **STYLE)
    np.testing.assert_allclose(audio, of_the_engine(convertible, **STYLE), atol=CLOSE)


def test_a_seed_gives_the_same_again(alone: SparkTTSONNX, convertible: Any, recording: Path) -> None:
    """Other numbers than the wrapped engine's in float32, which are PyTorch's."""
    audio, _ = alone.inference(TEXT, prompt_speech_path=recording, seed=1)
    again, _ = alone.inference(TEXT, seed=1)
    np.testing.assert_array_equal(audio, again)
    with UniversalOptimizer(convertible, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT, reference_audio=recording, seed=1)
    assert audio.shape != speech.audio.shape or not np.allclose(audio, speech.audio, atol=CLOSE)


def test_without_pytorch_in_the_process(
    alone: SparkTTSONNX, converted: tuple[Path, list[Verdict]], recording: Path, tmp_path: Path
) -> None:
    """From files and an empty cache: proven, probed and spoken."""
    command = [sys.executable, "-c", SPEAK, str(converted[0]), str(recording), TEXT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["foreign"] == []
    assert said["backends"] == dict.fromkeys(("encoder", "text2semantic", "decoder"), "onnxruntime")
    audio, info = alone.inference(TEXT, prompt_speech_path=recording, temperature=0)
    assert (said["samples"], said["tokens"]) == (len(audio), info["tokens"])


def test_all_is_proven_on_this_machine_by_answers_in_the_folder(alone: SparkTTSONNX, recording: Path) -> None:
    alone.optimizer.prepare()
    parts = alone.optimizer.status()["parts"]
    proofs = {name: export["proof"] for part in parts.values() for name, export in part["exports"].items()}
    assert set(proofs) == {"encoder", "causal", "decoder"}
    assert all(proof["passed"] for proof in proofs.values())
    assert proofs["encoder"]["equal"] == 1.0
    assert proofs["causal"]["mismatches"] == 0
    assert proofs["decoder"]["max_error"] < 1e-5
    size = sum(path.stat().st_size for part in parts.values() for path in Path(exported(part)).rglob("*"))
    assert size < 20_000  # nothing is copied into the cache


def exported(part: dict[str, Any]) -> str:
    return str(next(iter(part["exports"].values()))["path"])


def test_a_stream_is_what_is_said_at_once(alone: SparkTTSONNX, recording: Path) -> None:
    long = "It was said, once and again. " * 10
    for asked in (STYLE, {"reference_audio": recording}):
        speech = alone.optimizer.synthesize(long, seed=4, **asked)
        chunks = [audio for audio, _ in alone.optimizer.stream(long, seed=4, **asked, eager=False)]
        assert len(chunks) >= len(speech.metrics["segments"]) > 1
        np.testing.assert_allclose(np.concatenate(chunks), speech.audio, atol=1e-4)


def test_nobody_listens_any_more(alone: SparkTTSONNX, recording: Path) -> None:
    stream = alone.optimizer.stream("It was said, once and again. " * 10, recording, seed=4)
    next(stream)
    stream.close()
    assert alone.optimizer._routes["text2semantic"].choice is not None
    assert alone.inference(TEXT, prompt_speech_path=recording, seed=1)[1]["tokens"] > 0


def test_a_file_is_saved(alone: SparkTTSONNX, recording: Path, tmp_path: Path) -> None:
    audio, info = alone.inference(TEXT, None, tmp_path / "spoken", recording, seed=2)
    (saved,) = (tmp_path / "spoken").iterdir()
    assert info["path"] == str(saved)
    samples, rate = read_audio(saved)
    assert rate == alone.sample_rate
    np.testing.assert_allclose(samples, audio, atol=1 / 32768)


def test_a_long_text_is_spoken_as_by_the_wrapped_engine(alone: SparkTTSONNX, convertible: Any) -> None:
    """In segments, with pauses, by one voice."""
    long = "It was said, once and again. " * 10
    audio, info = alone.inference(long, temperature=0, **STYLE)
    with UniversalOptimizer(convertible, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize(long, temperature=0, **STYLE)
    np.testing.assert_allclose(audio, speech.audio, atol=CLOSE)
    assert len(info["metrics"]["segments"]) == 2
    assert info["tokens"] == round(sum(each["audio_s"] for each in info["metrics"]["segments"]) * 50)


def test_what_cannot_be_spoken_is_said(converted: tuple[Path, list[Verdict]], recording: Path, tmp_path: Path) -> None:
    engine = SparkTTSONNX(converted[0], threads=1, probe=False)
    with pytest.raises(InvalidReference, match="process_prompt"):
        engine.inference(TEXT)
    with pytest.raises(InvalidReference, match="does not exist"):
        engine.process_prompt(tmp_path / "nothing.wav")
    engine.process_prompt(recording)
    with pytest.raises(InvalidText):
        engine.inference("...")
    with pytest.raises(InvalidOption, match="top_p"):
        engine.inference(TEXT, top_p=3.0)
    with pytest.raises(InvalidOption, match=r"gender and pitch need speed, too"):
        engine.inference(TEXT, gender="male", pitch="low")
    with pytest.raises(InvalidOption, match="must be one of very_low, low"):
        engine.inference(TEXT, gender="male", pitch="low", speed="fast")
    with pytest.raises(InvalidOption, match="leave either out"):
        engine.inference(TEXT, prompt_speech_path=recording, **STYLE)
    with pytest.raises(InvalidReference, match="give both or neither"):
        engine.inference(TEXT, SAYS, **STYLE)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="another save_dir"):
        engine.inference(TEXT, save_dir=tmp_path / "file", seed=1)
    engine.close()
    with pytest.raises(Closed):
        engine.inference(TEXT)


class Failing(ConvertedAdapter):
    """Its backends load, and fail when they are called."""

    def parts(self) -> Any:
        return [replace(each, backends=tuple(map(self._failing, each.backends))) for each in super().parts()]

    def _failing(self, backend: Any) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise SessionError("by the test")

        return replace(backend, load=lambda paths, options: fail)


@pytest.mark.parametrize("says", [None, SAYS])
def test_plain_sessions_go_on_where_backends_fail(
    alone: SparkTTSONNX, recording: Path, says: str | None, tmp_path: Path
) -> None:
    expected = alone.optimizer.synthesize(TEXT, recording, says, seed=1)
    adapter = Failing(alone.folder)
    options: dict[str, Any] = {"probe": False, "threads": 1, "voices_dir": tmp_path}
    with UniversalOptimizer(None, adapter=adapter, **options) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, says, seed=1)
    assert [each["part"] for each in speech.metrics["fallback"]] == ["encoder", "text2semantic", "decoder"]
    np.testing.assert_allclose(speech.audio, expected.audio, atol=CLOSE)


def test_the_original_speaks_all_of_it(alone: SparkTTSONNX, recording: Path) -> None:
    """Where stages fail: what they do once more, without the routes."""
    from accelerator.pipeline.request import ANY_RATE, Asked, make_request

    adapter = alone.optimizer.adapter
    assert alone.sample_rate == ANY_RATE
    for asked in (Asked(TEXT, recording, SAYS, options={"seed": 1}), Asked(TEXT, options={**STYLE, "seed": 1})):
        how: Any = {"unspeakable": "error", "split_text": True}
        request = make_request(adapter, alone.optimizer._bound, Meter(), asked, **how)
        (chunk,) = adapter.original(request)
        expected = alone.optimizer.synthesize(TEXT, asked.audio, asked.reference_text, **asked.options)
        np.testing.assert_allclose(chunk.audio, expected.audio, atol=CLOSE)
    assert adapter.release()


@pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")
def test_quantized_it_runs_on_compiled_kernels(
    convertible: Any, converted: tuple[Path, list[Verdict]], recording: Path, tmp_path: Path
) -> None:
    """As the wrapped engine does, token for token; and where there are none, in ONNX Runtime."""
    folder = tmp_path / "onnx"
    convert(SparkAdapter(convertible), folder, precision="int8", verify=False)
    engine = SparkTTSONNX(folder, threads=1, probe=False)
    audio, info = engine.inference(TEXT, prompt_speech_path=recording, seed=1)
    assert info["metrics"]["backends"]["text2semantic"] == "native"
    assert info["metrics"]["precision"]["text2semantic"] == "int8"
    with UniversalOptimizer(convertible, precision="int8", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=1)
    assert speech.metrics["backends"]["text2semantic"] == "native"
    np.testing.assert_allclose(audio, speech.audio, atol=CLOSE)
    batch = engine.optimizer.synthesize_batch([TEXT, "another"], recording, seed=1)
    np.testing.assert_array_equal(batch[0].audio, audio)


def test_a_graph_that_answers_otherwise_is_not_trusted(
    converted: tuple[Path, list[Verdict]], recording: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(converted[0], tmp_path / "onnx")
    with np.load(folder / PROOF) as recorded:
        changed = {**recorded, "heard0": recorded["heard0"] + 0.1}
    np.savez(folder / PROOF, **changed)
    with UniversalOptimizer.from_checkpoint(folder, "spark-tts-onnx", probe=False, threads=1) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=1)
    assert "decoder as fp32 is not faithful" in caplog.text
    assert [(each["part"], each["reason"]) for each in speech.metrics["fallback"]] == [("decoder", "ProofFailed")]


@pytest.mark.parametrize(
    ("change", "match"),
    [({"version": 1}, "another version"), (None, "damaged"), ({"dynamic": False, "frames": 100}, "static")],
)
def test_a_folder_that_cannot_speak_is_refused(tmp_path: Path, change: dict[str, Any] | None, match: str) -> None:
    said = {"version": VERSION, "dynamic": True, **(change or {})}
    (tmp_path / "spark-tts.json").write_text("{" if change is None else json.dumps(said))
    with pytest.raises(EngineError, match=match):
        SparkTTSONNX(tmp_path)


@pytest.mark.parametrize("name", ["decoder.onnx", "LLM/tokenizer.json", "LLM/trace.npz", "mels.npz"])
def test_a_file_that_is_missing_is_named(converted: tuple[Path, list[Verdict]], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(converted[0], tmp_path / "onnx")
    (folder / name).unlink()
    with pytest.raises(EngineError, match=f"{name} is missing: convert the checkpoint again"):
        SparkTTSONNX(folder)


def test_prompts_run_on_a_graph_of_their_own_where_that_is_faster(
    convertible: Any, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines with AMX, or with VNNI and no compiled kernels."""
    monkeypatch.setattr(causal, "wants_prefill", lambda: True)
    monkeypatch.setattr(kernels, "available", lambda: False)
    folder = tmp_path / "onnx"
    verdicts = convert(SparkAdapter(convertible), folder, precision="int8")
    assert verdicts[-1].name == "LLM/prefill"
    assert all(verdict.passed for verdict in verdicts), verdicts
    engine = SparkTTSONNX(folder, threads=1, probe=False)
    _, info = engine.inference(TEXT, prompt_speech_path=recording, seed=1)
    assert info["metrics"]["fallback"] == []
    part = engine.optimizer.status()["parts"]["text2semantic"]
    assert (part["backend"], list(part["exports"])) == ("onnxruntime", ["causal", "prefill"])
    assert all(each["proof"]["passed"] for each in part["exports"].values())
    with UniversalOptimizer(convertible, precision="int8", threads=1, probe=False) as optimizer:
        expected = optimizer.synthesize(TEXT, recording, seed=1)
    np.testing.assert_allclose(engine.inference(TEXT, seed=1)[0], expected.audio, atol=CLOSE)


def test_a_checkpoint_that_was_not_converted_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="accelerator convert spark-tts"):
        SparkTTSONNX(tmp_path)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_packages_own_classes_converted(folder: Path, recording: Path, tmp_path: Path) -> None:
    verdicts = convert(SparkAdapter.from_checkpoint(folder), tmp_path / "onnx")
    assert all(verdict.passed for verdict in verdicts), verdicts
    engine = SparkTTSONNX(tmp_path, threads=1, probe=False)
    real = importlib.import_module("spark_tts_lib.SparkTTS").SparkTTS(folder, torch.device("cpu"))
    for says in (None, SAYS):
        audio, _ = engine.inference(TEXT, says, None, recording, temperature=0)
        expected = of_the_engine(real, prompt_speech_path=recording, prompt_text=says)
        np.testing.assert_allclose(audio, expected, atol=CLOSE)
    audio, _ = engine.inference(TEXT, temperature=0, **STYLE)
    np.testing.assert_allclose(audio, of_the_engine(real, **STYLE), atol=CLOSE)
