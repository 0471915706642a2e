"""What the machine offers this process, and the first guess at how to use it.

    profile = detect()
    tier = choose_tier(profile)

Importing this loads neither psutil nor py-cpuinfo.
"""

from accelerator.hardware.machine import LocalMachine, Machine, Platform, RecordedMachine, Recorder
from accelerator.hardware.processor import ISA_FLAGS
from accelerator.hardware.profile import HardwareProfile, detect
from accelerator.hardware.tiers import TIERS, Precision, Tier, TierRule, choose_tier, describe

__all__ = [
    "ISA_FLAGS",
    "TIERS",
    "HardwareProfile",
    "LocalMachine",
    "Machine",
    "Platform",
    "Precision",
    "RecordedMachine",
    "Recorder",
    "Tier",
    "TierRule",
    "choose_tier",
    "describe",
    "detect",
]
