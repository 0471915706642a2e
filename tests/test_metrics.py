from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from accelerator.metrics import Meter, current_meter, measuring, peak_rss_bytes


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_figure_by_a_clock() -> None:
    clock = Clock()
    meter = Meter(clock)
    with meter.stage("generate"):
        clock.now += 2.0
    meter.add_frames(30)
    clock.now += 0.5  # waiting belongs to no stage
    with meter.stage("decode"):
        clock.now += 1.0
    meter.chunk(np.zeros(500), 1000)
    clock.now += 0.5
    meter.chunk(np.full(1500, 0.1), 1000)
    meter.used("text2semantic", "onnxruntime")
    meter.used("decoder", "onnxruntime")
    meter.finish()
    clock.now += 99.0
    meter.finish()
    result = meter.result()
    assert result.pop("peak_rss_bytes") > 1 << 20
    assert result == {
        "rtf": 2.0,
        "rtfx": 0.5,
        "audio_s": 2.0,
        "elapsed_s": 4.0,
        "ttfa_s": 4.0,  # the first chunk was silent
        "stages": {"text": 0.0, "reference": 0.0, "generate": 2.0, "decode": 1.0, "post": 0.0},
        "frames": 30,
        "frames_per_s": 15.0,
        "backend": "onnxruntime",
        "backends": {"text2semantic": "onnxruntime", "decoder": "onnxruntime"},
        "fallback": [],
    }


def test_nothing_yet() -> None:
    clock = Clock()
    meter = Meter(clock)
    result = meter.result()
    assert (result["rtf"], result["audio_s"], result["ttfa_s"], result["frames_per_s"]) == (None, 0, None, 0)
    assert result["backend"] is None
    clock.now += 3
    assert meter.result()["elapsed_s"] == 3, "time goes on until the end"


def test_a_stage_counts_what_raises() -> None:
    clock = Clock()
    meter = Meter(clock)

    def fail() -> None:
        clock.now += 1.5
        raise KeyError

    with pytest.raises(KeyError), meter.stage("post"):
        fail()
    assert meter.result()["stages"]["post"] == 1.5


@pytest.mark.parametrize(
    ("used", "backend", "backends"),
    [
        ([("a", "onnxruntime"), ("b", "onnxruntime")], "onnxruntime", {"a": "onnxruntime", "b": "onnxruntime"}),
        ([("a", "pytorch"), ("a", "pytorch")], "pytorch", {"a": "pytorch"}),
        ([("a", "onnxruntime"), ("b", "pytorch")], "hybrid", {"a": "onnxruntime", "b": "pytorch"}),
        ([("a", "onnxruntime"), ("a", "pytorch"), ("a", "onnxruntime")], "hybrid", {"a": "hybrid"}),
    ],
)
def test_backends(used: list[tuple[str, str]], backend: str, backends: dict[str, str]) -> None:
    meter = Meter()
    for part, by in used:
        meter.used(part, by, own=by == "pytorch")
    assert (meter.result()["backend"], meter.result()["backends"]) == (backend, backends)


def test_fallback_names_part_and_reason() -> None:
    meter = Meter()
    meter.stays("decoder", "Slower", "3 ms against 2 ms")
    meter.stays("decoder", "Slower", "3 ms against 2 ms")
    meter.fell_back("encoder", ValueError("x"))
    meter.stays("encoder", "ValueError", "said already")
    result = meter.result()["fallback"]
    assert result == [
        {"part": "decoder", "reason": "Slower", "message": "3 ms against 2 ms"},
        {"part": "encoder", "reason": "ValueError", "message": "x"},
    ]
    result[0]["part"] = "changed"
    assert meter.result()["fallback"][0]["part"] == "decoder", "a result is a copy"


def test_the_current_meter_is_the_contexts() -> None:
    outer, inner, seen = Meter(), Meter(), []
    assert current_meter() is not current_meter(), "outside any request a throw-away"
    with measuring(outer):
        assert current_meter() is outer
        with measuring(inner):
            assert current_meter() is inner
            context = contextvars.copy_context()
            threads = [
                threading.Thread(target=lambda: seen.append(current_meter() is inner)),
                threading.Thread(target=lambda: seen.append(context.run(current_meter) is inner)),
            ]
            for thread in threads:
                thread.start()
                thread.join()
        assert current_meter() is outer
    assert seen[1] is True


def test_many_threads_feed_one_meter() -> None:
    meter = Meter()

    def feed() -> None:
        for _ in range(500):
            meter.add("decode", 1.0)
            meter.add_frames(2)

    threads = [threading.Thread(target=feed) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.result()["stages"]["decode"] == 4000
    assert meter.frames == 8000


def test_peak_memory_is_this_process() -> None:
    psutil = pytest.importorskip("psutil")
    now = psutil.Process().memory_info().rss
    assert now * 0.9 < peak_rss_bytes() < psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("parts", "overall"),
    [
        ({}, None),
        ({"a": "onednn", "b": "onnxruntime"}, "onednn+onnxruntime"),
        ({"a": "onednn", "b": "onednn"}, "onednn"),
        ({"a": "onednn", "b": "pytorch"}, "hybrid"),
        ({"a": "onnxruntime", "b": "hybrid"}, "hybrid"),
        ({"a": "pytorch"}, "pytorch"),
    ],
)
def test_one_word_for_all_parts(parts: dict[str, str], overall: str | None) -> None:
    meter = Meter()
    for part, backend in parts.items():
        for each in ("onednn", "pytorch") if backend == "hybrid" else (backend,):
            meter.used(part, each, own=each == "pytorch")
    assert meter.result()["backend"] == overall


def test_age_counts_from_the_process_start() -> None:
    code = "import time; time.sleep(0.3); from accelerator.metrics import age_s; print(age_s())"
    start = time.perf_counter()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.3 <= age <= time.perf_counter() - start + 0.05
