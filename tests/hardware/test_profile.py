"""Detection on machines replayed from `fixtures/hardware` (see compose.py there) and on the one at hand."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from accelerator.errors import InvalidOption
from accelerator.hardware import (
    TIERS,
    HardwareProfile,
    RecordedMachine,
    choose_tier,
    describe,
    detect,
)
from tests.hardware.machines import EXPECTED, FIXTURES, GIB, KIB, PROFILES, Expected, recording, replay


def test_every_fixture_is_expected_and_composed() -> None:
    names = {path.stem for path in FIXTURES.glob("*.json")}
    assert names == set(EXPECTED)
    composed = {"__name__": "compose", "__file__": str(FIXTURES / "compose.py")}
    exec((FIXTURES / "compose.py").read_text(encoding="utf-8"), composed)
    for machine in composed["MACHINES"]:
        assert recording(machine.__name__) == json.loads(json.dumps(machine())), f"run compose.py: {machine.__name__}"
    assert names - {machine.__name__ for machine in composed["MACHINES"]} == {"microvm"}


@pytest.mark.parametrize("name", EXPECTED)
def test_machine(name: str) -> None:
    profile, expected = replay(name), EXPECTED[name]
    tier = choose_tier(profile)
    caches = (profile.cache_l1d, profile.cache_l2, profile.cache_l3)
    seen = Expected(
        brand=profile.brand,
        arch=profile.arch,
        isa=" ".join(profile.isa),
        logical=profile.logical_cpus,
        physical=profile.physical_cores,
        performance=profile.performance_cores,
        efficiency=profile.efficiency_cores,
        usable_cpus=profile.usable_cpus,
        usable_cores=profile.usable_cores,
        quota=profile.cpu_quota,
        memory_limit=profile.memory_limit,
        caches_kib=tuple(None if cache is None else cache // KIB for cache in caches),  # type: ignore[arg-type]
        virtualised=profile.virtualised,
        tier=(tier.name, tier.precision, tier.threads),
    )
    assert seen == expected
    assert tier.reason == next(row.reason for row in TIERS if row.name == tier.name)


@pytest.mark.parametrize("name", EXPECTED)
def test_json_round_trip(name: str) -> None:
    profile = replay(name)
    again = HardwareProfile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again == profile
    assert again.fingerprint == profile.fingerprint


@pytest.mark.parametrize("wrong", [{}, {"os": "linux"}, "more"])
def test_from_dict_refuses_other_fields(wrong: Any) -> None:
    facts = replay("pi5").to_dict() | {"colour": "red"} if wrong == "more" else wrong
    with pytest.raises(InvalidOption, match="detect"):
        HardwareProfile.from_dict(facts)


def test_other_facts() -> None:
    assert replay("server_avx512").numa_nodes == 2
    assert replay("laptop_avx2").family_model == "6-142-10"
    assert replay("laptop_avx2").threads_per_core == 2
    assert replay("laptop_avx2").vendor == "GenuineIntel"
    assert replay("rk3588").family_model == "0x41:0xd0b 0x41:0xd05"
    assert replay("apple_m2").vendor == "Apple"
    assert replay("windows").family_model == "23-104-1"
    assert replay("container_cpuset").affinity == (8, 9)
    assert replay("container_v2").memory_usable == 2 * GIB
    assert replay("container_v2").memory_available == 2 * GIB
    assert replay("pi4").memory_total == 3_885_396 * KIB


# Fingerprint


def test_fingerprint_is_stable() -> None:
    profile = replay("laptop_avx2")
    assert profile.fingerprint == replay("laptop_avx2").fingerprint
    assert len(profile.fingerprint) == 16
    for same in (
        {"memory_available": 1},
        {"kernel": "9.9"},
        {"memory_total": (profile.memory_total or 0) - (8 << 20)},
        {"affinity": tuple(reversed(range(8)))},
    ):
        assert dataclasses.replace(profile, **same).fingerprint == profile.fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"brand": "Another"},
        {"isa": ("avx2",)},
        {"usable_cores": 3},
        {"usable_performance_cores": 3},
        {"usable_cpus": 4.0},
        {"cpu_quota": 1.5},
        {"cache_l2": 1},
        {"cache_l3": None},
        {"memory_limit": GIB},
        {"arch": "aarch64"},
    ],
)
def test_fingerprint_is_sensitive(change: dict[str, Any]) -> None:
    profile = replay("laptop_avx2")
    assert dataclasses.replace(profile, **change).fingerprint != profile.fingerprint


def test_fingerprints_differ_between_machines() -> None:
    assert len({replay(name).fingerprint for name in EXPECTED}) == len(EXPECTED)


# The store


class Spy(RecordedMachine):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.slow_calls = 0

    def cpu_info(self) -> dict[str, Any]:
        self.slow_calls += 1
        return super().cpu_info()


def test_only_machines_without_a_faster_source_pay_for_the_slow_call(tmp_path: Path) -> None:
    for name in EXPECTED:
        spy = Spy(recording(name))
        detect(machine=spy)
        assert spy.slow_calls == (1 if name.startswith("windows") else 0)


def test_store_spares_the_slow_call(tmp_path: Path) -> None:
    store, spy = tmp_path / "new" / "directory", Spy(recording("windows"))
    profiles = [detect(store=store, machine=spy) for _ in range(3)]
    assert spy.slow_calls == 1
    assert profiles[0] == profiles[1] == profiles[2] == replay("windows")
    assert [path.name for path in store.iterdir()] == ["hardware.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_counts": [16, 8]},
        {"platform": ["Windows", "AMD64", "11"]},
        {"files": {"/proc/sys/kernel/random/boot_id": "another\n"}},
    ],
)
def test_stale_store_is_detected_again(tmp_path: Path, change: dict[str, Any]) -> None:
    detect(store=tmp_path, machine=Spy(recording("windows")))
    info = {"cpu_info": {"brand_raw": "Newer"}}
    spy = Spy(recording("windows") | change | info)
    assert detect(store=tmp_path, machine=spy).brand == "Newer"
    assert detect(store=tmp_path, machine=spy).brand == "Newer"
    assert spy.slow_calls == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"key": 1}', b"\xff\xfe", b"[" * 100_000])
def test_corrupt_store_is_detected_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hardware.json").write_bytes(content)
    spy = Spy(recording("windows"))
    assert detect(store=tmp_path, machine=spy) == replay("windows")
    detect(store=tmp_path, machine=spy)
    assert spy.slow_calls == 1


def test_facts_of_a_wrong_kind_in_the_store(tmp_path: Path) -> None:
    detect(store=tmp_path, machine=Spy(recording("windows")))
    kept = json.loads((tmp_path / "hardware.json").read_text(encoding="utf-8"))
    kept["facts"] = {"brand_raw": 7, "flags": "avx2", "l2_cache_size": "much", "l3_cache_size": -1, "family": [1]}
    (tmp_path / "hardware.json").write_text(json.dumps(kept), encoding="utf-8")
    profile = detect(store=tmp_path, machine=Spy(recording("windows")))
    assert (profile.brand, profile.isa, profile.cache_l2, profile.cache_l3) == ("7", (), None, None)


def test_unwritable_store_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert detect(store=tmp_path / "file", machine=Spy(recording("windows"))) == replay("windows")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert detect(store=tmp_path, machine=Spy(recording("windows"))) == replay("windows")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", EXPECTED)
def test_describe(name: str) -> None:
    profile = PROFILES[name]
    rows = dict(describe(profile, choose_tier(profile)))
    assert rows["Processor"] == profile.brand
    assert rows["Fingerprint"] == profile.fingerprint
    assert all(rows.values())


def test_describe_says_what_limits() -> None:
    rows = dict(describe(PROFILES["container_v2"], choose_tier(PROFILES["container_v2"])))
    assert rows["Usable"] == "1 core (1.5 CPUs), control group quota 1.5"
    assert rows["Memory"] == "31.3 GiB, 2 GiB available, control group limit 2 GiB"
    assert rows["Tier"] == "x86-avx2: int4, 1 thread"
    rows = dict(describe(PROFILES["container_cpuset"], choose_tier(PROFILES["container_cpuset"])))
    assert rows["Usable"] == "2 cores (2 CPUs), affinity 2 of 64"
    rows = dict(describe(PROFILES["laptop_hybrid"], choose_tier(PROFILES["laptop_hybrid"])))
    assert rows["Cores"] == "12 physical, 16 logical (4 performance, 8 efficiency)"
    assert rows["Caches"] == "L1d 48 KiB, L2 1.2 MiB, L3 18 MiB"


# The machine at hand


def test_live() -> None:
    profile = detect()
    assert profile.brand
    assert profile.os == sys.platform.replace("win32", "windows")
    assert 1 <= profile.usable_performance_cores <= profile.usable_cores <= profile.physical_cores
    assert profile.physical_cores <= profile.logical_cpus
    assert profile.performance_cores + profile.efficiency_cores == profile.physical_cores
    assert 0 < profile.usable_cpus <= profile.logical_cpus
    assert (profile.memory_total or 0) > 256 << 20
    assert 0 < (profile.memory_available or 0) <= (profile.memory_total or 0)
    assert detect().fingerprint == profile.fingerprint
    assert choose_tier(profile).threads <= profile.physical_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_live_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert (detect().usable_cores, detect().affinity) == (1, (min(before),))
    finally:
        os.sched_setaffinity(0, before)
