"""What this machine can do at most: multiply-adds a second, and bytes a second of three kinds of traffic, measured.

The loops are LLVM IR text of our own, translated like any kernel: `peak` keeps independent chains of multiply-adds in
registers; `read` adds an array up; `copy` is b = a; `triad` is c = a + a * b. Writing is measured with plain and with
non-temporal stores, in one and in several places at a time, and the best counts: which that is depends on whether the arrays
fit the caches, so bandwidth is measured for the size that is asked for. Each thread works on a part of its own.
The best of some repetitions counts: a limit is what can be reached, not what is usual.

`roofline(threads)` is the machine's, with arrays that no cache holds; the cache folder keeps it.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxir import config
from fluxir.target import CpuTarget, host, parse_target

__all__ = ["Roofline", "bandwidth", "peak_flops", "roofline", "ticks_per_second"]

CHAINS = 12
"""Independent multiply-adds in flight: two units of latency 4 want 8; more than 14 and an operand leave the registers."""
UNROLL = 8
"""Vectors an iteration of the loops over memory."""
KINDS = {"read": (1, 0), "copy": (1, 1), "triad": (2, 1)}
"""Kind of traffic: how many arrays are read and written."""
LARGE = 64 << 20
"""Bytes of each array where no cache shall help."""


@dataclass(frozen=True)
class Roofline:
    """Limits of this machine for some number of threads: f32 operations a second (a multiply-add is two), bytes a second."""

    threads: int
    flops: float
    read: float
    copy: float
    triad: float

    def seconds(self, flops: float, reads: float, writes: float) -> float:
        """The least time for so many operations and bytes, which overlap at best."""
        moved = reads + writes
        rate = self.read if writes * 8 < reads else self.copy if reads <= writes else self.triad
        return max(flops / self.flops, moved / rate)


# ---- the loops ------------------------------------------------------------------------------------------------------------


def _vector(target: CpuTarget) -> tuple[int, str]:
    lanes = target.lanes(32)
    return lanes, f"<{lanes} x float>"


def _loop(name: str, body: list[str], chains: int, v: str, bound: str, step: int) -> str:
    """A function of (a, b, c, n, repeat): `body` for i in steps up to `bound`, `repeat` times; `%x<k>` come round as `%y<k>`."""
    carried = [f"  %x{k} = phi {v} [ zeroinitializer, %outer ], [ %y{k}, %inner ]" for k in range(chains)]
    total = ["  %z0 = fadd " + f"{v} %y0, zeroinitializer"] if chains else []
    total += [f"  %z{k} = fadd {v} %z{k - 1}, %y{k}" for k in range(1, chains)]
    if chains:  # the sum is stored where it cannot be left out
        total.append(f"  store {v} %z{chains - 1}, ptr %c, align 4")
    lines = [
        f"define void @{name}(ptr %a, ptr %b, ptr %c, i64 %n, i64 %repeat) nounwind noinline {{",
        "entry:", "  br label %outer",
        "outer:", "  %r = phi i64 [ 0, %entry ], [ %r1, %done ]", "  br label %inner",
        "inner:", "  %i = phi i64 [ 0, %outer ], [ %i1, %inner ]", *carried, *body,
        f"  %i1 = add nuw nsw i64 %i, {step}", f"  %more = icmp ult i64 %i1, {bound}",
        "  br i1 %more, label %inner, label %done",
        "done:", *total, "  %r1 = add nuw nsw i64 %r, 1", "  %again = icmp ult i64 %r1, %repeat",
        "  br i1 %again, label %outer, label %end",
        "end:", "  ret void", "}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _peak(target: CpuTarget) -> str:
    lanes, v = _vector(target)
    body = []
    for k in range(CHAINS):
        if target.has("fma"):
            body.append(f"  %y{k} = call {v} @llvm.fma.v{lanes}f32({v} %x{k}, {v} %f, {v} %g)")
        else:
            body += [f"  %m{k} = fmul {v} %x{k}, %f", f"  %y{k} = fadd {v} %m{k}, %g"]
    loads = [f"  %f = load {v}, ptr %a, align 4", f"  %g = load {v}, ptr %b, align 4"]
    text = _loop("peak", body, CHAINS, v, "%n", 1).replace("entry:\n", "entry:\n" + "\n".join(loads) + "\n")
    return text + (f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})\n" if target.has("fma") else "")


_TICKS = """define void @ticks(ptr %a, ptr %b, ptr %c, i64 %n, i64 %repeat) nounwind {
  %now = call i64 @llvm.readcyclecounter()
  store i64 %now, ptr %a
  ret void
}
declare i64 @llvm.readcyclecounter()
"""
"""The processor's counter, written to %a."""


