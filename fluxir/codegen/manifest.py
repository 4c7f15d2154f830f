"""Host functions as JSON: what a GPU runtime executes instead of compiled host code.

Values are numbers: arguments first, then results in order. A step is an object with `op`:

    {"op": "view", "result": 5, "offset": E, "dtype": "f32", "shape": [E...]}          a place in the arena
    {"op": "alloc", ...}                                                                 run-time memory (recursion)
    {"op": "constant", "result": 6, "index": 0}
    {"op": "reinterpret" | "subview", "result": 7, "memory": 5, "indices": [..], "dtype", "shape"}
    {"op": "launch", "kernel": "name", "args": [values]}            sizes and grid follow from the kernel's entry
    {"op": "copy", "args": [dst, src]}        {"op": "load", "result": 8, "args": [memory, index...]}
    {"op": "scalar", "name": "add", "result": 9, "args": [...], "dtype": "i64"}; name "const" has "value", "dim" has "value": E
    {"op": "assert", "condition": 9, "message": "..."}
    {"op": "if", "condition": 9, "args": [...], "regions": [R, R], "results": [...]}
    {"op": "for", "lo", "hi", "step", "args": carry, "regions": [R], "results"}
    {"op": "while", "args", "regions": [condition, body], "results"}
    {"op": "call", "function": "name", "args": [...], "dims": {symbol: E}, "sized": {symbol: memory of an i64}}

R is {"args": [values], "steps": [...], "outs": [values]}; E is an integer or the text of a size expression.
"""

from __future__ import annotations

from typing import Any

from fluxir.codegen.abi import text
from fluxir.codegen.hosts import host_symbols, reachable
from fluxir.errors import error
from fluxir.ir.core import Block, Module, Op, Value, array_digest
from fluxir.ir.types import MemType

SCALARS = frozenset(
    "add sub mul div fmod minimum maximum neg lt le gt ge eq ne logical_and logical_or logical_not select cast".split()
)


def host_manifest(module: Module) -> tuple[dict[str, Any], list[Any]]:
    """The host functions of a planned module, and the constant arrays they name by index."""
    constants: list[Any] = []
    index: dict[str, int] = {}
    hosts = reachable(module)
    symbols = host_symbols(module, hosts)
    functions = {}
    for name in hosts:
        f = module.funcs[name]
        w = _Writer(constants, index)
        args = [w.define(a) for a in f.args]
        functions[name] = {
            "args": args,
            "inputs": f.attrs["inputs"],
            "arena": text(f.attrs.get("arena", 0)),
            "symbols": list(symbols[name]),
            "steps": w.block(f.block),
        }
    entry = module.entry.name
    return {"entry": entry, "symbols": list(symbols[entry]), "functions": functions}, constants


