"""Probe and pick: what is measured, what is remembered, and whom it is believed of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import ContentCache, make_key
from accelerator.errors import SessionError
from accelerator.export.component import ProgressEvent
from accelerator.hardware import choose_tier, detect
from accelerator.parts.part import Backend, Part
from accelerator.parts.part import Machine as On
from accelerator.pipeline.selection import Selector
from accelerator.runtime.options import RunOptions
from tests.doubles import component
from tests.doubles import part as quick_part


class Machine:
    """Parts whose speed is written down: `speed(options)` for ONNX Runtime, `pytorch` for PyTorch."""

    def __init__(self, pytorch: float = 1.0) -> None:
        self.pytorch, self.speeds, self.loads, self.probes = pytorch, {}, [], 0  # type: ignore[var-annotated]

    def part(self, **changed: Any) -> Part:
        def load(paths: Any, options: RunOptions) -> Any:
            self.loads.append(options)
            assert (paths["quick"] / "weights.bin").is_file()
            return lambda: options

        def torch() -> None:
            return None

        def probe(call: Any) -> float:
            self.probes += 1
            options = call()
            return self.pytorch if options is None else self.speeds.get(options.threads, 0.5)

        return quick_part(**{"original": torch, "load": load, "probe": probe, **changed})


@pytest.fixture(scope="module")
def profile() -> Any:
    return detect()


@pytest.fixture
def loader(tmp_path: Path, profile: Any) -> Selector:
    tier = replace(choose_tier(profile), threads=2)
    events: list[ProgressEvent] = []
    found = Selector(ContentCache(tmp_path), On(profile, tier, None, "fp32"), progress=events.append)
    object.__setattr__(found, "events", events)
    return found


def test_the_fastest_setting_wins(loader: Selector) -> None:
    machine = Machine()
    machine.speeds = {1: 0.4, 2: 0.2, 4: 0.9}
    choice = loader.load(machine.part())
    assert choice.call is not None
    assert choice.options is not None
    assert choice.options.threads == 2
    assert choice.call() == choice.options
    assert (choice.backend, choice.reason, choice.cause) == ("onnxruntime", "fastest when probed", "")
    seconds = choice.probe["seconds"]
    assert seconds["original"] == 1.0
    assert min(seconds.values()) == 0.2
    assert {options.threads for options in machine.loads} >= {1, 2}
    json.dumps(choice.probe)
    events: list[ProgressEvent] = loader.events  # type: ignore[attr-defined]
    probes = [e for e in events if e.stage == "probe"]
    assert [e.done for e in probes] == list(range(len(probes)))
    assert {e.total for e in probes} == {len(probes)}


def test_what_is_near_the_best_is_timed_twice_and_what_is_far_behind_once(loader: Selector) -> None:
    asked: list[int | None] = []
    times = {1: iter([0.2, 0.5]), 2: iter([0.25, 0.1]), 4: iter([0.9])}

    def probe(call: Any) -> float:
        options = call()
        asked.append(None if options is None else options.threads)
        return 1.0 if options is None else next(times[options.threads])

    options = [RunOptions(threads=n) for n in (1, 2, 4)]
    backend = Backend("onnxruntime", (component("quick"),), lambda _: options, lambda paths, given: lambda: given)
    choice = loader.load(Machine().part(probe=probe, backends=(backend,)))
    assert asked == [1, 1, 2, 2, 4, None]
    assert choice.options is not None
    assert choice.options.threads == 2
    assert sorted(choice.probe["seconds"].values()) == [0.1, 0.2, 0.9, 1.0]


@pytest.mark.parametrize("speed", [1.0, 1.01, 50.0])
def test_a_part_that_is_not_faster_stays_in_pytorch(loader: Selector, speed: float) -> None:
    machine = Machine()
    machine.speeds = dict.fromkeys(range(1, 200), speed)
    choice = loader.load(machine.part())
    assert (choice.call, choice.backend, choice.cause) == (None, None, "Slower")
    assert choice.reason == f"its replacement is slower here ({speed * 1e3:.1f} ms against 1000.0 ms a unit)"
    assert choice.exports, "the export is kept"
    probes = machine.probes
    again = loader.load(machine.part())
    assert (again.call, again.reason, again.cause) == (None, choice.reason, "Slower")
    assert machine.probes == probes, "remembered"


def test_what_was_measured_is_not_measured_again(loader: Selector) -> None:
    machine = Machine()
    machine.speeds = {1: 0.3, 2: 0.4}
    first = loader.load(machine.part())
    probes, machine.loads = machine.probes, []
    again = replace(loader, cache=ContentCache(loader.cache.root)).load(machine.part())
    assert machine.probes == probes
    assert machine.loads == [first.options]
    assert (again.options, again.probe) == (first.options, first.probe)
    assert again.reason == "fastest when probed before"


def test_other_hardware_measures_anew(loader: Selector, profile: Any) -> None:
    machine = Machine()
    loader.load(machine.part())
    probes = machine.probes

    class Other:
        fingerprint = "f" * 16
        usable_cores = 4

    loader_elsewhere = replace(loader, machine=replace(loader.machine, profile=Other()))  # type: ignore[arg-type]
    loader_elsewhere.load(machine.part())
    assert machine.probes > probes
    probes = machine.probes
    loader.load(machine.part())
    loader_elsewhere.load(machine.part())
    assert machine.probes == probes, "both are remembered"


GONE = object()  # a field that is left out
NOTES: dict[str, Any] = {  # what is changed of a note that is right
    "no backend": {"backend": GONE},
    "no options": {"options": GONE},
    "unknown options": {"options": {"turbo": 1}},
    "no seconds": {"seconds": {}},
    "only the original": {"seconds": {"original": 1.0}},
    "seconds of text": {"seconds": {"a": "x", "original": 1}},
    "another backend": {"backend": "cuda"},
    "threads of text": {"options": {**RunOptions().to_dict(), "threads": "many"}},
    "no threads": {"options": {**RunOptions().to_dict(), "threads": 0}},
    "a list": {"backend": ["onnxruntime"], "options": [], "seconds": []},
    "of long ago": {"measured_at": "yesterday"},
    "another proposal": {"proposed": {"backend": "cuda", "options": RunOptions().to_dict()}},
    "an unmeasured proposal": {"proposed": {"backend": "native", "options": RunOptions().to_dict()}},
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_that_is_none_of_ours_is_measured_again(loader: Selector, kind: str) -> None:
    machine = Machine()
    choice = loader.load(machine.part())
    key, note = (
        make_key(tuning="quick", weights="0" * 64),
        f"tuning-{loader.machine.profile.fingerprint}-auto-fp32-onnxruntime-fp32",
    )
    assert loader.cache.read_note(key, note) == choice.probe
    changed = {k: v for k, v in {**choice.probe, **NOTES[kind]}.items() if v is not GONE}
    loader.cache.write_note(key, note, changed)
    probes = machine.probes
    assert loader.load(machine.part()).backend == "onnxruntime"
    assert machine.probes > probes
    passing = {"others_cpus": None, "measured_at": None, "calm": None}
    replaced = loader.cache.read_note(key, note)
    assert {**replaced, **passing} == {**choice.probe, **passing}


def test_garbage_in_a_note_is_measured_again(loader: Selector) -> None:
    machine = Machine()
    loader.load(machine.part())
    (path,) = loader.cache.root.glob("notes/*/tuning-*.json")
    path.write_bytes(b"\xff{not json")
    probes = machine.probes
    assert loader.load(machine.part()).backend == "onnxruntime"
    assert machine.probes > probes


@pytest.mark.parametrize("probe", [True, False])
def test_threads_given_are_threads_used(loader: Selector, probe: bool) -> None:
    machine = Machine()
    for threads in (3, 5):
        machine.loads = []
        wanted = replace(loader.machine, threads=threads)
        choice = replace(loader, machine=wanted, probe=probe).load(machine.part())
        assert {options.threads for options in machine.loads} == {threads}
        assert choice.options is not None
        assert choice.options.threads == threads
    auto = loader.load(machine.part())
    assert auto.options is not None
    assert auto.options.threads in (1, 2, 4), "what was measured for three threads is not for all"


def test_unprobed_takes_the_tiers_guess(loader: Selector) -> None:
    machine = Machine()
    choice = replace(loader, probe=False).load(machine.part())
    assert choice.options == RunOptions(threads=2)
    assert (machine.probes, choice.reason) == (0, "not probed")


@pytest.mark.parametrize(("usable", "tier"), [(1, 1), (2, 2), (8, 4), (64, 16)])
def test_candidates_never_exceed_the_cores(loader: Selector, usable: int, tier: int) -> None:
    class Cores:
        usable_cores = usable

    machine = On(Cores(), replace(loader.machine.tier, threads=tier))  # type: ignore[arg-type]
    (backend,) = Machine().part().backends
    counts = [options.threads for options in backend.offers(machine)]
    assert counts == sorted(counts)
    assert max(counts) <= usable
    assert {1, tier} <= set(counts)


def test_what_goes_wrong_is_raised(loader: Selector) -> None:
    def load(paths: Any, options: Any) -> Any:
        raise SessionError("no such operator")

    with pytest.raises(SessionError, match="no such operator"):
        loader.load(Machine().part(load=load))


def test_a_corrupt_export_is_built_anew(loader: Selector) -> None:
    """Whatever the file's damage makes ONNX Runtime say: it is the damage that counts."""
    machine = Machine()
    first = loader.load(machine.part())
    (export,) = first.exports.values()
    file = export.path / "weights.bin"
    file.write_bytes(b"2")  # same size, another content

    def load(paths: Any, options: Any) -> Any:
        if (paths["quick"] / "weights.bin").read_bytes() != b"1":
            raise SessionError("this is no graph")
        return lambda: options

    fresh = replace(loader, cache=ContentCache(loader.cache.root))
    choice = fresh.load(machine.part(load=load))
    assert choice.backend == "onnxruntime"
    (again,) = choice.exports.values()
    assert (again.path / "weights.bin").read_bytes() == b"1"
    assert again.entry.created


