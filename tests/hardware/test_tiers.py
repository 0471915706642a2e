"""The tier of a machine and a model: precision and threads."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.hardware import (
    choose_tier,
)
from tests.hardware.machines import EXPECTED, GIB, PROFILES, replay


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
