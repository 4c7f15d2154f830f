"""What a kernel tells its host: `printf` and `assert` as records in a buffer, the same way on every device.

`with_reports(func)` gives the kernel one more argument, `report: &i64[WORDS]`, and a table that says how to read it. Word 0
counts the words in use beyond the first `HEAD`; a thread takes room for a record with one atomic addition and writes the
entry's number in the table, its block, its thread, and the values as 64 bits. What does not fit is counted and lost. A
failed assertion leaves a record and ends the thread (`halt_unless`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.errors import Location
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import MemType

__all__ = ["HEAD", "WORDS", "with_reports"]

WORDS = 1 << 14
HEAD = 8


def with_reports(f: Func) -> tuple[Func, list[dict[str, Any]]]:
    """The kernel with its reports in a buffer, and the table of them; the kernel itself where it has none.

    An entry of the table is JSON: `kind` (printf or assert), `text`, `types` of the values, and `file`, `line`, `col`, `func`.
    """
    if not any(op.name in ("printf", "assert") for op in f.walk()):
        return f, []
    report = Value(MemType(DTYPES["i64"], (WORDS,)), None, len(f.args), "report")
    table: list[dict[str, Any]] = []
    b = Builder()
    env: dict[Value, Value] = {}
    _rewrite(b, f.block, env, report, table)
    return f.with_block(Block([*f.block.args, report], b.ops, ())), table


def _rewrite(b: Builder, block: Block, env: dict[Value, Value], report: Value, table: list[dict[str, Any]]) -> None:
    for op in block.ops:
        operands = [env.get(v, v) for v in op.operands]
        blocks = []
        for k in op.blocks:
            inner, scope = Builder(), dict(env)
            _rewrite(inner, k, scope, report, table)
            blocks.append(Block(k.args, inner.ops, [scope.get(v, v) for v in k.outs]))
        b.loc = op.loc
        if op.name == "printf":
            _record(b, report, _entry(table, "printf", op.attrs.format, op.loc, operands), operands)
        elif op.name == "assert":
            number = _entry(table, "assert", op.attrs.message, op.loc, ())
            failed = b.child()
            _record(failed, report, number, ())
            b.emit("if", operands[0], blocks=[Block((), (), ()), Block((), failed.ops, ())])
            b.emit("halt_unless", operands[0])
        elif blocks or any(x is not y for x, y in zip(operands, op.operands, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            env.update(zip(op.results, b.append(new), strict=True))
        else:
            b.append(op)


def _entry(table: list[dict[str, Any]], kind: str, text: str, loc: Location | None, values: Sequence[Value]) -> int:
    place = {"file": loc.file, "line": loc.line, "col": loc.col, "func": loc.func} if loc else {}
    table.append({"kind": kind, "text": text, "types": [v.dtype.name for v in values], **place})
    return len(table) - 1


def _record(b: Any, report: Value, number: int, values: Sequence[Value]) -> None:
    """Take room in the report and fill it."""
    words = [b.index(number), _linear(b, "block_id", "grid_dim"), _linear(b, "thread_id", "block_dim")]
    words += [_word(b, v) for v in values]
    at = b.emit("atomic_rmw", report, b.index(len(words)), b.index(0), op="add")[0]
    first = b.add(at, b.index(HEAD))
    fits = b.le(first, b.index(WORDS - len(words)))
    inner = b.child()
    for i, w in enumerate(words):
        inner.store(report, w, inner.add(first, inner.index(i)) if i else first)
    b.emit("if", fits, blocks=[Block((), inner.ops, ()), Block((), (), ())])


def _linear(b: Any, name: str, size: str) -> Value:
    """The index of the block or thread, x fastest."""
    out = b.emit(name, axis=2)[0]
    for axis in (1, 0):
        out = b.add(b.mul(out, b.emit(size, axis=axis)[0]), b.emit(name, axis=axis)[0])
    return out  # type: ignore[no-any-return]


def _word(b: Any, v: Value) -> Value:
    """A value as 64 bits: a float as f64, an integer as i64."""
    if v.dtype.is_float:
        found: Value = b.bitcast(v if v.dtype.bits == 64 else b.cast(v, dtype="f64"), dtype="i64")
        return found
    if v.dtype.name == "i64":
        return v
    wide: Value = b.cast(v, dtype="i64") if v.dtype.name != "u64" else b.bitcast(v, dtype="i64")
    return wide
