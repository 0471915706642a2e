"""A part's PyTorch rewrite among the loader's choices, and probes that were taken on a busy machine."""

from __future__ import annotations

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
from accelerator.pipeline.tuning import BUSY, LATE_S, SOON_S
from accelerator.runtime.options import RunOptions
from accelerator.runtime.threads import torch_threads
from tests.doubles import component
from tests.doubles import part as quick_part

PROVEN = {"passed": True, "bar": {}, "bf16": {"passed": True, "bar": {"snr_db": 40.0}, "snr_db": 41.0}}


class Profile:
    """This machine's, with the instructions a test wants."""

    def __init__(self, *isa: str) -> None:
        self._real, self.isa = detect(), isa

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Clock:
    """The others' CPUs in the probes to come; the last one stays."""

    def __init__(self, *busy: float | None) -> None:
        self.busy = list(busy)

    def __call__(self) -> Any:
        return self

    def others_cpus(self) -> float | None:
        return self.busy.pop(0) if len(self.busy) > 1 else self.busy[0]


class Machine:
    """A part with a PyTorch rewrite: seconds by "onnxruntime", "onednn-fp32", "onednn-bf16", "pytorch"."""

    def __init__(self, proof: dict[str, Any] = PROVEN, **seconds: float) -> None:
        self.seconds = {"pytorch": 10.0, "onnxruntime": 5.0, "onednn_fp32": 2.0, "onednn_bf16": 1.0, **seconds}
        self.proof, self.loads, self.probes, self.broken = proof, [], 0, False  # type: ignore[var-annotated]

    def part(self, **changed: Any) -> Part:
        def load(paths: Any, options: RunOptions) -> Any:
            self.loads.append(options)
            assert list(paths) == ["quick-rewrite" if options.backend == "onednn" else "quick"]
            if options.backend == "onednn" and self.broken:
                raise SessionError("the rewrite is broken")
            return lambda: options

        def probe(call: Any) -> float:
            self.probes += 1
            options = call()
            if options is None:
                return self.seconds["pytorch"]
            if options.backend == "onnxruntime":
                return self.seconds["onnxruntime"]
            return self.seconds[f"onednn_{'fp32' if options.dtype == 'fp32' else 'bf16'}"]

        rewrite = component("quick-rewrite", prove=lambda built: self.proof)
        return quick_part(**{"original": lambda: None, "load": load, "probe": probe, "rewrite": rewrite, **changed})


@pytest.fixture
def loader(tmp_path: Path) -> Selector:
    machine = On(Profile("avx2", "amx_bf16"), replace(choose_tier(detect()), threads=2))  # type: ignore[arg-type]
    return Selector(ContentCache(tmp_path), machine, clock=Clock(0.0))  # type: ignore[arg-type]


def on(loader: Selector, **changed: Any) -> Selector:
    """The same on another machine, or for one who asks for something else."""
    return replace(loader, machine=replace(loader.machine, **changed))


def test_the_rewrite_wins_where_it_is_fastest(loader: Selector) -> None:
    machine = Machine()
    choice = loader.load(machine.part())
    assert (choice.backend, choice.precision, choice.reason) == ("onednn", "bf16", "fastest when probed")
    assert choice.options == RunOptions(threads=torch_threads(), backend="onednn", dtype="bf16")
    assert list(choice.exports) == ["quick-rewrite"]
    assert choice.probe["seconds"][f"onednn-bf16-{torch_threads()}"] == 1.0
    assert choice.probe["seconds"][f"onednn-fp32-{torch_threads()}"] == 2.0


def test_later_only_the_rewrite_is_opened(loader: Selector) -> None:
    machine = Machine()
    first = loader.load(machine.part())
    machine.loads, probes = [], machine.probes

    def never(*_: Any) -> Any:
        raise AssertionError("nobody needs this export")

    again = loader.load(machine.part(components=(replace(component("quick"), identity=never),)))
    assert (again.options, again.backend, again.precision) == (first.options, "onednn", "bf16")
    assert again.reason == "fastest when probed before"
    assert machine.loads == [first.options]
    assert machine.probes == probes


