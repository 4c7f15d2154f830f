"""Translates the parts of a program in several processes at once, or in this one; the result is the same.

LLVM's interface for Python has one lock for all threads, so only processes run it in parallel; and an LLVM that crashes
then takes a process of ours with it, not the user's: that is FX0517, with a reproducer.

`Translation` is one compilation: parts go in as they are written, objects come out in their order. The processes (see
worker.py) are started when first needed, with a new interpreter, which is safe whatever threads this process has. They
are shared by all compilations of this process, which take turns, and ended when they are idle for long, at exit, in the
child of a fork (which has its own), and whenever their state is in doubt. Where they cannot be had (the setting
`compile_workers` is 0, or there is no Python to start, as where Python is embedded) this process does the work.

Invariants: a worker answers its tasks in order, so where it dies the first unanswered one is to blame and the others are
done again elsewhere; answers of an abandoned compilation are read and forgotten; nobody else reads or writes the pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fluxir import config
from fluxir.codegen import backend
from fluxir.codegen.part import Piece
from fluxir.codegen.worker import BOOT, FRAME, frame
from fluxir.errors import FluxError, error

__all__ = ["Translation", "replay", "stop"]

_IDLE = 60.0  # seconds without work after which the processes are ended
_OPTIMISED = 4  # what a character that LLVM optimises takes, as a multiple of one that it only translates
_PIPE = 1 << 20  # bytes of a pipe, where the system allows it: answers rarely wait for being read
_F_SETPIPE_SZ = 1031
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}


@dataclass
class _Task:
    piece: Piece
    machine: backend.Machine
    level: int
    answer: bytes | FluxError | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        return _OPTIMISED * len(self.piece.main) + len(self.piece.plain)

    def frame(self) -> bytes:
        main, plain = self.piece.main.encode(), self.piece.plain.encode()
        return frame({"main": len(main), "machine": self.machine, "level": self.level}, main + plain)

    def here(self) -> None:
        """Do it in this process."""
        try:
            p = self.piece
            self.answer = backend.translate(p.main, p.plain, self.machine, self.level, self.seconds)
        except FluxError as e:
            self.answer = e


class Translation:
    """One compilation: `add` its pieces, then take its `objects`. A context manager: nothing is left behind on errors."""

    def __init__(self, machine: backend.Machine, level: int) -> None:
        self.machine, self.level = machine, level
        self.tasks: list[_Task] = []
        self._pool: _Pool | None = None

    def __enter__(self) -> Translation:
        _turn.acquire()
        try:
            self._pool = _running(self.machine)  # loads LLVM while the first piece is still being written
        except BaseException:
            _turn.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._pool is not None:
                self._pool.rest()
        finally:
            _turn.release()

    def add(self, piece: Piece) -> None:
        """Begin to translate a piece."""
        task = _Task(piece, self.machine, self.level)
        self.tasks.append(task)
        if self._pool is not None:
            self._pool.send(task)

    def objects(self) -> list[bytes]:
        """The object code of each piece, in order. FX0503 where LLVM rejects a text, FX0517 where it crashes on one."""
        for t in self.tasks:
            while t.answer is None:
                self._work(t)
            if isinstance(t.answer, FluxError):
                raise t.answer
        return [t.answer for t in self.tasks if isinstance(t.answer, bytes)]

    def _work(self, task: _Task) -> None:
        """Do something to get an answer to `task`."""
        if self._pool is not None and not self._pool.alive:
            # What made one LLVM crash may do so again; other deaths, such as for want of memory, are nobody's fault.
            self._pool = pool = _running(self.machine) if self._pool.crashed else None
            for t in self.tasks if pool is not None else ():
                if t.answer is None and pool is not None:
                    pool.send(t)
        elif self._pool is None:
            task.here()
        else:
            self._pool.receive(None)

    def seconds(self) -> dict[str, float]:
        """The time of LLVM's steps, added up over all pieces."""
        steps = ("parse", "optimise", "codegen")
        return {s: sum(t.seconds.get(s, 0.0) for t in self.tasks) for s in steps}


# ---- the processes ----------------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    number: int
    to: int  # descriptors
    source: int
    waiting: list[_Task] = field(default_factory=list)
    load: int = 0
    received: bytearray = field(default_factory=bytearray)


