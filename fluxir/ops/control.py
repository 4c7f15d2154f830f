"""Control flow: `if`, `scan`, `while`, `call`. Regions at tensor level are closed; captures are operands.

`if` and `while` serve the loop level too (open regions, no operands but the condition / the carry).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir import interp
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, require_equal
from fluxir.ir.opdef import op
from fluxir.ir.types import BOOL, TensorType, Type


def _types(values: Any) -> list[Type]:
    return [v.type for v in values]


def _show(types: Any) -> str:
    return f"({', '.join(map(str, types))})"


def _if(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    if not t or t[0] != BOOL:
        raise error("FX0212", f"if: the condition must be a bool scalar, not {t[0] if t else 'nothing'}")
    then, other = blocks
    for name, k in (("then", then), ("else", other)):
        if _types(k.args) != list(t[1:]):
            raise error(
                "FX0108", f"if: the {name} region takes {_show(_types(k.args))}, the operands are {_show(t[1:])}"
            )
    if _types(then.outs) != _types(other.outs):
        raise error(
            "FX0212",
            f"if: the branches give {_show(_types(then.outs))} and {_show(_types(other.outs))}",
            help="both branches must give the same types and shapes",
        )
    return _types(then.outs)


def _if_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    out: list[Any] = it.run(o.blocks[0 if bool(args[0]) else 1], args[1:], env)
    return out


op(
    "if",
    _if,
    level="both",
    category="control",
    regions=2,
    eval=_if_eval,
    doc="if(p, xs...) {then} {else}: p is a bool scalar; both regions take xs and yield the results.",
)


def scan_parts(o: Op) -> tuple[list[Any], list[Any], list[Any]]:
    """A scan's operands as (carry, constants, sequences)."""
    nc, nk = o.attrs["carry"], o.attrs["consts"]
    rest = list(o.operands)
    return rest[:nc], rest[nc : nc + nk], rest[nc + nk :]


def scan_length(a: Attrs, operands: Sequence[Value]) -> Dim:
    """How many rounds a scan runs: as stated, or as many as its sequences are long."""
    length: Dim = a.length if a.length is not None else operands[a.carry + a.consts].shape[0]
    return length


def _check_carry(name: str, count: int, *parts: int) -> None:
    """FX0213 unless the numbers of carries (and constants) fit the operands."""
    if min(parts) < 0 or sum(parts) > count:
        raise error("FX0213", f"{name}: {' and '.join(map(str, parts))} of {count} operands cannot be the carry")


def _scan(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    (body,) = blocks
    _check_carry("scan", len(t), a.carry, a.consts)
    carry, consts, xs = list(t[: a.carry]), list(t[a.carry : a.carry + a.consts]), t[a.carry + a.consts :]
    length: Dim | None = a.length
    slices: list[Type] = []
    for x in xs:
        if not isinstance(x, TensorType) or not x.shape:
            raise error("FX0213", f"scan: a sequence needs a leading axis, {x} has none")
        if length is None:
            length = x.shape[0]
        elif not require_equal(length, x.shape[0]):
            raise error("FX0213", f"scan: sequences have lengths {length} and {x.shape[0]}")
        slices.append(TensorType(x.dtype, x.shape[1:]))
    if length is None:
        raise error("FX0213", "scan needs a sequence or a length")
    if _types(body.args) != carry + consts + slices:
        raise error(
            "FX0213", f"scan: the body takes {_show(_types(body.args))}, given {_show(carry + consts + slices)}"
        )
    outs = _types(body.outs)
    if outs[: a.carry] != carry:
        raise error(
            "FX0213",
            f"scan: the carry enters as {_show(carry)} and leaves as {_show(outs[: a.carry])}",
            help="a loop's carry keeps its type: cast it inside the body",
        )
    return [*carry, *[TensorType(y.dtype, (length, *y.shape)) for y in outs[a.carry :]]]


def _scan_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    nc, nk = a.carry, a.consts
    carry, consts, xs = args[:nc], args[nc : nc + nk], args[nc + nk :]
    n = len(xs[0]) if xs else int(a.length)
    ys: list[list[Any]] = []
    for i in reversed(range(n)) if a.reverse else range(n):
        r = it.run(o.blocks[0], [*carry, *consts, *[x[i] for x in xs]], env)
        carry = r[:nc]
        ys.append(r[nc:])
    if a.reverse:
        ys.reverse()
    stacked = []
    for k, v in enumerate(o.results[nc:]):
        shape = it.shape(v.type.shape)
        stacked.append(np.stack([y[k] for y in ys]) if ys else np.zeros(shape, v.type.dtype.numpy))
    return [*carry, *stacked]


op(
    "scan",
    _scan,
    attrs={"carry": ("int", 0), "consts": ("int", 0), "reverse": ("bool", False), "length": ("dim", None)},
    category="control",
    regions=1,
    rounds=lambda o: scan_length(o.attrs, o.operands),
    eval=_scan_eval,
    doc=(
        "scan(carry..., consts..., xs...) {(carry..., consts..., x...) -> yield carry..., y...}: a loop over "
        "the leading axis of xs; results: the last carry, then the ys stacked. `reverse` runs from the end."
    ),
)


def _while(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    cond, body = blocks
    _check_carry("while", len(t), a.carry)
    carry = list(t[: a.carry])
    if _types(cond.args) != list(t) or _types(body.args) != list(t):
        raise error("FX0213", f"while: the regions must take {_show(t)}")
    if _types(cond.outs) != [BOOL]:
        raise error("FX0213", f"while: the condition must yield a bool scalar, not {_show(_types(cond.outs))}")
    if _types(body.outs) != carry:
        raise error(
            "FX0213",
            f"while: the carry enters as {_show(carry)} and leaves as {_show(_types(body.outs))}",
            help="a loop's carry keeps its type: cast it inside the body",
        )
    return carry


def _while_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    carry, consts = args[: a.carry], args[a.carry :]
    cond, body = o.blocks
    while bool(it.run(cond, [*carry, *consts], env)[0]):
        carry = it.run(body, [*carry, *consts], env)
        it.steps += 1
    return carry


op(
    "while",
    _while,
    attrs={"carry": "int"},
    level="both",
    category="control",
    regions=2,
    effects=False,
    eval=_while_eval,
    doc="while(carry..., consts...) {cond} {body}: run body while cond yields true; results: the last carry.",
)


@dataclass(frozen=True)
class Transform:
    """What a call asks of its callee: `kind` and the positions it concerns, written `vjp[0,2;0]`.

    vjp[wrt;of]: (arguments..., cotangents of the results `of`...) -> (results..., cotangents of the arguments `wrt`...).
    pullback[wrt;of]: the same without the results. jvp[wrt;of]: (arguments..., tangents of `wrt`...) -> (results..., tangents
    of `of`...). batch[wrt;]: the arguments `wrt` and all results have one more axis in front.
    """

    kind: str
    wrt: tuple[int, ...]
    of: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}[{','.join(map(str, self.wrt))};{','.join(map(str, self.of))}]"

    @staticmethod
    def parse(text: str) -> Transform:
        """FX0106 if this is not the text of a transform."""
        found = re.fullmatch(r"(vjp|pullback|jvp|batch)\[([\d,]*);([\d,]*)\]", text)
        try:
            assert found is not None
            wrt, of = (tuple(int(n) for n in found[i].split(",") if n) for i in (2, 3))
        except (AssertionError, ValueError):
            raise error("FX0106", f"call: {text!r} is not a transform such as vjp[0,2;0]") from None
        return Transform(found[1], wrt, of)


def _call(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    for entry in a.sized:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], int) and 0 <= entry[1] < len(t)):
            raise error("FX0106", f"call: {entry!r} in `sized` is not a pair (symbol, operand)")
    return list(a.results)


