"""From tensor functions to a host function each, and kernels: where every value lives, and what is launched when.

`lower(module, target)` gives a module whose functions of the same names are host functions (arguments: one memory for
each input, then one for each result, written by the callee) followed by the kernels they launch. Invariants:

- A value has one memory. A result is computed straight into the memory the caller gave, unless that is taken: an
  argument that is also a result, or a value returned twice, is copied.
- The memories of the results do not overlap those of the inputs when a function, branch or loop body starts.
- Loop carries live in one memory each, which is the loop's result; a body writes its next carry over the current one
  where nothing reads that any more, otherwise elsewhere, and the copy comes last.
- Kernels that are structurally equal are made once.
- What a kernel prepares from its inputs alone (a packed operand) is prepared once in a block, and before a loop where
  the inputs are the same in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.errors import error
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Dim, assuming
from fluxir.ir.rewrite import has_effects
from fluxir.ir.types import MemType
from fluxir.ops.control import scan_length, scan_parts
from fluxir.schedule import (  # noqa: F401  (importing a template module registers its templates)
    attention_cpu,
    attention_decode_cpu,
    attention_grad_cpu,
    conv_channels_cpu,
    conv_cpu,
    conv_open_cpu,
    conv_reduce_cpu,
    depthwise_cpu,
    gpu_matmul,
    gpu_pointwise,
    gpu_rowwise,
    join_cpu,
    matmul_cpu,
    matmul_integer,
    pointwise,
    rowwise,
    scatter,
    small_dot_cpu,
    sorting,
    special,
    split,
    update,
    window_cpu,
    winograd_cpu,
)
from fluxir.schedule.group import Array, Group, group_of, shape_of
from fluxir.schedule.loops import for_, memory, region
from fluxir.schedule.simt_cpu import on_cpu
from fluxir.schedule.templates import Kernels, Ref, Step, select


@dataclass(frozen=True)
class Origin:
    """What one op of the tensor level became: the template that took it, and its launches."""

    op: Op
    template: str
    steps: tuple[Step, ...]
    prepared: bool
    """Whether the steps that prepare operands cost nothing here (see `Kernels.prepared`)."""


def lower(
    module: Module,
    target: Any,
    origins: list[Origin] | None = None,
    ahead: Callable[[Func], None] | None = None,
) -> Module:
    """Host functions and kernels for `target` from the tensor functions of `module`. FX0502 for an op without code. Says in
    `origins`, where given, what each op became, and tells `ahead` each new kernel whose arguments share no memory."""
    with assuming(module.facts):
        called = {op.attrs["callee"] for f in module.funcs.values() for op in f.walk() if op.name == "kernel"}
        kernels = KernelTable(set(module.funcs) - called, target, {name: module.funcs[name] for name in called})
        kernels.origins = origins
        kernels.ahead = ahead
        hosts = {
            name: _host_function(f, kernels) if f.level == "tensor" else f
            for name, f in module.funcs.items()
            if name not in called
        }
    return Module(module.name, {**hosts, **{k.name: k for k in kernels.funcs.values()}}, module.facts, module.attrs)


class KernelTable:
    """The kernels made so far: by digest, and by the group they compute."""

    def __init__(self, taken: set[str], target: Any, source: Mapping[str, Func] | None = None) -> None:
        self.target = target
        self.source = source or {}  # GPU kernels that tensor functions call, by name
        self.taken = set(taken)
        self.funcs: dict[str, Func] = {}  # by digest
        self.groups: dict[tuple[str, str], tuple[str, Kernels]] = {}
        self.origins: list[Origin] | None = None
        self.ahead: Callable[[Func], None] | None = None
        self._told: set[str] = set()

    def kernels_of(self, group: Group) -> Kernels:
        return self.selected(group)[1]

    def selected(self, group: Group) -> tuple[str, Kernels]:
        """The template of a group and its kernels."""
        key = (group.kind, group.block.digest)
        if key not in self.groups:
            self.groups[key] = select(group, self.target)
        return self.groups[key]

    def name_of(self, kernel: Func) -> str:
        """The name under which the module has the kernel, adding it if it is new."""
        if kernel.digest not in self.funcs:
            base, n = kernel.name, 1
            name = base
            while name in self.taken:
                n += 1
                name = f"{base}_{n}"
            self.taken.add(name)
            self.funcs[kernel.digest] = Func(
                name, kernel.block, kernel.level, kernel.attrs, kernel.result_names, kernel.loc
            )
        return self.funcs[kernel.digest].name

    def launched(self, step: Step) -> str:
        """The name of a step's kernel, which is about to be launched."""
        name = self.name_of(step.kernel)
        if self.ahead is not None and not step.inplace and name not in self._told:
            self._told.add(name)
            self.ahead(self.funcs[step.kernel.digest])
        return name


