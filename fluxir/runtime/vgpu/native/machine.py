"""Instructions that work on the machine's state, in LLVM IR: where lanes go, barriers, loads, stores, atomics, addresses.

Each is a function of (writer, form, scope), found by its name in `MACHINE`. What it cannot do natively is `Unsupported`: the
kernel then runs on the numpy executor. Instructions between lanes are in `lanes`, those of the tensor cores in `tensor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..image import layout_arguments
from ..instructions.memory import _BITS, _order, _space
from ..isa import Form
from ..memory import GLOBAL_BASE, LOCAL_BASE, SHARED_BASE
from ..ptx import Address, Immediate, Symbol, type_bytes
from ..scope import Scope
from .atomic import OPERATIONS
from .block import BlockWriter, Unsupported, lane_bits
from .context import DONE, FINDING, HEADER, WAITS_BLOCK, WAITS_WARP, field, field_address
from .text import scalar, splat, vector, word

if TYPE_CHECKING:
    Maker = Callable[[BlockWriter, Form, Scope], None]

__all__ = ["MACHINE", "object_to", "on"]

MACHINE: dict[str, Maker] = {}
_I32 = vector("i32")


def on(*names: str) -> Callable[[Maker], Maker]:
    """Declare the instructions of these names."""

    def declare(maker: Maker) -> Maker:
        for name in names:
            MACHINE[name] = maker
        return maker

    return declare


def object_to(w: BlockWriter, condition: str) -> None:
    """The sanitizer has something to say where the condition (i1) holds; without a branch."""
    f = w.f
    place = field_address(f, "stop")
    found = f(f"select i1 {condition}, i64 {FINDING}, i64 0")
    f.store("i64", f.op("or", "i64", f.load("i64", place), found), place)


# ---- where lanes go
@on("bra")
def _branch(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    target, guard = scope.target(x.operands[0], x), scope.guard(x)
    if guard is None:
        w.go(target)
        return
    taken, bits = w.lanes(guard)
    rest = f.op("xor", "i32", bits, w.all_bits)
    both = f.op("and", "i1", f(f"icmp ne i32 {bits}, 0"), f(f"icmp ne i32 {rest}, 0"))
    f.add("i64", field_address(f, "branches"), 1)
    f.add("i64", field_address(f, "divergent_branches"), f.cast("zext", "i1", both, "i64"))
    w.successors += [target, w.block.after]
    w.leave(_where(w, taken, target, w.block.after))


def _where(w: BlockWriter, mask: str, yes: int, no: int) -> str:
    return w.f(f"select <32 x i1> {mask}, {_I32} {splat('i32', yes)}, {_I32} {splat('i32', no)}")


def _leave_guarded(w: BlockWriter, scope: Scope, form: Form, target: int) -> None:
    """The lanes whose guard holds stand at `target`, the others go on."""
    guard = scope.guard(form.instruction)
    if guard is None:
        w.leave(splat("i32", target))
        return
    w.successors.append(w.block.after)
    w.leave(_where(w, w.lanes(guard)[0], target, w.block.after))


@on("ret", "exit")
def _end(w: BlockWriter, form: Form, scope: Scope) -> None:
    _leave_guarded(w, scope, form, DONE)


@on("trap")
def _trap(w: BlockWriter, form: Form, scope: Scope) -> None:
    guard = scope.guard(form.instruction)
    bits = w.all_bits if guard is None else w.lanes(guard)[1]
    object_to(w, w.f(f"icmp ne i32 {bits}, 0"))
    w.go(w.block.after)


@on("brx")
def _branch_indexed(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    table, guard = x.operands[-1], scope.guard(x)
    assert isinstance(table, Symbol)
    targets = [scope.target(Symbol(n), x) for n in scope.table(table.name, x)]
    index = w.read(x.operands[0], "u32", scope, x)
    taken, _ = (w.all_mask, "") if guard is None else w.lanes(guard)
    outside = f.op("and", "<32 x i1>", taken, f(f"icmp uge {_I32} {index}, {splat('i32', len(targets))}"))
    object_to(w, f(f"icmp ne i32 {lane_bits(f, outside)}, 0"))
    where = splat("i32", targets[0])
    for i, t in enumerate(targets[1:], 1):
        here = f(f"icmp eq {_I32} {index}, {splat('i32', i)}")
        where = f(f"select <32 x i1> {here}, {_I32} {splat('i32', t)}, {_I32} {where}")
    w.successors += targets
    if guard is not None:
        w.successors.append(w.block.after)
        where = f(f"select <32 x i1> {taken}, {_I32} {where}, {_I32} {splat('i32', w.block.after)}")
    w.leave(where)


# ---- barriers
@on("bar", "barrier")
def _barrier(w: BlockWriter, form: Form, scope: Scope) -> None:
    if form.has("warp"):
        _warp_barrier(w, form, scope)
        return
    x, f = form.instruction, w.f
    operands = list(x.operands)
    kind = form.one_of("sync", "arrive", "red", default="sync")
    if kind == "arrive":
        raise Unsupported(x, "a barrier of some threads is not executed natively")
    guard = scope.guard(x)
    bits = w.all_bits if guard is None else w.lanes(guard)[1]
    resume = w.block.after
    if kind == "red":
        result = operands.pop(0)
        value = w.read(operands.pop(), "pred", scope, x)
        f.store(_I32, f.cast("zext", vector("i1"), value, _I32), f.at("%w", HEADER["brought"]), 64)
        resume = w.resumption(form.one_of("popc", "and", "or"), result, scope, x)
    numbers = [o.value for o in operands if isinstance(o, Immediate)]
    if len(numbers) < len(operands) or (numbers and not 0 <= numbers[0] < 16):
        raise Unsupported(x, "a barrier by a number in a register is not executed natively")
    some = f(f"icmp ne i32 {bits}, 0")
    f.add("i64", field_address(f, "barriers"), f.cast("zext", "i1", some, "i64"))
    if len(numbers) > 1:  # of some threads: the numpy executor looks at those
        threads = field(f, "threads")
        object_to(w, f(f"icmp ne i64 {threads}, {numbers[1]}"))
    w.out.resume.append(resume)
    w.successors.append(w.block.after)
    _leave_guarded(w, scope, form, WAITS_BLOCK + len(w.out.resume) - 1)


def _warp_barrier(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    guard = scope.guard(x)
    mask, bits = (w.all_mask, w.all_bits) if guard is None else w.lanes(guard)
    member = w.read(x.operands[0], "b32", scope, x)
    own = f.op("and", _I32, member, w.special("lanemask_eq", x))
    outside = f.op("and", "<32 x i1>", mask, f(f"icmp eq {_I32} {own}, zeroinitializer"))
    object_to(w, f(f"icmp ne i32 {lane_bits(f, outside)}, 0"))
    w.out.resume.append(w.block.after)
    waiting = splat("i32", WAITS_WARP + len(w.out.resume) - 1)
    place = f.at("%w", HEADER["member"])
    old = f.load(_I32, place, 64)
    f.store(_I32, f(f"select <32 x i1> {mask}, {_I32} {member}, {_I32} {old}"), place, 64)
    if guard is None:  # all that are left of the warp are here: nobody waits
        ended = f(f"icmp eq {_I32} {w.pc}, {splat('i32', DONE)}")
        everybody = f(f"icmp eq i32 {f.op('or', 'i32', lane_bits(f, ended), bits)}, -1")
        narrow = f.op("and", "<32 x i1>", mask, f(f"icmp ne {_I32} {member}, {splat('i32', -1)}"))
        _new_period(w, f.op("and", "i1", everybody, f(f"icmp eq i32 {lane_bits(f, narrow)}, 0")))
        here = f.spread("i1", everybody)
        waiting = f(f"select <32 x i1> {here}, {_I32} {splat('i32', w.block.after)}, {_I32} {waiting}")
    else:
        waiting = f(f"select <32 x i1> {mask}, {_I32} {waiting}, {_I32} {splat('i32', w.block.after)}")
    w.successors.append(w.block.after)
    w.leave(waiting)


def _new_period(w: BlockWriter, condition: str) -> None:
    """The lanes of the warp have met: a new period of its clock begins."""
    f = w.f
    now = f.op("add", "i64", field(f, "now"), f.cast("zext", "i1", condition, "i64"))
    f.store("i64", now, field_address(f, "now"))
    clock = f(f"select i1 {condition}, i64 {now}, i64 {field(f, 'clock')}")
    f.store("i64", clock, field_address(f, "clock"))


@on("membar", "fence", "nanosleep", "brkpt", "pmevent", "setmaxnreg", "griddepcontrol", "prefetch", "prefetchu", "applypriority",
    "discard")  # fmt: skip
def _nothing(w: BlockWriter, form: Form, scope: Scope) -> None:
    """Order and hints: accesses are in order here, and any conflict between blocks is objected to, fences or not."""


@on("createpolicy")
def _policy(w: BlockWriter, form: Form, scope: Scope) -> None:
    w.write(form.instruction.operands[0], "b64", splat("i64", 0), scope, form.instruction)


# ---- loads and stores
def _buffer(w: BlockWriter, unit: int, k: int) -> str:
    return w.f.at(w.values, 32 * unit * k)


def _set_addresses(w: BlockWriter, addresses: str) -> None:
    w.f.store(vector("i64"), addresses, w.addresses, 64)


@on("ld", "ldu")
def _load(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f, kind = form.instruction, w.f, form.type
    unit = type_bytes(kind)
    targets = scope.items(x.operands[0])
    space = scope.space_of(x.operands[1], _space(form), x)
    if space == "argument":
        _load_argument(w, form, scope)
        return
    _set_addresses(w, w.address(x.operands[1], space, scope, x))
    w.access("load", space, unit, len(targets), _order(form) != "")
    for k, o in enumerate(targets):
        bits = f.load(vector(word(kind)), _buffer(w, unit, k), 32)
        w.write_bits(o, kind, bits, scope, x)


def _load_argument(w: BlockWriter, form: Form, scope: Scope) -> None:
    """A kernel's parameter: the same for all lanes."""
    x, f, kind = form.instruction, w.f, form.type
    operand = x.operands[1]
    base = operand.base if isinstance(operand, Address) else operand
    assert isinstance(base, Symbol)
    targets, unit = scope.items(x.operands[0]), type_bytes(kind)
    at = scope.place(base.name, x).offset + base.offset + (operand.offset if isinstance(operand, Address) else 0)
    if not 0 <= at <= layout_arguments(scope.image.kernel)[1] - unit * len(targets):
        raise Unsupported(x, "it reads beyond the parameters")
    for k, o in enumerate(targets):
        value = f.load(word(kind), f.at(field(f, "parameters", "ptr"), at + k * unit), 1)
        w.write_bits(o, kind, f.spread(word(kind), value), scope, x)


