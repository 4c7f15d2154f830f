"""GPU kernels written in Python: `fx.kernel`, launching, and looking inside.

`kernel.py` owns the public object, `build.py` the way from a function to machine code for a device, `devices.py` running it on
a CPU, a virtual GPU and CUDA, `arguments.py` what a launch is given, `reports.py` what kernels print and assert, `reflect.py`
registers, occupancy and texts.
"""

from __future__ import annotations

from fluxir.kernels.kernel import Kernel, kernel

__all__ = ["Kernel", "kernel"]
