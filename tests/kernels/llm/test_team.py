"""Threads that share a step: they take turns, sleep between, and end with their team."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from accelerator import kernels
from accelerator.inference.compiled import NativeSession
from accelerator.inference.transformer import Transformer
from accelerator.kernels import descriptors
from accelerator.kernels.llm.team import Team
from tests.kernels.llm.stacks import SPEC, STACK, noise, run, transformer

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


def test_threads_take_turns_and_sleep_between(built: Path) -> None:
    session = NativeSession(built / "slow.onnx", SPEC, Team(3))
    outputs = {"logits": len(SPEC.rows), "hidden": SPEC.fast.dim}
    x, found = noise(4, 1, 3, STACK.dim), [list[np.ndarray]() for _ in range(4)]

    def speak(n: int) -> None:
        for pause in (0, 0, 0.002, 0.05):
            model = Transformer(session, STACK, outputs, 1, 16)
            time.sleep(pause)  # long enough for the helpers to fall asleep
            found[n].append(run(model, x[n])["logits"])

    threads = [threading.Thread(target=speak, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        alone = run(Transformer(session, STACK, outputs, 1, 16), x[n])["logits"]
        assert len(found[n]) == 4
        for answer in found[n]:
            np.testing.assert_array_equal(answer, alone)


def test_helpers_end_with_their_team(built: Path) -> None:
    before = set(threading.enumerate())
    model = transformer(built, SPEC, 1, threads=3)
    run(model, noise(1, 1, STACK.dim))
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del model
    gc.collect()
    for helper in helpers:
        helper.join(10)
        assert not helper.is_alive()


def team_of(model: Transformer) -> tuple[Team, np.ndarray]:
    """A model's team and its counters, once it has run."""
    team = model._session.team  # type: ignore[union-attr]
    assert team._control is not None
    return team, team._control


def hold(control: np.ndarray, threads: int) -> None:
    """Have so many threads share all steps from now on."""
    control[descriptors.NOW], control[descriptors.AGAIN] = threads, np.iinfo(np.int64).max


def test_answers_do_not_depend_on_how_many_threads_share_a_step(built: Path) -> None:
    """From one step to the next, and so under a seed, too."""
    alone, shared = transformer(built, SPEC, 3, threads=1), transformer(built, SPEC, 3, threads=5)
    x = noise(60, 3, 1, STACK.dim)
    for model in (alone, shared):
        for row in range(3):
            run(model, noise(1, 20 + 60 * row, STACK.dim, seed=row), row)
    _, control = team_of(shared)
    for n in range(60):
        threads, before = (5, 2, 1, 3, 4, 1, 5)[n % 7], int(control[descriptors.TICKET])
        hold(control, threads)
        answers = run(shared, x[n])
        assert control[descriptors.TICKET] == (
            before if threads == 1 else (before // descriptors.MANY + 1) * descriptors.MANY + threads
        )
        for name, value in run(alone, x[n]).items():
            np.testing.assert_array_equal(value, answers[name])
    for name, array in alone.cache.arrays.items():
        np.testing.assert_array_equal(array, shared.cache.arrays[name])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_that_have_no_core_sleep_and_fewer_share_a_step(built: Path) -> None:
    """Two threads on one core took a slice of the scheduler's for each barrier: a hundred times as long."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread, and those that it starts
    try:
        x, one, two = noise(1, 1, STACK.dim), *(transformer(built, SPEC, 1, threads=n) for n in (1, 2))
        shares, seconds = set(), {one: 0.0, two: 0.0}
        for _ in range(200):
            for model in (one, two):
                start = time.perf_counter()
                run(model, x)
                seconds[model] += time.perf_counter() - start
            shares.add(team_of(two)[0].sharing)
    finally:
        os.sched_setaffinity(0, cores)
    assert 1 in shares
    assert seconds[two] < 10 * seconds[one]


def test_more_threads_are_tried_after_a_while(built: Path) -> None:
    model, x = transformer(built, SPEC, 1, threads=4), noise(1, 1, STACK.dim)
    run(model, x)
    _, control = team_of(model)
    hold(control, 1)
    ticket = control[descriptors.TICKET]
    run(model, x)
    assert control[descriptors.TICKET] == ticket  # nobody else was asked
    control[descriptors.PENALTY] = 0
    for expected in (2, 4, 4):
        control[descriptors.NOW], control[descriptors.AGAIN] = max(1, expected // 2), 0
        run(model, x)
        assert control[descriptors.TICKET] % descriptors.MANY == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_during_a_step_has_a_team_of_its_own(built: Path) -> None:
    model, x = transformer(built, SPEC, 1), noise(1, 1, STACK.dim)
    run(model, x)
    team, _ = team_of(model)
    context = multiprocessing.get_context("fork")
    with team._lock:  # as another thread's step has
        child = context.Process(target=_step, args=(model, x))
        child.start()
        child.join(60)
    if child.exitcode is None:
        child.kill()
        child.join()
    assert child.exitcode == 0


def _step(model: Transformer, x: np.ndarray) -> None:
    answer = run(model, x)
    os._exit(0 if np.isfinite(answer["logits"]).all() and team_of(model)[0].sharing else 1)
