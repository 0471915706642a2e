"""Detection and tiers, on machines replayed from `fixtures/hardware` (see compose.py there) and on the one at hand."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accelerator.hardware as hardware
from accelerator.errors import InvalidOption
from accelerator.hardware import (
    TIERS,
    HardwareProfile,
    LocalMachine,
    Platform,
    RecordedMachine,
    Recorder,
    choose_tier,
    describe,
    detect,
)
from accelerator.hardware.parse import cpu_list, size
from tests import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "hardware"
GIB = 1 << 30
KIB = 1 << 10


def recording(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def replay(name: str, **changed: str | None) -> HardwareProfile:
    """`changed` maps a path to new contents; None removes it."""
    data = recording(name)
    for path, text in changed.items():
        data["files"].pop(path, None)
        if text is not None:
            data["files"][path] = text
    return detect(machine=RecordedMachine(data))


@dataclasses.dataclass(frozen=True)
class Expected:
    brand: str
    arch: str
    isa: str
    logical: int
    physical: int
    performance: int
    efficiency: int
    usable_cpus: float
    usable_cores: int
    quota: float | None
    memory_limit: int | None
    caches_kib: tuple[int | None, int | None, int | None]
    virtualised: bool
    tier: tuple[str, str, int]  # name, precision, threads


MICROVM_ISA = "avx2 fma f16c avx512f avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16"
AVX2 = "avx2 fma f16c"
RYZEN = "AMD Ryzen 7 5800X 8-Core Processor"
# fmt: off
EXPECTED = {
    "laptop_avx2": Expected("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", "x86_64", AVX2,
        8, 4, 4, 0, 8.0, 4, None, None, (32, 256, 6144), False, ("x86-avx2", "int4", 4)),
    "laptop_hybrid": Expected("12th Gen Intel(R) Core(TM) i7-1260P", "x86_64", AVX2 + " avx_vnni",
        16, 12, 4, 8, 16.0, 12, None, None, (48, 1280, 18432), False, ("x86-vnni", "int4", 4)),
    "server_avx512": Expected("Intel(R) Xeon(R) Silver 4309Y CPU @ 2.80GHz", "x86_64", AVX2 + " avx512f avx512_vnni",
        32, 16, 16, 0, 32.0, 16, None, None, (48, 1280, 12288), False, ("x86-vnni", "int4", 8)),
    "vm_epyc": Expected("AMD EPYC 7B13", "x86_64", AVX2,
        2, 1, 1, 0, 2.0, 1, None, None, (32, 512, 32768), True, ("x86-avx2", "int4", 1)),
    "microvm": Expected("Intel(R) Xeon(R) Processor", "x86_64", MICROVM_ISA,
        2, 2, 2, 0, 2.0, 2, None, None, (48, 2048, 491520), True, ("x86-vnni", "int4", 2)),
    "apple_m2": Expected("Apple M2", "aarch64", "neon asimddp i8mm bf16",
        8, 8, 4, 4, 8.0, 8, None, None, (128, 16384, None), False, ("arm-i8mm", "int4", 4)),
    "graviton3": Expected("Neoverse-V1", "aarch64", "neon asimddp i8mm bf16 sve",
        4, 4, 4, 0, 4.0, 4, None, None, (64, 1024, 32768), True, ("arm-i8mm", "int4", 4)),
    "pi4": Expected("Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)", "aarch64", "neon",
        4, 4, 4, 0, 4.0, 4, None, None, (None, None, None), False, ("arm-neon", "int4", 4)),
    "pi5": Expected("Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)", "aarch64", "neon asimddp",
        4, 4, 4, 0, 4.0, 4, None, None, (64, 512, 2048), False, ("arm-dotprod", "int4", 4)),
    "rk3588": Expected("Cortex-A76 + Cortex-A55", "aarch64", "neon asimddp",
        8, 8, 4, 4, 8.0, 8, None, None, (64, 512, 3072), False, ("arm-dotprod", "int4", 4)),
    "container_v2": Expected(RYZEN, "x86_64", AVX2,
        16, 8, 8, 0, 1.5, 1, 1.5, 2 * GIB, (32, 512, 32768), False, ("x86-avx2", "int4", 1)),
    "container_v1": Expected(RYZEN, "x86_64", AVX2,
        16, 8, 8, 0, 1.5, 1, 1.5, GIB, (32, 512, 32768), False, ("x86-avx2", "int4", 1)),
    "nested_v2": Expected(RYZEN, "x86_64", AVX2,
        16, 8, 8, 0, 2.5, 2, 2.5, 6 * GIB, (32, 512, 32768), False, ("x86-avx2", "int4", 2)),
    "container_cpuset": Expected("Neoverse-N1", "aarch64", "neon asimddp",
        64, 64, 64, 0, 2.0, 2, None, None, (64, 1024, None), False, ("arm-dotprod", "int4", 2)),
    "windows": Expected("AMD Ryzen 5 5500U with Radeon Graphics", "x86_64", AVX2,
        12, 6, 6, 0, 12.0, 6, None, None, (None, 3072, 8192), False, ("x86-avx2", "int4", 6)),
    "windows_hybrid": Expected("12th Gen Intel(R) Core(TM) i7-1260P", "x86_64", AVX2,
        16, 12, 4, 8, 16.0, 12, None, None, (None, None, 18432), True, ("x86-avx2", "int4", 4)),
    "old_x86": Expected("Intel(R) Core(TM) i5-3320M CPU @ 2.60GHz", "x86_64", "f16c",
        4, 2, 2, 0, 4.0, 2, None, None, (None, None, None), False, ("generic", "fp32", 2)),
}
# fmt: on


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


# Control groups

V2 = "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
CONTAINER = "30 23 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "quota"),
    [
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "max 100000"}, None),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "300000 100000", "a/cpu.max": "1000000 100000"}, 3.0),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "20000 10000"}, 2.0),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "200000"}, 2.0),  # the period may be left out: 100 ms
        ("0::/a/b\n", V2, {"c/cpu.max": "100000 100000"}, None),  # another group's
        ("0::/\n", CONTAINER, {"cpu.max": "150000 100000"}, 1.5),
        # Moved out of the namespace: what lies beyond the mount is not ours to read.
        ("0::/../x\n", CONTAINER, {"cpu.max": "150000 100000", "../x/cpu.max": "50000 100000"}, 1.5),
        ("0::/host/path\n", V2.replace(" / /sys", " /inner /sys"), {"cpu.max": "150000 100000"}, 1.5),
        ("0::/docker/x\n", V2.replace(" / /sys", " /docker/x /sys"), {"cpu.max": "250000 100000"}, 2.5),
        (
            "0::/a\n",
            V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/a\\040b"),
            {"a b/a/cpu.max": "7000 1000"},
            7.0,
        ),
        ("0::/a\n", "", {"a/cpu.max": "100000 100000"}, 1.0),  # mountinfo unreadable
        ("", V2, {"cpu.max": "100000 100000"}, None),
        ("0::/a\n", V2, {"a/cpu.max": "0 100000"}, None),
        ("0::/a\n", V2, {"a/cpu.max": "100000 0"}, None),
        ("0::/a\n", V2, {"a/cpu.max": ""}, None),
        # Version 1 beside an empty version 2, as systemd's "hybrid" layout has it.
        (
            "3:cpu,cpuacct:/a/b\n0::/a/b\n",
            "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
            "32 30 0:28 / /sys/fs/cgroup/unified rw shared:6 - cgroup2 cgroup2 rw\n",
            {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_quota_us": "125000"},
            1.25,
        ),
        # "cpu" is not "cpuset" and not "cpuacct".
        (
            "3:cpuset:/a\n2:cpuacct:/a\n",
            "31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n",
            {"cpuset/a/cpu.cfs_quota_us": "100000"},
            None,
        ),
    ],
)
def test_quota(cgroup: str, mountinfo: str, files: dict[str, str], quota: float | None) -> None:
    paths = {f"/sys/fs/cgroup/{name}": text + "\n" for name, text in files.items()}
    profile = replay("laptop_avx2", **{"/proc/self/cgroup": cgroup, "/proc/self/mountinfo": mountinfo}, **paths)
    assert profile.cpu_quota == quota
    assert profile.usable_cpus == (8.0 if quota is None else quota)
    assert profile.usable_cores == (4 if quota is None else max(1, min(4, int(quota))))


def test_a_quota_above_the_machine_changes_nothing() -> None:
    profile = replay("container_v2", **{"/sys/fs/cgroup/cpu.max": "6400000 100000"})
    assert (profile.cpu_quota, profile.usable_cpus, profile.usable_cores) == (64.0, 16.0, 8)


def test_a_memory_limit_above_the_machine_is_none() -> None:
    assert replay("container_v2", **{"/sys/fs/cgroup/memory.max": str(1 << 50)}).memory_limit is None


def test_version_1_without_a_limit_on_a_machine_of_unknown_size() -> None:
    none = {"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "/proc/meminfo": None}
    assert replay("container_v1", **none).memory_limit is None


# Topology


def test_only_flags_that_every_cpu_has() -> None:
    cpuinfo = recording("rk3588")["files"]["/proc/cpuinfo"]
    assert replay("rk3588", **{"/proc/cpuinfo": cpuinfo.replace(" asimddp", "", 1)}).isa == ("neon",)


def with_affinity(name: str, cpus: list[int]) -> HardwareProfile:
    return detect(machine=RecordedMachine(recording(name) | {"affinity": cpus}))


@pytest.mark.parametrize(
    ("name", "cpus", "cores", "performance"),
    [
        ("laptop_avx2", [0, 4], 1, 1),  # both threads of one core
        ("laptop_avx2", [0, 1], 2, 2),
        ("laptop_hybrid", [0, 1, 8, 9, 10], 4, 1),
        ("laptop_hybrid", [8, 9, 10], 3, 3),  # only efficiency cores: they are what there is
        ("rk3588", [3, 4, 5], 3, 2),
        ("windows_hybrid", [6, 7, 8], 2, 1),
        ("laptop_avx2", [90, 91], 4, 4),  # CPUs that are not there: believed not at all
        ("laptop_avx2", [], 4, 4),
    ],
)
def test_affinity(name: str, cpus: list[int], cores: int, performance: int) -> None:
    profile = with_affinity(name, cpus)
    assert (profile.usable_cores, profile.usable_performance_cores) == (cores, performance)
    assert choose_tier(profile).threads == performance


def test_caches_are_those_of_a_usable_core() -> None:
    assert with_affinity("laptop_hybrid", [0]).cache_l2 == 1280 * KIB
    assert with_affinity("laptop_hybrid", [9]).cache_l2 == 2048 * KIB


def without(name: str, *fragments: str) -> HardwareProfile:
    data = recording(name)
    kept = {path: text for path, text in data["files"].items() if not any(part in path for part in fragments)}
    return detect(machine=RecordedMachine(data | {"files": kept}))


def test_missing_topology_files() -> None:
    assert without("server_avx512", "/topology/").physical_cores == 16  # from /proc/cpuinfo, which counts per socket
    assert without("vm_epyc", "/topology/").physical_cores == 1
    assert without("graviton3", "/topology/").physical_cores == 4  # /proc/cpuinfo knows no cores there
    assert without("laptop_avx2", "core_cpus_list").physical_cores == 4
    assert without("laptop_avx2", "/sys/").physical_cores == 4
    assert without("laptop_avx2", "/proc/cpuinfo").physical_cores == 4


def test_hybrid_without_performance_counters() -> None:
    frequency = {
        f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": f"{4700000 if cpu < 8 else 3400000}\n"
        for cpu in range(16)
    }
    gone = {"/sys/devices/cpu_core/cpus": None, "/sys/devices/cpu_atom/cpus": None}
    assert replay("laptop_hybrid", **gone).efficiency_cores == 0  # cannot tell
    profile = replay("laptop_hybrid", **gone, **frequency)
    assert (profile.performance_cores, profile.efficiency_cores) == (4, 8)


def test_brand_of_a_board_without_device_tree() -> None:
    assert replay("pi5", **{"/proc/device-tree/model": None}).brand == "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)"


def test_a_metal_instance_is_not_virtual() -> None:
    assert not replay("graviton3", **{"/sys/class/dmi/id/product_name": "c7g.metal\n"}).virtualised


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


# Tiers


def test_small_models_stay_in_fp32() -> None:
    tier = choose_tier(replay("laptop_avx2"), model_bytes_fp32=4 << 20)
    assert (tier.name, tier.precision) == ("in-cache", "fp32")
    assert choose_tier(replay("laptop_avx2"), model_bytes_fp32=256 << 20).name == "x86-avx2"
    # A virtual machine sees its host's 480 MiB, of which its two cores have a small share.
    assert choose_tier(replay("microvm"), model_bytes_fp32=64 << 20).name == "x86-vnni"


@pytest.mark.parametrize("name", ["laptop_avx2", "microvm"])
def test_models_that_fit_the_cache_in_eight_bits_keep_eight(name: str) -> None:
    tier = choose_tier(replay(name), model_bytes_fp32=16 << 20)
    assert (tier.name, tier.precision) == ("int8-in-cache", "int8")
    without = dataclasses.replace(replay(name), cache_l3=None, cache_l2=1 << 20)
    assert choose_tier(without, model_bytes_fp32=16 << 20).precision == "int4"


def test_without_kernels_for_eight_bits_there_is_no_int8() -> None:
    profile = dataclasses.replace(replay("laptop_avx2"), isa=())
    assert choose_tier(profile, model_bytes_fp32=16 << 20).name == "generic"


def test_low_memory_forces_int4() -> None:
    profile = replay("old_x86")
    assert choose_tier(profile, model_bytes_fp32=3 * GIB).name == "generic"
    tier = choose_tier(profile, model_bytes_fp32=4 * GIB)
    assert (tier.name, tier.precision) == ("low-memory", "int4")
    limited = dataclasses.replace(profile, memory_limit=2 * GIB)
    assert choose_tier(limited).name == "low-memory"
    unknown = dataclasses.replace(profile, memory_total=None)
    assert choose_tier(unknown).name == "generic"


def test_avx512_without_vnni_and_unknown_architectures() -> None:
    profile = replay("server_avx512")
    assert choose_tier(dataclasses.replace(profile, isa=("avx2", "avx512f"))).name == "x86-avx512"
    assert choose_tier(dataclasses.replace(profile, arch="riscv64", isa=())).name == "generic"


@settings(max_examples=200, deadline=None)
@given(
    cores=st.integers(1, 512),
    memory=st.one_of(st.none(), st.integers(0, 1 << 45)),
    model=st.one_of(st.none(), st.integers(0, 1 << 40)),
    name=st.sampled_from(sorted(EXPECTED)),
)
def test_tiers_stay_within_bounds(cores: int, memory: int | None, model: int | None, name: str) -> None:
    profile = dataclasses.replace(
        PROFILES[name], usable_cores=cores, usable_performance_cores=cores, memory_total=memory
    )
    tier = choose_tier(profile, model_bytes_fp32=model)
    assert 1 <= tier.threads <= min(cores, 8)
    assert tier.precision in ("fp32", "int8", "int4")


PROFILES = {name: replay(name) for name in EXPECTED}


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


def test_import_loads_neither_psutil_nor_cpuinfo() -> None:
    code = "import sys, accelerator.hardware; print({'psutil', 'cpuinfo', 'torch', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names() -> None:
    assert all(hasattr(hardware, name) for name in hardware.__all__)


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


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("", set()),
        (None, set()),
        ("5", {5}),
        ("3-1", set()),
        ("0-70000", set()),
        ("x,2", {2}),
    ],
)
def test_cpu_list(text: str | None, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "value"), [("48K\n", 49152), ("32 MB", 32 << 20), ("16 kB", 16384), ("7", 7), ("0K", None), ("K", None)]
)
def test_size(text: str, value: int | None) -> None:
    assert size(text) == value
