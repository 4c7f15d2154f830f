"""From the arguments and the results of a call, as trees, to the route that the next call like it takes (`runtime/route.py`).

What belongs to the structure (text, functions, dtypes, static fields, static arguments) becomes a guard: the next call has to
have the same. Where a tree holds something that machine code cannot take apart (a registered container, a subclass of dict)
there is no route, and every call is looked at in Python.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

from fluxir.frontend import tree
from fluxir.runtime import route
from fluxir.runtime.program import Program

__all__ = ["remember"]

_CLASSES = {"list": list, "tuple": tuple, "dict": dict}


def remember(
    owner: route.Routed,
    program: Any,
    arguments: tuple[Sequence[Any], Mapping[str, Any]],
    structure: tree.TreeDef,
    leaves: Sequence[Any],
    results: tree.TreeDef,
) -> None:
    """Let calls of `owner` like this one take a route into `program`, where there is one. `structure`: of the positional and the
    traced named arguments, whose leaves are the program's inputs; other named arguments are static."""
    if not isinstance(program, Program):
        return
    args, named = arguments
    count = iter(range(len(leaves)))
    positional, traced = structure.children
    try:
        places = [_guard(x, s, count) for x, s in zip(args, positional.children, strict=True)]
        found = {k: _guard(named[k], s, count) for k, s in zip(traced.keys, traced.children, strict=True)}
        guards = {k: found[k] if k in found else route.equal(x) for k, x in named.items()}
        made = program.route(places, guards, leaves, _made(results, iter(range(results.leaf_count))))
    except ValueError:
        return
    if made is not None:
        owner.remember(made)


def _guard(x: Any, structure: tree.TreeDef, count: Iterator[int]) -> route.Node:
    """What `x` has to be. ValueError where that cannot be said."""
    match structure.kind:
        case "leaf":
            return route.leaf(next(count))
        case "none":
            return route.same(None)
        case "static":
            return route.equal(x) if isinstance(x, MethodType) or not tree.is_function(x) else route.same(x)
    kind, keys, children = structure.kind, structure.keys, structure.children
    if kind in _CLASSES and type(x) is not _CLASSES[kind]:
        raise ValueError(f"a {type(x).__name__}")
    match kind:
        case "list" | "tuple" | "namedtuple":
            return route.items(type(x), [_guard(v, c, count) for v, c in zip(x, children, strict=True)])
        case "dict":
            return route.table({k: _guard(x[k], c, count) for k, c in zip(keys, children, strict=True)})
        case "dataclass":
            fields = {k: _guard(getattr(x, k), c, count) for k, c in zip(keys, children, strict=True)}
            return route.parts(type(x), fields | {k: route.equal(v) for k, v in structure.aux})
    raise ValueError(f"a {type(x).__name__}")


def _made(structure: tree.TreeDef, count: Iterator[int]) -> route.Node:
    """How a result of this structure is put together."""
    if structure.kind == "leaf":
        return route.leaf(next(count))
    if structure.kind == "none":
        return route.same(None)
    if structure.kind == "static":
        return route.same(structure.aux.x)
    children = [_made(c, count) for c in structure.children]
    match structure.kind:
        case "list":
            return route.items(list, children)
        case "tuple":
            return route.items(tuple, children)
        case "dict":
            return route.table(dict(zip(structure.keys, children, strict=True)))
    build = functools.partial(tree.rebuilt, structure)
    return route.parts(build, {str(i): c for i, c in enumerate(children)})