def test_auto_precision_follows_the_parts_size(loader: Selector) -> None:
    seen = []

    def part_of(size: int | None) -> Part:
        def build(directory: Path, precision: str, progress: Any) -> None:
            seen.append(precision)
            (directory / "weights.bin").write_bytes(b"1")

        made = replace(
            component("quick", build=build),
            precisions=("int4", "int8", "fp32"),
            weight_bytes=size,
            config={"size": size},
        )
        return Machine().part(components=(made,))

    automatic = replace(loader, machine=replace(loader.machine, precision="auto"), probe=False)
    for size in (1 << 20, 4 << 30, None):
        automatic.load(part_of(size))
    expected = [
        choose_tier(loader.machine.profile, model_bytes_fp32=size).precision for size in (1 << 20, 4 << 30, None)
    ]
    assert seen == expected


def compiled(machine: Machine, **speeds: float) -> Part:
    """A part that compiled kernels can run, too, as fast as that by threads; without a speed they cannot be loaded."""

    def load(paths: Any, options: RunOptions) -> Any:
        machine.loads.append(options)
        if options.backend == "native" and not speeds:
            raise SessionError("no kernels")
        return lambda: options

    def probe(call: Any) -> float:
        options = call()
        if options is not None and options.backend == "native":
            return speeds[f"native_{options.threads}"]
        return machine.pytorch if options is None else machine.speeds.get(options.threads, 0.5)

    return machine.part(load=load, probe=probe, compiled=lambda paths: (paths["quick"] / "weights.bin").is_file())


