"""Tensor level to tensor level: importing this package registers every pass."""

from __future__ import annotations

from fluxir.passes import cleanup, conv, derive, expand, fuse, hoist, layout, lift, manager, merge, plan, simplify

__all__ = [
    "cleanup",
    "conv",
    "derive",
    "expand",
    "fuse",
    "hoist",
    "layout",
    "lift",
    "manager",
    "merge",
    "plan",
    "simplify",
]
