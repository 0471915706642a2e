"""A fork after use, and while another thread speaks: the child answers or raises, and never waits for ever."""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import accelerator
from accelerator import UniversalOptimizer
from accelerator.cache import ContentCache, digest, make_key
from accelerator.engines.fish_speech import adapter as fish_speech
from accelerator.engines.fish_speech.adapter import FishSpeechAdapter
from accelerator.engines.fish_speech.routed import _Requests
from accelerator.errors import GenerationError
from accelerator.hardware.forks import Lock
from accelerator.kernels import available, snake
from accelerator.pipeline.fallback import Route
from accelerator.pipeline.pooled import Workers
from accelerator.pipeline.selection import Choice
from accelerator.pipeline.voices import VoiceStore
from tests.doubles import twin, voice
from tests.pipeline.utterers import Utterer, segments, speaker, whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PACKAGE = Path(accelerator.__file__).parent
WAIT = 60.0  # seconds: a child takes one or two
TEXT = "One two three."
OPTIONS: dict[str, Any] = {"seed": 3, "max_new_tokens": 6}
BACKENDS = ("compiled", "onnxruntime", "pytorch")


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of a fork beside threads
        return os.fork()


def in_child(work: Callable[[], Any], wait: float = WAIT) -> Any:
    """What `work` answers in a forked child. One that does not answer in time is killed, and the test fails."""
    read, write = os.pipe()
    if not (child := fork()):
        try:
            answer = True, work()
        except BaseException as error:
            answer = False, f"{type(error).__name__}: {error}"
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    answered, end = b"", time.monotonic() + wait
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0] and (more := pipe.read(1 << 16)):
            answered += more
    if time.monotonic() >= end:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert answered, f"the child did not answer within {wait:g} s"
    done, answer = pickle.loads(answered)
    assert done, answer
    return answer


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
        twin(engine) as pytorch,
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
        "pytorch": "onnxruntime",  # `doubles.twin` calls PyTorch's own code so
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
    with twin(engine, {"queue_size": 1}) as optimizer:
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


# What a thread of the parent may hold


@contextlib.contextmanager
def held(hold: Callable[[Callable[[], Any]], Any], *, ends_after: float | None = None) -> Iterator[None]:
    """Another thread that calls `hold` with a function which returns at the end, or so many seconds later."""
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        end.wait(WAIT if ends_after is None else ends_after)

    thread = threading.Thread(target=hold, args=(work,))
    thread.start()
    try:
        assert begun.wait(WAIT)
        yield
    finally:
        end.set()
        thread.join(WAIT)
    assert not thread.is_alive()


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
    store = VoiceStore(ContentCache(tmp_path, lock_timeout=1), "an encoder")
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


def test_a_lock_that_another_thread_holds_is_free_in_a_child() -> None:
    lock = Lock()

    def hold(work: Callable[[], Any]) -> None:
        with lock:
            work()

    def take() -> str:
        with lock:
            return "taken"

    with held(hold):
        assert in_child(take, 10) == "taken"


def test_a_lock_that_the_forking_thread_holds_stays_held_in_the_child() -> None:
    lock = Lock()

    def excluded() -> tuple[bool, bool]:
        entered = threading.Event()

        def enter() -> None:
            with lock:
                entered.set()

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        before = entered.wait(0.2)
        lock.__exit__(None, None, None)
        return before, entered.wait(10)

    with lock:
        assert in_child(excluded, 20) == (False, True)
    with lock:
        pass


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


def test_fish_speechs_queue_is_served_by_a_thread_of_the_childs() -> None:
    started = list[str]()

    class Server:
        def start(self) -> None:
            started.append("started")
            threading.Thread(target=self.serve, daemon=True).start()

        def serve(self) -> None:
            while (item := requests.get()[1]) is not None:
                item.put(os.getpid())

    def ask() -> int:
        answers: queue.Queue[int] = queue.Queue()
        requests.put(answers)
        return answers.get(timeout=10)

    server = Server()
    requests = _Requests(weakref.WeakMethod(server.start))
    assert started == []
    assert [ask(), ask()] == [os.getpid()] * 2
    assert in_child(lambda: (ask() == os.getpid(), ask() == os.getpid(), started), 30) == (True, True, ["started"] * 2)
    requests.put(None)