def _traffic(kind: str, streams: int, direct: bool, target: CpuTarget) -> str:
    """One of the loops over memory, on `streams` parts of the arrays side by side, with `direct` (non-temporal) or plain
    stores; n is in bytes, a multiple of streams times an iteration's bytes, and the arrays are aligned."""
    lanes, v = _vector(target)
    width, unroll = lanes * 4, UNROLL // streams
    parts = ["  %part = sdiv i64 %n, " + str(streams)]
    body = []
    to = "c" if kind == "triad" else "b"
    for s in range(streams):
        for array in "abc":
            parts.append(f"  %at{array}{s} = mul i64 %part, {s}")
            parts.append(f"  %{array}{s} = getelementptr i8, ptr %{array}, i64 %at{array}{s}")
        for u in range(unroll):
            k = s * unroll + u
            body.append(f"  %o{k} = add nuw nsw i64 %i, {u * width}")
            for array in "ab" if kind == "triad" else "a":
                body.append(f"  %p{array}{k} = getelementptr i8, ptr %{array}{s}, i64 %o{k}")
                body.append(f"  %v{array}{k} = load {v}, ptr %p{array}{k}, align {width}")
            if kind == "read":
                body.append(f"  %y{k} = fadd {v} %x{k}, %va{k}")
                continue
            value = f"%va{k}"
            if kind == "triad":
                body += [f"  %m{k} = fmul {v} %vb{k}, %va{k}", f"  %s{k} = fadd {v} %m{k}, %va{k}"]
                value = f"%s{k}"
            body.append(f"  %q{k} = getelementptr i8, ptr %{to}{s}, i64 %o{k}")
            body.append(f"  store {v} {value}, ptr %q{k}, align {width}" + (", !nontemporal !0" if direct else ""))
    text = _loop(_name(kind, streams, direct), body, UNROLL if kind == "read" else 0, v, "%part", unroll * width)
    return text.replace("entry:\n", "entry:\n" + "\n".join(parts) + "\n")


def _name(kind: str, streams: int, direct: bool) -> str:
    return f"{kind}_{streams}{'_direct' if direct else ''}"


def _variants(kind: str) -> list[tuple[int, bool]]:
    """(streams, direct) of the loops for a kind of traffic. A processor looks ahead in several streams at a time."""
    return [(streams, direct) for streams in (1, 4) for direct in ((False,) if kind == "read" else (False, True))]


@functools.cache
def _functions() -> tuple[Any, dict[str, Callable[..., None]]]:
    """The loaded code (which must live on) and its functions."""
    from fluxir.codegen import backend
    from fluxir.runtime.elf import load_object

    target = parse_target("cpu")
    assert isinstance(target, CpuTarget)
    names, texts = ["peak", "ticks"], [f'target triple = "{target.triple}"', _peak(target), _TICKS]
    for kind in KINDS:
        for streams, direct in _variants(kind):
            texts.append(_traffic(kind, streams, direct, target))
            names.append(_name(kind, streams, direct))
    text = "\n".join([*texts, "!0 = !{i32 1}", ""])
    code = load_object(backend.object_of("", text, target, 2, {}))
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64)
    return code, {n: signature(code.address(n)) for n in names}


# ---- measuring ------------------------------------------------------------------------------------------------------------


def _best(calls: list[Callable[[], None]], repetitions: int) -> float:
    """The shortest time in which all calls, each on a thread of its own, ended."""
    if len(calls) == 1:
        times = []
        for _ in range(repetitions):
            start = time.perf_counter()
            calls[0]()
            times.append(time.perf_counter() - start)
        return min(times)
    gate = threading.Barrier(len(calls))
    spans: list[list[tuple[float, float]]] = [[] for _ in calls]

    def work(k: int) -> None:
        for _ in range(repetitions):
            gate.wait()
            start = time.perf_counter()
            calls[k]()
            spans[k].append((start, time.perf_counter()))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    spent = [max(end for _, end in turn) - min(start for start, _ in turn) for turn in zip(*spans, strict=True)]
    return float(min(spent))


