"""The process's thread pool and the runtime context that compiled code is called with.

`context(threads)` gives the address of a context `{ i64 threads, ptr parallel, ptr state, ptr stack }` (the layout that
`fluxir/codegen/abi.py` describes); workers are native threads that never touch Python. Invariants: there is one pool a
process; workers are only ever added; results do not depend on their number, since which indices form one body call has
no influence on the results; a forked child starts with no workers and makes its own. The pool's state is never freed, since
workers look at it until the process has ended; in a child the kernel fills it with zeros, also where something other than
Python has forked: it is the state of a pool without workers, in which every caller runs alone. Where threads cannot be had
(another system, a limit) everything runs on the calling thread: slower, with the same results.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

from fluxir.runtime.native import native
from fluxir.runtime.pool_code import STATE_BYTES, WORKERS

__all__ = ["context", "with_stack"]

_lock = threading.Lock()
_contexts: dict[int, ctypes.Array[ctypes.c_int64]] = {}
_workers = 0


def context(threads: int) -> int:
    """The address of the runtime context for at most `threads` threads; starts the workers it needs."""
    found = _contexts.get(threads)
    if found is None or _workers < threads - 1:
        with _lock:
            found = _make(threads)
    return ctypes.addressof(found)


def with_stack(shared: int) -> ctypes.Array[ctypes.c_int64]:
    """A copy of a context for the calling thread alone, with the lowest address that its frames may reach."""
    mine = (ctypes.c_int64 * 4).from_buffer_copy((ctypes.c_int64 * 4).from_address(shared))
    mine[3] = _stack_limit()
    return mine


_RESERVE = 768 << 10  # bytes of a stack that are left to kernels (some hold half a megabyte) and to whatever they call


def _stack_limit() -> int:
    """The calling thread's lowest stack address with some way to go; 0 where the system does not tell."""
    c = ctypes.CDLL(None)
    attributes = (ctypes.c_char * 256)()
    low, size = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        c.pthread_self.restype = ctypes.c_void_p
        c.pthread_getattr_np.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        if c.pthread_getattr_np(c.pthread_self(), attributes) != 0:
            return 0
        c.pthread_attr_getstack(attributes, ctypes.byref(low), ctypes.byref(size))
        c.pthread_attr_destroy(attributes)
    except AttributeError:
        return 0
    return int(low.value + min(_RESERVE, size.value // 3))


def _make(threads: int) -> ctypes.Array[ctypes.c_int64]:
    found = _contexts.get(threads)
    if found is None:
        found = (ctypes.c_int64 * 4)(threads, native().parallel if threads > 1 else 0, native().state, 0)
        _contexts[threads] = found
    if threads > 1:
        _start(threads - 1)
    return found


def _start(count: int) -> None:
    """Have `count` workers, as far as the system allows."""
    global _workers
    if sys.platform != "linux" or _refused:
        return
    state = native().state
    c = ctypes.CDLL(None)
    if not _workers:
        c.madvise(ctypes.c_void_p(state), ctypes.c_size_t(-(-STATE_BYTES // _PAGE) * _PAGE), _WIPE_ON_FORK)
    create, detach = c.pthread_create, c.pthread_detach
    create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    detach.argtypes = [ctypes.c_ulong]
    # A new thread inherits the mask: signals are for Python's own threads, but for those that its own code causes.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OWN)
    try:
        while _workers < count:
            thread = ctypes.c_ulong()
            if create(ctypes.byref(thread), None, native().worker, None) != 0:
                _refused.append(True)
                break
            detach(thread)
            _workers += 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    ctypes.c_int64.from_address(state + WORKERS).value = _workers


_OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}
_WIPE_ON_FORK = 18  # MADV_WIPEONFORK
_PAGE = 4096
_refused: list[bool] = []
"""Not empty once the system has refused a thread: it is not asked again."""


def _after_fork() -> None:
    """In the child only the forking thread lives on, and a region of another thread may look unfinished."""
    global _workers, _lock
    _lock = threading.Lock()
    _workers = 0
    _refused.clear()
    if _contexts:
        ctypes.memset(native().state, 0, STATE_BYTES)


with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_after_fork)