def test_compiled_kernels_are_used_where_they_are_fastest(loader: Selector) -> None:
    machine = Machine()
    machine.speeds = {1: 0.4, 2: 0.2, 4: 0.9}
    part = compiled(machine, native_1=0.3, native_2=0.1, native_4=0.15)
    choice = loader.load(part)
    assert choice.options is not None
    assert (choice.backend, choice.options.threads, choice.options.spin_us) == ("native", 2, 0)
    assert choice.probe["seconds"]["native-2"] == 0.1
    machine.loads.clear()
    again = loader.load(part)
    assert (again.backend, again.reason) == ("native", "fastest when probed before")
    assert machine.loads == [choice.options]


def test_slower_ones_are_not(loader: Selector) -> None:
    machine = Machine()
    machine.speeds = {1: 0.4, 2: 0.2, 4: 0.9}
    choice = loader.load(compiled(machine, native_1=0.3, native_2=0.3, native_4=0.3))
    assert choice.backend == "onnxruntime"


def test_kernels_that_cannot_be_loaded_are_left_out(loader: Selector, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.speeds = {1: 0.4, 2: 0.2, 4: 0.9}
    choice = loader.load(compiled(machine))
    assert choice.backend == "onnxruntime"
    assert "no kernels; another backend is used" in caplog.text


def test_kernels_that_can_no_longer_be_loaded_are_probed_again(loader: Selector) -> None:
    machine = Machine()
    machine.speeds = {1: 0.4, 2: 0.2, 4: 0.9}
    assert loader.load(compiled(machine, native_1=0.1, native_2=0.1, native_4=0.1)).backend == "native"
    choice = loader.load(compiled(machine))
    assert (choice.backend, choice.reason) == ("onnxruntime", "fastest when probed")


@pytest.mark.parametrize("works", [True, False])
def test_without_a_probe_compiled_kernels_are_the_guess(loader: Selector, works: bool) -> None:
    part = compiled(Machine(), **({"native_2": 0.1} if works else {}))
    choice = replace(loader, probe=False).load(part)
    assert (choice.backend, choice.reason) == ("native" if works else "onnxruntime", "not probed")
