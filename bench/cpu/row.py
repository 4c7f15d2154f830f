"""A row of the CPU benchmark: one piece of work, how each library says it, and what it costs at least.

Rows are declared in `bench/cpu/rows/`, one file a class, and found in `ROWS`. The function of a library takes the arrays of
`inputs` as that library has them (numpy arrays, torch tensors, jax arrays, names in an ONNX graph); arguments may be
dictionaries of arrays. The last `weights` arguments are weights: constants of the program wherever a library has such a
notion (ours, ONNX initializers, torch.compile's freezing), as in a model that is deployed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Function = Callable[..., Any]


@dataclass(frozen=True)
class Goal:
    """What ours shall reach: a share of the limit, a speed relative to the best peer, or a time in seconds."""

    share: float = 0.0
    ratio: float = 0.95
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.share:.0%}"] if self.share else []
        parts += [f"{self.ratio:g}x"] if self.ratio not in (0, 0.95) else []
        parts += [f"{self.seconds * 1e6:g} us"] if self.seconds else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Row:
    """`flops`, `reads` and `writes` (bytes) are what the work needs at least: a multiply-add is two, every input is read
    and every result written once; a row of neither has no limit. `functions` has the keys ours, numpy, torch, jax, onnx and
    numba; that of numba is called once and returns the compiled function. `workers` holds what makes the calls itself:
    library -> (row, library, threads) -> Call. Results may differ by `tolerance` of the largest element, but for a share
    `outliers` of the elements: where a result is a number of steps, one rounding may make another."""

    name: str
    kind: str
    inputs: Callable[[], tuple[Any, ...]]
    functions: dict[str, Function] = field(default_factory=dict)
    workers: dict[str, Function] = field(default_factory=dict)
    weights: int = 0
    flops: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    goal: Goal = Goal()
    tolerance: float = 1e-4
    outliers: float = 0.0
    held_out: bool = False


ROWS: dict[str, Row] = {}


def row(name: str, kind: str, inputs: Callable[[], tuple[Any, ...]], *, workers: dict[str, Function] | None = None,
        share: float = 0.0, ratio: float = 0.95, seconds: float = 0.0, moved: tuple[float, float] = (0, 0),
        weights: int = 0, flops: float = 0.0, tolerance: float = 1e-4, outliers: float = 0.0, held_out: bool = False,
        **functions: Function) -> None:  # fmt: skip
    """Declare a row: `functions` by library; `moved` is (bytes read, bytes written); `share`, `ratio`, `seconds` its goal."""
    if name in ROWS:
        raise ValueError(f"the row {name!r} is declared twice")
    ROWS[name] = Row(
        name=name, kind=kind, inputs=inputs, functions=functions, workers=workers or {}, weights=weights, flops=flops,
        reads=moved[0], writes=moved[1], goal=Goal(share, ratio, seconds), tolerance=tolerance, outliers=outliers,
        held_out=held_out,
    )  # fmt: skip


def load() -> dict[str, Row]:
    """All rows, those of the table before the held-out ones."""
    import bench.cpu.rows as package

    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")
    return dict(sorted(ROWS.items(), key=lambda e: (e[1].held_out, package.ORDER.index(e[1].kind))))


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0, seed: int = 0, dtype: Any = np.float32) -> Any:
    """Reproducible normal numbers."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape, np.float32) * scale + shift).astype(dtype)


def tree_map(f: Callable[[Any], Any], x: Any) -> Any:
    """`f` of each array of nested dictionaries, lists and tuples."""
    if isinstance(x, dict):
        return {k: tree_map(f, v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(tree_map(f, v) for v in x)
    return f(x)


def leaves(x: Any) -> list[Any]:
    """The arrays of a tree, dictionaries in the order of their keys' names."""
    if isinstance(x, dict):
        return [a for k in sorted(x) for a in leaves(x[k])]
    if isinstance(x, list | tuple):
        return [a for v in x for a in leaves(v)]
    return [x]
