"""Random valid tensor programs, for comparing every way of running them. Seeded; symbolic and zero sizes included.

`random_program(seed)` returns a verified module and inputs for it. Values stay tame (bounded activations after growth),
so that a difference between two ways of running means a defect, not overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import fluxir.ops  # noqa: F401  (declares the ops)
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Module, Value
from fluxir.ir.dims import Dim, Facts, assuming, evaluate, symbol
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import BOOL, INDEX, TensorType
from fluxir.ir.verify import verify_module

MAX_ELEMENTS = 5000  # of a value that later ops may use: concat and broadcast would double it again and again
UNARY = "neg abs exp tanh sin cos sqrt floor ceil round sign sigmoid erf log1p relu silu gelu".split()
BINARY = "add sub mul minimum maximum".split()
COMPARE = "lt le gt ge eq ne".split()


@dataclass
class Program:
    """A module with inputs: `arrays` in argument order, `sizes` of its symbols."""

    module: Module
    arrays: list[np.ndarray[Any, Any]]
    sizes: dict[str, int]


class _Maker:
    def __init__(self, seed: int, control: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.control = control
        self.facts = Facts({"B": (0, 64)}, {})
        self.sizes = {"B": int(self.rng.choice([0, 1, 3, 5]))}
        self.dims: list[Dim] = [1, 2, 3, 4, 7, symbol("B")]
        if self.rng.random() < 0.15:
            self.dims.append(0)

    def shape(self, max_rank: int = 3) -> tuple[Dim, ...]:
        rank = int(self.rng.integers(0, max_rank + 1))
        return tuple(self.dims[int(self.rng.integers(len(self.dims)))] for _ in range(rank))

    def pick(self, xs: list[Any]) -> Any:
        return xs[int(self.rng.integers(len(xs)))]

    def floats(self, pool: list[Value], dtype: str = "f32") -> list[Value]:
        return [v for v in pool if v.type.dtype.name == dtype]

    # each maker returns a new value or None if it does not apply
    def step(self, b: Builder, pool: list[Value], depth: int = 0) -> Value | None:
        kind = self.pick(self.kinds + (["if", "scan", "while"] if self.control and depth < 2 else []))
        x = self.pick(self.floats(pool))
        shape = x.type.shape
        rank = len(shape)
        match kind:
            case "unary":
                name = self.pick(UNARY)
                if name in ("sqrt", "log1p"):
                    x = b.abs(x)
                if name == "exp":
                    x = b.tanh(x)
                return b.emit(name, x)[0]
            case "binary":
                y = self.partner(b, pool, x)
                return b.emit(self.pick(BINARY), x, y)[0]
            case "select":
                y = self.partner(b, pool, x)
                return b.select(b.emit(self.pick(COMPARE), x, y)[0], x, y)
            case "divide":
                y = self.partner(b, pool, x)
                return b.div(x, b.add(b.abs(y), 0.5))
            case "transpose" if rank > 1:
                return b.transpose(x, perm=tuple(int(i) for i in self.rng.permutation(rank)))
            case "reshape" if rank:
                return b.reshape(
                    x,
                    shape=self.pick(
                        [(x.type.size,), (1, *shape), (*shape, 1), (shape[0], x.type.with_shape(shape[1:]).size)]
                    ),
                )
            case "broadcast":
                return b.broadcast(x, shape=(self.pick([2, 3, symbol("B")]), *shape))
            case "slice" if rank:
                limit = list(shape)
                start: list[Dim] = [0] * rank
                axis = int(self.rng.integers(rank))
                if isinstance(shape[axis], int) and shape[axis] > 1:
                    start[axis] = 1
                    stride = [1] * rank
                    stride[axis] = int(self.rng.integers(1, 3))
                    return b.slice(x, start=tuple(start), limit=tuple(limit), stride=tuple(stride))
                return None
            case "pad" if rank:
                return b.pad(x, b.const(0.5, dtype="f32"), low=(1,) + (0,) * (rank - 1), high=(0,) * (rank - 1) + (2,))
            case "concat" if rank:
                y = b.neg(x)
                return b.concat(x, y, axis=int(self.rng.integers(rank)))
            case "reverse" if rank:
                return b.reverse(x, axes=(int(self.rng.integers(rank)),))
            case "reduce" if rank:
                axes = tuple(sorted(int(i) for i in self.rng.permutation(rank)[: int(self.rng.integers(1, rank + 1))]))
                name = self.pick(["sum", "mean", "max", "min"])
                if name != "sum" and any(shape[a] == 0 or not isinstance(shape[a], int) for a in axes):
                    name = "sum"
                return b.emit(name, x, axes=axes, keepdims=bool(self.rng.random() < 0.5))[0]
            case "softmax" if rank and isinstance(shape[-1], int) and shape[-1]:
                return b.emit(self.pick(["softmax", "logsoftmax"]), x, axis=rank - 1)[0]
            case "dot" if rank == 2:
                w = b.const(self.rng.normal(size=(3, 5)).astype("f")) if shape[1] == 3 else None
                if w is not None:
                    return b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
                return (
                    b.dot(x, b.tanh(x), lhs_contract=(self.pick([0, 1]),) * 1, rhs_contract=(0,))
                    if shape[0] == shape[1]
                    else b.dot(x, x, lhs_contract=(1,), rhs_contract=(1,))
                )
            case "cumsum" if rank:
                return b.cumsum(x, axis=int(self.rng.integers(rank)), reverse=bool(self.rng.random() < 0.5))
            case "gather" if rank and shape[0] != 0 and isinstance(shape[0], int):
                i = b.const(self.rng.integers(-1, int(shape[0]) + 1, size=4))
                return b.gather(x, i, axes=(0,))
            case "cast":
                return b.cast(b.cast(x, dtype=self.pick(["f16", "f64", "i32", "bf16"])), dtype="f32")
            case "sort" if rank:
                return b.sort(x, axis=rank - 1)
            case "if":
                p = b.lt(b.sum(x, axes=tuple(range(rank))) if rank else x, 0.25)
                other = self.pick(self.floats(pool))

                def branch(ib: Builder, a: Value, c: Value) -> Value:
                    inner = [a, c]
                    for _ in range(2):
                        v = self.step(ib, inner, depth + 1)
                        if v is not None:
                            inner.append(v)
                    return ib.mul(
                        a,
                        ib.tanh(
                            ib.sum(inner[-1], axes=tuple(range(len(inner[-1].type.shape))))
                            if inner[-1].type.shape
                            else inner[-1]
                        ),
                    )

                return b.emit(
                    "if",
                    p,
                    x,
                    other,
                    blocks=[b.block([x.type, other.type], branch), b.block([x.type, other.type], branch)],
                )[0]
            case "scan" if rank:
                t = TensorType(x.type.dtype, shape[1:])
                zero = b.broadcast(b.const(0.1, dtype="f32"), shape=t.shape) if t.shape else b.const(0.1, dtype="f32")

                def body(ib: Builder, c: Value, e: Value) -> tuple[Value, Value]:
                    n = ib.tanh(ib.add(ib.mul(c, 0.5), e))
                    return n, ib.mul(n, e)

                r = b.emit(
                    "scan", zero, x, blocks=[b.block([t, t], body)], carry=1, reverse=bool(self.rng.random() < 0.3)
                )
                return self.pick(list(r))
            case "while":
                n = int(self.rng.integers(0, 4))
                cond = b.block([INDEX, x.type], lambda ib, i, c: ib.lt(i, n))
                loop = b.block([INDEX, x.type], lambda ib, i, c: (ib.add(i, 1), ib.sin(ib.add(c, 1.0))))
                return b.emit("while", b.const(0, dtype="i64"), x, blocks=[cond, loop], carry=2)[1]
        return None

    kinds = (
        ["unary"] * 5 + ["binary"] * 5 + ["select", "divide", "transpose", "reshape", "broadcast", "slice", "pad", "concat", "reverse"]
        + ["reduce"] * 3 + ["softmax", "dot", "cumsum", "gather", "cast", "sort"]
    )  # fmt: skip

    def partner(self, b: Builder, pool: list[Value], x: Value) -> Value:
        """A value that broadcasts against `x`."""
        fits = [
            v
            for v in self.floats(pool)
            if v.type.shape == x.type.shape or v.type.shape == x.type.shape[1:] or not v.type.shape
        ]
        return self.pick(fits)


def random_program(seed: int, ops: int = 12, control: bool = True) -> Program:
    """A random module of about `ops` ops and inputs for it."""
    m = _Maker(seed, control)
    types = [TensorType(DTYPES["f32"], m.shape()) for _ in range(int(m.rng.integers(1, 4)))]
    types.append(TensorType(DTYPES["f32"], (symbol("B"), m.pick([1, 2, 3]))))  # so that the inputs determine B
    with assuming(m.facts):

        def body(b: Builder, *args: Value) -> list[Value]:
            pool = list(args)
            for _ in range(ops):
                v = m.step(b, pool)
                if v is not None and len(v.type.shape) <= 5 and evaluate(v.type.size, {"B": 8}) <= MAX_ELEMENTS:
                    pool.append(v)
            count = min(len(pool), int(m.rng.integers(1, 4)))
            return [pool[-1], *[pool[int(i)] for i in m.rng.permutation(len(pool))[: count - 1]]]

        func = Func("main", Builder().block(types, body, [f"x{i}" for i in range(len(types))]))
        module = Module("random", {"main": func}, m.facts)
        verify_module(module)
    arrays = [m.rng.uniform(-2, 2, size=tuple(evaluate(d, m.sizes) for d in t.shape)).astype("f") for t in types]
    return Program(module, arrays, m.sizes)


def assert_same(got: Any, want: Any, rtol: float = 2e-4, atol: float = 2e-5, note: str = "") -> None:
    """Equal shapes, dtypes, and values within rounding; NaN equals NaN."""
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{note}: result {i} is {a.dtype}{a.shape}, expected {b.dtype}{b.shape}"
        )
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, equal_nan=True, err_msg=f"{note}: result {i}")


__all__ = ["BOOL", "Block", "Program", "assert_same", "random_program"]
