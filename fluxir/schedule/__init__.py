"""From fused groups to loops: `lower(module, target)` gives host functions and kernels (see `lower.py`)."""

from __future__ import annotations

from fluxir.schedule.lower import lower

__all__ = ["lower"]
