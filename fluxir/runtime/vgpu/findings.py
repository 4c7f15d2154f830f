"""What the sanitizer says: one `Finding` for each kind of fault at each instruction, with the first thread that did it."""

from __future__ import annotations

from dataclasses import dataclass

from fluxir.errors import Location

from .ptx import Instruction

__all__ = ["Finding", "Findings", "SanitizerError"]

Triple = tuple[int, int, int]


@dataclass
class Finding:
    """`kind`: out-of-bounds, misaligned, uninitialised, use-after-free, shared-race, global-race, divergent-barrier, deadlock,
    absent-lanes, async-copy, leak, assert, trap, limit. `count`: how many threads did it."""

    kind: str
    message: str
    kernel: str = ""
    block: Triple | None = None
    thread: Triple | None = None
    address: int | None = None
    line: int = 0
    text: str = ""
    location: Location | None = None
    operation: str = ""
    count: int = 1

    def __str__(self) -> str:
        where = f" in {self.kernel}" if self.kernel else ""
        who = f", block {self.block}, thread {self.thread}" if self.thread is not None else ""
        lines = [f"{self.kind}{where}{who}: {self.message}"]
        if self.text:
            lines.append(f"  PTX line {self.line}: {self.text}")
        if self.operation or self.location:
            lines.append("  from " + " at ".join(str(x) for x in (self.operation, self.location) if x))
        if self.count > 1:
            lines.append(f"  {self.count} threads in all")
        return "\n".join(lines)


class SanitizerError(Exception):
    """A launch did what it must not. `findings`: all that was found in it."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        more = f"\n... and {len(findings) - 8} more" if len(findings) > 8 else ""
        super().__init__("\n".join(str(f) for f in findings[:8]) + more)


class Findings:
    """The findings of one launch, one for each kind and instruction."""

    LIMIT = 100

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.items: dict[tuple[str, int, str], Finding] = {}

    def add(
        self,
        kind: str,
        message: str,
        instruction: Instruction | None = None,
        block: Triple | None = None,
        thread: Triple | None = None,
        address: int | None = None,
        count: int = 1,
    ) -> None:
        line, text, location = (
            (instruction.line, instruction.text, instruction.location) if instruction else (0, "", None)
        )
        known = self.items.get((kind, line, text))
        if known is not None:
            known.count += count
        elif len(self.items) < self.LIMIT:
            self.items[kind, line, text] = Finding(
                kind, message, self.kernel, block, thread, address, line, text, location, "", count
            )

    def list(self) -> list[Finding]:
        return list(self.items.values())
