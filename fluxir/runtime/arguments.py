"""From what a caller gives to the arrays a program takes, and from their shapes to its sizes; every FX06xx of a call.

Knows only the JSON-able spec (see `fluxir/codegen/abi.py`) and numpy. Nothing here is on the fast way of a repeated
call, so it may take the time to say exactly what is wrong, naming the argument as the user knows it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.runtime import sizes

__all__ = ["bind", "check_out", "dtype", "prepare", "show_type", "solve"]

Array = NDArray[Any]
Spec = Mapping[str, Any]
_WORDS = {"bool": "bool", "f16": "float16", "f32": "float32", "f64": "float64"} | {
    f"{k}{n}": f"{w}{n}" for k, w in (("i", "int"), ("u", "uint")) for n in (8, 16, 32, 64)
}


@functools.cache
def dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of an element type by our name. FX0802 for a name that is none."""
    if name == "bf16":
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return small
    if name not in _WORDS:
        raise error("FX0802", f"the program uses the element type {name[:40]!r}, which this version does not know")
    return np.dtype(_WORDS[name])


def show_type(t: Spec) -> str:
    """`f32[B, 784]`."""
    return str(t["dtype"]) + (f"[{', '.join(map(str, t['shape']))}]" if t["shape"] else "")


def _signature(spec: Spec) -> str:
    return ", ".join(f"{t['name']}: {show_type(t)}" for t in spec["inputs"])


# ---- names and arrays -----------------------------------------------------------------------------------------------