@pytest.mark.parametrize(
    ("changed", "isa", "precision"),
    [
        ({"passed": True, "bar": {}}, ("amx_bf16",), "auto"),  # nothing is known of bfloat16
        ({"passed": True, "bar": {}, "bf16": {"passed": False}}, ("amx_bf16",), "auto"),  # its proof failed
        (PROVEN, ("avx2",), "auto"),  # the processor emulates it, and nothing is known of int16
        (PROVEN, ("amx_bf16",), "fp32"),  # the user rules it out
    ],
    ids=["not proven", "rejected", "not fast", "fp32 asked for"],
)
def test_float32_where_bfloat16_is_out_of_the_question(
    loader: Selector, changed: Any, isa: tuple[str, ...], precision: str
) -> None:
    machine = Machine(proof=changed)
    here = on(loader, profile=Profile(*isa), precision=precision)
    choice = here.load(machine.part())
    assert (choice.backend, choice.precision) == ("onednn", "fp32")
    assert "bf16" not in {options.dtype for options in machine.loads}


@pytest.mark.parametrize(("isa", "precision"), [("avx2", "int16"), ("avx512_bf16", "bf16")])
def test_int16_where_bfloat16_is_not_fast(loader: Selector, isa: str, precision: str) -> None:
    machine = Machine(proof={**PROVEN, "int16": {"passed": True}})
    here = on(loader, profile=Profile(isa))
    choice = here.load(machine.part())
    assert (choice.backend, choice.precision) == ("onednn", precision)


def test_float32_when_asked_for_though_bfloat16_was_chosen_before(loader: Selector) -> None:
    machine = Machine()
    exact = on(loader, precision="fp32")
    assert [each.load(machine.part()).precision for each in (loader, exact, loader, exact)] == [
        *("bf16", "fp32", "bf16", "fp32"),
    ]
    probes = machine.probes
    assert loader.load(machine.part()).precision == "bf16"
    assert machine.probes == probes, "each is remembered"


def test_onnx_runtime_where_the_rewrite_is_slower(loader: Selector) -> None:
    machine = Machine(onednn_fp32=6.0, onednn_bf16=7.0)
    for reason in ("fastest when probed", "fastest when probed before"):
        choice = loader.load(machine.part())
        assert (choice.backend, choice.precision, choice.reason) == ("onnxruntime", "fp32", reason)
        assert list(choice.exports) == ["quick"]


def test_pytorch_where_both_are_slower(loader: Selector) -> None:
    choice = loader.load(Machine(pytorch=0.5).part())
    assert (choice.backend, choice.cause) == (None, "Slower")