class _Pool:
    """The running processes. Used under `_turn` alone."""

    def __init__(self, python: str, count: int, machine: backend.Machine) -> None:
        self.workers: list[_Worker] = []
        self.crashed = False  # one of them died of its task
        ends: list[tuple[int, int]] = []
        try:
            for i in range(count):
                (theirs, to), (source, mine) = os.pipe(), os.pipe()
                ends.append((theirs, mine))
                self.workers.append(_Worker(i, to, source))
                for end in (to, mine):
                    with contextlib.suppress(OSError):
                        fcntl.fcntl(end, _F_SETPIPE_SZ, _PIPE)
            self.process = subprocess.Popen(
                [python, "-I", "-S", *["-B"] * sys.dont_write_bytecode, "-c", BOOT, *map(json.dumps, (_places(), ends, machine))],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
                pass_fds=[end for pair in ends for end in pair], start_new_session=True,
            )  # fmt: skip
        except BaseException:
            for w in self.workers:
                os.close(w.to)
                os.close(w.source)
            raise
        finally:
            for pair in ends:
                for end in pair:
                    os.close(end)

    @property
    def alive(self) -> bool:
        return bool(self.workers)

    def send(self, task: _Task) -> None:
        """Hand a task to the worker with the least to do."""
        self.receive(0)
        if not self.workers:
            return  # whoever waits for the answer sees that
        w = min(self.workers, key=lambda w: w.load)
        w.waiting.append(task)
        w.load += task.cost
        try:
            data = memoryview(task.frame())
            while data:
                data = data[os.write(w.to, data) :]
        except BrokenPipeError:
            self.bury(w)
        except BaseException:
            self.close()
            raise

    def receive(self, timeout: float | None) -> None:
        """Take what answers there are, waiting for the first at most `timeout` seconds (None: as long as it takes)."""
        try:
            poll = select.poll()
            by = {w.source: w for w in self.workers if w.waiting}
            for source in by:
                poll.register(source, select.POLLIN)
            for source, _ in poll.poll(timeout if timeout is None else timeout * 1000) if by else ():
                w = by[source]
                more = os.read(source, 1 << 20)
                w.received += more
                while _take(w):
                    pass
                if not more:
                    self.bury(w)
        except BaseException:
            self.close()
            raise

    def bury(self, w: _Worker) -> None:
        """A worker died: blame the task it was at if LLVM crashed, and give the others to somebody else."""
        status, said = self._end_of(w)
        self._leave(w)
        tasks, w.waiting = w.waiting, []
        if tasks and (status > 0 or -status in _CRASHES):
            self.crashed = True
            guilty = tasks.pop(0)
            guilty.answer = _crash(guilty, status, said)
        for t in tasks:
            self.send(t)
        if not self.workers:
            self.close()

    def _leave(self, w: _Worker) -> None:
        self.workers.remove(w)
        os.close(w.to)
        os.close(w.source)

    def _end_of(self, w: _Worker) -> tuple[int, str]:
        """How a worker ended: a signal's number below 0 or an exit code, and its last words. (0, "") where nobody knows."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 5.0)[0]:
            line = self.process.stdout.readline()
            if not line:
                break
            report = json.loads(line)
            if report["worker"] == w.number:
                return int(report["status"]), str(report["said"])
        return 0, ""

    def rest(self) -> None:
        """A compilation is over. The processes end when no other follows."""
        if self.alive:
            _ending.after(_IDLE)

    def close(self) -> None:
        """End the processes, and wait for them."""
        self._let_go()
        try:
            self.process.wait(0.2)  # they end when their pipes do
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def forget(self) -> None:
        """In the child of a fork: the processes are the parent's, who alone decides when they end."""
        self._let_go()
        self.process.returncode = 0  # not ours to wait for

    def _let_go(self) -> None:
        for w in [*self.workers]:
            self._leave(w)
        assert self.process.stdout is not None
        self.process.stdout.close()


def _take(w: _Worker) -> bool:
    """Take one whole answer from what was received."""
    if len(w.received) < FRAME.size:
        return False
    head, body = FRAME.unpack_from(w.received)
    end = FRAME.size + head + body
    if len(w.received) < end:
        return False
    header = json.loads(w.received[FRAME.size : FRAME.size + head])
    task = w.waiting.pop(0)
    w.load -= task.cost
    if "code" in header:
        task.answer = error(header["code"], header["message"], notes=header["notes"])
    else:
        task.answer, task.seconds = bytes(w.received[FRAME.size + head : end]), header["seconds"]
    del w.received[:end]
    return True


