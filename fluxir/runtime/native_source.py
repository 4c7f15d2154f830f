"""The LLVM IR text of the runtime's own machine code; what it does and why it is right is told in `native.py`.

Addresses of fields: numpy's `PyArrayObject_fields` (data 16, rank 24, sizes 32, dtype 56, flags 64; flags 257 are
C_CONTIGUOUS and ALIGNED), CPython's `PyObject` (type 8) and `PyListObject` (length 16, items 24). System calls are Linux's for
x86-64: 24 sched_yield, 202 futex (128 wait, 129 wake, private).
"""

from __future__ import annotations

__all__ = [
    "ACTIVE",
    "BUSY",
    "EPOCH",
    "JOB",
    "NEXT",
    "NOT_READY",
    "OPEN",
    "SLEEPERS",
    "SOURCE",
    "STATE_BYTES",
    "WORKERS",
]

NOT_READY = -1
STATE_BYTES = 1024
BUSY, EPOCH, OPEN, ACTIVE, SLEEPERS, NEXT, JOB, WORKERS = 0, 64, 128, 192, 256, 320, 384, 448
"""Byte offsets in the pool's state: each word that threads contend for has a cache line of its own."""

_SPINS = 2000

SOURCE = f"""
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

; plan, in words: entry, inputs, outputs, constants, dims*, constants*, ndarray type, expected*, results*, arena bytes;
; expected and results: dtype, rank, sizes* for each array

; whether the objects at %items are arrays as the plan expects them; their addresses go to %args
define internal i1 @collect(ptr %plan, ptr %items, ptr %args) nounwind {{
entry:
  %q1 = getelementptr i64, ptr %plan, i64 1
  %n_in = load i64, ptr %q1, align 8
  %q6 = getelementptr i64, ptr %plan, i64 6
  %ndarray = load ptr, ptr %q6, align 8
  %q7 = getelementptr i64, ptr %plan, i64 7
  %expected = load ptr, ptr %q7, align 8
  br label %in
in:
  %i = phi i64 [ 0, %entry ], [ %i1, %in_next ]
  %in_more = icmp slt i64 %i, %n_in
  br i1 %in_more, label %check, label %good
check:
  %ip = getelementptr ptr, ptr %items, i64 %i
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
good:
  ret i1 true
bad:
  ret i1 false
}}

; the data addresses of the result arrays at %items, then those of the constants, follow the inputs in %args; run
define internal i32 @enter(ptr %plan, ptr %items, ptr %args, ptr %arena, ptr %rt) nounwind {{
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
  %t0 = add i64 %n_in, %n_out
  br label %outputs
outputs:
  %j = phi i64 [ 0, %entry ], [ %j1, %output ]
  %out_more = icmp slt i64 %j, %n_out
  br i1 %out_more, label %output, label %constants
output:
  %op = getelementptr ptr, ptr %items, i64 %j
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
}}

define internal i64 @pointers(ptr %plan) nounwind {{
  %q1 = getelementptr i64, ptr %plan, i64 1
  %n_in = load i64, ptr %q1, align 8
  %q2 = getelementptr i64, ptr %plan, i64 2
  %n_out = load i64, ptr %q2, align 8
  %q3 = getelementptr i64, ptr %plan, i64 3
  %n_const = load i64, ptr %q3, align 8
  %t0 = add i64 %n_in, %n_out
  %t1 = add i64 %t0, %n_const
  ret i64 %t1
}}

define i32 @invoke(ptr %plan, ptr %ins, ptr %outs, ptr %arena, ptr %rt) nounwind {{
entry:
  %q1 = getelementptr i64, ptr %plan, i64 1
  %n_in = load i64, ptr %q1, align 8
  %ls = getelementptr i8, ptr %ins, i64 16
  %given = load i64, ptr %ls, align 8
  %count_ok = icmp eq i64 %given, %n_in
  br i1 %count_ok, label %start, label %bad
start:
  %count = call i64 @pointers(ptr %plan)
  %args = alloca ptr, i64 %count, align 16
  %li = getelementptr i8, ptr %ins, i64 24
  %in_items = load ptr, ptr %li, align 8
  %fit = call i1 @collect(ptr %plan, ptr %in_items, ptr %args)
  br i1 %fit, label %go, label %bad
go:
  %lo = getelementptr i8, ptr %outs, i64 24
  %out_items = load ptr, ptr %lo, align 8
  %result = call i32 @enter(ptr %plan, ptr %out_items, ptr %args, ptr %arena, ptr %rt)
  ret i32 %result
bad:
  ret i32 {NOT_READY}
}}

; A function of Python (METH_FASTCALL). The data of %self, an array of words: plan, context, api*, arena, arena bytes, busy.
; api: NewFromDescr, ndarray type, IncRef, DecRef, SaveThread, RestoreThread, List_New, List_SetItem, None, Long_FromLong
define ptr @call(ptr %self, ptr %items, i64 %nargs) nounwind {{
entry:
  %sp = getelementptr i8, ptr %self, i64 16
  %state = load ptr, ptr %sp, align 8
  %plan = load ptr, ptr %state, align 8
  %s1 = getelementptr i64, ptr %state, i64 1
  %rt = load ptr, ptr %s1, align 8
  %s2 = getelementptr i64, ptr %state, i64 2
  %api = load ptr, ptr %s2, align 8
  %f2 = getelementptr ptr, ptr %api, i64 2
  %incref = load ptr, ptr %f2, align 8
  %f3 = getelementptr ptr, ptr %api, i64 3
  %decref = load ptr, ptr %f3, align 8
  %planned = icmp ne ptr %plan, null
  br i1 %planned, label %arity, label %none
arity:
  %q1 = getelementptr i64, ptr %plan, i64 1
  %n_in = load i64, ptr %q1, align 8
  %count_ok = icmp eq i64 %nargs, %n_in
  br i1 %count_ok, label %start, label %none
start:
  %count = call i64 @pointers(ptr %plan)
  %args = alloca ptr, i64 %count, align 16
  %fit = call i1 @collect(ptr %plan, ptr %items, ptr %args)
  br i1 %fit, label %room, label %none
room:
  %q9 = getelementptr i64, ptr %plan, i64 9
  %need = load i64, ptr %q9, align 8
  %s3 = getelementptr i64, ptr %state, i64 3
  %arena = load ptr, ptr %s3, align 8
  %s4 = getelementptr i64, ptr %state, i64 4
  %have = load i64, ptr %s4, align 8
  %s5 = getelementptr i64, ptr %state, i64 5
  %wants = icmp sgt i64 %need, 0
  br i1 %wants, label %large, label %make
large:
  %short = icmp sgt i64 %need, %have
  br i1 %short, label %none, label %take
take:
  %pair = cmpxchg ptr %s5, i64 0, i64 1 seq_cst seq_cst
  %got = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %got, label %make, label %none
make:
  %q2 = getelementptr i64, ptr %plan, i64 2
  %n_out = load i64, ptr %q2, align 8
  %outs = alloca ptr, i64 %n_out, align 16
  %q8 = getelementptr i64, ptr %plan, i64 8
  %results = load ptr, ptr %q8, align 8
  %new = load ptr, ptr %api, align 8
  %f1 = getelementptr ptr, ptr %api, i64 1
  %ndarray = load ptr, ptr %f1, align 8
  br label %each
each:
  %i = phi i64 [ 0, %make ], [ %i1, %made ]
  %more = icmp slt i64 %i, %n_out
  br i1 %more, label %one, label %run
one:
  %i3 = mul i64 %i, 3
  %xp = getelementptr i64, ptr %results, i64 %i3
  %descr = load ptr, ptr %xp, align 8
  %xp1 = getelementptr i64, ptr %xp, i64 1
  %rank = load i64, ptr %xp1, align 8
  %rank32 = trunc i64 %rank to i32
  %xp2 = getelementptr i64, ptr %xp, i64 2
  %sizes = load ptr, ptr %xp2, align 8
  call void %incref(ptr %descr)
  %o = call ptr %new(ptr %ndarray, ptr %descr, i32 %rank32, ptr %sizes, ptr null, ptr null, i32 0, ptr null)
  %slot = getelementptr ptr, ptr %outs, i64 %i
  store ptr %o, ptr %slot, align 8
  %failed = icmp eq ptr %o, null
  br i1 %failed, label %undo, label %made
made:
  %i1 = add i64 %i, 1
  br label %each
undo:
  %u = phi i64 [ %i, %one ], [ %u1, %undo_one ]
  %undo_more = icmp sgt i64 %u, 0
  br i1 %undo_more, label %undo_one, label %undone
undo_one:
  %u1 = sub i64 %u, 1
  %us = getelementptr ptr, ptr %outs, i64 %u1
  %uo = load ptr, ptr %us, align 8
  call void %decref(ptr %uo)
  br label %undo
undone:
  br i1 %wants, label %release, label %raise
release:
  store atomic i64 0, ptr %s5 seq_cst, align 8
  br label %raise
raise:
  ret ptr null
run:
  %f4 = getelementptr ptr, ptr %api, i64 4
  %save = load ptr, ptr %f4, align 8
  %f5 = getelementptr ptr, ptr %api, i64 5
  %restore = load ptr, ptr %f5, align 8
  %thread = call ptr %save()
  %status = call i32 @enter(ptr %plan, ptr %outs, ptr %args, ptr %arena, ptr %rt)
  call void %restore(ptr %thread)
  br i1 %wants, label %free, label %ran
free:
  store atomic i64 0, ptr %s5 seq_cst, align 8
  br label %ran
ran:
  %fine = icmp eq i32 %status, 0
  br i1 %fine, label %listing, label %wrong
listing:
  %f6 = getelementptr ptr, ptr %api, i64 6
  %new_list = load ptr, ptr %f6, align 8
  %f7 = getelementptr ptr, ptr %api, i64 7
  %set = load ptr, ptr %f7, align 8
  %list = call ptr %new_list(i64 %n_out)
  %no_list = icmp eq ptr %list, null
  br i1 %no_list, label %drop, label %fill
fill:
  %k = phi i64 [ 0, %listing ], [ %k1, %put ]
  %fill_more = icmp slt i64 %k, %n_out
  br i1 %fill_more, label %put, label %done
put:
  %kp = getelementptr ptr, ptr %outs, i64 %k
  %ko = load ptr, ptr %kp, align 8
  %ignored = call i32 %set(ptr %list, i64 %k, ptr %ko)
  %k1 = add i64 %k, 1
  br label %fill
done:
  ret ptr %list
wrong:
  br label %drop
drop:
  %d = phi i64 [ 0, %listing ], [ 0, %wrong ], [ %d1, %drop_one ]
  %drop_more = icmp slt i64 %d, %n_out
  br i1 %drop_more, label %drop_one, label %dropped
drop_one:
  %ds = getelementptr ptr, ptr %outs, i64 %d
  %do = load ptr, ptr %ds, align 8
  call void %decref(ptr %do)
  %d1 = add i64 %d, 1
  br label %drop
dropped:
  br i1 %fine, label %raise, label %number
number:
  %f9 = getelementptr ptr, ptr %api, i64 9
  %long = load ptr, ptr %f9, align 8
  %status64 = sext i32 %status to i64
  %object = call ptr %long(i64 %status64)
  ret ptr %object
none:
  %f8 = getelementptr ptr, ptr %api, i64 8
  %no = load ptr, ptr %f8, align 8
  call void %incref(ptr %no)
  ret ptr %no
}}
"""
