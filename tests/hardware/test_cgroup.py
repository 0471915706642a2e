"""Limits of control groups, of both versions."""

from __future__ import annotations

import pytest

from tests.hardware.machines import V2, replay

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
