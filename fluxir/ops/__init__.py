"""What a program can say: importing this package declares every op in the registry."""

from __future__ import annotations

from fluxir.ops import compare, control, loop, math

__all__ = ["compare", "control", "loop", "math"]
