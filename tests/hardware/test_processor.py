"""Which instructions, brand and kind a processor has."""

from __future__ import annotations

from tests.hardware.machines import recording, replay


def test_only_flags_that_every_cpu_has() -> None:
    cpuinfo = recording("rk3588")["files"]["/proc/cpuinfo"]
    assert replay("rk3588", **{"/proc/cpuinfo": cpuinfo.replace(" asimddp", "", 1)}).isa == ("neon",)


def test_brand_of_a_board_without_device_tree() -> None:
    assert replay("pi5", **{"/proc/device-tree/model": None}).brand == "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)"


def test_a_metal_instance_is_not_virtual() -> None:
    assert not replay("graviton3", **{"/sys/class/dmi/id/product_name": "c7g.metal\n"}).virtualised
