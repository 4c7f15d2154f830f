"""Python objects that a staged branch or loop body changes: `xs.append(x)`, `self.n = x`.

Such a body is run once while tracing, whatever its condition will be, so a change of an object that lives longer would be
wrong in silence. `unchanged` looks at the objects a body can reach by name before and after, and refuses (FX0304).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import here
from fluxir.frontend.undefined import Undefined

LIMIT = 2000  # objects looked at
_OPAQUE = (
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    type,
    Tensor,
    Undefined,
    np.ndarray,
    np.generic,
)


@contextlib.contextmanager
def unchanged(body: Callable[..., Any], values: Sequence[Any]) -> Iterator[None]:
    """Refuse changes of the lists, dicts, sets and objects that `body` can reach while the block runs."""
    before = [(name, x, _items(x)) for name, x in _reachable(body, values)]
    yield
    for name, x, items in before:
        now = _items(x)
        if len(now) != len(items) or any(a is not b for a, b in zip(now, items, strict=True)):
            kind = f"the {type(x).__name__} {name!r}"
            raise error(
                "FX0304",
                f"{kind} is changed inside a branch or loop that is staged: that happens once, while tracing",
                help="assign a local variable instead; to collect values, write into a tensor (y[i] = v) or use fx.scan",
                loc=here(),
            )


def _reachable(body: Callable[..., Any], values: Sequence[Any]) -> list[tuple[str, Any]]:
    """The mutable objects behind the variables of a body, each with the name of its variable."""
    code, cells = body.__code__, body.__closure__ or ()
    roots = list(zip(code.co_varnames, values, strict=False))
    for name, cell in zip(code.co_freevars, cells, strict=True):
        with contextlib.suppress(ValueError):  # a variable without a value yet
            roots.append((name, cell.cell_contents))
    roots += [(n, body.__globals__[n]) for n in code.co_names if n in body.__globals__]
    seen: set[int] = set()
    out: list[tuple[str, Any]] = []
    todo = [(name, x) for name, x in roots if not name.startswith("__fx")]
    while todo and len(seen) < LIMIT:
        name, x = todo.pop()
        if (
            id(x) in seen
            or isinstance(x, _OPAQUE)
            or type(x).__module__.startswith("fluxir.")
            or not _mutable(x)
            and not isinstance(x, tuple)
        ):
            continue
        seen.add(id(x))
        if _mutable(x):
            out.append((name, x))
        todo += [(name, y) for y in _items(x)]
    return out


def _mutable(x: Any) -> bool:
    return isinstance(x, list | dict | set) or isinstance(getattr(x, "__dict__", None), dict)


def _items(x: Any) -> list[Any]:
    if isinstance(x, dict):
        return [*x.keys(), *x.values()]
    if isinstance(x, list | set | tuple):
        return list(x)
    return _items(x.__dict__)


__all__ = ["unchanged"]
