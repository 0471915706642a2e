"""Tunings: what a seed's audio depends on changes only when it is asked for, whoever measures, when and how often."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import ContentCache
from accelerator.errors import SessionError
from accelerator.hardware import choose_tier, detect
from accelerator.parts.part import Machine as On
from accelerator.parts.part import Part
from accelerator.pipeline.selection import Selector
from accelerator.pipeline.tuning import BUSY, ORIGINAL, SOON_S, WORTH, Record, Tuning, Way, waiting
from accelerator.runtime.options import RunOptions
from tests.doubles import component
from tests.doubles import part as quick_part


def way(backend: Any, threads: int = 1, **options: Any) -> Way:
    return Way(backend, RunOptions(threads=threads, backend=backend, **options))


NATIVE = {n: way("native", n) for n in (1, 2)}
RUNTIME = {n: way("onnxruntime", n) for n in (1, 2)}
SPINNING = way("onnxruntime", 2, spin_us=50)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (NATIVE[1], NATIVE[2], True),
        (RUNTIME[2], SPINNING, True),
        (RUNTIME[1], RUNTIME[2], False),
        (NATIVE[1], RUNTIME[1], False),
        (ORIGINAL, RUNTIME[1], False),
        (way("onednn", 2), way("onednn", 4), True),
        (way("onednn", 2), way("onednn", 2, dtype="bf16"), False),
    ],
)
def test_what_is_heard_of_a_way(one: Way, other: Way, alike: bool) -> None:
    assert (one.sound == other.sound) is alike


def measured(before: Tuning | None = None, *, others: float | None = 0.0, **seconds: float) -> Tuning:
    """From seconds by "native_1" and the like."""
    ways = {"original": ORIGINAL, "spinning": SPINNING}
    ways |= {f"native_{n}": w for n, w in NATIVE.items()} | {f"runtime_{n}": w for n, w in RUNTIME.items()}
    given = {"original": 10.0, "runtime_1": 5.0, **seconds}
    return Tuning.of("part", {ways[name]: taken for name, taken in given.items()}, others, 100.0, before)


def test_the_first_measurement_settles_the_sound() -> None:
    first = measured(native_1=3.0, native_2=2.0, others=1.5)
    assert (first.way, first.calm, first.probes, first.proposed) == (NATIVE[2], False, 1, None)
    second = measured(first, native_1=3.0, native_2=4.0, runtime_1=1.0)
    assert (second.way, second.proposed) == (NATIVE[1], RUNTIME[1]), (
        "the faster number of threads, and no other kernels"
    )
    assert (second.calm, second.probes) == (True, 2)
    assert second.waits == "`accelerator tune` changes it to onnxruntime-1, 3.00 times as fast"
    accepted = second.accepted()
    assert (accepted.way, accepted.proposed, accepted.waits) == (RUNTIME[1], None, "")
    assert accepted.accepted() is accepted


def test_whose_part_it_is_and_what_it_computes_in_are_kept() -> None:
    known = {"engine": "an engine", "precisions": {RUNTIME[1]: "int8"}}
    first = Tuning.of("part", {ORIGINAL: 10.0, RUNTIME[1]: 5.0}, 0.0, 100.0, **known)
    assert Tuning.from_dict(first.to_dict()) == first
    assert (first.engine, first.precision) == ("an engine", "int8")
    earlier = {name: value for name, value in first.to_dict().items() if name not in ("engine", "precisions")}
    read = Tuning.from_dict(earlier)
    assert read is not None
    assert (read.engine, read.precision) == ("", "")
    busier = Tuning.of("part", {ORIGINAL: 10.0, RUNTIME[1]: 6.0}, 2.0, 200.0, read, **known)
    assert (busier.seconds, busier.engine, busier.precision) == (first.seconds, "an engine", "int8")


def test_a_spin_may_change_and_a_number_of_threads_in_onnx_runtime_may_not() -> None:
    first = measured(runtime_1=3.0, runtime_2=2.0, spinning=4.0)
    assert measured(first, runtime_1=3.0, runtime_2=4.0, spinning=2.0).way == SPINNING
    later = measured(first, runtime_1=1.0, runtime_2=2.0, spinning=4.0)
    assert (later.way, later.proposed) == (RUNTIME[2], RUNTIME[1])


def test_the_original_is_kept_too() -> None:
    first = measured(runtime_1=20.0, others=1.0)
    assert first.way == ORIGINAL
    assert first.slower == "its replacement is slower here (20000.0 ms against 10000.0 ms a unit)"
    later = measured(first, runtime_1=1.0)
    assert (later.way, later.proposed) == (ORIGINAL, RUNTIME[1])
    assert later.slower.startswith("kept as it was")
    assert measured(measured(runtime_1=1.0), runtime_1=20.0).proposed == ORIGINAL


@pytest.mark.parametrize(("taken", "proposed"), [(5.0 / WORTH - 0.01, True), (5.0 / WORTH + 0.01, False)])
def test_no_seed_changes_for_a_trifle(taken: float, proposed: bool) -> None:
    assert (measured(measured(), native_1=taken).proposed is not None) is proposed


def test_what_a_busier_machine_measures_counts_only_as_an_attempt() -> None:
    calm = measured(native_1=2.0, native_2=3.0)
    later = measured(calm, native_1=3.0, native_2=2.0, runtime_1=1.0, others=1.0)
    assert later == replace(calm, probes=2)
    busy = measured(native_1=2.0, native_2=3.0, others=2.0)
    later = measured(busy, native_1=3.0, native_2=2.0, runtime_1=1.0, others=1.0)
    assert (later.way, later.others_cpus) == (NATIVE[2], 1.0), "less busy is better"
    assert later.proposed is None, "but no reason to change a sound"


def test_as_json_and_back() -> None:
    tuning = measured(measured(others=1.0), native_1=1.0)
    assert tuning.proposed is not None
    assert Tuning.from_dict(json.loads(json.dumps(tuning.to_dict()))) == tuning
    assert Tuning.from_dict(None) is None


# In the loader


class Machine:
    """A part that compiled kernels, too, can run; `seconds` of each backend. A machine is one process."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {"pytorch": 10.0, "onnxruntime": 5.0, "native": 3.0, **seconds}
        self.probes, self.broken = 0, False
        self.before_probe: Any = lambda: None

    def part(self, compiled: bool = True, **changed: Any) -> Part:
        def load(paths: Any, options: RunOptions) -> Any:
            if options.backend == "native" and self.broken:
                raise SessionError("no kernels")
            return lambda: options.backend

        def probe(call: Any) -> float:
            self.before_probe()
            self.probes += 1
            return self.seconds[call()]

        made = replace(component("quick"), **changed)
        return quick_part(
            components=(made,), original=lambda: "pytorch", load=load, probe=probe, compiled=lambda paths: compiled
        )


