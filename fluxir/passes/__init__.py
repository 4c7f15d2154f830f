"""Tensor level to tensor level: importing this package registers every pass."""

from __future__ import annotations

from fluxir.passes import (
    attention,
    cleanup,
    conv,
    derive,
    expand,
    find_attention,
    fuse,
    hoist,
    iterate,
    layout,
    lift,
    manager,
    merge,
    nest,
    plan,
    simplify,
)

__all__ = [
    "attention",
    "cleanup",
    "conv",
    "derive",
    "expand",
    "find_attention",
    "fuse",
    "hoist",
    "iterate",
    "layout",
    "lift",
    "manager",
    "merge",
    "nest",
    "plan",
    "simplify",
]
