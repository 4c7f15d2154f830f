"""Asynchronous barriers in shared memory: what threads do with them. Their state is in `mbarriers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..isa import Form, machine
from ..mbarriers import MOST, State
from ..ptx import Immediate
from ..values import Array

if TYPE_CHECKING:
    from ..code import Step
    from ..scope import Scope
    from ..wave import Mask, Wave

_SPACES = ("shared", "shared::cta", "shared::cluster")
_OPERATIONS = (
    "init",
    "inval",
    "arrive",
    "arrive_drop",
    "test_wait",
    "try_wait",
    "expect_tx",
    "complete_tx",
    "pending_count",
)


@machine(
    "mbarrier",
    "barrier",
    "b64",
    f"{' '.join(_OPERATIONS)} parity noComplete {' '.join(_SPACES)} release acquire relaxed cta cluster",
    section="9.7.13.15",
)
def mbarrier(form: Form, scope: Scope) -> Step:
    """Count arrivals and bytes in shared memory, and wait until a phase has all of them."""
    operation = form.one_of(*_OPERATIONS)
    if operation == "pending_count":
        return _pending_count(form, scope)
    if operation in ("arrive", "arrive_drop"):
        return _arrive(form, scope)
    if operation in ("test_wait", "try_wait"):
        return _wait(form, scope)
    x = form.instruction
    space = _space(form)
    address = scope.address(x.operands[0], space, x)
    value = scope.read(x.operands[1] if operation != "inval" else Immediate(0), "u32", x)

    def run(w: Wave, m: Mask) -> None:
        found = w.mbarriers.find(m, space, address(w), x, fresh=operation == "init")
        if found is None:
            return
        part, where = found
        n = part.picked(value(w)).astype(np.int64)
        if operation == "init":
            w.mbarriers.init(part, where, n, x)
        elif operation == "inval":
            w.mbarriers.invalidate(part, where, x)
        else:
            w.mbarriers.expect(part, where, n if operation == "expect_tx" else -n, x)

    return run


def _space(form: Form) -> str:
    return "shared" if form.one_of(*_SPACES) else "generic"


def _arrive(form: Form, scope: Scope) -> Step:
    """Arrive, once or `count` times; with `.expect_tx` the phase also takes so many bytes more."""
    x = form.instruction
    operands = list(x.operands)
    write = scope.write(operands.pop(0), "b64", x)
    space, drop, complete = _space(form), form.has("arrive_drop"), not form.has("noComplete")
    address = scope.address(operands[0], space, x)
    value = scope.read(operands[1] if len(operands) > 1 else Immediate(1), "u32", x)
    expects, release = form.has("expect_tx"), not form.has("relaxed")

    def run(w: Wave, m: Mask) -> None:
        found = w.mbarriers.find(m, space, address(w), x)
        if found is None:
            return
        part, where = found
        n = part.picked(value(w)).astype(np.int64)
        if n.max() > MOST:
            w.report("limit", f"an mbarrier counts up to {MOST}, not {int(n.max())}", x, part.index[n > MOST])
        count, nbytes = (np.ones_like(n), n) if expects else (n, np.zeros_like(n))
        state = w.mbarriers.arrive(part, where, count, nbytes, x, drop, release, complete)
        write(w, part.spread(state), part)

    return run


def _wait(form: Form, scope: Scope) -> Step:
    """Whether the phase has ended that a state or a parity names. `try_wait` may suspend the thread: where it fails, others
    run before a loop asks again."""
    x = form.instruction
    space, parity = _space(form), form.has("parity")
    write, address = scope.write(x.operands[0], "pred", x), scope.address(x.operands[1], space, x)
    which, acquire = scope.read(x.operands[2], "u32" if parity else "b64", x), not form.has("relaxed")

    def run(w: Wave, m: Mask) -> None:
        ended = np.ones(w.size, bool)  # a wait for what is no mbarrier would never end
        found = w.mbarriers.find(m, space, address(w), x)
        if found is not None:
            part, where = found
            named = part.picked(which(w))
            phase: Array = (named & 1 if parity else named >> np.uint64(63)).astype(np.int64)
            ended[part.index] = w.mbarriers.test(part, where, phase, x, acquire)
        write(w, ended, m)

    return run


def _pending_count(form: Form, scope: Scope) -> Step:
    """How many arrivals were pending in a state."""
    x = form.instruction
    read, write = scope.read(x.operands[1], "b64", x), scope.write(x.operands[0], "u32", x)

    def run(w: Wave, m: Mask) -> None:
        state = np.broadcast_to(read(w), (w.size,))
        write(w, State.unpack(np.ascontiguousarray(state)).pending.astype(np.uint32), m)

    return run
