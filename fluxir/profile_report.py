"""Profiles for readers: a table, JSON, Chrome's trace format, and a page of HTML.

Owns how numbers are shown; what they mean is told in profiling.py. The trace holds one process for each program and one
track for each thread; launches and the ranges that threads worked on lie on them as complete events.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxir.dump import pass_reports
from fluxir.report import KernelReport, ReportData, SourceReport, TableReport, render_report

if TYPE_CHECKING:
    from fluxir.profiling import KernelTime, Profile

__all__ = ["as_json", "page", "table", "trace"]

HEAD = ("kernel", "launches", "time", "of all", "GFLOP/s", "GB/s", "of limit", "template", "schedule", "lines")
RIGHT = (1, 2, 3, 4, 5, 6)
NOTE = (
    "Times are of one call, medians. GFLOP/s count the operations of the program, GB/s the bytes of each memory that a"
    " kernel is given, once. The limit is what this machine's multiply-adds and main memory allow, whichever takes longer;"
    " arrays that stay in the caches may pass it."
)


def table(p: Profile) -> str:
    """The kernels, the longest first, and a line on the whole."""
    rows = [HEAD, *_rows(p)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(c.rjust(w) if i in RIGHT else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths))).rstrip()
        for r in rows
    ]
    return "\n".join([f"{p.name}: {seconds(p.seconds)} a call, median of {p.calls}; {_limit(p)}", "", *lines])


def _rows(p: Profile) -> list[tuple[str, ...]]:
    total = sum(k.seconds for k in p.kernels) + p.outside or 1.0
    rows = [_cells(k, total) for k in p.kernels]
    rows.append(("(outside kernels)", "", seconds(p.outside), f"{p.outside / total:.0%}", *[""] * 6))
    return rows


def _cells(k: KernelTime, total: float) -> tuple[str, ...]:
    def rate(count: float | None) -> str:
        return "" if not count or not k.seconds else f"{count / k.seconds / 1e9:.3g}"

    lines = [Path(line).name for line in k.lines]
    return (
        k.name, f"{k.launches:g}", seconds(k.seconds), f"{k.seconds / total:.0%}", rate(k.flops), rate(k.moved),
        "" if k.share is None else f"{k.share:.0%}", k.template, k.schedule,
        ", ".join(lines[:4]) + (", ..." if lines[4:] else ""),
    )  # fmt: skip


def _limit(p: Profile) -> str:
    limit = p.limit
    threads = f"{limit.threads} thread{'s' if limit.threads > 1 else ''}"
    return f"{threads}: {limit.flops / 1e9:.0f} GFLOP/s f32, {limit.read / 1e9:.0f} GB/s read, {limit.copy / 1e9:.0f} copied"


def seconds(s: float) -> str:
    """A time with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if s >= size:
            return f"{s / size:.3g} {unit}"
    return f"{s * 1e9:.3g} ns"


def as_json(p: Profile) -> dict[str, Any]:
    """Everything but results and time lines; seconds, operations and bytes are those of one call."""
    limit = {k: getattr(p.limit, k) for k in ("threads", "flops", "read", "copy", "triad")}
    kernels = [
        {
            "name": k.name, "launches": k.launches, "seconds": k.seconds, "flops": k.flops, "bytes": k.moved,
            "least_seconds": k.least, "share": k.share, "template": k.template, "schedule": k.schedule, "lines": list(k.lines),
        }
        for k in p.kernels
    ]  # fmt: skip
    return {
        "name": p.name, "calls": p.calls, "seconds": p.seconds, "outside_kernels": p.outside, "limit": limit, "kernels": kernels,
    }  # fmt: skip


def trace(profiles: Sequence[Profile]) -> dict[str, Any]:
    """Chrome's trace format (times in microseconds), which chrome://tracing and Perfetto open."""
    events: list[dict[str, Any]] = []
    for n, p in enumerate(profiles):
        known = {k.name: k for k in p.kernels}
        events.append({"name": "process_name", "ph": "M", "pid": n, "args": {"name": p.name}})
        for thread in sorted({s.thread for s in p.spans}):
            name = "calling thread" if thread == 0 else f"worker {thread}"
            events.append({"name": "thread_name", "ph": "M", "pid": n, "tid": thread, "args": {"name": name}})
        running = ""
        for s in p.spans:
            running = s.kernel or running  # a range belongs to the launch that began last
            event: dict[str, Any] = {
                "name": running, "cat": "launch" if s.kernel else "range", "ph": "X", "pid": n, "tid": s.thread,
                "ts": s.start * 1e6, "dur": (s.end - s.start) * 1e6,
            }  # fmt: skip
            if s.kernel and s.kernel in known:
                k = known[s.kernel]
                event["args"] = {"schedule": k.schedule, "template": k.template, "lines": list(k.lines)}
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ns"}


# ---- a page ---------------------------------------------------------------------------------------------------------------


def page(profiles: Sequence[Profile]) -> str:
    """One page for one or several programs."""
    tables: list[TableReport] = []
    kernels: list[KernelReport] = []
    lines: set[str] = set()
    for p in profiles:
        rows = [list(r) for r in _rows(p)]
        tables.append({"title": f"{p.name}: {_limit(p)}", "head": list(HEAD), "rows": rows, "right": list(RIGHT)})
        kernels += _kernels(p)
        lines |= {line for k in p.kernels for line in k.lines}
    data: ReportData = {
        "title": "FluxIR: profile of " + ", ".join(p.name for p in profiles),
        "subtitle": profiles[0].build.target.name if profiles else "",
        "summary": [
            {
                "label": p.name,
                "value": seconds(p.seconds),
                "detail": f"a call, median of {p.calls}; {len(p.kernels)} kernels",
            }
            for p in profiles
        ],
        "passes": pass_reports(profiles[0].build) if len(profiles) == 1 else [],
        "kernels": kernels,
        "profile": {"title": "Time", "intro": "Where the time of a call goes.", "tables": tables, "note": NOTE},
        "sources": _sources(lines),
    }
    return render_report(data)


def _kernels(p: Profile) -> list[KernelReport]:
    from fluxir.ir.printer import print_func

    funcs = p.build.stages["loops"].funcs
    found: list[KernelReport] = []
    for k in p.kernels:
        facts = {"time": seconds(k.seconds), "launches": f"{k.launches:g}", "template": k.template}
        if k.share is not None:
            facts["of the limit"] = f"{k.share:.0%}"
        text = print_func(funcs[k.name], False)
        found.append({
            "name": k.name, "target": p.build.target.name, "schedule": k.schedule, "code": text, "code_kind": "loop IR",
            "lines": list(k.lines), "facts": facts,
        })  # fmt: skip
    return found


def _sources(lines: set[str]) -> list[SourceReport]:
    """The files that the lines stand in, as far as they can be read."""
    found: list[SourceReport] = []
    for path in sorted({line.rpartition(":")[0] for line in lines}):
        try:
            found.append({"path": path, "text": Path(path).read_text(encoding="utf-8", errors="replace")})
        except OSError:
            continue
    return found