def _host_function(f: Func, kernels: KernelTable) -> Func:
    inputs = [Value(memory(a.type), None, i, a.name) for i, a in enumerate(f.args)]
    outputs = [
        Value(
            memory(v.type),
            None,
            len(inputs) + j,
            f.result_names[j] if j < len(f.result_names) else f"out{j}" if len(f.outs) > 1 else "out",
        )
        for j, v in enumerate(f.outs)
    ]
    b = Builder(f.loc)
    whole = Region(b, kernels, f.block, inputs, outputs)
    whole.run_donated(inputs, dict(f.attrs.get("donated", ())))
    return Func(
        f.name,
        Block([*inputs, *outputs], b.ops, ()),
        "host",
        Attrs({**f.attrs, "inputs": len(inputs)}),
        (),
        f.loc,
    )


def constant_array(v: Value) -> Array | None:
    """The array of a value that is a constant or a reshape of one."""
    shape = shape_of(v)
    while v.owner is not None and v.owner.name in ("reshape", "stop_gradient"):
        v = v.owner.operands[0]
    if v.owner is None or v.owner.name != "const" or not all(isinstance(d, int) for d in shape):
        return None
    return v.owner.attrs["value"].reshape(shape)  # type: ignore[no-any-return]


def _source(v: Value) -> Value:
    """The value whose memory a value is read from."""
    while v.owner is not None and v.owner.name in ("reshape", "stop_gradient"):
        v = v.owner.operands[0]
    return v


@dataclass
class Destination:
    """Where a value is to be computed: a memory, seen with the value's type (through reshapes of a result)."""

    memory: Value


def root_of(mem: Value) -> Value:
    """The memory of which `mem` is a reinterpretation."""
    while mem.owner is not None and mem.owner.name == "reinterpret":
        mem = mem.owner.operands[0]
    return mem


def copy_over(b: Builder, pairs: Sequence[tuple[Value, Value]]) -> None:
    """Copy values into memories, all at once: a value that lies in another of the memories (a swap) is saved before that one
    is overwritten."""
    changed = [(m, x) for m, x in pairs if root_of(x) is not root_of(m)]
    roots = [root_of(m) for m, _ in pairs]
    saved = []
    for m, x in changed:
        if len(changed) > 1 and root_of(x) in roots:
            t = b.alloc(type=x.type)
            b.copy(t, x)
            x = t
        saved.append((m, x))
    for m, x in saved:
        b.copy(m, x)


