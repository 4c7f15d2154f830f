"""Profiles of kernels on the virtual GPU as tables, for ``run --profile`` and ``vgpu run --profile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FluxError
from .common import bytes_text, table

if TYPE_CHECKING:
    from ..runtime.vgpu.profile import KernelProfile

__all__ = ["NOTE", "Table", "profile_tables", "profile_text", "ptxas_registers"]

NOTE = "Bounds are what the counted work takes at least at a GPU's published peaks, from a cold cache: no timings."


def ptxas_registers(ptx: str, target: str) -> dict[str, int]:
    """Registers of a thread by kernel, from ptxas; empty where it is not installed or refuses the text."""
    from ..codegen.checks import assemble

    try:
        return {k.name: k.registers for k in assemble(ptx, target)}
    except FluxError:
        return {}


@dataclass(frozen=True)
class Table:
    """`right`: the columns of numbers."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[object, ...]]
    right: tuple[int, ...] = ()


def profile_text(rows: Sequence[KernelProfile]) -> str:
    """Tables: what each kernel did, its lower bounds, its instructions by class."""
    if not rows:
        return "no kernel was launched"
    shown = [table(t.rows, (t.title, *t.head[1:]), right=t.right) for t in profile_tables(rows)]
    return "\n\n".join([*shown, NOTE])


def profile_tables(rows: Sequence[KernelProfile]) -> list[Table]:
    """The same for other pages; the first column names kernels."""
    return [_counts(rows), _bounds(rows), _classes(rows)]


def _counts(rows: Sequence[KernelProfile]) -> Table:
    lines: list[tuple[object, ...]] = []
    for p in rows:
        c, o = p.counters, p.occupancy
        shared = sum(c.wavefronts.values())
        lines.append(
            (
                p.kernel, p.launches, "x".join(map(str, _short(p.grid))), "x".join(map(str, _short(p.block))),
                f"{c.warp_instructions:,}", f"{c.lane_use:.0%}",
                f"{c.divergent_branches / c.branches:.0%}" if c.branches else "-",
                f"{c.sectors_per_request:.2f}" if c.sectors else "-", f"{c.bank_conflicts:,}" if shared else "-",
                bytes_text(c.dram_bytes), bytes_text(c.l2_bytes),
                f"{p.registers}{'' if p.registers_from == 'ptxas' else '~'}", bytes_text(p.shared_bytes),
                f"{o.warps}/{o.most_warps} ({o.limiter})",
            )
        )  # fmt: skip
    head = ("kernel", "launches", "grid", "block", "warp instr.", "lanes", "divergent", "sectors/req.", "bank conflicts",
            "DRAM", "L2", "regs", "shared", "warps/SM")  # fmt: skip
    return Table("kernel", head, lines, (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))


def _bounds(rows: Sequence[KernelProfile]) -> Table:
    gpus = tuple(rows[0].bounds)
    lines: list[tuple[object, ...]] = [
        (p.kernel, *(f"{_seconds(p.bounds[g][0])} {p.bounds[g][1]}" for g in gpus)) for p in rows
    ]
    if len(rows) > 1:
        lines.append(("all", *(_seconds(sum(p.bounds[g][0] for p in rows)) for g in gpus)))
    return Table("lower bound", ("kernel", *gpus), lines)


def _classes(rows: Sequence[KernelProfile]) -> Table:
    names = tuple(sorted({k for p in rows for k in p.counters.by_class}))
    lines: list[tuple[object, ...]] = [(p.kernel, *(f"{p.counters.by_class.get(k, 0):,}" for k in names)) for p in rows]
    return Table("warp instructions", ("kernel", *names), lines, tuple(range(1, len(names) + 1)))


def _short(sizes: tuple[int, int, int]) -> tuple[int, ...]:
    x, y, z = sizes
    return sizes if z > 1 else (x, y) if y > 1 else (x,)


def _seconds(s: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if s >= size:
            return f"{s / size:.3g} {unit}"
    return f"{s * 1e9:.3g} ns"
