"""A GPU on the CPU: runs PTX text, checks every access, counts what a GPU would do."""

from __future__ import annotations

from .counters import Counters
from .device import Device, DeviceArray, Kernel, Module
from .findings import Finding, SanitizerError
from .launch import Report
from .tensor_maps import tensor_map, tensor_map_im2col

__all__ = [
    "Counters",
    "Device",
    "DeviceArray",
    "Finding",
    "Kernel",
    "Module",
    "Report",
    "SanitizerError",
    "tensor_map",
    "tensor_map_im2col",
]