def bind(spec: Spec, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Positional and named arguments in the order of the inputs. FX0601 and FX0607."""
    inputs = [t["name"] for t in spec["inputs"]]
    if len(args) > len(inputs):
        raise error(
            "FX0601",
            f"{spec['name']} takes {len(inputs)} arguments, {len(args)} given",
            help=f"it takes ({_signature(spec)})",
        )
    values = dict(zip(inputs, args, strict=False))
    for name, x in named.items():
        if name not in inputs:
            raise error("FX0607", f"{spec['name']} has no input {name!r}", help=f"its inputs are {', '.join(inputs)}")
        if name in values:
            raise error("FX0601", f"{spec['name']}: {name} is given twice, by position and by name")
        values[name] = x
    missing = [n for n in inputs if n not in values]
    if missing:
        raise error(
            "FX0601",
            f"{spec['name']} takes {len(inputs)} arguments, {len(values)} given: {', '.join(missing)} missing",
            help=f"it takes ({_signature(spec)})",
        )
    return [values[n] for n in inputs]


def prepare(spec: Spec, dtypes: Sequence[np.dtype[Any]], given: Sequence[Any]) -> list[Array]:
    """Contiguous arrays of exactly the inputs' dtypes and ranks. FX0601, FX0602 (rank), FX0603, FX0606, FX0610, FX0612."""
    if len(given) != len(dtypes):
        raise error(
            "FX0601",
            f"{spec['name']} takes {len(dtypes)} arguments, {len(given)} given",
            help=f"it takes ({_signature(spec)})",
        )
    return [prepare_one(t, d, x) for t, d, x in zip(spec["inputs"], dtypes, given, strict=True)]


def prepare_one(t: Spec, want: np.dtype[Any], x: Any) -> Array:
    """One input as a contiguous array of its dtype and rank."""
    a = as_array(t, want, x)
    check_type(t, want, a.dtype, a.shape)
    if type(a) is not np.ndarray or a.dtype is not want:
        a = a.view(want, np.ndarray)
    return a if a.flags.c_contiguous and a.flags.aligned else np.array(a, order="C", copy=True)


def check_type(t: Spec, want: np.dtype[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """FX0603 for another dtype, FX0602 for another rank."""
    if dtype == want and len(shape) == len(t["shape"]):
        return
    found = (t["name"], f"{dtype.name}{list(shape)}")
    if dtype != want:
        message = f"{t['name']}: {show_type(t)}, given {dtype.name}"
        raise error("FX0603", message, labels=[found], help=f"convert it: {t['name']}.astype(np.{want.name})")
    message = f"{t['name']}: {show_type(t)}, given shape {shape}: rank {len(shape)} instead of {len(t['shape'])}"
    raise error("FX0602", message, labels=[found])


def as_array(t: Spec, want: np.dtype[Any], x: Any) -> Array:
    """`x` as an array without a copy where its memory allows: numpy, numbers (for rank 0), DLPack, `__array__`."""
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, np.generic):
        return np.asarray(x)
    if isinstance(x, (bool, int, float)):
        return _number(t, want, x)
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(t, x)
    if hasattr(x, "__array__"):
        return np.asarray(x)
    raise error(
        "FX0606",
        f"{t['name']}: {show_type(t)}, given {type(x).__name__}",
        help="pass a numpy array: np.asarray(value, dtype)",
    )


def _number(t: Spec, want: np.dtype[Any], x: bool | int | float) -> Array:
    kind = "f" if t["dtype"] in ("f16", "bf16", "f32", "f64") else want.kind
    fits = kind == "f" if isinstance(x, float) else kind != "b" if not isinstance(x, bool) else kind == "b"
    if not fits:
        raise error("FX0603", f"{t['name']}: {show_type(t)}, given the {type(x).__name__} {x}")
    try:
        return np.array(x, want)
    except OverflowError:
        raise error("FX0603", f"{t['name']}: {show_type(t)}: {x} does not fit") from None


def _from_dlpack(t: Spec, x: Any) -> Array:
    device = x.__dlpack_device__() if hasattr(x, "__dlpack_device__") else (1, 0)
    if int(device[0]) not in (1, 3):  # kDLCPU, kDLCUDAHost
        raise error(
            "FX0610",
            f"{t['name']} is on another device (DLPack type {int(device[0])}), the program runs on the CPU",
            help=f"copy it first: {t['name']}.to('cpu')",
        )
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as reason:
        raise error(
            "FX0612",
            f"{t['name']}: the array cannot be shared through DLPack: {reason}",
            help="copy it to a numpy array first",
        ) from None


def check_out(
    spec: Spec, wanted: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], out: Sequence[Any], inputs: Sequence[Array]
) -> None:
    """FX0605 unless every array in `out` can take its result."""
    if len(out) != len(wanted):
        raise error("FX0605", f"{spec['name']} has {len(wanted)} results, {len(out)} arrays are given as out")
    for t, (shape, d), a in zip(spec["outputs"], wanted, out, strict=True):
        problem = ""
        if not isinstance(a, np.ndarray):
            problem = f"it is {type(a).__name__}, not a numpy array"
        elif a.shape != shape or a.dtype != d:
            problem = f"it is {a.dtype.name}{list(a.shape)}, the result is {d.name}{list(shape)}"
        elif not a.flags.writeable:
            problem = "it is read-only"
        elif not (a.flags.c_contiguous and a.flags.aligned):
            problem = "it is not contiguous"
        elif any(np.may_share_memory(a, x) for x in inputs):
            problem = "it overlaps an input"
        elif sum(isinstance(x, np.ndarray) and np.may_share_memory(a, x) for x in out) > 1:
            problem = "it overlaps another result"
        if problem:
            raise error("FX0605", f"{t['name']}: the array given as out cannot be used: {problem}")


def cut(spec: Spec, results: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Results of sizes that are known only at run time, as views of the memory they lie in; `shapes` are those of the inputs."""
    *full, born = results
    env = solve(spec, shapes) | dict(zip(spec["extents"]["names"], map(int, born), strict=True))
    views = []
    for a, shape in zip(full, spec["extents"]["shapes"], strict=True):
        views.append(a[tuple([slice(sizes.evaluate(d, env)) for d in shape])])
    return views


# ---- sizes ----------------------------------------------------------------------------------------------------------


def solve(spec: Spec, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """The values of the size symbols; checks every size and guard. FX0602, FX0604, FX0611."""
    env: dict[str, int] = {}
    source: dict[str, str] = {}
    for step in spec["solve"]:
        name = step["symbol"]
        if "value" in step:
            env[name] = sizes.evaluate(step["value"], env)
            source[name] = f"{name} = {step['value']}"
            continue
        t, axis = spec["inputs"][step["input"]], step["axis"]
        n = shapes[step["input"]][axis]
        scale, offset = sizes.evaluate(step["scale"], env), sizes.evaluate(step["offset"], env)
        if scale == 0 or (n - offset) % scale or (n - offset) // scale < 0:
            raise _misfit(t, shapes[step["input"]], axis, f"which no size {name} makes {n}")
        env[name] = (n - offset) // scale
        source[name] = f"{t['name']}: {show_type(t)} says {name} = {env[name]}"
    for t, shape in zip(spec["inputs"], shapes, strict=True):
        for axis, (d, n) in enumerate(zip(t["shape"], shape, strict=True)):
            want = sizes.evaluate(d, env)
            if want == n:
                continue
            if isinstance(d, str) and d in source:
                raise error("FX0611", f"the size {d} has two values: {source[d]}; {t['name']}: {show_type(t)} says {d} = {n}",
                            labels=[(t["name"], f"{list(shape)}")])  # fmt: skip
            raise _misfit(t, shape, axis, f"which is {want}" if isinstance(d, str) else "")
    _check_guards(spec["facts"], env)
    return env


def _misfit(t: Spec, shape: tuple[int, ...], axis: int, why: str) -> FluxError:
    expected = f"{t['shape'][axis]}" + (f", {why}" if why else "")
    return error("FX0602", f"{t['name']}: {show_type(t)}, given shape {shape}: axis {axis} is {shape[axis]}, expected {expected}",
                 labels=[(t["name"], f"{list(shape)}")])  # fmt: skip


def _check_guards(facts: Spec, env: Mapping[str, int]) -> None:
    def fail(condition: str, found: str) -> FluxError:
        return error("FX0604", f"the program was compiled for {condition}, and {found}",
                     help="pad or split the input, or compile the model for these sizes")  # fmt: skip

    for name, (lo, hi) in facts["bounds"].items():
        if name in env and env[name] < lo:
            raise fail(f"{name} >= {lo}", f"{name} is {env[name]}")
        if name in env and hi is not None and env[name] > hi:
            raise fail(f"{name} <= {hi}", f"{name} is {env[name]}")
    for name, k in facts["multiples"].items():
        if name in env and env[name] % k:
            raise fail(f"{name} % {k} == 0", f"{name} is {env[name]}")
    for name, limit in facts.get("ceilings", {}).items():
        if {name} | sizes.names(limit) <= env.keys() and env[name] > sizes.evaluate(limit, env):
            raise fail(f"{name} <= {limit}", f"these are {env[name]} and {sizes.evaluate(limit, env)}")
    for a, b in facts["equations"]:
        if not sizes.names(a) | sizes.names(b) <= env.keys():
            continue
        x, y = sizes.evaluate(a, env), sizes.evaluate(b, env)
        if x != y:
            raise fail(f"{a} == {b}", f"these are {x} and {y}")
