"""A fork after use, and while another thread speaks: the child answers or raises, and never waits for ever."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.cache import ContentCache, digest, make_key
from accelerator.errors import GenerationError
from accelerator.kernels import available, snake
from accelerator.pipeline.fallback import Route
from accelerator.pipeline.pooled import Workers
from accelerator.pipeline.selection import Choice
from accelerator.pipeline.voices import KnownVoices
from accelerator.voices import DiskVoices
from tests.children import WAIT, held, in_child
from tests.doubles import replica, voice
from tests.pipeline.utterers import Utterer, segments, speaker, whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
TEXT = "One two three."
OPTIONS: dict[str, Any] = {"seed": 3, "max_new_tokens": 6}
BACKENDS = ("compiled", "onnxruntime", "pytorch")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The tiny engine, on two of PyTorch's threads."""
    import torch

    from accelerator.reference import load

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield load("tiny")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def optimizers(engine: Any) -> Iterator[dict[str, UniversalOptimizer]]:
    """By backend; all sessions and teams have two threads."""
    settings: dict[str, Any] = {"threads": 2, "probe": False, "proof": "warn"}
    with (
        UniversalOptimizer(engine, precision="int8", **settings) as compiled,
        UniversalOptimizer(engine, precision="fp32", **settings) as onnxruntime,
        replica(engine) as pytorch,
    ):
        yield {"compiled": compiled.prepare(), "onnxruntime": onnxruntime.prepare(), "pytorch": pytorch}


@pytest.fixture(params=BACKENDS)
def optimizer(request: pytest.FixtureRequest, optimizers: dict[str, UniversalOptimizer]) -> UniversalOptimizer:
    if request.param == "compiled" and not available():
        pytest.skip("compiled kernels need AVX2 and numba")
    return optimizers[request.param]


def spoken(optimizer: UniversalOptimizer) -> np.ndarray:
    """A request's audio; nothing may have fallen back."""
    speech = optimizer.synthesize(TEXT, **OPTIONS)
    assert speech.metrics["fallback"] == []
    return speech.audio


@contextlib.contextmanager
def speaking(speak: Callable[[], Any]) -> Iterator[None]:
    """Another thread that speaks again and again."""
    ended, begun, errors = threading.Event(), threading.Event(), list[BaseException]()

    def run() -> None:
        while not ended.is_set():
            try:
                speak()
            except BaseException as error:
                errors.append(error)
                return
            finally:
                begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(WAIT)
        yield
    finally:
        ended.set()
        thread.join(WAIT)
    assert not thread.is_alive()
    assert not errors


def test_the_backends_are_what_they_are_called(optimizers: dict[str, UniversalOptimizer]) -> None:
    model = {n: o.synthesize(TEXT, **OPTIONS).metrics["backends"]["text2semantic"] for n, o in optimizers.items()}
    assert model == {
        "compiled": "native" if available() else "onnxruntime",
        "onnxruntime": "onnxruntime",
        "pytorch": "onnxruntime",  # `doubles.replica` calls PyTorch's own code so
    }


def test_a_child_speaks_after_its_parent_has(optimizer: UniversalOptimizer) -> None:
    before = spoken(optimizer)
    np.testing.assert_array_equal(in_child(lambda: spoken(optimizer)), before)
    np.testing.assert_array_equal(spoken(optimizer), before)


def test_a_child_of_a_child_speaks(optimizer: UniversalOptimizer) -> None:
    before = spoken(optimizer)

    def both() -> tuple[np.ndarray, np.ndarray]:
        return spoken(optimizer), in_child(lambda: spoken(optimizer), WAIT / 2)

    for audio in in_child(both):
        np.testing.assert_array_equal(audio, before)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_child_speaks_though_another_thread_spoke_when_it_was_forked(
    optimizer: UniversalOptimizer, streaming: bool
) -> None:
    def stream() -> None:
        for _ in optimizer.stream(TEXT, seed=4, max_new_tokens=40):
            pass

    def request() -> None:
        optimizer.synthesize(TEXT, seed=4, max_new_tokens=40)

    before = spoken(optimizer)
    with speaking(stream if streaming else request):
        for number in range(6):
            time.sleep(0.003 * number)  # at another moment of what the thread does
            np.testing.assert_array_equal(in_child(lambda: spoken(optimizer)), before)
    np.testing.assert_array_equal(spoken(optimizer), before)


