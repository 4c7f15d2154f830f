"""What bounds a row on this machine, measured in the same run by our own native loops (`fluxir.roofline`).

The limit is the larger of two times: the row's operations at the peak of multiply-adds, and its bytes at the bandwidth of main
memory. A row whose arrays stay in the caches may pass it.
"""

from __future__ import annotations

from bench.cpu.row import Row


class Limits:
    """The peak of operations and the bandwidths for one number of threads, per second. The best of all measurements counts."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.flops = 0.0
        self.rates: dict[str, float] = {}

    def measure(self, row: Row) -> None:
        """Measure (again) what bounds the row."""
        from fluxir import roofline

        if row.flops:
            self.flops = max(self.flops, roofline.peak_flops(self.threads))
        if row.reads + row.writes:
            kind = traffic(row)
            rate = roofline.bandwidth(kind, threads=self.threads, repetitions=3)
            self.rates[kind] = max(self.rates.get(kind, 0.0), rate)

    def seconds(self, row: Row) -> float:
        """The least time of the row; 0 where it has no limit."""
        moved = row.reads + row.writes
        return max(row.flops / self.flops if row.flops else 0.0, moved / self.rates[traffic(row)] if moved else 0.0)


def traffic(row: Row) -> str:
    """The kind of traffic that is most like the row's."""
    return "read" if row.writes * 8 < row.reads else "copy" if row.reads < 1.5 * row.writes else "triad"
