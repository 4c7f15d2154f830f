"""The agreement between compiled code and the runtime: the entry's signature as JSON-able data, and error numbers.

Entry: `i32 fluxir_entry(ptr args, ptr dims, ptr arena, ptr rt)`. `args` points to the addresses of the inputs, then the
outputs, then the constants (in the order of `spec["constants"]`); `dims` to one i64 for each of `spec["symbols"]`; `arena`
to `spec["arena"]` bytes aligned to 64; `rt` to the runtime context below. The result is 0 or a key of `spec["errors"]`.

Runtime context: `{ i64 threads, ptr parallel, ptr state, ptr stack }` with
`void parallel(ptr rt, ptr body, ptr context, i64 n, i64 grain)`, which
calls `void body(ptr context, i64 begin, i64 end)` until every index of [0, n) is covered exactly once. The runtime writes
the same layout in `fluxir/runtime/pool.py`. `stack`, or null, is the lowest address that frames of a program whose
`spec["recursive"]` is true may reach; such a program gets a context of the calling thread.

The spec names sizes as text (`B*784+3`), which the runtime evaluates; `solve` says how the symbols follow from the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxir.errors import error
from fluxir.ir.core import Func, Module
from fluxir.ir.dims import INF, Dim, Facts, Poly, substitute, symbol, symbols_of
from fluxir.ir.types import MemType

__all__ = ["ENTRY", "ERRORS", "FORMAT", "OUT_OF_MEMORY", "TOO_DEEP", "entry_spec"]

CONTEXT_BYTES, PARALLEL = 32, 8
"""Size of the runtime context, and where `parallel` stands in it."""
FORMAT = 1
ENTRY = "fluxir_entry"

OUT_OF_MEMORY = 1
TOO_DEEP = 2
MAX_DEPTH = 4000
"""Nested calls of recursive functions; a frame takes a few hundred bytes of the caller's stack, seldom some thousand."""

ERRORS: dict[str, tuple[str, str]] = {
    str(OUT_OF_MEMORY): ("FX0609", "a recursive call could not get memory for its temporaries"),
    str(TOO_DEEP): (
        "FX0109",
        f"calls are nested more than {MAX_DEPTH} deep, or deeper than this thread's stack allows",
    ),
}
"""What each result number means: an error code and a message."""


def text(d: Dim) -> int | str:
    """A size as JSON: an integer, or the text of an expression."""
    return d if isinstance(d, int) else str(d)


def entry_spec(module: Module, symbols: tuple[str, ...]) -> dict[str, Any]:
    """What the runtime must know to call the module's entry, a host function. FX0604 where shapes do not fix a symbol.

    Keys: format, name, inputs and outputs (each name, dtype, shape), symbols, solve, facts, arena, errors,
    donated ([result, input] pairs: the result is written into the memory of the input, its own argument is not used),
    extents where results have sizes that are known only at run time: these lie in memory by their bounds, the last result
    holds the sizes (see `_extents`).
    """
    func = module.entry
    count = int(func.attrs["inputs"])
    memories = list(func.args)
    if "arena" in func.attrs:
        memories.pop()
    names = func.result_names
    facts = _known_at_entry(module)
    inputs = [_tensor(a.name or f"arg{i}", a.type) for i, a in enumerate(memories[:count])]
    outputs = [
        _tensor((names[i] if i < len(names) else "") or a.name or f"out{i}", a.type)
        for i, a in enumerate(memories[count:])
    ]
    return {
        "format": FORMAT,
        "name": func.name,
        "entry": ENTRY,
        "inputs": inputs,
        "outputs": outputs,
        "symbols": list(symbols),
        "solve": _solution(func, count, symbols, facts),
        "facts": _facts(facts),
        "arena": text(func.attrs.get("arena", 0)),
        "errors": {k: list(v) for k, v in ERRORS.items()},
        "donated": [list(pair) for pair in func.attrs.get("donated", ())],
    } | ({"extents": _extents(func)} if "extents" in func.attrs else {})


def _extents(func: Func) -> dict[str, Any]:
    """How the results are cut: `names` of the sizes that the last result holds, and the shape of every other result."""
    return {
        "names": list(func.attrs["extents"]),
        "shapes": [[int(d) if d.isdigit() else d for d in shape] for shape in func.attrs["shapes"]],
    }


def _known_at_entry(module: Module) -> Facts:
    """The facts without those about sizes that calls read from memory: they are checked where they become known."""
    born = {s for f in module.funcs.values() for op in f.walk() if op.name == "call" for s, _ in op.attrs["sized"]}
    f = module.facts
    if not born:
        return f
    return Facts(
        {s: b for s, b in f.bounds.items() if s not in born},
        {s: k for s, k in f.multiples.items() if s not in born},
        tuple((a, b) for a, b in f.equations if not (symbols_of(a) | symbols_of(b)) & born),
        {s: d for s, d in f.ceilings.items() if s not in born},
    )


def _tensor(name: str, t: Any) -> dict[str, Any]:
    assert isinstance(t, MemType)
    return {"name": name, "dtype": t.dtype.name, "shape": [text(d) for d in t.shape]}


def _facts(f: Facts) -> dict[str, Any]:
    return {
        "bounds": {k: [lo, hi if hi < INF else None] for k, (lo, hi) in f.bounds.items()},
        "multiples": dict(f.multiples),
        "equations": [[text(a), text(b)] for a, b in f.equations],
        "ceilings": {k: text(d) for k, d in f.ceilings.items()},
    }


def _solution(func: Func, count: int, symbols: tuple[str, ...], facts: Facts) -> list[dict[str, Any]]:
    """Steps that give the symbols in order: `symbol = (input.shape[axis] - offset) / scale`, or an expression of earlier ones."""
    sizes = [
        (i, k, d) for i, a in enumerate(func.args[:count]) for k, d in enumerate(a.type.shape) if isinstance(d, Poly)
    ]
    known: set[str] = set()
    steps: list[dict[str, Any]] = []
    while True:
        for i, k, d in sizes:
            found = _linear(d, known)
            if found:
                name, scale, offset = found
                known.add(name)
                steps.append({"symbol": name, "input": i, "axis": k, "scale": text(scale), "offset": text(offset)})
                break
        else:
            solved = _from_equation(facts, known)
            if solved is None:
                break
            known.add(solved[0])
            steps.append({"symbol": solved[0], "value": text(solved[1])})
    missing = sorted(set(symbols) - known)
    if missing:
        raise error("FX0604", f"the argument shapes of @{func.name} do not determine the size {', '.join(missing)}",
                    help="give the size as the shape of an argument, or fix it with --dim")  # fmt: skip
    return steps


def _linear(d: Dim, known: set[str]) -> tuple[str, Dim, Dim] | None:
    """(symbol, scale, offset) where `d == scale * symbol + offset` with one symbol that is not known."""
    free = symbols_of(d) - known
    if len(free) != 1:
        return None
    (name,) = free
    env: Mapping[str, Dim] = {name: 0}
    offset = substitute(d, env)
    scale = substitute(d, {name: 1}) - offset
    if name in symbols_of(offset) or d - offset != scale * symbol(name):
        return None
    return name, scale, offset


def _from_equation(facts: Facts, known: set[str]) -> tuple[str, Dim] | None:
    for a, b in facts.equations:
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Poly) and str(x) not in known and x == symbol(str(x)) and symbols_of(y) <= known:
                return str(x), y
    return None
