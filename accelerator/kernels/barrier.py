"""Where threads wait for each other: they spin, since the others are mostly near, and sleep when they are not.

Spinning at a barrier for a thread that has no core takes the core which that thread is waiting for: on a machine that
others use too, steps then took a hundred times as long. So whoever has waited for a while sleeps in the kernel (a
futex) until the last one comes. And where threads have slept for much of a step, the next ones are shared by half as
many: a thread that needs no other loses only what others take. More are tried again after a few milliseconds, later
and later if that goes wrong. Answers do not depend on it: the kernels compute the same with any number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from . import descriptors as at
from .instructions import add, cycles, load, pause, pointer, store, swap, wait, wake
from .scalars import OPTIONS

__all__ = ["await_step", "begin", "judge", "meet", "share", "stop"]

# In cycles, of which a processor has two to five thousand in a microsecond.
_NEAR = 200_000  # until a thread at a barrier sleeps: far longer than the parts of a step differ
_IDLE = 3_000_000  # until a helper without a step sleeps: a millisecond, longer than a draw
_LEAST, _MOST = 10_000_000, 1_000_000_000  # for which fewer threads are used
_SOON = 4  # penalties after which the next one is the least again
_BEARABLE = 8  # a step's threads may sleep for this part of it


@njit(**OPTIONS)
def meet(control, threads, counts):
    """Wait until all threads are here. counts: whether sleeping here says that the step is held up."""
    if threads == 1:
        return
    counter, sleepers = control + 8 * at.BARRIER, control + 8 * at.SLEEPERS
    before = add(counter, 1)
    goal = (before // threads + 1) * threads
    if before + 1 == goal:
        if load(sleepers):
            wake(counter)
        return
    start, slept = cycles(), False
    while True:
        here = load(counter)
        if here >= goal:
            break
        if cycles() - start < _NEAR:
            pause()
            continue
        slept = True
        add(sleepers, 1)  # before the counter is looked at again, by the kernel: the last one adds, then looks for us
        wait(counter, here)
        add(sleepers, -1)
    if slept and counts:
        add(control + 8 * at.LOST, cycles() - start)


@njit(**OPTIONS)
def share(control, threads):
    """How many of a team's threads share the next step."""
    team = numba.carray(pointer(control), (at.ASLEEP,), np.int64)
    if team[at.NOW] < threads and cycles() >= team[at.AGAIN]:
        team[at.NOW] = min(threads, 2 * team[at.NOW])
        team[at.AGAIN] = cycles() + team[at.PENALTY]
    return team[at.NOW]


@njit(**OPTIONS)
def judge(control, threads, took, lost):
    """Let fewer threads share the next steps if those of this one slept for too much of the time it took."""
    if lost * _BEARABLE <= took * threads:
        return
    team, now = numba.carray(pointer(control), (at.ASLEEP,), np.int64), cycles()
    is_soon = now < team[at.AGAIN] + _SOON * team[at.PENALTY]
    team[at.PENALTY] = min(2 * team[at.PENALTY], _MOST) if is_soon else _LEAST
    team[at.NOW], team[at.AGAIN] = max(threads // 2, 1), now + team[at.PENALTY]


@njit(**OPTIONS)
def begin(control, job, threads):
    """Hand a step to the first `threads` of a team. Nobody is at the barrier: the step before is over."""
    counter = control + 8 * at.BARRIER
    store(counter, -(-load(counter) // threads) * threads)  # it counts in whole rounds, of another number before
    store(control + 8 * at.JOB, job)
    ticket = control + 8 * at.TICKET
    store(ticket, (load(ticket) // at.MANY + 1) * at.MANY + threads)
    _rouse(control, threads)


@njit(**OPTIONS)
def stop(control, threads):
    """Have a team's helpers end."""
    store(control + 8 * at.STOP, 1)
    add(control + 8 * at.TICKET, at.MANY)
    _rouse(control, threads)


@njit(**OPTIONS)
def _rouse(control, threads):
    for i in range(1, threads):
        flag = control + 8 * (at.ASLEEP + 8 * i)
        if swap(flag, 0):
            wake(flag)


@njit(**OPTIONS)
def await_step(control, me, last):
    """The number of the first step behind `last` that this thread shares, once there is one; -1 at the end."""
    ticket, flag = control + 8 * at.TICKET, control + 8 * (at.ASLEEP + 8 * me)
    start = cycles()
    while True:
        number = load(ticket)
        if number != last:
            if load(control + 8 * at.STOP):
                return -1
            if me < number % at.MANY:
                return number
            last = number
        elif cycles() - start < _IDLE:
            pause()
        else:
            store(flag, 1)
            if load(ticket) != last:  # whoever begins a step writes its number, then looks at the flag
                store(flag, 0)
            while load(flag):
                wait(flag, 1)
