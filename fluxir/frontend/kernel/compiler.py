"""`compile_kernel`: a Python function with typed parameters as a kernel function of loop IR.

The kernel's `grid` is open: any launch gives it. Its `block` is open too, unless it is fixed here. Locations of ops are those
of the user's source.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.frontend.kernel.context import frame_of
from fluxir.frontend.kernel.escapes import VALUE, straightened
from fluxir.frontend.kernel.gpu import IndexAt
from fluxir.frontend.kernel.signature import Param, arguments, bound
from fluxir.frontend.kernel.statements import Statements
from fluxir.ir.core import Attrs, Block, Func


class Compiler(Statements):
    """One kernel."""

    def static_attribute(self, x: Any, name: str) -> Any:
        found = super().static_attribute(x, name)
        return found.read(self) if isinstance(found, IndexAt) else found


def compile_kernel(fn: Callable[..., Any], params: Sequence[Param], block: Sequence[int] = ()) -> Func:
    """The kernel function of `fn` for `params`, with a fixed `block` where one is given.

    Raises FX0330 for Python that kernels do not have, FX0331 for types that do not fit, FX0332 for recursion, FX0312 where
    the source is not available, and the type rules' own errors, all with the user's line.
    """
    frame, node = frame_of(fn)
    if not isinstance(node, ast.FunctionDef):
        raise error("FX0312", "a kernel is written with def, not as a lambda", loc=frame.location(node))
    cx = Compiler()
    args = arguments(params)
    values = iter(args)
    for p in params:
        frame.names[p.name] = bound(p, values)
    cx.frames.append(frame)
    with cx.at(node):
        body, _ = straightened(node.body)
        cx.block(body)
        if frame.names.get(VALUE) is not None:
            raise cx.wrong(f"the kernel {frame.name!r} returns a value", "write it to an array")
    attrs = Attrs({"grid": (), "block": tuple(int(n) for n in block)})
    return Func(frame.name, Block(args, cx.b.ops, ()), "kernel", attrs, (), frame.location(node))


__all__ = ["Compiler", "compile_kernel"]
