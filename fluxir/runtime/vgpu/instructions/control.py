"""Where threads go: branches, calls, returns, barriers, fences, traps. All but fences end a basic block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..barriers import Waiting
from ..calls import call_step
from ..fragments import check_warps
from ..global_races import once
from ..isa import Form, machine, reject
from ..ptx import Immediate, Symbol
from ..values import Array

if TYPE_CHECKING:
    from ..code import Step
    from ..scope import Scope
    from ..wave import Mask, Wave


def _parts(w: Wave, guard: tuple[int, bool] | None, m: Mask) -> tuple[Array, Array | None]:
    """(threads whose guard holds, the others); None where there is no guard."""
    if guard is None:
        return m.bits, None
    p = w.registers[guard[0]]
    p = ~p if guard[1] else p
    return m.bits & p, m.bits & ~p


def _those(w: Wave, guard: tuple[int, bool] | None, m: Mask, after: int) -> Mask | None:
    """The threads that the instruction is for, None where there are none; the others go on."""
    here, rest = _parts(w, guard, m)
    if rest is None:
        return m
    if rest.any():
        w.go(after, rest)
    return w.mask(here) if here.any() else None


@machine("bra", "control", flags="uni", sync="end", section="9.7.12.2")
def bra(form: Form, scope: Scope) -> Step:
    """Go to a label."""
    x = form.instruction
    target, after, guard = scope.target(x.operands[0], x), scope.next, scope.guard(x)

    def run(w: Wave, m: Mask) -> None:
        taken, rest = _parts(w, guard, m)
        if rest is None:
            w.go(target, taken)
            return
        w.counters.branch(taken, rest)
        if taken.any():
            w.go(target, taken)
        if rest.any():
            w.go(after, rest)

    return run


@machine("brx", "control", flags="idx uni", sync="end", section="9.7.12.3")
def brx(form: Form, scope: Scope) -> Step:
    """Go to the label with the given number in a list."""
    x = form.instruction
    table = x.operands[-1]
    if not isinstance(table, Symbol):
        reject(x, "a list of targets is expected", "FX0711")
    targets = [scope.target(Symbol(n), x) for n in scope.table(table.name, x)]
    index, guard, after = scope.read(x.operands[0], "u32", x), scope.guard(x), scope.next

    def run(w: Wave, m: Mask) -> None:
        taken, rest = _parts(w, guard, m)
        where = np.broadcast_to(index(w), taken.shape)
        outside = taken & (where >= len(targets))
        if outside.any():
            w.report("out-of-bounds", f"the list has {len(targets)} targets", x, np.flatnonzero(outside))
            w.exit(w.mask(outside))
        for i, target in enumerate(targets):
            here = taken & (where == i)
            if here.any():
                w.go(target, here)
        if rest is not None and rest.any():
            w.go(after, rest)

    return run


def _end(form: Form, scope: Scope) -> Step:
    """`exit`: end the thread. `ret`: return, which ends the threads of a kernel."""
    guard, after = scope.guard(form.instruction), scope.next
    returns = form.instruction.name == "ret"

    def run(w: Wave, m: Mask) -> None:
        done, rest = _parts(w, guard, m)
        if done.any() and not (returns and w.depth):
            w.exit(w.mask(done))
        if rest is not None and rest.any():
            w.go(after, rest)

    return run


machine("ret", "control", flags="uni", sync="end", section="9.7.12.6")(_end)
machine("exit", "control", sync="end", section="9.7.12.7")(_end)


@machine("trap", "control", sync="end", section="9.7.19.5")
def trap(form: Form, scope: Scope) -> Step:
    """End the launch with an error."""
    x, guard, after = form.instruction, scope.guard(form.instruction), scope.next

    def run(w: Wave, m: Mask) -> None:
        from ..wave import Stop

        hit, rest = _parts(w, guard, m)
        if hit.any():
            w.report("trap", "the kernel executed a trap", x, np.flatnonzero(hit))
            raise Stop
        w.go(after, m.bits if rest is None else rest)

    return run


@machine("brkpt", "control", section="9.7.19.1")
def brkpt(form: Form, scope: Scope) -> Step:
    """A breakpoint: nothing happens without a debugger."""
    return lambda w, m: None


@machine("nanosleep", "control", types="u32", section="9.7.19.2")
def nanosleep(form: Form, scope: Scope) -> Step:
    """Wait a while: others run first anyway."""
    return lambda w, m: None


@machine("pmevent", "control", flags="mask", section="9.7.19.3")
def pmevent(form: Form, scope: Scope) -> Step:
    """Trigger a performance monitor event: there are none."""
    return lambda w, m: None


@machine("setmaxnreg", "control", types="u32", flags="inc dec sync aligned", section="9.7.19.4")
def setmaxnreg(form: Form, scope: Scope) -> Step:
    """Change the number of registers of a warp: they are not limited here."""
    return lambda w, m: None


@machine("call", "control", flags="uni", sync="end", section="9.7.12.5")
def call(form: Form, scope: Scope) -> Step:
    """Call a function: one the linker did not inline, one through a pointer, or one of the device's own (`vprintf`)."""
    x = form.instruction
    step, guard, after = call_step(x, scope), scope.guard(form.instruction), scope.next

    def run(w: Wave, m: Mask) -> None:
        taken, _ = _parts(w, guard, m)
        if taken.any():
            step(w, m if guard is None else w.mask(taken))
        left = m.bits & w.live
        if left.any():
            w.go(after, left)

    return run


# ---- barriers


def _is_warp(form: Form) -> bool:
    return form.has("warp")


