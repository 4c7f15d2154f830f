"""What the schedule tests share: build a function, lower it, run both sides on random inputs, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import fluxir.ops  # noqa: F401
from fluxir.ir import dims as D
from fluxir.ir.build import build_func
from fluxir.ir.core import Func, Module
from fluxir.ir.interp import Interpreter, bind_dims, interpret
from fluxir.ir.types import tensor
from fluxir.ir.verify import verify_module
from fluxir.schedule.lower import lower
from fluxir.target import parse_target

CPU = parse_target("cpu:x86-64-v3")
DEFAULT = {"B": 3, "C": 2, "T": 4, "N": 5, "M": 4, "K": 6}


def func(types: Sequence[str], body: Callable[..., Any], name: str = "main") -> Func:
    ts = [tensor(t) for t in types]
    return build_func(name, ts, body, [f"x{i}" for i in range(len(ts))])


def fused(types: Sequence[str], body: Callable[..., Any], kind: str = "pointwise") -> Func:
    """A function of one `fused` op."""
    ts = [tensor(t) for t in types]
    return func(
        types,
        lambda b, *xs: b.emit(
            "fused", *xs, blocks=[b.block(ts, body, [f"x{i}" for i in range(len(ts))])], kind=kind, name="group"
        ),
    )


def module(*funcs: Func) -> Module:
    return Module("m", {f.name: f for f in funcs})


def random_inputs(f: Func, sizes: Mapping[str, int], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    out = []
    for a in f.args:
        shape = tuple(D.evaluate(d, sizes) for d in a.type.shape)
        d = a.type.dtype
        if d.is_bool:
            x = rng.integers(0, 2, shape).astype(bool)
        elif d.is_float:
            x = rng.uniform(-2, 2, shape)
        else:
            x = rng.integers(0 if not d.is_signed else -5, 9, shape)
        out.append(np.asarray(x).astype(d.numpy))
    return out


def run_lowered(low: Module, arrays: Sequence[Any], name: str | None = None) -> list[Any]:
    """Run the host function in the loop interpreter; results start as garbage so that missing writes show."""
    host = low.funcs[name] if name else low.entry
    n = host.attrs["inputs"]
    outs_of = host.args[n:]
    it = Interpreter(low)
    sizes = bind_dims(Func(host.name, type(host.block)(host.args[:n], (), ())), [np.shape(a) for a in arrays])
    outs = []
    for a in outs_of:
        shape = tuple(D.evaluate(d, sizes) for d in a.type.shape)
        outs.append(np.full(shape, 77, a.type.dtype.numpy))
    inputs = [np.array(a) for a in arrays]
    before = [x.copy() for x in inputs]
    it.call(host, [*inputs, *outs])
    for x, y in zip(inputs, before):
        np.testing.assert_array_equal(x, y, err_msg="an input was written")
    return outs


def check(
    f: Func | Module,
    sizes: Mapping[str, int] | None = None,
    arrays: Sequence[Any] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    target: Any = CPU,
) -> Module:
    """Lower, verify, run, compare with the tensor interpreter; returns the lowered module."""
    m = f if isinstance(f, Module) else module(f)
    entry = m.entry
    arrays = random_inputs(entry, {**DEFAULT, **(sizes or {})}) if arrays is None else arrays
    want = interpret(m, arrays)
    low = lower(m, target)
    verify_module(low)
    got = run_lowered(low, arrays)
    for g, w, v in zip(got, want, entry.outs, strict=True):
        w = np.asarray(w)
        assert g.shape == w.shape and g.dtype == w.dtype
        small = v.type.dtype.name in ("f16", "bf16")
        if v.type.dtype.is_float:
            np.testing.assert_allclose(
                g.astype(np.float64), w.astype(np.float64), rtol=2e-2 if small else rtol, atol=2e-2 if small else atol
            )
        else:
            np.testing.assert_array_equal(g, w)
    return low


def native(m: Module, target: str = "cpu", plan: bool = True) -> Any:
    """Compile a tensor module through lower, plan and code generation; returns a callable program."""
    from fluxir.codegen.x86 import compile_cpu
    from fluxir.ir.dims import assuming
    from fluxir.passes.manager import PassManager
    from fluxir.runtime.program import Program

    t = parse_target(target)
    low = lower(m, t)
    verify_module(low)
    if plan:
        low = PassManager("plan", target=t).run(low)
    with assuming(m.facts):
        code = compile_cpu(low, t)
    return Program(code.spec, code.object, code.constants)
