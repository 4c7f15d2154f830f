"""What a case is: named inputs, one function for PyTorch, one for FluxIR. Also where the inputs come from.

Inputs are drawn from raw PCG64 words, whose stream numpy guarantees, so they are the same on every machine and in every
version and need not be stored. PyTorch answers in f64 on inputs that are exact in the dtype under test: "fine" inputs
are f32 numbers and serve f32 and f64, "coarse" ones have eight significant bits and serve f16 and bf16. Each answer is
therefore the correctly rounded one up to PyTorch's own f64 error, for every dtype it is compared with.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

FIXTURES = Path(__file__).resolve().parent
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Input:
    """One drawn array: floats in [low, high), integers in [low, high), or bools; `special` replaces the first elements."""

    shape: tuple[int, ...]
    kind: str = "float"
    low: float = -2.0
    high: float = 2.0
    special: tuple[float, ...] = ()

    def draw(self, bits: np.random.PCG64, coarse: bool) -> Array:
        count = int(np.prod(self.shape, dtype=np.int64))
        unit = (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        if self.kind == "bool":
            return (unit < 0.7).reshape(self.shape)
        if self.kind == "int":
            return np.floor(self.low + unit * (self.high - self.low)).astype(np.int64).reshape(self.shape)
        if coarse:
            largest = max(abs(self.low), abs(self.high))
            step = 2.0 ** (np.ceil(np.log2(largest)) - 7)  # at most 128 steps from zero: exact in bf16 and f16
            out = np.floor(self.low / step + unit * ((self.high - self.low) / step)) * step
            out = (
                np.where(out < self.low, self.low, out) if self.low <= 0 else np.where(out <= self.low, out + step, out)
            )
        else:
            out = (self.low + unit * (self.high - self.low)).astype(np.float32).astype(np.float64)
        out[: len(self.special)] = self.special
        return out.reshape(self.shape)


def F(*shape: int, low: float = -2.0, high: float = 2.0, special: tuple[float, ...] = ()) -> Input:
    return Input(shape, "float", low, high, special)


def Ints(*shape: int, low: int = 0, high: int) -> Input:
    return Input(shape, "int", low, high)


def M(*shape: int) -> Input:
    return Input(shape, "bool")


@dataclass(frozen=True)
class Case:
    """`torch(t, f, *inputs)` with t = torch, f = torch.nn.functional, against `ours(fx, *inputs)`.

    `inputs` are drawn in order; a mapping (the weights of a model) is one argument. `half` is whether f16 and bf16 are
    compared too. `batch` names the axes that are symbolic in a compilation for every size: {argument: axis}.
    `tolerance` is a factor on the usual one, for long sums.
    """

    name: str
    inputs: tuple[Input | Mapping[str, Input], ...]
    torch: Callable[..., Any]
    ours: Callable[..., Any]
    half: bool = True
    batch: Mapping[int, int] = field(default_factory=dict)
    tolerance: float = 1.0
    group: str = "functions"

    def arrays(self, coarse: bool) -> list[Any]:
        """The inputs: f64 arrays of fine or coarse numbers (integers and bools as they are)."""
        bits = np.random.PCG64(zlib.crc32(self.name.encode()))
        return [
            {k: v.draw(bits, coarse) for k, v in x.items()} if isinstance(x, Mapping) else x.draw(bits, coarse)
            for x in self.inputs
        ]


def case(name: str, *inputs: Any, torch: Callable[..., Any], ours: Callable[..., Any], **options: Any) -> Case:
    return Case(name, inputs, torch, ours, **options)


# ---- PyTorch's side ------------------------------------------------------------------------------------------------------


def torch_answers(c: Case, coarse: bool) -> list[Array]:
    """What PyTorch gives for a case, computed in f64 on one thread."""
    import torch

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)

    def tensor(x: Any) -> Any:
        return SimpleNamespace(**{k: tensor(v) for k, v in x.items()}) if isinstance(x, dict) else torch.from_numpy(x)

    with torch.no_grad():
        out = c.torch(torch, torch.nn.functional, *[tensor(x) for x in c.arrays(coarse)])
    outs = out if isinstance(out, tuple | list) else (out,)
    return [np.ascontiguousarray(t.numpy()) for t in outs]


def derive(c: Case) -> dict[str, Array]:
    """The stored answers of a case by key: `name/fine/0` in f64, `name/coarse/0` in f32 (three digits are compared)."""
    out = {}
    for how in ("fine", "coarse") if c.half else ("fine",):
        for i, a in enumerate(torch_answers(c, how == "coarse")):
            out[f"{c.name}/{how}/{i}"] = a.astype(np.float32) if how == "coarse" and a.dtype == np.float64 else a
    return out