def test_a_rewrite_that_cannot_be_loaded_is_left_out(loader: Selector, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.broken = True
    assert loader.load(machine.part()).backend == "onnxruntime"
    assert "the rewrite is broken; another backend is used" in caplog.text


def test_a_rewrite_that_breaks_later_is_left_out(loader: Selector) -> None:
    machine = Machine()
    assert loader.load(machine.part()).backend == "onednn"
    machine.broken = True
    assert loader.load(machine.part()).backend == "onnxruntime"


@pytest.mark.parametrize("how", ["rejected", "failing"])
def test_a_rewrite_that_cannot_be_built_is_left_out(
    loader: Selector, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def build(*_: Any) -> None:
        raise ValueError("a codec of another kind")

    broken = component("quick-rewrite", build=build)
    wrong = component("quick-rewrite", prove=lambda built: {"passed": False, "bar": {}})
    machine = Machine()
    choice = loader.load(machine.part(rewrite=wrong if how == "rejected" else broken))
    assert choice.backend == "onnxruntime"
    assert "quick cannot run on onednn" in caplog.text


def test_threads_that_are_not_pytorchs_rule_the_rewrite_out(loader: Selector) -> None:
    other = torch_threads() + 1
    assert on(loader, threads=other).load(Machine().part()).backend == "onnxruntime"
    assert on(loader, threads=torch_threads()).load(Machine().part()).backend == "onednn"


def test_unprobed_there_is_no_rewrite(loader: Selector) -> None:
    assert replace(loader, probe=False).load(Machine().part()).backend == "onnxruntime"


def test_a_damaged_rewrite_is_built_anew(loader: Selector) -> None:
    machine = Machine()
    (export,) = loader.load(machine.part()).exports.values()
    (export.path / "weights.bin").write_bytes(b"2")
    choice = replace(loader, cache=ContentCache(loader.cache.root)).load(machine.part())
    assert choice.backend == "onednn"
    (again,) = choice.exports.values()
    assert (again.path / "weights.bin").read_bytes() == b"1"


class Busy:
    """A part that was probed while others used the cores, so that the wrong way won; since then the machine is calm."""

    def __init__(self, loader: Selector, rewrite: bool) -> None:
        self.machine, self.changed = Machine(onnxruntime=0.5), {} if rewrite else {"rewrite": None}
        self.now, self.right = 1e9, "onednn" if rewrite else "original"
        clock = Clock(1.4, 0.02, 0.02)
        self._loader = replace(loader, clock=clock, now=lambda: self.now)  # type: ignore[arg-type]
        self.first = self.load()
        self.machine.seconds["onnxruntime"], self.machine.seconds["pytorch"] = 5.0, 4.0
        self.now += SOON_S

    def load(self) -> Any:
        return self._loader.load(self.machine.part(**self.changed))

    def tune(self) -> Any:
        return self._loader.tune(self.machine.part(**self.changed))


@pytest.fixture(params=[True, False], ids=["a rewrite", "no rewrite"])
def busy(loader: Selector, request: pytest.FixtureRequest) -> Busy:
    return Busy(loader, request.param)


def test_a_probe_on_a_busy_machine_says_so(busy: Busy) -> None:
    probe = busy.first.probe
    assert (busy.first.backend, probe["others_cpus"], probe["probes"]) == ("onnxruntime", 1.4, 1)
    assert probe["calm"] is False


def test_a_probe_on_a_busy_machine_is_taken_again(busy: Busy) -> None:
    """And proposes the right way. It does not change to it: the audio of a seed would not be what it was."""
    probes = busy.machine.probes
    second = busy.load()
    assert busy.machine.probes > probes
    assert (second.backend, second.options) == ("onnxruntime", busy.first.options)
    assert second.probe["proposed"]["backend"] == busy.right
    assert "kept, as when it was first probed; `accelerator tune` changes it to" in second.reason
    assert (second.probe["others_cpus"], second.probe["probes"], second.probe["calm"]) == (0.02, 2, True)


def test_the_probe_of_a_calm_machine_is_believed(busy: Busy) -> None:
    busy.load()
    probes = busy.machine.probes
    busy.now += 10 * LATE_S
    assert busy.load().backend == "onnxruntime"
    assert busy.machine.probes == probes


def test_tuning_changes_to_what_was_proposed_without_measuring(busy: Busy) -> None:
    busy.load()
    probes = busy.machine.probes
    tuned = busy.tune()
    assert (tuned.backend or "original", tuned.probe["proposed"]) == (busy.right, None)
    assert tuned.before["backend"] == "onnxruntime"
    assert (busy.load().backend or "original") == busy.right
    assert busy.machine.probes == probes


def test_a_machine_that_is_always_busy_is_measured_ever_more_rarely_but_never_given_up(loader: Selector) -> None:
    machine, now, gaps = Machine(), [1e9], []
    here = replace(loader, clock=Clock(BUSY * 2), now=lambda: now[0])  # type: ignore[arg-type]
    here.load(machine.part())
    since = now[0]
    while len(gaps) < 9:
        now[0] += SOON_S
        probes = machine.probes
        here.load(machine.part())
        if machine.probes > probes:
            gaps.append(now[0] - since)
            since = now[0]
    assert gaps[:5] == [SOON_S, 4 * SOON_S, 16 * SOON_S, 64 * SOON_S, 256 * SOON_S]
    assert gaps[-2:] == [LATE_S, LATE_S], "once a day, for good"
    here = replace(here, clock=Clock(0.0))  # type: ignore[arg-type]
    now[0] += LATE_S
    assert here.load(machine.part()).probe["calm"] is True


@pytest.mark.parametrize("others", [None, 0.0, BUSY])
def test_an_idle_machine_or_one_that_does_not_tell_is_believed(loader: Selector, others: float | None) -> None:
    machine = Machine()
    here = replace(loader, clock=Clock(others))  # type: ignore[arg-type]
    here.load(machine.part())
    probes = machine.probes
    here.load(machine.part())
    assert machine.probes == probes
