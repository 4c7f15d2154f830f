"""Tensor level to tensor level: importing this package registers every pass."""

from __future__ import annotations

from fluxir.passes import (
    attention,
    cleanup,
    conv,
    derive,
    expand,
    extents,
    find_attention,
    fuse,
    hoist,
    iterate,
    layout,
    lift,
    manager,
    merge,
    narrow,
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
    "extents",
    "find_attention",
    "fuse",
    "hoist",
    "iterate",
    "layout",
    "lift",
    "manager",
    "merge",
    "narrow",
    "nest",
    "plan",
    "simplify",
]
