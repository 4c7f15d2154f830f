"""The runtime's own machine code: the thread pool's loop and the fast way from Python arrays into a program.

Written as LLVM IR text, compiled once with llvmlite and kept in the compile cache; shared by all programs of a process.

`invoke(plan, inputs, outputs, arena, rt)` takes two Python lists of numpy arrays and reads their fields itself
(numpy's `PyArrayObject_fields` and CPython's `PyListObject`, both fixed by their binary interfaces, and checked by
`layout_is_known` before first use): where every input has exactly the type, dtype, shape and layout that the plan
expects, it calls the entry; else it returns NOT_READY and touches nothing.

`parallel` and `worker` are the pool. Invariants: chunks are claimed one by one with an atomic counter, by the caller too,
so a job ends even if no worker ever wakes; a job is reused only after `open` is 0 and no worker is `active`; `busy`
admits one job at a time, and whoever finds it taken (a nested or concurrent caller) runs alone.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

NOT_READY = -1
STATE_BYTES = 1024
BUSY, EPOCH, OPEN, ACTIVE, SLEEPERS, NEXT, JOB, WORKERS = 0, 64, 128, 192, 256, 320, 384, 448
"""Byte offsets in the pool's state: each word that threads contend for has a cache line of its own."""

_SPINS = 2000

