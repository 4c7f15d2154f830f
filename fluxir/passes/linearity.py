"""Whether a user's rule is linear in the way that a transpose needs: no loop or branch is decided by what it maps.

The transpose of a linear map is found by differentiating it at zero, where its derivative is that of everywhere. A loop that
runs until its result no longer changes computes a linear map too, but at zero it ends at once, and its derivative there
is another. Nothing tells such a rule from a right one by its results, so it is refused before it is transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fluxir.errors import error
from fluxir.ir.core import Block, Op, Value

if TYPE_CHECKING:
    from fluxir.passes.reverse import Functions


def require_linear(functions: Functions, call: Op, rule: str, places: Sequence[int], moved: str, other: str) -> None:
    """FX0413 if a loop or branch in the function `rule` is decided by its arguments `places`, which are `moved`."""
    func = functions.function(rule)
    op, _ = _Search(functions).block(func.block, [i in places for i in range(len(func.args))])
    if op is None:
        return
    what = "how often a loop runs" if op.name == "while" else "which branch runs"
    raise error(
        "FX0413",
        f"{rule!r} is to be transposed, but {what} in it depends on the {moved}",
        loc=call.loc,
        labels=[(op.loc, "this is decided by it")] if op.loc else (),
        help=f"such a rule serves its own mode only: {other}",
    )


class _Search:
    """Follows what depends on some arguments through a function, until it decides something."""

    def __init__(self, functions: Functions) -> None:
        self.functions = functions
        self.seen: set[tuple[str, tuple[bool, ...]]] = set()

    def block(self, block: Block, flags: Sequence[bool]) -> tuple[Op | None, list[bool]]:
        """The first op that decides by a flagged argument, and which results depend on one."""
        flagged: set[Value] = {a for a, f in zip(block.args, flags, strict=True) if f}
        for op in block.ops:
            given = [v in flagged for v in op.operands]
            if any(given):
                found, outs = self.op(op, given)
                if found is not None:
                    return found, []
                flagged.update(r for r, f in zip(op.results, outs, strict=True) if f)
        return None, [v in flagged for v in block.outs]

    def op(self, op: Op, given: list[bool]) -> tuple[Op | None, list[bool]]:
        if op.name == "if":
            if given[0]:
                return op, []
            sides = [self.block(b, given[1:]) for b in op.blocks]
            found = next((f for f, _ in sides if f is not None), None)
            return found, [] if found is not None else [any(fs) for fs in zip(*[s for _, s in sides], strict=True)]
        if op.name in ("while", "scan"):
            return self.loop(op, given)
        if op.name == "call" and not op.attrs["rules"]:
            return self.call(op, given), [True] * len(op.results)
        return None, [True] * len(op.results)  # a call with rules is not differentiated through its body

    def loop(self, op: Op, given: list[bool]) -> tuple[Op | None, list[bool]]:
        n, body = op.attrs["carry"], op.blocks[-1]
        while True:  # until what one round flags is flagged before it
            if op.name == "while":
                found, (decided, *_) = self.decision(op.blocks[0], given)
                if found is not None or decided:
                    return found or op, []
            found, outs = self.block(body, given)
            if found is not None:
                return found, []
            carried = [a or b for a, b in zip(given[:n], outs[:n], strict=True)]
            if carried == given[:n]:
                return None, [*carried, *outs[n:]]
            given = [*carried, *given[n:]]

    def decision(self, block: Block, given: list[bool]) -> tuple[Op | None, list[bool]]:
        found, outs = self.block(block, given)
        return found, outs or [False]

    def call(self, op: Op, given: list[bool]) -> Op | None:
        callee, key = op.attrs["callee"], (op.attrs["callee"], tuple(given))
        if key in self.seen or op.attrs["transform"]:
            return None
        self.seen.add(key)
        return self.block(self.functions.function(callee).block, given)[0]


__all__ = ["require_linear"]