def _memory(nbytes: int) -> Any:
    """Zeros on memory that is there, at a multiple of 4096."""
    raw = np.zeros(nbytes + 4096, np.uint8)
    raw[:] = 0
    start = -raw.ctypes.data % 4096
    return raw[start : start + nbytes]


def peak_flops(threads: int = 1, repetitions: int = 7, seconds: float = 0.01) -> float:
    """f32 operations a second of multiply-adds on vector registers, a multiply-add counted as two."""
    _, functions = _functions()
    target = parse_target("cpu")
    assert isinstance(target, CpuTarget)
    work = CHAINS * target.lanes(32) * 2
    n = int(seconds * 5e10 / work) + 1
    areas = [_memory(4096) for _ in range(threads)]

    def call(area: Any) -> Callable[[], None]:
        at = area.ctypes.data
        return lambda: functions["peak"](at, at + 512, at + 1024, n, 1)

    return threads * n * work / _best([call(a) for a in areas], repetitions)


def bandwidth(kind: str, nbytes: int = LARGE, threads: int = 1, repetitions: int = 7, seconds: float = 0.01) -> float:
    """Bytes a second, read and written, of a `kind` of traffic (`read`, `copy`, `triad`) on arrays of `nbytes` bytes each."""
    _, functions = _functions()
    step = 8192
    part = max(step, nbytes // threads // step * step)
    reads, writes = KINDS[kind]
    areas = [
        [_memory(part).ctypes, _memory(part).ctypes, _memory(part if reads == 2 else step).ctypes]
        for _ in range(threads)
    ]
    repeat = max(1, int(seconds * 1e10 / (part * (reads + writes))))

    def call(f: Callable[..., None], area: list[Any]) -> Callable[[], None]:
        a, b, c = (m.data for m in area)
        return lambda: f(a, b, c, part, repeat)

    names = [_name(kind, *variant) for variant in _variants(kind)]
    best = min(_best([call(functions[n], area) for area in areas], repetitions) for n in names)
    return float(threads * repeat * part * (reads + writes) / best)


@functools.cache
def ticks_per_second() -> float:
    """How fast the processor's counter runs, against the clock: it does not change with the load."""
    ticks = _functions()[1]["ticks"]
    at = ctypes.c_int64()

    def now() -> tuple[int, float]:
        ticks(ctypes.addressof(at), 0, 0, 0, 0)
        return at.value, time.perf_counter()

    a, start = now()
    time.sleep(0.02)
    b, end = now()
    return (b - a) / (end - start)


def measure(threads: int) -> Roofline:
    """The machine's limits for `threads` threads, now: about half a second."""
    rates = {kind: bandwidth(kind, LARGE, threads) for kind in KINDS}
    return Roofline(threads, peak_flops(threads), **rates)


def roofline(threads: int | None = None) -> Roofline:
    """The limits of this machine for `threads` threads (default: the setting): measured once, then read from the cache
    folder. On a busy machine they look lower than they are: then they are measured again the next time, and the best counts."""
    from fluxir.runtime.cache import default_dir

    threads = threads or config.get().threads()
    path = Path(default_dir()) / "roofline.json"
    key = f"{host().model} {threads}"
    try:
        known = json.loads(path.read_text())
        old = Roofline(**known[key]["limits"]) if key in known else None
        quiet = old is not None and bool(known[key]["quiet"])
    except (OSError, ValueError, TypeError, KeyError):
        known, old, quiet = {}, None, False
    if old is not None and quiet:
        return old
    quiet = os.getloadavg()[0] < 0.5
    new = measure(threads)
    if old is not None:
        new = Roofline(threads, *(max(getattr(old, f), getattr(new, f)) for f in ("flops", "read", "copy", "triad")))
    known[key] = {"limits": asdict(new), "quiet": quiet}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1))
    except OSError:
        pass  # it is measured again the next time
    return new