def _barrier(form: Form, scope: Scope) -> Step:
    """Wait for other threads of the block, the warp (`.warp`) or the cluster (`.cluster`), or only tell that one has come."""
    x = form.instruction
    if _is_warp(form):
        return _warp_barrier(form, scope)
    if form.has("cluster"):
        return _cluster_barrier(form, scope)
    guard, after = scope.guard(x), scope.next
    operands = list(x.operands)
    kind = form.one_of("sync", "arrive", "red", default="sync")
    aligned = x.name == "bar" or form.has("aligned")
    write = reduce = value = None
    if kind == "red":
        how, result = form.one_of("popc", "and", "or"), operands.pop(0)
        value = scope.read(operands.pop(), "pred", x)
        write = scope.write(result, "u32" if how == "popc" else "pred", x)
        reduce = {
            "popc": lambda v: np.uint32(np.count_nonzero(v)),
            "and": lambda v: np.bool_(np.all(v)),
            "or": lambda v: np.bool_(np.any(v)),
        }[how]
    number = scope.read(operands[0] if operands else Immediate(0), "u32", x)
    count = scope.read(operands[1], "u32", x) if len(operands) > 1 else lambda w: np.uint32(0)

    def run(w: Wave, m: Mask) -> None:
        mine = _those(w, guard, m, after)
        if mine is None:
            return
        here = mine.bits
        w.counters.count("barriers", mine.warp_count)
        if kind == "sync" and write is None and w.barriers.meet_at_once(mine, number(w), count(w)):
            w.go(after, here)
            return
        numbers = np.broadcast_to(number(w), here.shape).astype(np.int64)
        expected = np.broadcast_to(count(w), here.shape).astype(np.int64)
        if (numbers[mine.index] > 15).any():
            w.report("limit", "a block has the barriers 0 to 15", x, mine.index)
        if kind == "arrive":
            w.barriers.arrive(mine, numbers % 16, expected)
            w.go(after, here)
            return
        v = np.broadcast_to(value(w), here.shape) if value else None
        w.barriers.wait(Waiting(x, after, here, numbers % 16, expected, aligned, None, v, reduce, write))

    return run


def _warp_barrier(form: Form, scope: Scope) -> Step:
    x = form.instruction
    guard, after = scope.guard(x), scope.next
    member = scope.read(x.operands[0], "b32", x)

    def run(w: Wave, m: Mask) -> None:
        mine = _those(w, guard, m, after)
        if mine is None:
            return
        here = mine.bits
        mask = np.broadcast_to(member(w), here.shape)
        outside = here & (((mask >> w.lane) & 1) == 0)
        if outside.any():
            w.report("absent-lanes", "the thread is not in its own mask", x, np.flatnonzero(outside))
        if m.full and guard is None:  # everybody is here
            w.races.warp_sync(here, mask)
            w.go(after, here)
            return
        zero = np.zeros(w.size, np.int64)
        w.barriers.wait(Waiting(x, after, here, zero, zero, False, mask))

    return run


def _cluster_barrier(form: Form, scope: Scope) -> Step:
    """`barrier.cluster.arrive` and `.wait`."""
    x, guard, after, waits = form.instruction, scope.guard(form.instruction), scope.next, form.has("wait")

    def run(w: Wave, m: Mask) -> None:
        mine = _those(w, guard, m, after)
        if mine is None:
            return
        here = mine.bits
        if form.has("aligned"):
            check_warps(w, mine, x)
        if waits:
            w.counters.count("barriers", mine.warp_count)
            w.clusters.wait(mine, x, after)
        else:
            w.clusters.arrive(mine, x)
            w.go(after, here)

    return run


_FLAGS = "sync arrive red popc and or aligned cta warp cluster wait release relaxed acquire"
machine("bar", "barrier", "u32 pred", _FLAGS, sync="end", section="9.7.13.1")(_barrier)
machine("barrier", "barrier", "u32 pred", _FLAGS, sync="end", section="9.7.13.1")(_barrier)


# ---- order of memory


@machine("membar", "barrier", flags="cta gl sys", section="9.7.13.4")
def membar(form: Form, scope: Scope) -> Step:
    """Order the thread's accesses."""
    step: Step = _fence(form, scope)
    return step


@machine(
    "fence",
    "barrier",
    types="b32",
    flags="sc acq_rel acquire release cta cluster gpu sys proxy alias async global shared::cta shared::cluster "
    "tensormap::generic mbarrier_init sync_restrict::shared::cta::cluster sync_restrict::shared::cluster "
    "sync_restrict::shared::cta async::generic async.global async.shared::cta to_proxy::async from_proxy::async generic",
    section="9.7.13.4",
)
def _fence(form: Form, scope: Scope) -> Step:
    """Order the thread's accesses, among them those by other proxies."""
    wide = form.instruction.name == "membar" and not form.has("cta") or not (form.has("cta") or form.has("proxy"))

    proxy = form.has("proxy") and (form.has("async") or form.has("async::generic") or form.has("to_proxy::async"))

    def run(w: Wave, m: Mask) -> None:
        if proxy:
            w.memory.fence_proxy(m)
        races = w.launch.global_races
        if wide and races is not None and races.order is not None:
            races.order.fence(*once(w.blocks[m.pick(w.block)], m.pick(w.thread) >> np.uint32(5)))

    return run


@machine("griddepcontrol", "control", flags="launch_dependents wait", section="9.7.13.14")
def griddepcontrol(form: Form, scope: Scope) -> Step:
    """Order with other launches: they run one after the other here."""
    return lambda w, m: None