@on("st")
def _store(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f, kind = form.instruction, w.f, form.type
    unit = type_bytes(kind)
    bits = _BITS[unit]
    space = scope.space_of(x.operands[0], _space(form), x)
    _set_addresses(w, w.address(x.operands[0], space, scope, x))
    values = scope.items(x.operands[1])
    for k, o in enumerate(values):
        v = w.read(o, kind if isinstance(o, Immediate) else bits, scope, x)
        have = vector(word(bits))
        if isinstance(o, Immediate):
            v = f.cast("bitcast", vector(scalar(kind)), v, have)
        f.store(have, v, _buffer(w, unit, k), 32)
    if space in ("shared", "generic"):
        w.tag()
    w.access("store", space, unit, len(values), _order(form) != "")


@on("atom", "red")
def _atomic(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f, kind = form.instruction, w.f, form.type
    operands = list(x.operands)
    targets = scope.items(operands.pop(0)) if x.name == "atom" else ()
    name = form.one_of(*OPERATIONS)
    if kind not in OPERATIONS.get(name, ()):
        raise Unsupported(x, f"`{name}` on the type `.{kind}` is not executed natively")
    unit, bits = type_bytes(kind), _BITS[type_bytes(kind)]
    address = w.address(operands[0], _space(form), scope, x)
    if name == "cas":
        given = [[operands[1], operands[2]]]
    else:
        given = [[o] for o in scope.items(operands[1])]
    for i, group in enumerate(given):
        for k, o in enumerate(group):
            v = w.read(o, kind if isinstance(o, Immediate) else bits, scope, x)
            if isinstance(o, Immediate):
                v = f.cast("bitcast", vector(scalar(kind)), v, vector(word(bits)))
            f.store(vector(word(bits)), v, _buffer(w, unit, k), 32)
        _set_addresses(w, f.op("add", vector("i64"), address, splat("i64", i * unit)) if i else address)
        w.access("atomic", _space(form), unit, 1, _order(form) != "", f"{name}.{kind}")
        if targets:
            w.write_bits(targets[i], kind, f.load(vector(word(bits)), _buffer(w, unit, 0), 32), scope, x)


# ---- addresses
@on("cvta")
def _convert_address(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, kind = form.instruction, form.type
    space = "shared" if form.has("shared::cluster") else _space(form)
    base = {"shared": SHARED_BASE, "local": LOCAL_BASE}.get(space, 0)
    v = w.read(x.operands[1], kind, scope, x)
    if base:
        by = base & (256 ** type_bytes(kind) - 1)
        v = w.f.op("sub" if form.has("to") else "add", vector(word(kind)), v, splat(word(kind), by))
    w.write(x.operands[0], kind, v, scope, x)


@on("isspacep")
def _is_space(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    space = "shared" if form.has("shared::cluster") else _space(form)
    bases = {"shared": SHARED_BASE, "local": LOCAL_BASE, "global": GLOBAL_BASE}
    if space not in bases:
        raise Unsupported(x, f"`.{space}` is not looked for natively")
    a = w.read(x.operands[1], "u64", scope, x)
    window = f.op("lshr", vector("i64"), a, splat("i64", 40))
    w.write(x.operands[0], "pred", f(f"icmp eq {vector('i64')} {window}, {splat('i64', bases[space] >> 40)}"), scope, x)
