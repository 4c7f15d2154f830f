"""Runs a target on changed files for a while, in a child process, and tells what came out that should not.

The child says what it is about to read in shared memory, so that a crash or a hang is known by its file. Times are times
of the processor: a busy machine makes nothing fail.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import resource
import signal
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxir.errors import FluxError
from tests.fuzz.targets import TARGETS, Target

SECONDS = 2.0  # of the processor, for one file
MEMORY = 256 << 20  # bytes that one file may take
SILENCE = 30.0  # seconds after which a child that reads the same file is ended, whatever it does
_SLOT = 16 << 20


class Hang(BaseException):
    """A file took more time than it may."""


@dataclass
class Outcome:
    """What happened. `findings`: what is wrong, with the file that shows it, one of each kind."""

    target: str
    files: int = 0
    taken: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, tuple[str, Path]] = field(default_factory=dict)

    def text(self) -> str:
        codes = ", ".join(f"{c} {n}" for c, n in self.codes.most_common(6))
        lines = [f"{self.target}: {self.files} files, {self.taken} read, {self.files - self.taken} refused ({codes})"]
        return "\n".join(
            [*lines, *[f"FOUND {what}\n  file {path}\n{how}" for what, (how, path) in self.findings.items()]]
        )


def fuzz(name: str, seconds: float, seed: int, folder: Path | None = None) -> Outcome:
    """Feed the target `name` for `seconds`. Files that show a defect are written to `folder`."""
    target = TARGETS[name]()
    if seconds >= 30:
        target.more()
    folder = folder or Path(tempfile.mkdtemp(prefix="fluxir-fuzz-"))
    out = Outcome(name)
    slot = mmap.mmap(-1, _SLOT)
    end = time.monotonic() + seconds
    number = 0
    while (left := end - time.monotonic()) > 0.05 or not out.files:
        source, sink = os.pipe()
        slot[:16] = bytes(16)
        child = os.fork()
        if child == 0:
            os.close(source)
            _serve(target, random.Random(f"{seed}/{number}"), max(left, 0.05), slot, sink)
        os.close(sink)
        number += 1
        said = _listen(source, child, slot, target.wall)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for line in said.splitlines():
            _note(out, json.loads(line), folder)
        if status != 0:
            n = int.from_bytes(slot[:8], "little")
            what = f"{name}: the process ended with {status}"
            _note(
                out,
                {"what": what, "how": "  (crash, hang in C, or too much memory)", "file": slot[16 : 16 + n].hex()},
                folder,
            )
        if len(out.findings) >= 20:
            break
    return out


def _note(out: Outcome, line: dict[str, Any], folder: Path) -> None:
    if "files" in line:
        out.files += line["files"]
        out.taken += line["taken"]
        out.codes.update(line["codes"])
    elif line["what"] not in out.findings:
        data = bytes.fromhex(line["file"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{out.target}-{zlib.crc32(data):08x}"
        path.write_bytes(data)
        out.findings[line["what"]] = line["how"], path


def _listen(source: int, child: int, slot: mmap.mmap, wall: float) -> str:
    """What the child says until it ends; it is ended where it reads one file for too long."""
    import select

    text, last, since = b"", b"", time.monotonic()
    while True:
        if select.select([source], [], [], 1.0)[0]:
            got = os.read(source, 1 << 20)
            if not got:
                os.close(source)
                return text.decode()
            text += got
        if slot[8:16] != last:
            last, since = slot[8:16], time.monotonic()
        elif time.monotonic() - since > wall:
            os.kill(child, signal.SIGKILL)


def _serve(target: Target, rng: random.Random, seconds: float, slot: mmap.mmap, sink: int) -> None:
    """The child: read files until time is up or something is found that spoils this process; then end it."""
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize() + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    signal.signal(signal.SIGPROF, _hang)
    counts: dict[str, Any] = {"files": 0, "taken": 0, "codes": Counter()}
    end = time.monotonic() + seconds
    try:
        with os.fdopen(sink, "w") as out:
            while time.monotonic() < end:
                data = target.make(rng)[: _SLOT - 16]
                slot[16 : 16 + len(data)] = data
                slot[:16] = len(data).to_bytes(8, "little") + (counts["files"] + 1).to_bytes(8, "little")
                counts["files"] += 1
                problem = one(target, data, counts)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if problem is None and peak - grown > MEMORY >> 10:
                    problem = f"{target.name}: {(peak - grown) >> 10} MiB for one file", ""
                if problem is not None:
                    out.write(json.dumps({"what": problem[0], "how": problem[1], "file": data.hex()}) + "\n")
                    break
                grown = max(grown, peak)
            out.write(json.dumps(counts) + "\n")
    finally:
        os._exit(0)


def one(target: Target, data: bytes, counts: dict[str, Any]) -> tuple[str, str] | None:
    """Read one file; what is wrong with how that went, if anything."""
    try:
        with _limited(SECONDS):
            target.read(data)
        counts["taken"] += 1
    except FluxError as e:
        counts["codes"][e.code] += 1
        if e.exit_code == 70 and e.code not in target.allowed:
            return f"{target.name}: {e.code} {e.message[:80]}", _shown(e)
    except (Hang, Exception) as e:
        return f"{target.name}: {type(e).__name__} at {_place(e)}", _shown(e)
    return None


def _shown(e: BaseException) -> str:
    return "".join(traceback.format_exception(e)[-12:])[-3000:]


def _place(e: BaseException) -> str:
    """The innermost line of ours."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "/fluxir/" in f.filename] or traceback.extract_tb(
        e.__traceback__
    )
    return f"{frames[-1].filename.rpartition('/fluxir/')[2]}:{frames[-1].lineno}" if frames else "?"


def _hang(*_: Any) -> None:
    raise Hang


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
