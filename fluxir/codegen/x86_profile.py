"""Timing of launches inside the entry function: what a profiled build has beside an ordinary one.

Kernels are the same code in both. The entry makes a copy of the runtime context (see abi.py) whose `parallel` is a function
of this file, and which goes on with the address of the record; host functions read the counter of the processor before and
after each launch and write both down; `parallel` does so for each range of indices, on the thread that works on it.

The record is one more constant of the program, of i64, that it writes to: a head of `HEAD` words (events so far, room for
events, where they start), for each launch of the text how often it ran and how many ticks it took in sum, then the events
of `WORDS` words: number of the launch (-1: a range of a `parallel`), ticks at its start and end, an address on the stack of
the thread. Events that find no room are left out; the sums are complete.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.codegen import abi
from fluxir.codegen.part import CODE, Part
from fluxir.ir.core import Op

__all__ = ["HEAD", "WORDS", "Recorder"]

HEAD = 3
WORDS = 4
_RECORD, _RUN = abi.CONTEXT_BYTES, abi.CONTEXT_BYTES + 8
"""Byte offsets in the copy of the context: the record, and the runtime's own `parallel`."""


class Recorder:
    """The launches seen so far, and the functions that write the record."""

    def __init__(self, part: Part, room: int) -> None:
        self.launches: list[Op] = []
        self.room = room
        unit = part.plain
        clock = unit.declare("llvm.readcyclecounter", "i64", [])
        frame = unit.declare("llvm.frameaddress.p0", "ptr", ["i32 immarg"])
        self.clock = clock
        names = {k: f"{CODE}.profile.{k}" for k in ("event", "launch", "range", "parallel")}
        self.record, self.parallel = f"@{names['launch']}", f"@{names['parallel']}"
        part.define(unit, "void", names["event"], ["ptr %record", "i64 %id", "i64 %from", "i64 %to"], f"""
  %stack = call ptr {frame}(i32 0)
  %thread = ptrtoint ptr %stack to i64
  %n = atomicrmw add ptr %record, i64 1 monotonic
  %rooms = getelementptr i64, ptr %record, i64 1
  %room = load i64, ptr %rooms
  %fits = icmp slt i64 %n, %room
  br i1 %fits, label %write, label %done
write:
  %starts = getelementptr i64, ptr %record, i64 2
  %start = load i64, ptr %starts
  %offset = mul i64 %n, {WORDS}
  %at = add i64 %start, %offset
  %p0 = getelementptr i64, ptr %record, i64 %at
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %p3 = getelementptr i64, ptr %p0, i64 3
  store i64 %id, ptr %p0
  store i64 %from, ptr %p1
  store i64 %to, ptr %p2
  store i64 %thread, ptr %p3
  br label %done
done:
  ret void""")  # fmt: skip
        load = f"""
  %slot = getelementptr i8, ptr %rt, i64 {_RECORD}
  %record = load ptr, ptr %slot"""
        part.define(unit, "void", names["launch"], ["ptr %rt", "i64 %id", "i64 %from"], f"""
  %to = call i64 {clock}(){load}
  %twice = shl i64 %id, 1
  %at = add i64 %twice, {HEAD}
  %counts = getelementptr i64, ptr %record, i64 %at
  %count = load i64, ptr %counts
  %counted = add i64 %count, 1
  store i64 %counted, ptr %counts
  %sums = getelementptr i64, ptr %counts, i64 1
  %sum = load i64, ptr %sums
  %spent = sub i64 %to, %from
  %summed = add i64 %sum, %spent
  store i64 %summed, ptr %sums
  call void @{names["event"]}(ptr %record, i64 %id, i64 %from, i64 %to)
  ret void""")  # fmt: skip
        part.define(unit, "void", names["range"], ["ptr %context", "i64 %lo", "i64 %hi"], f"""
  %body = load ptr, ptr %context
  %inners = getelementptr ptr, ptr %context, i64 1
  %inner = load ptr, ptr %inners
  %records = getelementptr ptr, ptr %context, i64 2
  %record = load ptr, ptr %records
  %from = call i64 {clock}()
  call void %body(ptr %inner, i64 %lo, i64 %hi)
  %to = call i64 {clock}()
  call void @{names["event"]}(ptr %record, i64 -1, i64 %from, i64 %to)
  ret void""")  # fmt: skip
        params = ["ptr %rt", "ptr %body", "ptr %context", "i64 %n", "i64 %grain"]
        part.define(unit, "void", names["parallel"], params, f"""
  %mine = alloca [3 x ptr], align 64
  store ptr %body, ptr %mine
  %contexts = getelementptr ptr, ptr %mine, i64 1
  store ptr %context, ptr %contexts{load}
  %records = getelementptr ptr, ptr %mine, i64 2
  store ptr %record, ptr %records
  %runs = getelementptr i8, ptr %rt, i64 {_RUN}
  %run = load ptr, ptr %runs
  call void %run(ptr %rt, ptr @{names["range"]}, ptr %mine, i64 %n, i64 %grain)
  ret void""")  # fmt: skip

    def number(self, op: Op) -> int:
        """The number of one more launch of the text."""
        self.launches.append(op)
        return len(self.launches) - 1

    def array(self) -> Any:
        """The record before a run."""
        start = HEAD + 2 * len(self.launches)
        record = np.zeros(start + WORDS * self.room, np.int64)
        record[1], record[2] = self.room, start
        return record

    def context(self, record: int) -> list[str]:
        """Lines of the entry that make `%profiled` from the context `%rt`; the record is constant number `record`."""
        return [
            f"  %profiled = alloca i8, i64 {abi.CONTEXT_BYTES + 16}, align 64",
            f"  call void @llvm.memcpy.p0.p0.i64(ptr %profiled, ptr %rt, i64 {abi.CONTEXT_BYTES}, i1 false)",
            f"  %records = getelementptr ptr, ptr %consts, i64 {record}",
            "  %record = load ptr, ptr %records, align 8",
            f"  %recorded = getelementptr i8, ptr %profiled, i64 {_RECORD}",
            "  store ptr %record, ptr %recorded, align 8",
            f"  %parallels = getelementptr i8, ptr %profiled, i64 {abi.PARALLEL}",
            "  %run = load ptr, ptr %parallels, align 8",
            f"  %runs = getelementptr i8, ptr %profiled, i64 {_RUN}",
            "  store ptr %run, ptr %runs, align 8",
            f"  store ptr {self.parallel}, ptr %parallels, align 8",
        ]
