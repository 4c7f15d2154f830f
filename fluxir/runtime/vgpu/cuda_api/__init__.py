"""The CUDA driver's interface in front of virtual GPUs: programs written for CUDA's driver run without a GPU.

    gcc builds `libcuda.so.1` (library.py)  ->  callbacks  ->  `VirtualCuda.call` (state.py)  ->  entry points by their C names

`devices`, `streams`, `transfers`, `modules` and `launches` hold the entry points; `order` says what runs when, `memory` what
is where. PyCUDA runs on it unchanged: `install("sm_80")` before it is imported, or
`python -m fluxir.runtime.vgpu.cuda_api SCRIPT`. See docs/design/virtual-driver.md.
"""

from __future__ import annotations

from .library import Library, entry_points, install
from .results import CudaError, Result
from .state import Context, VirtualCuda

__all__ = ["Context", "CudaError", "Library", "Result", "VirtualCuda", "entry_points", "install"]
