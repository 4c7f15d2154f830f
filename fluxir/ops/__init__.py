"""What a program can say: importing this package declares every op in the registry."""

from __future__ import annotations

from fluxir.ops import control, loop, math

__all__ = ["control", "loop", "math"]