class Region:
    """One block being lowered into builder `b`. `wanted[j]`: the memory that result j must end up in, or None.

    `outer` and `fixed` belong to a loop's body: the region around it, and the values there that its arguments stand for
    in every round.
    """

    def __init__(
        self,
        b: Builder,
        kernels: KernelTable,
        block: Block,
        args: Sequence[Value],
        wanted: Sequence[Value | None],
        outer: Region | None = None,
        fixed: Mapping[Value, Value] | None = None,
    ) -> None:
        self.b, self.kernels, self.block, self.wanted = b, kernels, block, list(wanted)
        self.outer, self.fixed = outer, fixed or {}
        self.prepared: dict[tuple[Any, ...], Value] = {}  # by kernel and what it reads: the memory written
        self.memory: dict[Value, Value] = dict(zip(block.args, args, strict=True))
        self.destination = self._destinations()
        self.users: dict[Value, int] = {}
        for op in block.ops:
            for v in op.operands:
                self.users[v] = self.users.get(v, 0) + 1
        for v in block.outs:
            self.users[v] = self.users.get(v, 0) + 1

    def run(self) -> list[Value]:
        """Lower all ops; returns the memory of each result (`wanted[j]` where given)."""
        for op in self.block.ops:
            if has_effects(op) or any(self.users.get(r) for r in op.results):
                self.b.loc = op.loc
                self.op(op)
        results = []
        for v, want in zip(self.block.outs, self.wanted):
            have = self.mem(v)
            if want is not None and root_of(have) is not root_of(want):
                self.b.copy(want, have)
            results.append(have if want is None else want)
        return results

    def run_donated(self, inputs: Sequence[Value], donated: Mapping[int, int]) -> None:
        """As `run`; the result j of `donated` ends up in the memory of input donated[j], which nobody reads afterwards."""
        free = {j: i for j, i in donated.items() if not self.overwrites(self.block, j, i)}
        for j, i in donated.items():
            self.wanted[j] = None if j in free else inputs[i]
        self.destination = self._destinations()
        results = self.run()
        copy_over(self.b, [(inputs[i], results[j]) for j, i in free.items()])

    # ---- memories
    def _destinations(self) -> dict[Value, Destination]:
        """The first result that each value made here is (a reshape of)."""
        made = {r for op in self.block.ops for r in op.results}
        found: dict[Value, Destination] = {}
        for v, want in zip(self.block.outs, self.wanted):
            if want is None:
                continue
            while v in made and v not in found and v.owner is not None:
                if v.owner.name == "const":
                    break
                found[v] = Destination(want)
                if v.owner.name != "reshape":
                    break
                v = v.owner.operands[0]
        return found

    def mem(self, v: Value) -> Value:
        """The memory that holds a value."""
        if v not in self.memory:
            assert v.owner is not None and v.owner.name == "const", f"{v!r} has no memory"
            self.memory[v] = self.b.constant(value=v.owner.attrs["value"])
        return self.memory[v]

    def place(self, v: Value) -> Value:
        """The memory a value is to be written to: its destination, or a fresh buffer."""
        d = self.destination.get(v)
        if d is not None:
            self.memory[v] = self.as_type(d.memory, memory(v.type))
        else:
            self.memory[v] = self.b.alloc(type=memory(v.type))
        self.memory[v].name = self.memory[v].name or v.name
        return self.memory[v]

    def as_type(self, mem: Value, t: MemType) -> Value:
        return mem if mem.type == t else self.b.reinterpret(mem, type=t)

    # ---- ops
    def op(self, op: Op) -> None:
        match op.name:
            case "const":
                pass  # where it is first needed in memory
            case "reshape":
                self.memory[op.result] = self.as_type(self.mem(op.operands[0]), memory(op.result.type))
            case "stop_gradient":
                self.memory[op.result] = self.mem(op.operands[0])
            case "if":
                self.branch(op)
            case "assert":
                self.b.emit("assert", self.truth(self.b, self.mem(op.operands[0])), message=op.attrs["message"])
            case "scan":
                self.scan(op)
            case "while":
                self.loop(op)
            case "call":
                if op.attrs["transform"]:
                    raise error(
                        "FX0502",
                        f"the call of @{op.attrs['callee']} still asks for {op.attrs['transform']}",
                        loc=op.loc,
                        help="run the pass that resolves transforms first",
                    )
                self.b.emit(
                    "call",
                    *[self.mem(v) for v in op.operands],
                    *[self.place(r) for r in op.results],
                    callee=op.attrs["callee"],
                    results=(),
                    dims=op.attrs["dims"],
                    sized=op.attrs["sized"],
                )
            case "kernel":
                self.kernel(op)
            case _:
                self.launch(op)

    def launch(self, op: Op) -> None:
        group, inputs = group_of(op)
        arrays = [*map(constant_array, inputs), *group.constants]
        template, made = self.kernels.selected(group)
        chosen = self.best(made, inputs, arrays)
        if self.kernels.origins is not None:
            self.kernels.origins.append(Origin(op, template, chosen.steps, chosen is not made))
        made = chosen
        targets = [self.place(r) for r in op.results]
        memories: dict[Ref, Value] = {("output", j): m for j, m in enumerate(targets)}

        def memory_of(ref: Ref) -> Value:
            if ref not in memories:
                kind, i = ref
                if kind == "scratch":
                    memories[ref] = self.b.alloc(type=made.scratch[i])
                else:
                    memories[ref] = (
                        self.mem(inputs[i])
                        if i < len(inputs)
                        else self.b.constant(value=group.constants[i - len(inputs)])
                    )
            return memories[ref]

        for j, i in made.copies:
            source = memory_of(("input", i))
            if root_of(source) is not root_of(targets[j]):
                self.b.copy(targets[j], source)
        for step in made.steps:
            reads, (target, *_) = step.operands[: -step.outputs], step.operands[-step.outputs :]
            known = [arrays[i] if kind == "input" else None for kind, i in reads]
            if step.fold is not None and all(a is not None for a in known):
                memories[target] = self.b.constant(value=step.fold(*known))
                continue
            prepares = target[0] == "scratch" and target not in memories and step.outputs == 1
            if prepares and reads and all(kind == "input" and i < len(inputs) for kind, i in reads):
                memories[target] = self.prepare(step, [inputs[i] for _, i in reads], made.scratch[target[1]])
                continue
            operands = []
            for ref, arg in zip(step.operands, step.kernel.args, strict=True):
                mem = memory_of(ref)
                operands.append(self.as_type(mem, arg.type) if isinstance(arg.type, MemType) else mem)
            name = self.kernels.launched(step)
            self.b.emit("launch", *operands, callee=name, outputs=step.outputs, inplace=step.inplace)

    def best(self, made: Kernels, inputs: Sequence[Value], arrays: Sequence[Array | None]) -> Kernels:
        """The kernels to launch: those that prepare operands, where that happens when compiling or before the loop."""
        if made.prepared is None:
            return made
        other = made.prepared()
        reads = [
            i for s in other.steps if s.fold is not None for kind, i in s.operands[: -s.outputs] if kind == "input"
        ]
        constant = [arrays[i] is not None for i in reads]
        fixed = [i < len(inputs) and _source(inputs[i]) in self.fixed for i in reads]
        return other if all(constant) or (self.outer is not None and all(fixed)) else made

    def kernel(self, op: Op) -> None:
        """A GPU kernel of the module: its written operands are copied to where the results lie, and it works there."""
        a = op.attrs
        memories = [self.mem(v) for v in op.operands]
        for i, r in zip(a.writes, op.results, strict=True):
            source, target = memories[i], self.place(r)
            if root_of(source) is not root_of(target):
                self.b.copy(target, source)
            memories[i] = target
        f = self.kernels.source[a.callee]
        order = [*(i for i in range(len(memories)) if i not in a.writes), *a.writes]  # outputs come last
        f = Func(f.name, Block([f.args[i] for i in order], f.block.ops, ()), "kernel", f.attrs, (), f.loc)
        types = [a.type for a in f.args if isinstance(a.type, MemType)]  # all of them: numbers come in memory
        operands = [self.as_type(memories[i], t) for i, t in zip(order, types, strict=True)]
        grid = (*a.grid, 1, 1)[:3]
        if self.kernels.target.kind == "cpu":
            f = on_cpu(f, a.block)
            operands += [self.b.index(d) for d in grid]
        else:
            f = Func(f.name, f.block, "kernel", Attrs({"grid": grid, "block": (*a.block, 1, 1)[:3]}), (), f.loc)
        self.b.emit("launch", *operands, callee=self.kernels.name_of(f), outputs=len(a.writes))

    def prepare(self, step: Step, sources: Sequence[Value], type_: MemType) -> Value:
        """A memory with what a step writes that reads these values alone: that of an equal step before, or of one before
        the loop if the values are the same in every round."""
        sources = [_source(v) for v in sources]
        name = self.kernels.launched(step)
        key = (name, *sources)
        if key in self.prepared:
            return self.prepared[key]
        if self.outer is not None and all(v in self.fixed for v in sources):
            mem = self.outer.prepare(step, [self.fixed[v] for v in sources], type_)
        else:
            reads = [self.mem(v) for v in sources]
            mem = self.b.alloc(type=type_)
            operands = [
                self.as_type(m, arg.type) if isinstance(arg.type, MemType) else m
                for m, arg in zip([*reads, mem], step.kernel.args, strict=True)
            ]
            self.b.emit("launch", *operands, callee=name, outputs=1, inplace=step.inplace)
        self.prepared[key] = mem
        return mem

    def nested(
        self,
        b: Builder,
        block: Block,
        args: Sequence[Value],
        wanted: Sequence[Value | None],
        fixed: Mapping[Value, Value] | None = None,
    ) -> list[Value]:
        b.loc = self.b.loc
        return Region(b, self.kernels, block, args, wanted, self if fixed else None, fixed).run()

    # ---- control flow
    def truth(self, b: Builder, mem: Value) -> Value:
        return b.emit("load", mem)[0]

    def branch(self, op: Op) -> None:
        condition, *captures = op.operands
        args = [self.mem(v) for v in captures]
        test = self.truth(self.b, self.mem(condition))
        results = [self.place(r) for r in op.results]

        def side(block: Block) -> Block:
            def body(b: Builder) -> None:
                self.nested(b, block, args, results)

            return region(self.b, [], body)

        self.b.emit("if", test, blocks=[side(k) for k in op.blocks])

    def scan(self, op: Op) -> None:
        carry, consts, sequences = scan_parts(op)
        nc = len(carry)
        length: Dim = scan_length(op.attrs, op.operands)
        kept, fixed = [self.mem(v) for v in consts], [self.mem(v) for v in sequences]
        state = self.initial_state(op.results[:nc], carry)
        stacked = [self.place(r) for r in op.results[nc:]]

        def body(b: Builder, i: Value) -> None:
            at = b.sub(b.sub(b.index(length), b.index(1)), i) if op.attrs["reverse"] else i
            slices = [b.emit("subview", m, at)[0] for m in fixed]
            places = [b.emit("subview", m, at)[0] for m in stacked]
            same = dict(zip(op.blocks[0].args[nc : nc + len(kept)], consts))
            self.step_body(b, op.blocks[0], state, [*kept, *slices], places, same)

        for_(self.b, 0, length, body, vectorize=False)

    def loop(self, op: Op) -> None:
        n = op.attrs["carry"]
        kept = [self.mem(v) for v in op.operands[n:]]
        state = self.initial_state(op.results, op.operands[:n])
        cond, block = op.blocks

        def test(b: Builder) -> Value:
            (m,) = self.nested(b, cond, [*state, *kept], [None])
            return self.truth(b, m)

        def body(b: Builder) -> None:
            self.step_body(b, block, state, kept, [], dict(zip(block.args[n:], op.operands[n:])))

        self.b.emit("while", carry=0, blocks=[region(self.b, [], test), region(self.b, [], body)])

    def initial_state(self, results: Sequence[Value], start: Sequence[Value]) -> list[Value]:
        """The memories that hold a loop's carries, filled with their first values."""
        first = [self.mem(v) for v in start]
        state = [self.place(r) for r in results]
        for m, x in zip(state, first):
            self.b.copy(m, x)
        return state

    def step_body(
        self,
        b: Builder,
        block: Block,
        state: list[Value],
        captures: list[Value],
        outputs: list[Value],
        fixed: Mapping[Value, Value],
    ) -> None:
        """One iteration: `block` of (state, captures) gives the next state and `outputs`; see `Region` for `fixed`."""
        n = len(state)
        direct = [m if self.overwrites(block, k, k) else None for k, m in enumerate(state)]
        nexts = self.nested(b, block, [*state, *captures], [*direct, *outputs], fixed)[:n]
        copy_over(b, list(zip(state, nexts)))

    def overwrites(self, block: Block, k: int, arg: int) -> bool:
        """Whether a block may write its result `k` over its argument `arg` (a loop's next carry over the current one): the
        op that makes it is the last to read the argument, and reads an element only where it then writes it."""
        out = block.outs[k]
        op = out.owner
        if op is None or op not in block.ops or op.name in ("const", "reshape", "stop_gradient"):
            return False
        if block.outs.count(out) != 1:
            return False
        same = {block.args[arg]}
        position = block.ops.index(op)
        for i, o in enumerate(block.ops):
            if not same.intersection(o.operands):
                continue
            if i > position:
                return False
            if o.name in ("reshape", "stop_gradient"):
                same.add(o.result)
        if same.intersection(block.outs):
            return False
        if not same.intersection(op.operands):
            return True
        if op.name in ("if", "scan", "while", "call", "kernel"):
            return False
        group, inputs = group_of(op)
        made = self.kernels.kernels_of(group)
        return all(made.may_overwrite(out.index, i) for i, v in enumerate(inputs) if v in same)


__all__ = ["KernelTable", "Origin", "Region", "lower"]
