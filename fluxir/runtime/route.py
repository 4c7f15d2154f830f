"""Routes: what a repeated call has to look like and what it does, as tables that machine code follows (see `call_code.py`).

`Routed` is the base of what is called again and again: compiled functions, programs, kernels at a grid. Its `__call__` is the
native `call` where that is possible; arguments for which there is no route go to the Python method `_called`, which
does the same and more, and may remember a route for the next call. A route holds for one value of the settings, one structure,
one type and shape of every leaf.

Guards are nested tuples that the functions here make: `leaf`, `same`, `equal`, `items`, `table`, `parts`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.runtime import native
from fluxir.runtime.call_code import (
    LEAF_WORDS,
    MOST_ROUTES,
    RESULT_WORDS,
    ROUTE_WORDS,
    Code,
    Guard,
    Leaf,
    Make,
    Number,
    Result,
    Word,
)

__all__ = ["LARGE", "Route", "Routed", "equal", "items", "leaf", "leaf_words", "parts", "same", "table"]

LARGE = 16384  # bytes from which a result is aligned to 64 bytes
_NEVER = 1 << 62  # ticks of a program that has not run yet
Node = tuple[Any, ...]


# ---- guards ---------------------------------------------------------------------------------------------------------


def leaf(i: int) -> Node:
    """Leaf number `i`."""
    return Guard.LEAF, i


def same(x: Any) -> Node:
    """This very object."""
    return Guard.IS, x


def equal(x: Any) -> Node:
    """What is equal to `x` and of its class."""
    return Guard.EQUAL, x


def items(cls: type, children: Sequence[Node]) -> Node:
    """A list or a tuple (also a named one) of exactly this class."""
    return (Guard.LIST if cls is list else Guard.TUPLE), cls, tuple(children)


def table(children: Mapping[Any, Node]) -> Node:
    """A dict with exactly these keys."""
    return Guard.DICT, dict(children)


def parts(cls: Any, children: Mapping[str, Node]) -> Node:
    """An object of exactly this class, by its attributes. In a result: `cls` is called with the tuple of the children."""
    return Guard.FIELDS, cls, dict(children)


class _Memory:
    """Words that machine code reads, and what they point to."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def object(self, x: Any) -> int:
        self.kept.append(x)
        return id(x)

    def words(self, values: Sequence[int]) -> int:
        made = (ctypes.c_int64 * max(1, len(values)))(*values)
        self.kept.append(made)
        return ctypes.addressof(made)

    def nodes(self, tree: Sequence[Node], result: bool = False) -> int:
        out: list[int] = []
        for node in tree:
            self._node(node, out, result)
        return self.words(out)

    def _node(self, node: Node, out: list[int], result: bool) -> None:
        match node:
            case (Guard.LEAF, i):
                out += [Guard.LEAF, i]
            case (Guard.IS | Guard.EQUAL as kind, x):
                out += [kind, self.object(x)]
            case (Guard.LIST, _, children):
                out += [Guard.LIST, len(children)]
                for c in children:
                    self._node(c, out, result)
            case (Guard.TUPLE, cls, children):
                out += [Guard.TUPLE, self.object(cls), len(children)]
                for c in children:
                    self._node(c, out, result)
            case (Guard.DICT, children):
                out += [Guard.DICT, len(children)]
                for key, c in children.items():
                    out.append(self.object(key))
                    self._node(c, out, result)
            case (Guard.FIELDS, cls, children):
                out += [Guard.FIELDS, self.object(cls), len(children)]
                for key, c in children.items():
                    if not result:
                        out.append(self.object(key))
                    self._node(c, out, result)


# ---- leaves ---------------------------------------------------------------------------------------------------------

_STORED = {"float32": Number.F32, "float64": Number.F64, "bool": Number.I8} | {
    f"{sign}int{bits}": number
    for sign in ("", "u")
    for bits, number in ((8, Number.I8), (16, Number.I16), (32, Number.I32), (64, Number.I64))
}


def leaf_words(
    x: Any, want: np.dtype[Any], shape: tuple[int, ...], slot: int, sole: bool, memory: _Memory
) -> list[int] | None:
    """The words of a leaf like `x` for an input of this dtype and shape; None where no leaf describes it. `sole`: it must be
    writeable and share no memory with another leaf."""
    words = [0] * LEAF_WORDS
    words[Leaf.TYPE], words[Leaf.SLOT], words[Leaf.SOLE] = memory.object(type(x)), slot, sole
    if type(x) is np.ndarray:
        if x.dtype is not want or x.shape != shape:
            return None
        words[Leaf.KIND], words[Leaf.DESCR], words[Leaf.RANK] = Code.ARRAY, memory.object(want), len(shape)
        words[Leaf.SIZES], words[Leaf.BYTES] = memory.words(shape), x.nbytes
        return words
    if sole or shape:
        return None
    if isinstance(x, np.generic) and type(x) is want.type and x.dtype is want:
        words[Leaf.KIND] = Code.SCALAR
        return words
    kind = {float: Code.FLOAT, int: Code.INT, bool: Code.BOOL}.get(type(x))
    if kind is None or want.name not in _STORED or (kind == Code.FLOAT and want.kind != "f"):
        return None
    words[Leaf.KIND], words[Leaf.DESCR] = kind, _STORED[want.name]
    low, high = (0, 1) if want.kind == "b" else (-(2**63), 2**63 - 1)
    if want.kind in "iu":
        low, high = int(np.iinfo(want).min), min(int(np.iinfo(want).max), 2**63 - 1)
    words[Leaf.LOW], words[Leaf.HIGH] = low, high
    return words