class Clock:
    def __init__(self, others: float | None) -> None:
        self.others = others

    def __call__(self) -> Clock:
        return self

    def others_cpus(self) -> float | None:
        return self.others


def loader_of(root: Path | ContentCache, *, others: float | None = 0.0, now: float = 1e9, **changed: Any) -> Selector:
    profile = detect()
    cache = root if isinstance(root, ContentCache) else ContentCache(root)
    machine = On(profile, replace(choose_tier(profile), threads=1), None, "fp32")
    return Selector(cache, machine, clock=Clock(others), now=lambda: now, **changed)  # type: ignore[arg-type]


def test_a_changed_export_is_no_reason_to_choose_anew(tmp_path: Path) -> None:
    """Tunings belong to weights, part and hardware: a new version of a graph speaks a seed by the same means."""
    machine = Machine()
    assert loader_of(tmp_path).load(machine.part()).backend == "native"
    probes, machine.seconds["onnxruntime"] = machine.probes, 1.0
    again = loader_of(tmp_path).load(machine.part(config={"for": "a new version"}))
    assert (again.backend, machine.probes) == ("native", probes)
    loader_of(tmp_path).load(machine.part(identity=lambda: "1" * 64))
    assert machine.probes > probes, "other weights are another part"


def test_kernels_that_cannot_be_loaded_now_are_used_again_later(tmp_path: Path) -> None:
    """What stands in for them in one process is not remembered: a seed would go on sounding different."""
    machine = Machine()
    assert loader_of(tmp_path).load(machine.part()).backend == "native"
    machine.broken = True
    assert loader_of(tmp_path).load(machine.part()).backend == "onnxruntime"
    machine.broken = False
    probes = machine.probes
    assert loader_of(tmp_path).load(machine.part()).backend == "native"
    assert machine.probes == probes


def test_where_there_are_no_compiled_kernels_others_are_chosen_apart(tmp_path: Path) -> None:
    """As with ACCELERATOR_KERNELS=none in one of two processes."""
    machine = Machine()
    without = machine.part(compiled=False)
    order = [loader_of(tmp_path).load(part).backend for part in (machine.part(), without, machine.part(), without)]
    assert order == ["native", "onnxruntime", "native", "onnxruntime"]


def at_once(machines: list[Machine], root: Path, **changed: Any) -> list[Any]:
    """What each process decides, all of them at the same time."""
    ready = threading.Barrier(len(machines))
    answers: list[Any] = [None] * len(machines)

    def run(number: int) -> None:
        ready.wait(10)
        answers[number] = loader_of(root, **changed).load(machines[number].part())

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_processes_that_come_at_the_same_time_measure_once(tmp_path: Path) -> None:
    loader_of(tmp_path, probe=False).load(Machine().part())  # the export
    machines = [Machine(native=3.0 + n) for n in range(6)]
    choices = at_once(machines, tmp_path)
    assert sum(machine.probes > 0 for machine in machines) == 1
    assert len({(choice.backend, choice.options) for choice in choices}) == 1