def _count(x: Any) -> int:
    n = int(np.asarray(getattr(x, "array", x)).reshape(()))
    if n < 0:
        raise error("FX0602", f"a size known at run time is {n}")
    return n


def _call_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    if a.transform:
        return _derived_eval(it, o, a, args)
    saved = it.dims
    given = {**dict(a.dims), **{name: _count(args[i]) for name, i in a.sized}}
    if it.module.funcs[a.callee].level == "host":  # its kernels read sizes by the callee's names
        it.dims = given
    try:
        out: list[Any] = it.call(a.callee, args, given)
    finally:
        it.dims = saved
    return out


def _derived_eval(it: Any, o: Op, a: Attrs, args: list[Any]) -> list[Any]:
    """A call whose transform is not resolved yet: in a region of control flow that is evaluated eagerly."""
    if interp.RESOLVE is None:
        raise error("FX0502", f"the call of @{a.callee} still asks for {a.transform}", loc=o.loc)
    t = Transform.parse(a.transform)
    size = np.shape(args[t.wrt[0]])[0] if t.kind == "batch" else 0
    module, name = interp.RESOLVE(it.module, a.callee, a.transform, size)
    inner = interp.Interpreter(module, it.dims, it.max_steps)
    inner.depth, inner.steps = it.depth, it.steps
    out = inner.call(name, args, dict(a.dims))
    it.steps = inner.steps
    return out


op(
    "call",
    _call,
    attrs={
        "callee": "str",
        "results": "types",
        "transform": ("str", ""),
        "dims": ("any", ()),
        "sized": ("any", ()),
        "rules": ("any", ()),
    },
    level="both",
    category="control",
    eval=_call_eval,
    doc=(
        "call(args...): apply function `callee`; `results` are its result types in the caller's sizes, `dims` "
        "the callee's size symbols as ((name, size), ...), `sized` those that are the value of an i64 scalar operand as "
        "((name, operand), ...). `transform` asks for a derived function (see Transform), `rules` names the functions "
        "that derive it; the derive pass resolves both."
    ),
)


def _fused(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    (body,) = blocks
    if _types(body.args) != list(t):
        raise error("FX0108", f"fused: the region takes {_show(_types(body.args))}, the operands are {_show(t)}")
    return _types(body.outs)


op(
    "fused",
    _fused,
    attrs={"kind": ("str", "pointwise"), "name": ("str", "")},
    category="control",
    regions=1,
    eval=lambda it, o, a, args, env: it.run(o.blocks[0], args, env),
    constant="made after all derivatives",
    doc=(
        "fused(xs...) {region}: the ops of the region run as one kernel. Made by the fuse pass; `kind` names "
        "the template family (pointwise, rowwise, dot, conv, window, gather, scatter, sort, scan1d), `name` "
        "the kernel."
    ),
)


def _assert(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    if list(t) != [BOOL]:
        raise error("FX0212", f"assert: the condition must be a bool scalar, not {_show(t)}")
    return []


def _assert_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    if not bool(args[0]):
        raise error("FX0608", f"assertion failed: {a.message}", loc=o.loc)
    return []


op(
    "assert",
    _assert,
    attrs={"message": "str"},
    level="both",
    category="control",
    effects=True,
    eval=_assert_eval,
    constant="gives nothing",
    doc="assert(p): the program stops with `message` (FX0608) unless the bool scalar p holds.",
)