class Route:
    """One way for a call. `plan` is the program's for the shapes of `values`."""

    def __init__(
        self,
        program: Any,
        plan: Any,
        args: Sequence[Node],
        named: Mapping[str, Node],
        values: Sequence[Any],
        tree: Node,
        *,
        fixed: Sequence[NDArray[Any]] = (),
        sole: Sequence[int] = (),
        out: bool = False,
    ) -> None:
        """`values`: the leaves of the call it is like, the program's inputs (without `fixed`, its last inputs) and, with `out`,
        the arrays for its results. `sole`: leaves that share memory with no other. ValueError where no route is possible."""
        self.memory = m = _Memory()
        self.words = w = (ctypes.c_int64 * ROUTE_WORDS)()
        inputs = len(program.input_dtypes) - len(fixed)
        results = len(plan.outputs)
        donated = program.donated
        alone = set(sole) | set(donated.values()) | set(range(inputs, inputs + results) if out else ())
        wanted = list(zip(program.input_dtypes, plan.shapes, strict=True))[:inputs] + [(t, s) for s, t in plan.outputs]
        leaves: list[int] = []
        for i, x in enumerate(values):
            t, shape = wanted[i]
            found = leaf_words(x, t, shape, i if i < inputs else i + len(fixed), i in alone, m)
            if found is None:
                raise ValueError("a leaf that is not described")
            leaves += found
        made: list[int] = []
        for j, (shape, t) in enumerate(plan.outputs):
            row = [0] * RESULT_WORDS
            nbytes = t.itemsize
            for d in shape:
                nbytes *= d
            row[Result.MAKE] = (
                Make.GIVEN if out else Make.DONATED if j in donated else Make.LARGE if nbytes >= LARGE else Make.SMALL
            )
            row[Result.LEAF] = inputs + j if out else donated.get(j, 0)
            row[Result.DESCR], row[Result.RANK], row[Result.SIZES] = m.object(t), len(shape), m.words(shape)
            row[Result.BYTES] = nbytes
            made += row
        settings = config.get()
        m.kept += [program, plan, fixed]
        w[Word.OWNER] = id(self)
        w[Word.SETTINGS] = m.object(settings)
        w[Word.ARGS], w[Word.NAMED] = len(args), len(named)
        w[Word.NAMES] = m.words([m.object(n) for n in named])
        w[Word.GUARDS] = m.nodes([*args, *named.values()])
        w[Word.LEAF_COUNT], w[Word.LEAVES] = len(values), m.words(leaves)
        w[Word.FIXED_COUNT], w[Word.FIXED_AT] = len(fixed), inputs
        w[Word.FIXED] = m.words([a.ctypes.data for a in fixed])
        w[Word.RESULT_COUNT], w[Word.RESULTS], w[Word.RESULTS_AT] = results, m.words(made), inputs + len(fixed)
        w[Word.CONST_COUNT], w[Word.CONSTS] = len(program.constants), ctypes.addressof(program.constant_table)
        w[Word.SLOTS] = inputs + len(fixed) + results + len(program.constants)
        w[Word.ENTRY], w[Word.DIMS] = program.entry, ctypes.addressof(plan.dims)
        w[Word.CONTEXT] = program.context(settings)
        w[Word.ARENA_BYTES], w[Word.ARENAS] = plan.arena, program.arenas.address
        w[Word.TREE] = m.nodes([tree], result=True)
        w[Word.SOLE_COUNT], w[Word.SOLE] = len(alone), m.words(sorted(alone))
        w[Word.TICKS] = _NEVER
        w[Word.FAIL], w[Word.NOTE] = m.object(program.fail), m.object(program.note)
        self.address = ctypes.addressof(w)


# ---- what is called -------------------------------------------------------------------------------------------------


class Routed:
    """The base of objects that are called along routes. A subclass has `_called`, which takes what no route fits."""

    __slots__ = ("_calls", "_routes")  # the first of them is where `call` looks
    _called: Callable[..., Any]

    def __init__(self) -> None:
        self._calls = np.zeros(2 + MOST_ROUTES, np.int64)
        self._calls[1] = id(type(self)._called)
        self._routes: list[Route] = []

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._called(*args, **named)

    def remember(self, route: Route) -> None:
        """Try this route first; the one that was not taken for longest goes."""
        _install()
        with _lock:
            _remembering.add(self)
            order = {r.address: r for r in self._routes}
            kept = [order[a] for a in self._calls[2 : 2 + int(self._calls[0])].tolist() if a in order]
            routes = [route, *kept[: MOST_ROUTES - 1]]
            self._calls[0] = 0  # a call between these lines finds none
            self._calls[2 : 2 + len(routes)] = [r.address for r in routes]
            self._calls[0] = len(routes)
            self._routes = routes  # last: now nobody finds the one that goes

    def forget(self) -> None:
        """Have no routes."""
        with _lock:
            self._calls[0] = 0
            self._routes = []


_lock = threading.RLock()  # routes are written by one thread at a time
_remembering: weakref.WeakSet[Routed] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child every object asks for the pool's context again, which gives it workers of its own."""
    global _lock
    _lock = threading.RLock()
    for x in _remembering:
        x.forget()


with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_after_fork)

_installed: list[bool] = []


def _install() -> None:
    """Make the native `call` the `__call__` of `Routed`, once, where that can be."""
    if _installed:
        return
    _installed.append(True)
    at: Any = Routed.__dict__["_calls"]
    if native.calls_are_known() and _offset(at) == native.CALLS:
        Routed.__call__ = native.method(Routed, "__call__")  # type: ignore[method-assign]


def _offset(slot: Any) -> int:
    """Where objects keep a slot."""
    probe = Routed.__new__(Routed)
    marker = object()
    slot.__set__(probe, marker)
    words = (ctypes.c_int64 * (Routed.__basicsize__ // 8)).from_address(id(probe))
    return 8 * list(words).index(id(marker))
