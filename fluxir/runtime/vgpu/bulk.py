"""Bulk copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .wave import Wave

__all__ = ["BulkCopies"]


class BulkCopies:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave

    def finish(self) -> None:
        """Copies that nobody waited for."""
