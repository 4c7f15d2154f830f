"""The results as JSON, as Markdown tables and as a plot (SVG of our own)."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from bench.cpu.limits import Limits
from bench.cpu.session import OURS, Result
from bench.measure import shown


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values if v > 0 and not math.isnan(v)]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def share(result: Result, limits: Limits, library: str = OURS) -> float:
    """The part of the machine's limit that a library reaches; NaN where the row has no limit or the library no time."""
    least = limits.seconds(result.row)
    return least / result.time(library) if least else float("nan")


def met(result: Result, limits: Limits) -> bool:
    """Whether ours reached the row's goal. Without peers a ratio is not asked for."""
    goal = result.row.goal
    if OURS not in result.times:
        return False
    enough = not goal.share or share(result, limits) >= goal.share
    if goal.ratio and result.best_peer():
        enough = enough and result.ratio() >= goal.ratio
    return enough and (not goal.seconds or result.time(OURS) <= goal.seconds)


def percent(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.0%}"


def times_faster(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.2f}"


COLUMNS = ("work", "ours", "best peer", "its time", "ratio", "share", "its share", "goal", "met", "numpy", "torch",
           "torch.compile", "jax", "onnxruntime", "numba", "noise")  # fmt: skip


def cells(result: Result, limits: Limits) -> list[str]:
    """One line of the table."""

    def time(library: str) -> str:
        if result.times.get(library):
            return shown(result.time(library))
        return "failed" if library in result.failed else ""

    peer = result.best_peer()
    return [
        result.row.name, time(OURS), peer or "", time(peer) if peer else "", times_faster(result.ratio()),
        percent(share(result, limits)), percent(share(result, limits, peer)) if peer else "", str(result.row.goal),
        "yes" if met(result, limits) else "no", *[time(p) for p in COLUMNS[9:15]], result.noise(),
    ]  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns without any entry are left out."""
    kept = [i for i in range(len(columns)) if i == 0 or any(r[i] for r in rows)]
    widths = [max(len(r[i]) for r in [columns, *rows]) for i in kept]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(row[i].ljust(w) for i, w in zip(kept, widths, strict=True)) + " |"

    return "\n".join([line(columns), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])


def summary(results: Sequence[Result], limits: dict[int, Limits]) -> list[str]:
    """The geometric mean of the ratios for each number of threads, and the rows where ours is slower than a peer."""
    lines = []
    for threads in sorted({r.threads for r in results}):
        mine = [r for r in results if r.threads == threads]
        for label, chosen in (("rows of the table", False), ("held-out rows", True)):
            ratios = {
                r.row.name: r.ratio() for r in mine if r.row.held_out == chosen and r.best_peer() and OURS in r.times
            }
            if not ratios:
                continue
            slow = sorted((v, n) for n, v in ratios.items() if v < 0.95)
            reached = sum(met(r, limits[threads]) for r in mine if r.row.held_out == chosen)
            total = sum(r.row.held_out == chosen for r in mine)
            lines.append(
                f"{threads} thread{'s' if threads > 1 else ''}, {label}: {geometric_mean(ratios.values()):.2f} times the best"
                f" peer in geometric mean; {reached} of {total} reach their goal; slower by more than 5 %: "
                + (", ".join(f"{n} ({v:.2f})" for v, n in slow) or "none")
            )
    return lines


def markdown(results: Sequence[Result], limits: dict[int, Limits], about: str) -> str:
    """Tables by number of threads, then what failed and what compiling took."""
    parts = ["# CPU speed beside other libraries", "", about, "", *[f"- {s}" for s in summary(results, limits)], ""]
    for threads in sorted({r.threads for r in results}):
        limit = limits[threads]
        rates = ", ".join(f"{kind} {rate / 1e9:.1f} GB/s" for kind, rate in sorted(limit.rates.items()))
        parts += [f"## {threads} thread{'s' if threads > 1 else ''}", ""]
        parts += [f"Limits: {limit.flops / 1e9:.1f} GFLOP/s f32; {rates}.", ""]
        for label, chosen in (("", False), ("Held out: other shapes of the same classes", True)):
            mine = [r for r in results if r.threads == threads and r.row.held_out == chosen]
            if mine:
                parts += [f"### {label}", ""] if label else []
                parts += [table(COLUMNS, [cells(r, limit) for r in mine]), ""]
    failed = [[r.row.name, str(r.threads), library, why] for r in results for library, why in r.failed.items()]
    if failed:
        parts += ["## What did not run", "", table(("work", "threads", "library", "why"), failed), ""]
    names = sorted({n for r in results for n in r.compile})
    slow = [
        r for r in results if max(r.compile.values(), default=0) >= 1 and r.threads == max(x.threads for x in results)
    ]
    if slow:
        rows = [[r.row.name, *(shown(r.compile[n]) if n in r.compile else "" for n in names)] for r in slow]
        parts += [
            "## Seconds until the first result, where that is at least one for some library",
            "",
            table(("work", *names), rows),
            "",
        ]
    parts += _memory(results)
    parts += [
        "- a ratio is the best peer's median time by ours: above 1 ours is faster; medians are over interleaved rounds",
        "- share: the least time the row can take on this machine (operations or bytes, measured in the same run) by ours",
        "- a row is marked as noisy where rounds differ or the machine had other work",
    ]
    return "\n".join(parts) + "\n"


def _memory(results: Sequence[Result]) -> list[str]:
    """Bytes beside weights, optimiser state and data; ours and JAX's as planned, PyTorch's the most that a step allocates."""
    found = {r.row.name: r.memory for r in results if r.memory}
    names = sorted({n for m in found.values() for n in m})
    rows = [[row, *(f"{m[n] / 2**20:.1f} MiB" if n in m else "" for n in names)] for row, m in found.items()]
    return ["## Memory of a step beside its arguments", "", table(("work", *names), rows), ""] if rows else []


def as_json(results: Sequence[Result], limits: dict[int, Limits]) -> list[dict[str, Any]]:
    """One record each row and number of threads."""
    return [_record(r, limits[r.threads]) for r in results]


def _record(r: Result, limits: Limits) -> dict[str, Any]:
    return {
        "row": r.row.name, "kind": r.row.kind, "threads": r.threads, "held_out": r.row.held_out, "goal": str(r.row.goal),
        "met": met(r, limits), "ratio": r.ratio(), "best_peer": r.best_peer(), "share": share(r, limits),
        "least_seconds": limits.seconds(r.row), "seconds": {k: r.time(k) for k in r.times}, "rounds": r.times,
        "compile": r.compile, "memory": r.memory, "differences": r.differences, "failed": r.failed, "noise": r.noise(),
    }  # fmt: skip


# ---- the plot -------------------------------------------------------------------------------------------------------------

WIDTH, LEFT, LINE = 1060, 330, 17
LOW, HIGH = 1 / 4, 8


def _x(ratio: float) -> float:
    """The horizontal place of a ratio, on a logarithmic scale that ends at LOW and HIGH."""
    clamped = min(max(ratio, LOW), HIGH)
    return LEFT + (WIDTH - LEFT - 170) * math.log(clamped / LOW) / math.log(HIGH / LOW)


def plot(results: Sequence[Result]) -> str:
    """Bars of the ratio to the best peer, for each row and number of threads, as SVG."""
    by_row: dict[str, list[Result]] = {}
    for r in results:
        if r.best_peer() and OURS in r.times:
            by_row.setdefault(r.row.name, []).append(r)
    out, y = [], 34
    for name, found in by_row.items():
        out.append(
            f'<text x="{LEFT - 8}" y="{y + LINE * len(found) / 2 + 4}" text-anchor="end">{html.escape(name)}</text>'
        )
        for r in found:
            ratio, base = r.ratio(), _x(1)
            colour = "#b3372c" if ratio < 0.95 else "#3b6ea5" if r.threads == 1 else "#2c8c5a"
            x0, x1 = sorted((base, _x(ratio)))
            out.append(
                f'<rect x="{x0:.1f}" y="{y + 2}" width="{max(x1 - x0, 1):.1f}" height="{LINE - 5}" fill="{colour}"/>'
            )
            label = f"{ratio:.2f} x {r.best_peer()}, {r.threads} thr."
            out.append(f'<text x="{max(x1, base) + 4:.1f}" y="{y + LINE - 5}" fill="#555">{html.escape(label)}</text>')
            y += LINE
        y += 5
    grid = []
    for tick in (0.25, 0.5, 1, 1.5, 2, 4, 8):
        grid.append(
            f'<line x1="{_x(tick):.1f}" x2="{_x(tick):.1f}" y1="26" y2="{y}" stroke="{"#000" if tick == 1 else "#ddd"}"/>'
        )
        grid.append(f'<text x="{_x(tick):.1f}" y="20" text-anchor="middle">{tick:g}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="{LEFT - 8}" y="20" text-anchor="end">times the best peer</text>'
        + "".join([*grid, *out]) + "</svg>\n"
    )  # fmt: skip
