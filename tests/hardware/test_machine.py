"""Sources of facts, recorded and replayed; nothing that a machine says may raise."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerator.hardware import (
    HardwareProfile,
    LocalMachine,
    Platform,
    RecordedMachine,
    Recorder,
    choose_tier,
    describe,
    detect,
)
from tests.hardware.machines import EXPECTED, V2, recording


def test_live_recording_replays_itself() -> None:
    recorder = Recorder(LocalMachine())
    live = detect(machine=recorder)
    data = json.loads(json.dumps(recorder.data))
    assert detect(machine=RecordedMachine(data)) == live
    assert not any("boot_id" in path for path in data["files"])


def test_the_real_sources_answer() -> None:
    machine = LocalMachine()
    memory = machine.virtual_memory()
    assert memory is not None
    assert memory[0] >= memory[1] > 0
    assert (machine.cpu_counts()[0] or 0) >= 1
    assert machine.read_text("/no/such/file") is None
    assert machine.read_text("/\0") is None
    assert machine.listdir("/no/such/directory") == []


def test_root_is_put_before_every_path(tmp_path: Path) -> None:
    for path, text in recording("server_avx512")["files"].items():
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    profile = detect(tmp_path)
    assert (profile.brand, profile.physical_cores) == (EXPECTED["server_avx512"].brand, 16)


# Nothing that a machine says may raise

garbage = st.one_of(
    st.text(max_size=60),
    st.from_regex(r"[0-9,:/\- .maxK]{0,40}", fullmatch=True),
    st.sampled_from(
        [
            "0-99999999999",
            "9" * 5000,
            "-1",
            "nan 1e999",
            "0 0",
            "1 9" + "0" * 18,
            "processor: 0\n\nprocessor: x",
            "0::/\n",
        ]
    ),
    st.sampled_from([V2, "a - cgroup2", "1 2 3 / / rw - cgroup x", "4:cpu:/..", "CPU implementer: 0x41\nCPU part: zz"]),
)
anything = st.one_of(garbage, st.none(), st.integers(), st.floats(), st.lists(st.text(max_size=3), max_size=3))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(EXPECTED)), data=st.data())
def test_garbage_never_raises(name: str, data: st.DataObject) -> None:
    recorded = recording(name)
    for kind in ("files", "sysctl"):
        known = sorted(recorded.get(kind, {}))
        if known:
            damaged = data.draw(st.dictionaries(st.sampled_from(known), st.one_of(st.none(), garbage), max_size=12))
            recorded[kind].update(damaged)
            recorded[kind] = {key: text for key, text in recorded[kind].items() if text is not None}
    recorded["affinity"] = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 1 << 20), max_size=4)))
    recorded["cpu_info"] = data.draw(st.dictionaries(st.sampled_from(CPU_INFO_KEYS), anything))
    recorded["cpu_counts"] = data.draw(st.tuples(*[st.one_of(st.none(), st.integers(-2, 1 << 20))] * 2))
    check(detect(machine=RecordedMachine(recorded)))


CPU_INFO_KEYS = ["brand_raw", "vendor_id_raw", "family", "model", "flags", "l2_cache_size", "l3_cache_size"]


@settings(max_examples=100, deadline=None)
@given(garbage, st.sampled_from(["Linux", "Darwin", "Windows", ""]), st.booleans())
def test_nothing_but_garbage_never_raises(text: str, system: str, empty: bool) -> None:
    class Nonsense(RecordedMachine):
        def read_text(self, path: str) -> str | None:
            return None if empty else text

        def listdir(self, path: str) -> list[str]:
            return [] if empty else ["index0", text]

        def sysctl(self, name: str) -> str | None:
            return None if empty else text

        def platform(self) -> Platform:
            return Platform(system, "", "")

    check(detect(machine=Nonsense({})))


def check(profile: HardwareProfile) -> None:
    tier = choose_tier(profile)
    assert 1 <= tier.threads <= profile.usable_performance_cores <= profile.usable_cores <= profile.physical_cores
    assert profile.physical_cores == profile.performance_cores + profile.efficiency_cores
    assert 0 < profile.usable_cpus <= profile.logical_cpus
    assert HardwareProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    assert describe(profile, tier)
    assert len(profile.fingerprint) == 16
