"""The route that the next launch on the CPU with arguments like these takes (see `runtime/route.py`).

The program behind it takes the kernel's arrays and scalars and then the grid. An array that the kernel writes to must be
contiguous and share no memory with another; others are looked at in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fluxir.frontend.kernel.signature import Param
from fluxir.ir.types import MemType
from fluxir.kernels.build import Build, cpu_target
from fluxir.runtime import route

__all__ = ["remember"]


def remember(
    launcher: route.Routed,
    build: Build,
    params: Sequence[Param],
    arguments: tuple[Mapping[str, Any], int],
    leaves: Sequence[Any],
    grid: Sequence[int],
    block: tuple[int, ...],
    shared: int,
) -> None:
    """`arguments`: by parameter in the kernel's order, and how many of them were given by position."""
    if build.reported[1]:
        return  # what it prints is looked at after each launch
    program = build.program(cpu_target(), block, shared, ())
    values, positional = arguments
    count = iter(range(len(leaves)))
    guards = {n: _guard(p, x, count) for p, (n, x) in zip(params, values.items(), strict=True)}
    names = list(guards)
    sole = [i for i in build.written if isinstance(build.func.args[i].type, MemType)]
    made = program.route(
        [guards[n] for n in names[:positional]],
        {n: guards[n] for n in names[positional:]},
        leaves,
        route.same(None),
        fixed=[np.asarray(n, np.int64) for n in grid],
        sole=sole,
    )
    if made is not None:
        launcher.remember(made)


def _guard(p: Param, x: Any, count: Iterator[int]) -> route.Node:
    match p.kind:
        case "array" | "scalar":
            return route.leaf(next(count))
        case "struct" if not isinstance(x, tuple):
            names = [q.name.rpartition(".")[2] for q in p.parts]
            return route.parts(
                type(x), {n: _guard(q, getattr(x, n), count) for n, q in zip(names, p.parts, strict=True)}
            )
        case "struct" | "tuple":
            return route.items(type(x), [_guard(q, y, count) for q, y in zip(p.parts, x, strict=True)])
    try:
        hash(x)
    except TypeError:
        return route.same(x)
    return route.equal(x)