def test_a_child_of_multiprocessing_speaks(optimizer: UniversalOptimizer) -> None:
    before = spoken(optimizer)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(spoken(optimizer)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    try:
        end = time.monotonic() + WAIT
        while answers.empty() and child.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert not answers.empty(), f"the child did not answer (exit code {child.exitcode})"
        np.testing.assert_array_equal(answers.get(), before)
        child.join(WAIT)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


def test_many_requests_at_once_in_a_child(optimizer: UniversalOptimizer) -> None:
    """Every place of the parent's queue is free, and every row of its batch."""
    before = spoken(optimizer)

    def batch() -> list[np.ndarray]:
        return [speech.audio for speech in optimizer.synthesize_batch([TEXT] * 4, **OPTIONS)]

    with speaking(lambda: optimizer.synthesize_batch([TEXT] * 3, seed=9, max_new_tokens=30)):
        for audio in in_child(batch):
            np.testing.assert_array_equal(audio, before)


def test_a_stream_from_before_the_fork_ends_in_the_child_and_goes_on_in_the_parent(
    optimizer: UniversalOptimizer,
) -> None:
    with contextlib.closing(optimizer.stream(TEXT, seed=4, max_new_tokens=40)) as stream:
        begun = next(stream).audio

        def go_on() -> Any:
            with pytest.raises(GenerationError, match="before this process was forked"):
                next(stream)
            stream.close()
            return spoken(optimizer)

        in_child(go_on)
        rest = [chunk.audio for chunk in stream]
    whole = np.concatenate([chunk.audio for chunk in optimizer.stream(TEXT, seed=4, max_new_tokens=40)])
    np.testing.assert_array_equal(np.concatenate([begun, *rest]), whole)


def test_the_places_that_the_parents_requests_take_are_free_in_a_child(engine: Any) -> None:
    with replica(engine, {"queue_size": 1}) as optimizer:
        stream = optimizer.stream(TEXT, max_new_tokens=40)
        next(stream)

        def twice() -> int:
            first = len(spoken(optimizer))
            stream.close()
            assert len(spoken(optimizer)) == first  # its place was not given back twice
            return len(optimizer._dispatcher._requests)

        assert in_child(twice) == 0
        stream.close()
        assert not optimizer._dispatcher._requests


def test_a_known_voice_is_known_in_a_child(optimizers: dict[str, UniversalOptimizer]) -> None:
    optimizer = optimizers["onnxruntime"]
    said: dict[str, Any] = {"reference_audio": voice(optimizer), "reference_text": "A tone."}
    before = optimizer.synthesize(TEXT, **said, **OPTIONS)

    def again() -> tuple[np.ndarray, int]:
        speech = optimizer.synthesize(TEXT, **said, **OPTIONS)
        voices = optimizer._dispatcher.voices._store
        assert voices is not None
        return speech.audio, voices.stats.misses

    with speaking(lambda: optimizer.synthesize(TEXT, **said, seed=5, max_new_tokens=20)):
        audio, misses = in_child(again)
    np.testing.assert_array_equal(audio, before.audio)
    assert misses <= 1  # the parent's own


def test_places_for_segments_are_free_in_a_child() -> None:
    workers = Workers(1)

    def hold(work: Callable[[], Any]) -> None:
        with workers.one(True):
            work()

    def take() -> bool:
        with workers.one(True) as alone:
            return alone

    with held(hold):
        assert in_child(take, 10) is True


def test_segments_are_spoken_by_threads_of_the_childs_own() -> None:
    """Though others speak in the parent."""
    workers = Workers(2)

    def speak() -> int:
        return len(whole(speaker(Utterer(), workers=workers)))

    length = speak()
    assert length > sum(400 * len(segment.text) for segment in segments(6))  # and pauses
    with speaking(speak):
        assert in_child(speak, 20) == length


def test_a_voice_that_is_being_encoded_is_encoded_by_the_child(tmp_path: Path) -> None:
    store = KnownVoices(DiskVoices(ContentCache(tmp_path, lock_timeout=1)), "an encoder")
    codes = np.arange(6).reshape(2, 3)

    def hold(work: Callable[[], Any]) -> None:
        store.get_or_encode("a" * 64, lambda: {"codes": (work(), codes)[1]})

    with held(hold):
        child = in_child(lambda: store.get_or_encode("a" * 64, lambda: {"codes": codes + 1})["codes"], 20)
    np.testing.assert_array_equal(child, codes + 1)
    np.testing.assert_array_equal(store.get_or_encode("a" * 64, lambda: {"codes": codes + 2})["codes"], codes)


def test_an_entry_that_the_parent_builds_is_the_childs_once_it_is_there(tmp_path: Path) -> None:
    cache, key = ContentCache(tmp_path), make_key(kind="test")

    def build(directory: Path, work: Callable[[], Any] = lambda: None) -> None:
        work()
        (directory / "file").write_text(str(os.getpid()))

    def hold(work: Callable[[], Any]) -> None:
        cache.get_or_create(key, lambda directory: build(directory, work), name="test")

    def get() -> str:
        return cache.get_or_create(key, build, name="test").file("file").read_text()

    with held(hold, ends_after=0.5):
        assert in_child(get, 20) == str(os.getpid())


def test_an_entry_that_the_parent_checks_is_checked_by_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, key, parent = ContentCache(tmp_path), make_key(kind="test"), os.getpid()

    def build(directory: Path) -> None:
        (directory / "file").write_text("what was built")

    cache.get_or_create(key, build, name="test")
    monkeypatch.setattr(digest, "_memo", {})
    begun, goes_on, read, readers = threading.Event(), threading.Event(), digest.sha256_file, list[int]()

    def slowly(path: str | Path) -> Any:
        readers.append(os.getpid())
        begun.set()
        assert os.getpid() != parent or goes_on.wait(WAIT)
        return read(path)

    monkeypatch.setattr(digest, "sha256_file", slowly)
    entry = cache.get(key, verify="background")
    assert entry is not None
    assert begun.wait(WAIT)
    child, seen = in_child(lambda: (os.getpid(), (entry.verified() is entry, readers)[1]), 20)
    assert seen == [parent, child]
    goes_on.set()
    assert entry.verified() is entry
    assert readers == [parent]


def test_a_part_that_the_parent_prepares_is_prepared_by_the_child() -> None:
    parent, wait = os.getpid(), list[Callable[[], Any]]()

    def load(part: Any) -> Choice:
        if os.getpid() == parent:
            wait.pop()()
        return Choice(None, f"by {os.getpid()}")

    route = Route(SimpleNamespace(name="a part"), load)  # type: ignore[arg-type]

    def hold(work: Callable[[], Any]) -> None:
        wait.append(work)
        route.prepare()

    def prepare() -> bool:
        return route.prepare().reason == f"by {os.getpid()}"

    with held(hold):
        assert in_child(prepare, 10) is True
    assert route.prepare().reason == f"by {parent}"


@pytest.mark.skipif(not available(), reason="compiled kernels need AVX2 and numba")
def test_a_codecs_kernels_have_threads_in_a_child(engine: Any) -> None:
    x = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)

    def snaked() -> np.ndarray:
        out = np.zeros_like(x)
        assert snake(x.ctypes.data, None, out.ctypes.data, *x.shape, low=False, low_out=False, threads=2)
        return out

    np.testing.assert_allclose(snaked(), x + np.sin(x) ** 2, atol=1e-5)
    with speaking(snaked):
        np.testing.assert_array_equal(in_child(snaked, 20), snaked())


# A child that ends as programs do: what is left of ONNX Runtime's sessions must not keep it

PROGRAM = """
import os, sys, time
from accelerator import UniversalOptimizer
from accelerator.reference import load

engine = UniversalOptimizer(load("tiny"), precision={precision!r}, threads=2, probe=False, proof="warn").prepare()
before = engine.synthesize("One two.", seed=3, max_new_tokens=6).audio
sys.stdout.flush()
if not (child := os.fork()):
    same = (engine.synthesize("One two.", seed=3, max_new_tokens=6).audio == before).all()
    print("same" if same else "different", flush=True)
    sys.exit(7)
end = time.monotonic() + 60
while time.monotonic() < end:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        print(os.waitstatus_to_exitcode(status))
        sys.exit()
    time.sleep(0.01)
os.kill(child, 9)
os.waitpid(child, 0)
print("killed")
"""


@pytest.mark.parametrize("kernels", ["auto", "none"])
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_child_ends_by_itself(kernels: str, precision: str) -> None:
    environment = {**os.environ, "ACCELERATOR_KERNELS": kernels, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(precision=precision)],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.split() == ["same", "7"], done.stderr