_SOURCE = f"""
source_filename = "fluxir_runtime"
target triple = "x86_64-unknown-linux-gnu"
declare i64 @syscall(i64, ...)
declare void @llvm.x86.sse2.pause()

define internal void @chunks(ptr %state) nounwind {{
entry:
  %next = getelementptr i8, ptr %state, i64 {NEXT}
  %job = getelementptr i8, ptr %state, i64 {JOB}
  %body = load ptr, ptr %job, align 8
  %p1 = getelementptr i8, ptr %job, i64 8
  %context = load ptr, ptr %p1, align 8
  %p2 = getelementptr i8, ptr %job, i64 16
  %n = load i64, ptr %p2, align 8
  %p3 = getelementptr i8, ptr %job, i64 24
  %count = load i64, ptr %p3, align 8
  br label %claim
claim:
  %c = atomicrmw add ptr %next, i64 1 acq_rel
  %more = icmp slt i64 %c, %count
  br i1 %more, label %run, label %done
run:
  %c1 = add i64 %c, 1
  %x0 = mul i64 %c, %n
  %x1 = mul i64 %c1, %n
  %lo = udiv i64 %x0, %count
  %hi = udiv i64 %x1, %count
  call void %body(ptr %context, i64 %lo, i64 %hi)
  br label %claim
done:
  ret void
}}

define void @parallel(ptr %rt, ptr %body, ptr %context, i64 %n, i64 %grain) nounwind {{
entry:
  %threads = load i64, ptr %rt, align 8
  %q = getelementptr i8, ptr %rt, i64 16
  %state = load ptr, ptr %q, align 8
  %w = getelementptr i8, ptr %state, i64 {WORKERS}
  %workers = load i64, ptr %w, align 8
  %short = icmp slt i64 %grain, 1
  %g = select i1 %short, i64 1, i64 %grain
  %up = add i64 %n, %g
  %up1 = sub i64 %up, 1
  %pieces = sdiv i64 %up1, %g
  %fewer = icmp slt i64 %pieces, %threads
  %want = select i1 %fewer, i64 %pieces, i64 %threads
  %alone = icmp sle i64 %want, 1
  %none = icmp eq i64 %workers, 0
  %no = or i1 %alone, %none
  br i1 %no, label %serial, label %try
try:
  %pair = cmpxchg ptr %state, i32 0, i32 1 seq_cst seq_cst
  %got = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %got, label %publish, label %serial
serial:
  call void %body(ptr %context, i64 0, i64 %n)
  ret void
publish:
  %four = mul i64 %threads, 4
  %lower = icmp slt i64 %pieces, %four
  %count = select i1 %lower, i64 %pieces, i64 %four
  %limit = sub i64 %want, 1
  %job = getelementptr i8, ptr %state, i64 {JOB}
  store ptr %body, ptr %job, align 8
  %p1 = getelementptr i8, ptr %job, i64 8
  store ptr %context, ptr %p1, align 8
  %p2 = getelementptr i8, ptr %job, i64 16
  store i64 %n, ptr %p2, align 8
  %p3 = getelementptr i8, ptr %job, i64 24
  store i64 %count, ptr %p3, align 8
  %p4 = getelementptr i8, ptr %job, i64 32
  store i64 %limit, ptr %p4, align 8
  %next = getelementptr i8, ptr %state, i64 {NEXT}
  store atomic i64 0, ptr %next seq_cst, align 8
  %open = getelementptr i8, ptr %state, i64 {OPEN}
  store atomic i64 1, ptr %open seq_cst, align 8
  %epoch = getelementptr i8, ptr %state, i64 {EPOCH}
  %old = atomicrmw add ptr %epoch, i32 1 seq_cst
  %sl = getelementptr i8, ptr %state, i64 {SLEEPERS}
  %sleepers = load atomic i32, ptr %sl seq_cst, align 4
  %asleep = icmp sgt i32 %sleepers, 0
  br i1 %asleep, label %wake, label %work
wake:
  %limit32 = trunc i64 %limit to i32
  %r = call i64 (i64, ...) @syscall(i64 202, ptr %epoch, i32 129, i32 %limit32, ptr null)
  br label %work
work:
  call void @chunks(ptr %state)
  store atomic i64 0, ptr %open seq_cst, align 8
  %active = getelementptr i8, ptr %state, i64 {ACTIVE}
  br label %wait
wait:
  %spins = phi i64 [ 0, %work ], [ %spins1, %again ]
  %busy = load atomic i32, ptr %active seq_cst, align 4
  %ended = icmp eq i32 %busy, 0
  br i1 %ended, label %finish, label %pause
pause:
  call void @llvm.x86.sse2.pause()
  %spins1 = add i64 %spins, 1
  %part = and i64 %spins1, 1023
  %tired = icmp eq i64 %part, 0
  br i1 %tired, label %yield, label %again
yield:
  %r2 = call i64 (i64, ...) @syscall(i64 24)
  br label %again
again:
  br label %wait
finish:
  store atomic i32 0, ptr %state seq_cst, align 4
  ret void
}}

define ptr @worker(ptr %state) nounwind {{
entry:
  %epoch = getelementptr i8, ptr %state, i64 {EPOCH}
  %open = getelementptr i8, ptr %state, i64 {OPEN}
  %active = getelementptr i8, ptr %state, i64 {ACTIVE}
  %sleepers = getelementptr i8, ptr %state, i64 {SLEEPERS}
  %job = getelementptr i8, ptr %state, i64 {JOB}
  %lp = getelementptr i8, ptr %job, i64 32
  br label %look
look:
  %e = load atomic i32, ptr %epoch seq_cst, align 4
  %mine = atomicrmw add ptr %active, i32 1 seq_cst
  %o = load atomic i64, ptr %open seq_cst, align 8
  %live = icmp ne i64 %o, 0
  br i1 %live, label %room, label %leave
room:
  %limit = load i64, ptr %lp, align 8
  %mine64 = sext i32 %mine to i64
  %fits = icmp slt i64 %mine64, %limit
  br i1 %fits, label %join, label %leave
join:
  call void @chunks(ptr %state)
  br label %leave
leave:
  %gone = atomicrmw sub ptr %active, i32 1 seq_cst
  br label %spin
spin:
  %n = phi i64 [ 0, %leave ], [ %n1, %idle ]
  %now = load atomic i32, ptr %epoch seq_cst, align 4
  %new = icmp ne i32 %now, %e
  br i1 %new, label %look, label %idle
idle:
  call void @llvm.x86.sse2.pause()
  %n1 = add i64 %n, 1
  %many = icmp sgt i64 %n1, {_SPINS}
  br i1 %many, label %sleep, label %spin
sleep:
  %s0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %r = call i64 (i64, ...) @syscall(i64 202, ptr %epoch, i32 128, i32 %e, ptr null)
  %s1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %awake
awake:
  %now2 = load atomic i32, ptr %epoch seq_cst, align 4
  %new2 = icmp ne i32 %now2, %e
  br i1 %new2, label %look, label %sleep
}}

; plan: entry, inputs, outputs, constants, dims*, constants*, ndarray type, expected*; expected: dtype, rank, sizes* each
define i32 @invoke(ptr %plan, ptr %ins, ptr %outs, ptr %arena, ptr %rt) nounwind {{
entry:
  %entry_fn = load ptr, ptr %plan, align 8
  %q1 = getelementptr i64, ptr %plan, i64 1
  %n_in = load i64, ptr %q1, align 8
  %q2 = getelementptr i64, ptr %plan, i64 2
  %n_out = load i64, ptr %q2, align 8
  %q3 = getelementptr i64, ptr %plan, i64 3
  %n_const = load i64, ptr %q3, align 8
  %q4 = getelementptr i64, ptr %plan, i64 4
  %dims = load ptr, ptr %q4, align 8
  %q5 = getelementptr i64, ptr %plan, i64 5
  %consts = load ptr, ptr %q5, align 8
  %q6 = getelementptr i64, ptr %plan, i64 6
  %ndarray = load ptr, ptr %q6, align 8
  %q7 = getelementptr i64, ptr %plan, i64 7
  %expected = load ptr, ptr %q7, align 8
  %ls = getelementptr i8, ptr %ins, i64 16
  %given = load i64, ptr %ls, align 8
  %count_ok = icmp eq i64 %given, %n_in
  br i1 %count_ok, label %start, label %bad
start:
  %t0 = add i64 %n_in, %n_out
  %t1 = add i64 %t0, %n_const
  %args = alloca ptr, i64 %t1, align 16
  %li = getelementptr i8, ptr %ins, i64 24
  %in_items = load ptr, ptr %li, align 8
  %lo = getelementptr i8, ptr %outs, i64 24
  %out_items = load ptr, ptr %lo, align 8
  br label %in
in:
  %i = phi i64 [ 0, %start ], [ %i1, %in_next ]
  %in_more = icmp slt i64 %i, %n_in
  br i1 %in_more, label %check, label %outputs
check:
  %ip = getelementptr ptr, ptr %in_items, i64 %i
  %o = load ptr, ptr %ip, align 8
  %tp = getelementptr i8, ptr %o, i64 8
  %type = load ptr, ptr %tp, align 8
  %type_ok = icmp eq ptr %type, %ndarray
  br i1 %type_ok, label %fields, label %bad
fields:
  %i3 = mul i64 %i, 3
  %xp = getelementptr i64, ptr %expected, i64 %i3
  %want_descr = load ptr, ptr %xp, align 8
  %xp1 = getelementptr i64, ptr %xp, i64 1
  %want_rank = load i64, ptr %xp1, align 8
  %xp2 = getelementptr i64, ptr %xp, i64 2
  %want_sizes = load ptr, ptr %xp2, align 8
  %dp = getelementptr i8, ptr %o, i64 56
  %descr = load ptr, ptr %dp, align 8
  %descr_ok = icmp eq ptr %descr, %want_descr
  %np = getelementptr i8, ptr %o, i64 24
  %rank32 = load i32, ptr %np, align 4
  %rank = sext i32 %rank32 to i64
  %rank_ok = icmp eq i64 %rank, %want_rank
  %fp = getelementptr i8, ptr %o, i64 64
  %flags = load i32, ptr %fp, align 4
  %masked = and i32 %flags, 257
  %flags_ok = icmp eq i32 %masked, 257
  %a1 = and i1 %descr_ok, %rank_ok
  %a2 = and i1 %a1, %flags_ok
  br i1 %a2, label %shape, label %bad
shape:
  %sp = getelementptr i8, ptr %o, i64 32
  %sizes = load ptr, ptr %sp, align 8
  br label %axis
axis:
  %k = phi i64 [ 0, %shape ], [ %k1, %axis_next ]
  %axis_more = icmp slt i64 %k, %rank
  br i1 %axis_more, label %size, label %in_next
size:
  %zp = getelementptr i64, ptr %sizes, i64 %k
  %have = load i64, ptr %zp, align 8
  %yp = getelementptr i64, ptr %want_sizes, i64 %k
  %want = load i64, ptr %yp, align 8
  %same = icmp eq i64 %have, %want
  br i1 %same, label %axis_next, label %bad
axis_next:
  %k1 = add i64 %k, 1
  br label %axis
in_next:
  %datap = getelementptr i8, ptr %o, i64 16
  %data = load ptr, ptr %datap, align 8
  %slot = getelementptr ptr, ptr %args, i64 %i
  store ptr %data, ptr %slot, align 8
  %i1 = add i64 %i, 1
  br label %in
outputs:
  %j = phi i64 [ 0, %in ], [ %j1, %output ]
  %out_more = icmp slt i64 %j, %n_out
  br i1 %out_more, label %output, label %constants
output:
  %op = getelementptr ptr, ptr %out_items, i64 %j
  %oo = load ptr, ptr %op, align 8
  %odp = getelementptr i8, ptr %oo, i64 16
  %odata = load ptr, ptr %odp, align 8
  %oi = add i64 %n_in, %j
  %oslot = getelementptr ptr, ptr %args, i64 %oi
  store ptr %odata, ptr %oslot, align 8
  %j1 = add i64 %j, 1
  br label %outputs
constants:
  %m = phi i64 [ 0, %outputs ], [ %m1, %constant ]
  %const_more = icmp slt i64 %m, %n_const
  br i1 %const_more, label %constant, label %go
constant:
  %cp = getelementptr ptr, ptr %consts, i64 %m
  %cv = load ptr, ptr %cp, align 8
  %ci = add i64 %t0, %m
  %cslot = getelementptr ptr, ptr %args, i64 %ci
  store ptr %cv, ptr %cslot, align 8
  %m1 = add i64 %m, 1
  br label %constants
go:
  %result = call i32 %entry_fn(ptr %args, ptr %dims, ptr %arena, ptr %rt)
  ret i32 %result
bad:
  ret i32 {NOT_READY}
}}
"""


