"""What a network costs: parameters, operations by three conventions, bytes moved, memory, and the time these allow."""

from .conventions import CONVENTIONS, count_macs
from .memory import count_activation_bytes, peak_memory_bytes
from .profile import Cost, Layer, Profile, measure_cost, profile
from .roofline import Device, measure_device

__all__ = [
    "CONVENTIONS",
    "Cost",
    "Device",
    "Layer",
    "Profile",
    "count_activation_bytes",
    "count_macs",
    "measure_cost",
    "measure_device",
    "peak_memory_bytes",
    "profile",
]
