"""What bounds a row on this machine, measured in the same run by our own native loops (`fluxir.roofline`).

Bandwidth is that of arrays of the row's size: a row whose arrays fit a cache is compared with what the cache gives.
"""

from __future__ import annotations

from bench.cpu.row import Row


class Limits:
    """Peak operations and bandwidths for one number of threads; each is measured when first needed, and best of all counts."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.flops = 0.0
        self.rates: dict[tuple[str, int], float] = {}

    def measure(self, row: Row) -> None:
        """Measure (again) what bounds the row."""
        from fluxir import roofline

        if row.limit == "flops":
            self.flops = max(self.flops, roofline.peak_flops(self.threads))
        elif row.limit == "bytes":
            key = traffic(row)
            self.rates[key] = max(
                self.rates.get(key, 0.0), roofline.bandwidth(*key, threads=self.threads, repetitions=5)
            )

    def seconds(self, row: Row) -> float:
        """The least time of the row; 0 where it has no limit."""
        if row.limit == "flops":
            return row.flops / self.flops
        if row.limit == "bytes":
            return (row.reads + row.writes) / self.rates[traffic(row)]
        return 0.0


def traffic(row: Row) -> tuple[str, int]:
    """The kind of traffic that is most like the row's, and the size of each of its arrays, rounded to a power of two."""
    kind = "read" if row.writes * 8 < row.reads else "copy" if row.reads < 1.5 * row.writes else "triad"
    arrays = {"read": 1, "copy": 2, "triad": 3}[kind]
    size = max(1.0, (row.reads + row.writes) / arrays)
    return kind, 1 << min(26, max(13, round(size).bit_length() - 1))
