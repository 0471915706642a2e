"""OpenVINO's models behind the interface of a session: a double of it everywhere, the package itself where it is."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.errors import SessionError
from accelerator.runtime import openvino
from accelerator.runtime.onnx import Session
from accelerator.runtime.openvino import NAME, Compiled, library, version
from accelerator.runtime.options import RunOptions
from accelerator.runtime.sessions import opened
from tests import ROOT
from tests.children import in_child
from tests.export.convolutions import chain, feed
from tests.runtime import openvino_double as double

needs_it = pytest.mark.skipif(version() is None, reason="openvino is not installed")


@pytest.fixture(params=["double", pytest.param("installed", marks=needs_it)])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "double":
        double.install(monkeypatch)


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    path = tmp_path / "convolutions.onnx"
    path.write_bytes(chain(3))
    return path


def options(threads: int = 1, dtype: Any = "fp32") -> RunOptions:
    return RunOptions(threads=threads, backend=NAME, dtype=dtype)


def noise_db(expected: np.ndarray, answer: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / max(np.square(expected - answer).sum(), 1e-30)))


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("threads", [1, 2])
def test_it_answers_as_onnx_runtime_does(convolutions: Path, threads: int) -> None:
    model, session = opened(convolutions, options(threads)), Session(convolutions)
    assert isinstance(model, Compiled)
    assert (list(model.inputs), model.outputs) == (list(session.inputs), session.outputs)
    first = model.run(feed(1))
    for given in (feed(2, 90), feed(1)):
        (answer,), (expected,) = model.run(given), session.run(given)
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    np.testing.assert_array_equal(first[0], answer)  # a later run leaves earlier answers alone


@pytest.mark.usefixtures("there")
def test_bfloat16_is_asked_for(convolutions: Path) -> None:
    (expected,) = Session(convolutions).run(feed(1))
    (answer,) = Compiled(convolutions, options(dtype="bf16")).run(feed(1))
    assert 25.0 < noise_db(expected, answer) < 70.0
    (exact,) = Compiled(convolutions, options()).run(feed(1))
    assert noise_db(expected, exact) > 90.0


@pytest.mark.usefixtures("there")
def test_one_model_many_threads(convolutions: Path) -> None:
    model, wrong = Compiled(convolutions, options()), list[int]()
    lengths = range(50, 58)
    expected = {length: model.run(feed(length, length))[0] for length in lengths}

    def work(length: int) -> None:
        for _ in range(20):
            if not np.array_equal(model.run(feed(length, length))[0], expected[length]):
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("there")
def test_errors_are_ours(convolutions: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"OpenVINO cannot load missing\.onnx"):
        Compiled(tmp_path / "missing.onnx", options())
    (tmp_path / "garbage.onnx").write_bytes(b"not a graph")
    with pytest.raises(SessionError, match=r"garbage\.onnx"):
        Compiled(tmp_path / "garbage.onnx", options())
    model = Compiled(convolutions, options())
    with pytest.raises(SessionError, match=r"OpenVINO failed in convolutions\.onnx: ."):
        model.run({"x": np.zeros((1, 5, 5), np.float32)})
    with pytest.raises(SessionError):
        model.run({"nothing": np.zeros(3, np.float32)})
    assert model.run(feed(1))[0].shape == (1, 1, 200), "a failed run spoils no later one"


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_compiles_it_again(convolutions: Path, threads: int) -> None:
    """Also where OpenVINO kept the threads of a model that is gone: they are not in the child."""
    Compiled(convolutions, options(threads)).run(feed(1))
    model = Compiled(convolutions, options(threads))
    expected = model.run(feed(1))

    def by_two_threads(again: Compiled) -> list[np.ndarray]:
        with ThreadPoolExecutor(2) as pool:
            return [answer for (answer,) in pool.map(lambda _: again.run(feed(1)), range(6))]

    for made in (lambda: model, lambda: Compiled(convolutions, options(threads))):
        answers = in_child(lambda made=made: in_child(lambda: by_two_threads(made())))
        np.testing.assert_allclose(answers, [expected[0]] * 6, atol=1e-6)
    np.testing.assert_array_equal(model.run(feed(1))[0], expected[0])


@pytest.mark.usefixtures("there")
def test_a_compiled_model_leaves_the_callers_arithmetic_alone(convolutions: Path) -> None:
    Compiled(convolutions, options()).run(feed(1))
    tiny = np.array([1e-40], np.float32)
    assert (tiny * np.float32(0.5) > 0).all()


def test_what_is_asked_for(convolutions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = double.install(monkeypatch)
    Compiled(convolutions, options(1, "bf16"))
    Compiled(convolutions, options(4))
    one, four = compiled
    assert (one["INFERENCE_PRECISION_HINT"], four["INFERENCE_PRECISION_HINT"]) == ("bf16", "f32")
    assert one["NUM_STREAMS"] == one["INFERENCE_NUM_THREADS"] == min(8, openvino.detect().usable_cores)
    assert (four["NUM_STREAMS"], four["INFERENCE_NUM_THREADS"]) == (1, 4)
    assert not any(each["ENABLE_CPU_PINNING"] or each["CACHE_DIR"] for each in compiled)


def test_where_it_is_missing_that_is_said(convolutions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double.install(monkeypatch, version=None)
    with pytest.raises(SessionError, match=r"OpenVINO cannot load convolutions\.onnx: .*openvino"):
        Compiled(convolutions, options())


# Its telemetry

TELEMETRY = """
class Telemetry:
    def __init__(self, *_, **__): raise AssertionError("telemetry was started")
"""
PACKAGE = """
try:
    import openvino_telemetry
    openvino_telemetry.Telemetry()
    telemetry = True
except ImportError:
    telemetry = False
"""


def test_it_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text(PACKAGE)
    (tmp_path / "openvino_telemetry.py").write_text(TELEMETRY)
    code = "from accelerator.runtime.openvino import library; assert not library().telemetry; import openvino_telemetry"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@needs_it
def test_the_installed_one_writes_nothing(tmp_path: Path) -> None:
    """Not even where the package of its telemetry is there, which would write below ~/intel and send an event."""
    (tmp_path / "home").mkdir()
    (tmp_path / "openvino_telemetry.py").write_text(TELEMETRY)
    code = "import sys; from accelerator.runtime.openvino import library; library().Core(); print(len(sys.modules))"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home").rglob("*")) == []


def test_a_program_that_has_imported_it_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    double.install(monkeypatch)
    assert library() is sys.modules["openvino"]
    assert "openvino_telemetry" not in sys.modules or sys.modules["openvino_telemetry"] is not None