@dataclass(frozen=True)
class Native:
    """Addresses of the compiled functions."""

    parallel: int
    worker: int
    invoke: Any  # ctypes function: (plan, list, list, arena, rt) -> int


@functools.cache
def native() -> Native:
    """The runtime's machine code, compiled or taken from the cache when first asked for."""
    from fluxir.runtime.elf import load_object

    code = load_object(_object())
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p
    )
    return Native(code.address("parallel"), code.address("worker"), kind(code.address("invoke")))


def _object() -> bytes:
    """The object code, from the compile cache where it is."""
    from fluxir.runtime.cache import open_cache

    cache = open_cache()
    key = "fluxir runtime native code\0" + _SOURCE
    found = cache.get(key) if cache is not None else None
    if found is not None:
        return found.files["native.o"]
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    m = llvm.parse_assembly(_SOURCE)
    m.verify()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        cpu="x86-64", opt=2, reloc="pic", codemodel="small"
    )
    data = bytes(machine.emit_object(m))
    if cache is not None:
        cache.put(key, {"native.o": data}, {"name": "runtime", "kind": "native"})
    return data


@functools.cache
def layout_is_known() -> bool:
    """Whether this CPython and this numpy keep lists and arrays as `invoke` reads them (checked on live objects)."""
    import sys

    import numpy as np

    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    a = np.arange(15, dtype=np.float32).reshape(3, 5)[1:]
    items: list[Any] = [None, a]
    word = ctypes.c_int64.from_address
    base = id(a)
    listed = id(items)
    return bool(
        word(listed + 16).value == 2
        and word(word(listed + 24).value + 8).value == base
        and word(base + 8).value == id(np.ndarray)
        and word(base + 16).value == a.ctypes.data
        and ctypes.c_int.from_address(base + 24).value == 2
        and [word(word(base + 32).value + 8 * k).value for k in range(2)] == [2, 5]
        and word(base + 56).value == id(a.dtype)
        and ctypes.c_int.from_address(base + 64).value == a.flags.num
    )
