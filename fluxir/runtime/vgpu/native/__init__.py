"""The second executor: PTX to LLVM for the CPU, every register a vector of 32 lanes. Same results and counts as `wave`, for
programs without findings and races; what a launch with findings reports is what `wave` says of it.

Where atomic operations of several warps or blocks meet, their order is another one than in `wave`: sums of floats may differ by
rounding, and so may what each of them finds.
"""

from __future__ import annotations

from .run import choose, run_native

__all__ = ["choose", "run_native"]