def test_without_locks_the_first_to_publish_decides_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six measure at once, and find different things fastest."""
    loader_of(tmp_path, probe=False).load(Machine().part())
    monkeypatch.setattr(ContentCache, "single_flight", lambda self, key, **_: contextlib.nullcontext())
    all_at_it = threading.Barrier(6)
    machines = [Machine(**{kind: 1.0 + n}) for kind in ("native", "onnxruntime", "pytorch") for n in range(2)]
    for machine in machines:
        machine.before_probe = lambda m=machine: m.probes or all_at_it.wait(10)
    choices = at_once(machines, tmp_path)
    assert all(machine.probes > 0 for machine in machines)
    kept = loader_of(tmp_path).load(Machine().part())
    assert {(choice.backend, choice.options) for choice in choices} == {(kept.backend, kept.options)}


def test_measuring_again_at_the_same_time_keeps_what_tune_has_changed(tmp_path: Path) -> None:
    """One process measures a busy machine's part again, meanwhile a person runs `tune` elsewhere: the person wins."""
    machine = Machine()
    loader_of(tmp_path, others=1.0).load(machine.part())
    machine.seconds["onnxruntime"] = 1.0

    def tune() -> None:
        machine.before_probe = lambda: None
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ContentCache, "single_flight", lambda self, key, **_: contextlib.nullcontext())
            assert loader_of(tmp_path).tune(machine.part()).backend == "onnxruntime"

    machine.before_probe = tune
    later = loader_of(tmp_path, now=1e9 + SOON_S).load(machine.part())
    assert later.backend == "onnxruntime"
    assert loader_of(tmp_path, now=1e9 + SOON_S).load(machine.part()).backend == "onnxruntime"


def test_a_read_only_cache_keeps_what_it_was_given(tmp_path: Path) -> None:
    """A busy machine's tuning in a parent is followed; measuring it again is of no use where nothing can be written."""
    machine = Machine()
    loader_of(tmp_path / "warm", others=1.0).load(machine.part())
    (tmp_path / "file").touch()
    layered = ContentCache(tmp_path / "file" / "never", parents=[tmp_path / "warm"])
    probes, machine.seconds["onnxruntime"] = machine.probes, 1.0
    for _ in range(2):
        assert loader_of(layered, now=2e9).load(machine.part()).backend == "native"
    assert machine.probes == probes
    writable = ContentCache(tmp_path / "own", parents=[tmp_path / "warm"])
    choice = loader_of(writable, now=2e9).load(machine.part())
    assert (choice.backend, choice.probe["calm"], choice.probe["probes"]) == ("native", True, 2)
    assert choice.probe["proposed"]["backend"] == "onnxruntime"
    assert [t.waits for t in waiting(writable, loader_of(writable).machine.profile.fingerprint)] == [
        "`accelerator tune` changes it to onnxruntime-1, 3.00 times as fast"
    ]


def test_tune_measures_only_what_is_to_be_measured(tmp_path: Path) -> None:
    machine = Machine()
    first = loader_of(tmp_path).tune(machine.part())
    assert (first.backend, first.before, first.probe["probes"]) == ("native", {}, 1)
    probes, machine.seconds["onnxruntime"] = machine.probes, 1.0
    assert loader_of(tmp_path).tune(machine.part()).backend == "native"
    assert machine.probes == probes, "known"
    busy = loader_of(tmp_path, others=BUSY * 2).tune(machine.part(), again=True)
    assert machine.probes > probes
    assert (busy.backend, busy.probe["calm"]) == ("native", True), "a busy machine changes nothing"
    calm = loader_of(tmp_path).tune(machine.part(), again=True)
    assert (calm.backend, calm.before["backend"], calm.reason) == ("onnxruntime", "native", "fastest when probed")
    assert loader_of(tmp_path).load(machine.part()).backend == "onnxruntime"


def test_tune_asks_a_busy_machine_again_at_once(tmp_path: Path) -> None:
    machine = Machine()
    loader_of(tmp_path, others=1.0).load(machine.part())
    assert [t.part for t in waiting(ContentCache(tmp_path), detect().fingerprint)] == ["quick"]
    machine.seconds["onnxruntime"] = 1.0
    assert loader_of(tmp_path).tune(machine.part()).backend == "onnxruntime"
    assert waiting(ContentCache(tmp_path), detect().fingerprint) == []


def test_a_choice_among_many_has_a_name_that_a_cache_takes(tmp_path: Path) -> None:
    cache, seconds = ContentCache(tmp_path), {way("native"): 1.0, ORIGINAL: 2.0}
    kinds = [f"a-backend-of-a-long-name-{n}-fp32" for n in range(5)]
    records = [
        Record.of(cache, "decoder", "0", "f" * 16, "auto", *kinds[:count], backends=["native"], now=lambda: 0.0)
        for count in (1, 4, 5)
    ]
    assert len({record.note for record in records}) == 3
    for number, record in enumerate(records):
        assert record.note.startswith(f"tuning-{'f' * 16}-auto-a-backend")
        record.write(Tuning.of("decoder", seconds, 0.0, float(number)))
    assert [record.read().measured_at for record in records] == [0.0, 1.0, 2.0]  # type: ignore[union-attr]
