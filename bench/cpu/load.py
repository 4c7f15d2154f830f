"""What else the machine did while something was measured, from /proc/stat: other work, and time the hypervisor took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Ticks:
    """Seconds of all processors since the start: at work, and stolen."""

    busy: float
    stolen: float

    @classmethod
    def now(cls) -> Ticks:
        path = Path("/proc/stat")
        if not path.exists():
            return cls(0.0, 0.0)
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
        return cls((user + nice + system + irq + soft) / _TICK, steal / _TICK)


@dataclass
class Load:
    """Sums over the bursts of a row, in seconds."""

    wall: float = 0.0
    other: float = 0.0
    stolen: float = 0.0

    def add(self, before: Ticks, after: Ticks, wall: float, own: float) -> None:
        """One burst, in which the measured process itself used `own` seconds of processors."""
        self.wall += wall
        self.other += after.busy - before.busy - own
        self.stolen += after.stolen - before.stolen

    def shares(self) -> tuple[float, float]:
        """Other work and stolen time, in processors."""
        if not self.wall:
            return 0.0, 0.0
        return max(0.0, self.other / self.wall), self.stolen / self.wall