def test_a_live_fish_speech_is_not_asked_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is not there: its parts in PyTorch speak."""

    class Parts:
        def __init__(self, *_: Any) -> None:
            pass

        def stream(self, request: Any) -> Iterator[str]:
            yield "its parts"

        def close(self) -> None:
            pass

    result = SimpleNamespace(code="segment", audio=(8000, np.zeros(3)))
    live = FishSpeechAdapter.__new__(FishSpeechAdapter)
    live._live, live._process, live.engine = True, os.getpid(), SimpleNamespace(inference=lambda request: [result])
    monkeypatch.setattr(fish_speech, "tts_request", lambda request, wav: request)
    monkeypatch.setattr(fish_speech, "Routed", Parts)
    monkeypatch.setattr(FishSpeechAdapter, "parts", lambda self: ())
    request: Any = SimpleNamespace(reference=None)
    assert [chunk.sample_rate for chunk in live.original(request)] == [8000]
    assert in_child(lambda: list(live.original(request)), 10) == ["its parts"]


# What nobody has thought of yet

KINDS = {"Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"}
KEPT_THOUGH = {  # where threads are waited for by what `_forked` does not make -> why a child does not wait for ever
    "hardware.forks Lock.__init__": "it is what makes itself anew",
    "hardware.lease Turns._begin": "in a table that `_forked` empties",
    "cache.store ContentCache.single_flight": "in a table that `_forked` empties",
    "pipeline.voices VoiceStore._alone": "in a table that `_forked` empties",
    "cache.store ContentCache._check_later": "a child does not wait for it, and checks itself",
    "optimizer UniversalOptimizer._executor": "forgotten by `_forked`",
    "kernels.parallel _pool": "one for each process, by its number",
    "optimizer UniversalOptimizer._stream": "a flag of one stream, which raises in a child; nobody waits for it",
    "engines.fish_speech.routed _Request": "a flag of one request, which its parent speaks; nobody waits for it",
    "cli.progress Bars.__init__": "of the command, which does not fork",
    "reference.training.loop _termination": "of a program that does not fork",
}


def waits(path: Path) -> Iterator[str]:
    """Where a module makes what threads wait for, beside what is made anew in a child and pools that end in a block."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    annotations = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    passed = {id(node) for each in annotations if each is not None for node in ast.walk(each)}
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)

    def visit(node: ast.AST, place: str) -> Iterator[str]:
        if isinstance(node, ast.ClassDef):
            passed.update(id(each) for method in renewing(node) for each in ast.walk(method))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            place = f"{place}.{node.name}" if place else node.name
        if isinstance(node, ast.withitem):
            passed.add(id(node.context_expr))
        if id(node) in passed:
            return
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        pool = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ThreadPoolExecutor")
        if pool or name in {f"threading.{kind}" for kind in KINDS}:
            yield f"{module} {place}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place)

    return visit(tree, "")


def renewing(kind: ast.ClassDef) -> list[ast.FunctionDef]:
    """`_forked`, and the methods that it calls, of a class that has itself renewed in children."""
    if "renewed_in_children(self)" not in ast.unparse(kind):
        return []
    methods = {each.name: each for each in kind.body if isinstance(each, ast.FunctionDef)}
    return [
        each
        for name, each in methods.items()
        if name == "_forked" or f"self.{name}(" in ast.unparse(methods["_forked"])
    ]


def test_whatever_threads_wait_for_is_made_anew_in_a_child() -> None:
    found = {place for path in sorted(PACKAGE.rglob("*.py")) for place in waits(path)}
    assert found == set(KEPT_THOUGH)


def test_nobody_hides_from_that() -> None:
    """By another name for what makes locks."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("threading", "_thread", "multiprocessing"), path
            elif isinstance(node, ast.Import):
                assert all(each.asname is None for each in node.names if each.name == "threading"), path


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
