"""Owns the child process in which verbs read and compile model files of strangers, and its limits.

The command forks before it has loaded anything: the child is the command, with its input, output and exit status, and the
parent waits for it. Before a model is read the child limits itself (`enter`): memory it may take, time of the processor,
size of files it writes; the parent keeps the clock, since code that does not return to Python can only be ended from
outside. A program that is compiled runs without limits (`lift`).

Limits of memory are of RLIMIT_DATA: what a process may write to. Files that are mapped, such as weights, do not count.
Signals: the terminal sends Ctrl-C to both, and the parent ends a child that does not follow; what is sent to the parent
alone goes on to the child, which ends with the parent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence

__all__ = ["enter", "lift", "supervise", "wanted"]

VERBS = frozenset(("check", "compile", "run", "import", "show", "verify", "bundle", "opt", "diff"))
UNTIMED = frozenset(("bench", "profile", "tune"))
"""Verbs that measure for as long as it takes: the limit of time holds where it is given."""
SUFFIXES = (".onnx", ".fx")

_PATIENCE = 3.0  # seconds that a child has to end after Ctrl-C
_TICK = 0.2
_SPARE = 16 << 20  # bytes: enough to say what happened
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1
_KERNEL = 128  # si_code of a signal from the terminal

_channel = -1  # in a child that may limit itself: where it tells its parent
_limited = False


def wanted(arguments: Sequence[str]) -> bool:
    """Whether a command line reads a model file in a process of its own."""
    named = any(a.lower().endswith(SUFFIXES) for a in arguments)
    reads = any(a in VERBS | UNTIMED for a in arguments)
    return named and reads and "--no-sandbox" not in arguments and sys.platform == "linux"


# ---- the child -----------------------------------------------------------------------------------------------------


def enter(verb: str) -> None:
    """Limit this process as the settings say, where it is the child of a command. Raises FX0912 for less memory than it has."""
    global _limited
    from .. import config
    from ..errors import error

    now = config.get()
    if _channel < 0 or not now.sandbox:
        return
    memory = now.max_memory or _machine_memory() * 3 // 4
    seconds = now.max_seconds if verb not in UNTIMED or now.max_seconds != config.SETTINGS["max_seconds"].default else 0
    if memory < _used() + _SPARE:
        raise error(
            "FX0912", f"{memory >> 20} MiB of memory are less than the command itself takes", help="raise --max-memory"
        )
    _soft(resource.RLIMIT_DATA, memory)
    _soft(resource.RLIMIT_FSIZE, now.max_file_size)
    _soft(resource.RLIMIT_CORE, 0)
    if seconds:
        _soft(resource.RLIMIT_CPU, int(seconds) + 1)
    _limited = True
    os.write(_channel, f"{seconds} {memory}\n".encode())


def lift() -> bool:
    """End the limits: what runs from here on is a program that is compiled. Whether there were any."""
    global _limited
    before, _limited = _limited, False
    if before:
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            _soft(kind, resource.RLIM_INFINITY)
        os.write(_channel, b"0 0\n")
    return before


def _text(memory: int, seconds: float) -> str:
    """Limits in words."""
    return f"{memory >> 20} MiB of memory" + (f", {seconds:g} seconds" if seconds else "")


def _soft(kind: int, value: int) -> None:
    """Set a limit that can be lifted again; a stricter one of the system stays."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard if value == resource.RLIM_INFINITY or 0 <= hard < value else value, hard))


def _used() -> int:
    """Bytes that this process has that it may write to."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _end_with_parent(parent: int) -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


# ---- the parent ----------------------------------------------------------------------------------------------------


def supervise(command: Callable[[], int], fail: Callable[[str, str, str | None], int]) -> int:
    """The exit status of `command`, run in a child. `fail(code, message, help)` reports what the child cannot."""
    global _channel
    parent = os.getpid()
    source, sink = os.pipe()
    watched = _watched()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        os.close(source)
        _channel = sink
        _end_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return command()
    os.close(sink)
    os.set_blocking(source, False)
    try:
        return _Watch(child, source).status(fail)
    finally:
        os.close(source)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watched() -> set[signal.Signals]:
    """The signals that the parent waits for. Those that are ignored, as in the background of a shell, stay so."""
    return {signal.SIGCHLD, *(s for s in _FORWARDED if signal.getsignal(s) != signal.SIG_IGN)}


class _Watch:
    """Waits for the child, ends it when its time is up, passes signals on."""

    def __init__(self, child: int, source: int) -> None:
        self.child, self.source = child, source
        self.seconds = self.memory = 0.0  # limits; 0: none
        self.spent = 0.0
        self.interrupted: float | None = None  # seconds since Ctrl-C

    def status(self, fail: Callable[[str, str, str | None], int]) -> int:
        watched = _watched()
        last = time.monotonic()
        while True:
            got = signal.sigtimedwait(watched, _TICK)
            # A process that was stopped (Ctrl-Z) has not used the time that went by: a turn counts no more than a little.
            step, last = min(time.monotonic() - last, 2 * _TICK), time.monotonic()
            if got is not None and got.si_signo != signal.SIGCHLD:
                if got.si_code != _KERNEL:
                    os.kill(self.child, got.si_signo)
                if got.si_signo == signal.SIGINT and self.interrupted is None:
                    self.interrupted = 0.0
            self.listen()
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                return self.ended(os.waitstatus_to_exitcode(status), fail)
            if self.interrupted is not None:
                self.interrupted += step
                if self.interrupted > _PATIENCE:
                    self.kill()
                    raise KeyboardInterrupt
            self.spent += step
            if self.seconds and self.spent > self.seconds:
                self.kill()
                return self.out_of_time(fail)

    def listen(self) -> None:
        """What the child says of its limits; the clock starts with them."""
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self.source, 4096).splitlines():
                seconds, memory = line.split()
                self.seconds, self.memory, self.spent = float(seconds), float(memory), 0.0

    def kill(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)

    def out_of_time(self, fail: Callable[[str, str, str | None], int]) -> int:
        return fail(
            "FX0912",
            f"reading and compiling the model took more than {self.seconds:g} seconds",
            "--max-seconds allows more, if you trust the file",
        )

    def ended(self, status: int, fail: Callable[[str, str, str | None], int]) -> int:
        self.listen()
        if status >= 0:
            return status
        sign = signal.Signals(-status)
        if sign == signal.SIGINT:
            raise KeyboardInterrupt
        if sign in _FORWARDED:  # die of the same
            signal.signal(sign, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {sign})
            os.kill(os.getpid(), sign)
        if sign == signal.SIGXCPU:
            return self.out_of_time(fail)
        if sign == signal.SIGKILL:
            return fail(
                "FX0912", "the system ended the process that read the model: for want of memory, as a rule", None
            )
        what = f"the process that read the model died of {sign.name}"
        if self.memory:
            what += f"; its limits were {_text(int(self.memory), self.seconds)}"
        return fail("FX0913", what, None)