class _Writer:
    def __init__(self, constants: list[Any], index: dict[str, int]) -> None:
        self.number: dict[Value, int] = {}
        self.constants, self.index = constants, index

    def define(self, v: Value) -> int:
        return self.number.setdefault(v, len(self.number))

    def uses(self, values: Any) -> list[int]:
        return [self.number[v] for v in values]

    def block(self, block: Block) -> list[dict[str, Any]]:
        return [self.step(op) for op in block.ops]

    def region(self, block: Block) -> dict[str, Any]:
        args = [self.define(a) for a in block.args]
        steps = self.block(block)
        return {"args": args, "steps": steps, "outs": self.uses(block.outs)}

    def step(self, op: Op) -> dict[str, Any]:
        method = getattr(self, "op_" + op.name, None)
        if method is None and op.name in SCALARS:
            method = self.scalar
        if method is None:
            raise error("FX0502", f"{op.name} has no meaning in a GPU launch list", loc=op.loc)
        out: dict[str, Any] = method(op)
        return out

    def memory(self, op: Op, **more: Any) -> dict[str, Any]:
        t = op.result.type
        assert isinstance(t, MemType)
        return {
            "op": op.name,
            "result": self.define(op.result),
            "dtype": t.dtype.name,
            "shape": [text(d) for d in t.shape],
            **more,
        }

    def op_view(self, op: Op) -> dict[str, Any]:
        return self.memory(op, arena=self.number[op.operands[0]], offset=text(op.attrs["offset"]))

    def op_alloc(self, op: Op) -> dict[str, Any]:
        return self.memory(op, zero=op.attrs["zero"])

    def op_reinterpret(self, op: Op) -> dict[str, Any]:
        return self.memory(op, memory=self.number[op.operands[0]])

    def op_subview(self, op: Op) -> dict[str, Any]:
        return self.memory(op, memory=self.number[op.operands[0]], indices=self.uses(op.operands[1:]))

    def op_constant(self, op: Op) -> dict[str, Any]:
        a = op.attrs["value"]
        digest = array_digest(a)
        if digest not in self.index:
            self.index[digest] = len(self.constants)
            self.constants.append(a)
        return self.memory(op, index=self.index[digest])

    def op_launch(self, op: Op) -> dict[str, Any]:
        return {
            "op": "launch",
            "kernel": op.attrs["callee"],
            "args": self.uses(op.operands),
            "source": str(op.loc) if op.loc else "",
        }

    def op_copy(self, op: Op) -> dict[str, Any]:
        return {"op": "copy", "args": self.uses(op.operands)}

    def op_assert(self, op: Op) -> dict[str, Any]:
        return {
            "op": "assert",
            "condition": self.number[op.operands[0]],
            "message": op.attrs["message"],
            "source": str(op.loc) if op.loc else "",
        }

    def op_load(self, op: Op) -> dict[str, Any]:
        return {
            "op": "load",
            "args": self.uses(op.operands),
            "result": self.define(op.result),
            "dtype": op.result.dtype.name,
        }

    def op_const(self, op: Op) -> dict[str, Any]:
        return {
            "op": "scalar",
            "name": "const",
            "args": [],
            "value": op.attrs["value"].item(),
            "result": self.define(op.result),
            "dtype": op.result.dtype.name,
        }

    def op_dim(self, op: Op) -> dict[str, Any]:
        return {
            "op": "scalar",
            "name": "dim",
            "args": [],
            "value": text(op.attrs["value"]),
            "result": self.define(op.result),
            "dtype": "i64",
        }

    def scalar(self, op: Op) -> dict[str, Any]:
        return {
            "op": "scalar",
            "name": op.name,
            "args": self.uses(op.operands),
            "result": self.define(op.result),
            "dtype": op.result.dtype.name,
        }

    def op_if(self, op: Op) -> dict[str, Any]:
        condition, *args = self.uses(op.operands)
        regions = [self.region(k) for k in op.blocks]
        return {
            "op": "if",
            "condition": condition,
            "args": args,
            "regions": regions,
            "results": [self.define(r) for r in op.results],
        }

    def op_for(self, op: Op) -> dict[str, Any]:
        lo, hi, step, *args = self.uses(op.operands)
        regions = [self.region(k) for k in op.blocks]
        return {
            "op": "for",
            "lo": lo,
            "hi": hi,
            "step": step,
            "args": args,
            "regions": regions,
            "results": [self.define(r) for r in op.results],
        }

    def op_while(self, op: Op) -> dict[str, Any]:
        args = self.uses(op.operands)
        regions = [self.region(k) for k in op.blocks]
        return {"op": "while", "args": args, "regions": regions, "results": [self.define(r) for r in op.results]}

    def op_call(self, op: Op) -> dict[str, Any]:
        dims = {s: text(d) for s, d in op.attrs["dims"]}
        args = self.uses(op.operands)
        sized = {name: args[i] for name, i in op.attrs["sized"]}
        return {"op": "call", "function": op.attrs["callee"], "args": args, "dims": dims, "sized": sized}