# ---- the one pool of this process --------------------------------------------------------------------------------------

_turn = threading.RLock()
_pool: _Pool | None = None
_refused = False  # no process could be started


class _Ending:
    """Ends the processes some time after their last use, from a thread that does nothing else."""

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None

    def after(self, seconds: float) -> None:
        self.cancel()
        self.timer = threading.Timer(seconds, stop)
        self.timer.daemon = True
        self.timer.start()

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


_ending = _Ending()


def _running(machine: backend.Machine) -> _Pool | None:
    global _pool, _refused
    _ending.cancel()
    count = config.get().workers()
    if _refused or not count:
        return None
    if _pool is not None and len(_pool.workers) != count:
        stop()
    if _pool is None:
        python = _python()
        try:
            _pool = None if python is None else _Pool(python, count, machine)
        except (OSError, ValueError):
            _pool = None
        _refused = _pool is None
        if _pool is not None:
            _ending.after(_IDLE)
    return _pool


def stop() -> None:
    """End the processes, if any."""
    global _pool
    with _turn:
        _ending.cancel()
        if _pool is not None:
            _pool.close()
            _pool = None


def _python() -> str | None:
    """The interpreter to start: this one, where it is one. A program that embeds Python must not be started again."""
    name = sys.executable or ""
    good = re.fullmatch(r"python[\d.]*[dt]?", os.path.basename(name)) is not None
    return name if good and not getattr(sys, "frozen", False) and os.access(name, os.X_OK) else None


def _places() -> list[str]:
    """Where a process finds this package and llvmlite: behind Python's own library, and nothing else."""
    found = importlib.util.find_spec("llvmlite")
    if found is None or found.origin is None:
        raise ValueError("llvmlite is not there")
    return [str(Path(p).parents[k]) for p, k in ((__file__, 2), (found.origin, 1))]


def _after_fork() -> None:
    global _pool, _turn
    _turn = threading.RLock()
    _ending.timer = None
    if _pool is not None:
        _pool.forget()
        _pool = None


atexit.register(stop)
os.register_at_fork(after_in_child=_after_fork)


# ---- crashes -------------------------------------------------------------------------------------------------------------


_TEST = '''"""Reproducer of a crash in LLVM, written by fluxir: {what}"""

from __future__ import annotations

from pathlib import Path

from fluxir.codegen.workers import replay


def test_{name}() -> None:
    replay(Path(__file__).parent, {name!r}, {machine!r}, {level})
'''


def _crash(task: _Task, status: int, said: str) -> FluxError:
    """FX0517, with the texts and a test that translates them again."""
    how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    notes = [line.strip() for line in said.splitlines()[:3]]
    try:
        notes.append(f"reproducer: {_write_reproducer(task, how)}")
    except OSError as second:  # the failure itself matters more
        notes.append(f"no reproducer could be written: {second}")
    return error("FX0517", f"LLVM crashed ({how}) while it translated {task.piece.name}", notes=notes,
                 help="this is a defect of fluxir or LLVM; the reproducer is a test that shows it")  # fmt: skip


def _write_reproducer(task: _Task, how: str) -> Path:
    chosen = config.get().dump_dir
    folder = Path(chosen) if chosen else Path(tempfile.mkdtemp(prefix="fluxir-reproducer-"))
    folder.mkdir(parents=True, exist_ok=True)
    p = task.piece
    name = "reproduce_llvm_" + hashlib.sha256((p.main + p.plain).encode()).hexdigest()[:8]
    for suffix, text in (("main", p.main), ("plain", p.plain)):
        (folder / f"{name}.{suffix}.ll").write_text(text)
    test = folder / f"test_{name}.py"
    what = f"{how} in {p.name}"
    test.write_text(_TEST.format(what=what, name=name, machine=tuple(task.machine), level=task.level))
    return test


def replay(folder: Path, name: str, machine: Sequence[str], level: int) -> bytes:
    """Translate the texts of a reproducer again; what LLVM makes of them, or FX0517."""
    main, plain = ((folder / f"{name}.{suffix}.ll").read_text() for suffix in ("main", "plain"))
    with Translation(backend.Machine(*machine), level) as t:
        t.add(Piece(name, main, plain))
        return t.objects()[0]
