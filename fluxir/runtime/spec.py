"""What a program's spec must look like, checked before anything uses one that comes out of a file.

The form is that of `fluxir/codegen/abi.py`. The checks are of form only: that the code does what the spec says is a
matter of whom the file comes from. A GPU program's launch list is not looked into here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fluxir.errors import FluxError
from fluxir.runtime import sizes
from fluxir.runtime.arguments import dtype

__all__ = ["spec_problem"]

Check = Callable[[Any], bool]


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_size(x: Any) -> bool:
    if isinstance(x, str):
        sizes.names(x)  # FX0802 for text that is none
        return True
    return _is_int(x)


def _text(x: Any) -> bool:
    return isinstance(x, str) and len(x) < 4096


def _maybe_int(x: Any) -> bool:
    return x is None or _is_int(x)


def _list(each: Check) -> Check:
    return lambda x: isinstance(x, list) and all(map(each, x))


def _pair(a: Check, b: Check) -> Check:
    return lambda x: isinstance(x, list) and len(x) == 2 and a(x[0]) and b(x[1])


def _table(each: Check) -> Check:
    return lambda x: isinstance(x, dict) and all(map(each, x.values()))


def _record(fields: Mapping[str, Check]) -> Check:
    return lambda x: isinstance(x, dict) and all(k in x and check(x[k]) for k, check in fields.items())


def _dtype(x: Any) -> bool:
    return isinstance(x, str) and dtype(x) is not None


def _shape(x: Any) -> bool:
    return isinstance(x, list) and len(x) <= 64 and all(_is_size(d) and not (_is_int(d) and d < 0) for d in x)


_TENSOR = _record({"name": _text, "dtype": _dtype, "shape": _shape})
_SOLVED = _record({"symbol": _text, "value": _is_size})
_READ = _record({"symbol": _text, "input": _is_int, "axis": _is_int, "scale": _is_size, "offset": _is_size})
_FIELDS: dict[str, Check] = {
    "name": _text,
    "inputs": _list(_TENSOR),
    "outputs": _list(_TENSOR),
    "symbols": _list(_text),
    "solve": _list(lambda step: _SOLVED(step) or _READ(step)),
    "facts": _record(
        {
            "bounds": _table(_pair(_is_int, _maybe_int)),
            "multiples": _table(lambda k: _is_int(k) and k > 0),
            "equations": _list(_pair(_is_size, _is_size)),
        }
    ),
    "errors": _table(_pair(lambda code: _text(code) and code[:2] == "FX", _text)),
    "target": _record({"name": _text, "kind": _text}),
}
_CPU: dict[str, Check] = {
    "entry": _text,
    "arena": _is_size,
    "target": _record({"features": _list(_text)}),
}


def spec_problem(spec: Any) -> str:
    """Why `spec` is none, or an empty text."""
    if not isinstance(spec, dict):
        return "the spec is no table"
    try:
        wrong = [key for key, check in _FIELDS.items() if key not in spec or not check(spec[key])]
        if not wrong and spec["target"]["kind"] == "cpu":
            wrong = [key for key, check in _CPU.items() if key not in spec or not check(spec[key])]
        if not wrong and not _list(_record({"name": _text}))(spec.get("constants", [])):
            wrong = ["constants"]
        if not wrong and not _solvable(spec):
            wrong = ["solve"]
        if not wrong and not _donations(spec):
            wrong = ["donated"]
        if not wrong and "extents" in spec and not _cuts(spec):
            wrong = ["extents"]
    except (FluxError, RecursionError) as reason:
        return f"the spec cannot be read: {getattr(reason, 'message', reason)}"
    return f"the spec's {wrong[0]} cannot be read" if wrong else ""


def _donations(spec: Any) -> bool:
    """Whether each result that takes the memory of an input names one of the same type, and no input twice."""
    pairs = spec.get("donated", [])
    if not _list(_pair(_is_int, _is_int))(pairs) or len({i for _, i in pairs}) < len(pairs):
        return False
    outputs, inputs = spec["outputs"], spec["inputs"]
    return all(
        0 <= j < len(outputs) and 0 <= i < len(inputs)
        and (outputs[j]["dtype"], outputs[j]["shape"]) == (inputs[i]["dtype"], inputs[i]["shape"])
        for j, i in pairs
    )  # fmt: skip


def _cuts(spec: Any) -> bool:
    """Whether the results can be cut: a shape of known sizes for each, and a last one that holds the other sizes."""
    e, outputs = spec["extents"], spec["outputs"]
    if not _record({"names": _list(_text), "shapes": _list(_shape)})(e) or len(e["shapes"]) != len(outputs) - 1:
        return False
    known = {step["symbol"] for step in spec["solve"]} | set(e["names"])
    last = outputs[-1]
    return (last["dtype"], last["shape"]) == ("i64", [len(e["names"])]) and all(
        len(shape) == len(t["shape"]) and all(sizes.names(d) <= known for d in shape)
        for shape, t in zip(e["shapes"], outputs)
    )


def _solvable(spec: Any) -> bool:
    """Whether every size is known when it is needed."""
    known: set[str] = set()
    for step in spec["solve"]:
        if "value" in step:
            needed = sizes.names(step["value"])
        else:
            if not 0 <= step["input"] < len(spec["inputs"]):
                return False
            if not 0 <= step["axis"] < len(spec["inputs"][step["input"]]["shape"]):
                return False
            needed = sizes.names(step["scale"]) | sizes.names(step["offset"])
        if not needed <= known:
            return False
        known.add(step["symbol"])
    used = set(spec["symbols"])
    for t in (*spec["inputs"], *spec["outputs"]):
        used |= {name for d in t["shape"] for name in sizes.names(d)}
    return used <= known
