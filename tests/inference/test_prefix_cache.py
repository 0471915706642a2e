"""Where prompts are cut, and what is remembered of them."""

from __future__ import annotations

import threading

import numpy as np

from accelerator.inference.prefix_cache import SHORTEST, Prefixes, cuts

BEGIN, END = 100, 199


def prompt(*stretches: tuple[bool, int]) -> np.ndarray:
    """(speech or text, columns) -> [1 + 2, T]."""
    main = np.concatenate([np.full(n, BEGIN + 7 if speech else 5) for speech, n in stretches])
    return np.stack([main, np.arange(len(main)), np.zeros(len(main), np.int64)])


def blocks(length: int, fill: float = 0) -> list[np.ndarray]:
    return [np.full((2, length, 4), fill, np.float32) for _ in range(2)]


def test_cuts_are_where_voices_end() -> None:
    n = SHORTEST
    assert cuts(prompt((False, 9)), BEGIN, END) == []
    assert cuts(prompt((False, 9), (True, n), (False, 1)), BEGIN, END) == [9 + n]
    assert cuts(prompt((False, 9), (True, n - 1), (False, 1)), BEGIN, END) == [], "too short to pay"
    assert cuts(prompt((True, n), (False, 5), (True, 2 * n), (False, 2)), BEGIN, END) == [n, 3 * n + 5]
    assert cuts(prompt((False, 9), (True, n)), BEGIN, END) == [], "something must be left to run"


def test_the_longest_known_beginning_is_found() -> None:
    memory, p = Prefixes(), prompt((True, 20), (False, 5), (True, 20), (False, 2))
    assert memory.longest(p, [20, 45]) == (0, ())
    memory.keep(p, 20, short := blocks(20))
    assert memory.longest(p, [20, 45]) == (20, short)
    memory.keep(p, 45, long := blocks(45))
    assert memory.longest(p, [20, 45]) == (45, long)
    other = p.copy()
    other[1, 30] = 3  # differs behind the first voice only
    assert memory.longest(other, [20, 45]) == (20, short)
    other[2, 3] = 3
    assert memory.longest(other, [20, 45]) == (0, ())
    assert (memory.hits, memory.misses) == (3, 2)
    assert memory.longest(p, []) == (0, ())
    assert memory.misses == 2, "a prompt without a voice is no miss"


def test_memory_is_bounded_and_the_least_recent_goes() -> None:
    one = sum(b.nbytes for b in blocks(20))
    memory = Prefixes(budget=2 * one)
    voices = [prompt((True, 20), (False, 1)) + np.array([[0], [n], [0]]) for n in range(3)]
    for voice in voices[:2]:
        memory.keep(voice, 20, blocks(20))
    assert memory.longest(voices[0], [20])[0] == 20
    memory.keep(voices[2], 20, blocks(20))
    assert [memory.longest(v, [20])[0] for v in voices] == [20, 0, 20]
    assert memory.nbytes == 2 * one
    memory.keep(voices[2], 20, blocks(20))
    assert memory.nbytes == 2 * one, "what is known is not counted twice"
    assert not memory.wants(3 * one)
    memory.keep(voices[1], 20, blocks(60))
    assert memory.longest(voices[1], [20])[0] == 0, "larger than the budget"


def test_threads_share_it() -> None:
    memory = Prefixes(budget=10 * sum(b.nbytes for b in blocks(20)))
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            n = int(rng.integers(0, 20))
            voice = prompt((True, 20), (False, 1)) + np.array([[0], [n], [0]])
            end, found = memory.longest(voice, [20])
            if end and found[0][0, 0, 0] != n:
                wrong.append(n)
            memory.keep(voice, 20, blocks(20, n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert memory.nbytes <= memory.budget
