"""The thread pool's machine code: `parallel`, which compiled code calls for a region, and `worker`, a thread's life.

A region of n iterations is cut into chunks. Each thread that may take part owns a *share*, a range of chunks: the caller
the first, worker k always share k + 1, so that a thread finds in its caches what it had in the region before. An owner takes
chunks from the front of its share, half of what is left at a time; who has finished takes from the back of the others', half at
a time too. Front and back are one word, so taking is one compare-and-swap.

Invariants: a share is emptied by whoever is there, the caller too, so a region ends even if no worker ever wakes. A job is
written anew only after `OPEN` is 0 and no worker is `ACTIVE`. `BUSY` admits one region at a time; who finds it taken (a
nested or concurrent caller) runs alone. Which thread runs an iteration never changes what it does.

Waiting: a worker looks for the next region for some microseconds, then sleeps on `EPOCH`; the caller wakes only sleepers that
have a share, and only for work that is still there when they come: how long a region takes is known from the last time
(`HISTORY`, by its body and n), or a part of it shows. Regions that follow each other closely add up to work (`DEBT`). At the
end of a region the caller looks for a moment whether the workers are done and then sleeps on `ACTIVE`, so that a worker that
lost its core to another process can have this one.
"""

from __future__ import annotations

from fluxir.runtime.writer import I32, I64, PTR, Function, Module, Value

__all__ = ["EPOCH", "MACHINES", "MAX_THREADS", "STATE_BYTES", "STOP", "WORKERS", "add_pool"]

BUSY, EPOCH, OPEN, ACTIVE, WAITING, ASLEEP, JOB, WORKERS, IDENTITY, HISTORY = range(0, 1280, 128)
DEBT, LAST, WAKE_COST = BUSY + 8, BUSY + 16, BUSY + 24  # what only who holds `BUSY` looks at, in nanoseconds
STOP = WORKERS + 8  # not 0: workers end (in C bundles; those of a Python process never do)
"""Byte offsets in `@state`: what threads contend for has cache lines of its own. Zeros are a pool without workers."""

_BODY_OF, _N_OF, _TIME_OF, _HISTORY = 0, 1, 2, 64  # the words of an entry of the history, and how many there are
SHARES = HISTORY + 32 * _HISTORY
MAX_THREADS = 256
STATE_BYTES = SHARES + 64 * MAX_THREADS
_PAGE = 4096
_CHUNKS = 16  # of a share, as far as the grain allows
MACHINES = ("x86_64", "aarch64")
"""Kinds of machines that the runtime's code is written for."""

_SPINS = {"x86_64": 2000, "aarch64": 2000}  # looks of a worker before it sleeps, with a pause of some 20 ns between two
_PROBED = 16  # this part of a region shows what it is worth
_LONG = 1 << 40  # nanoseconds
_WORTH = 8  # times what waking costs: shorter work is done before the sleepers are there
_RECENT, _WAKE_MOST = 200_000, 20_000  # nanoseconds
_WAITS = 2000  # looks of the caller at the end of a region before it sleeps
_OWN_BITS = (1 << 31) - 1  # of `ASLEEP`: those of one worker each, which the caller that wakes it clears
_FUTEX = {"x86_64": 202, "aarch64": 98}
_WAIT, _WAKE, _WAIT_MASK, _WAKE_MASK = 128, 129, 137, 138  # of this process only

_BODY, _CONTEXT, _FIRST, _N, _CHUNK_COUNT, _LIMIT = range(0, 48, 8)  # of the job


def add_pool(m: Module) -> str:
    """Add the functions to a module; returns the declaration of the state."""
    _take(m)
    _work(m)
    _parallel(m)
    _worker(m)
    # Pages of its own: a forked child finds zeros there (see pool.py).
    size = -(-STATE_BYTES // _PAGE) * _PAGE
    return f"@state = hidden global [{size} x i8] zeroinitializer, align {_PAGE}"


def _pause(f: Function) -> None:
    if f.module.machine == "x86_64":
        f.outside("void", "llvm.x86.sse2.pause")
    else:
        f.outside("void", "llvm.aarch64.isb", f.constant(15, I32))


def _futex(f: Function, word: Value, operation: int, value: Value, mask: Value | None = None) -> None:
    given = [f.constant(_FUTEX[f.module.machine], I64), word, f.constant(operation, I64), value, f.null()]
    if mask is not None:
        given += [f.null(), mask]
    f.outside(I64, "syscall", *given, kinds="i64, ...")


def _now(f: Function) -> Value:
    """Nanoseconds."""
    time = f.room(16)
    f.outside(I32, "clock_gettime", f.constant(1, I32), time)  # CLOCK_MONOTONIC
    return time.word(0) * 1_000_000_000 + time.word(1)


def _bit(f: Function, worker: Value) -> Value:
    """The bit of `ASLEEP` that is a worker's: the last is that of all from 31 on, and stays set."""
    place = worker.lt(31).choose(worker, 31)
    return f.constant(1, I64) << place


def _take(m: Module) -> None:
    """`pool_take(share, from_back)`: some chunks of a share, as first << 32 | end; 0 where none is left."""
    f = m.function(I64, "pool_take", {"share": PTR, "back": "i1"}, local=True)
    with f.forever():
        old = f["share"].shared(I64)
        front, end = old >> 32, old & 0xFFFFFFFF
        left = end - front
        with f.when(left.le(0)):
            f.ret(0)
        some = (left + 1) >> 1
        middle = f["back"].choose(end - some, front + some)
        rest = f["back"].choose(front << 32 | middle, middle << 32 | end)
        with f.when(f["share"].swap_if(old, rest)):
            f.ret(f["back"].choose(middle << 32 | end, front << 32 | middle))


def _work(m: Module) -> None:
    """`pool_work(own)`: run chunks of one's own share, then of the others', until none is left."""
    f = m.function("void", "pool_work", {"own": I64}, local=True)
    job, shares = f.symbol("state").at(JOB), f.symbol("state").at(SHARES)
    body, context = job.load(PTR, _BODY), job.load(PTR, _CONTEXT)
    start, n, chunks, limit = (
        job.load(I64, _FIRST),
        job.load(I64, _N),
        job.load(I64, _CHUNK_COUNT),
        job.load(I64, _LIMIT),
    )
    with f.count(limit) as k:
        turn = f["own"] + k
        whose = turn.lt(limit).choose(turn, turn - limit)
        share = shares.item(whose, 64)
        with f.forever():
            taken = f.call(I64, "pool_take", share, k.ne(0))
            with f.when(taken.eq(0)):
                f.leave()
            first, end = taken >> 32, taken & 0xFFFFFFFF
            f.call("void", body, context, start + first * n // chunks, start + end * n // chunks)


def _parallel(m: Module) -> None:
    f = m.function("void", "parallel", {"rt": PTR, "body": PTR, "context": PTR, "n": I64, "grain": I64})
    state, n, body, context = f.symbol("state"), f["n"], f["body"], f["context"]
    zero = f.constant(0, I64)
    grain = f["grain"].lt(1).choose(1, f["grain"])
    pieces = (n + grain - 1) // grain
    threads = f["rt"].word(0)
    threads = threads.lt(MAX_THREADS).choose(threads, MAX_THREADS)
    limit = pieces.lt(threads).choose(pieces, threads)
    with f.when(limit.le(1) | state.load(I64, WORKERS).eq(0)):
        f.call("void", body, context, zero, n)
        f.ret()
    with f.when(~state.swap_if(0, 1, BUSY, I32)):
        f.call("void", body, context, zero, n)
        f.ret()
    # The workers with a share: numbers below limit - 1.
    some = limit.lt(32).choose(limit - 1, 32)
    asleep = f.variable(I64, state.shared(I64, ASLEEP) & (f.constant(1, I64) << some) - 1)
    start, since, debt = f.variable(I64, 0), f.variable(I64, 0), f.variable(I64, 0)
    known = state.at(HISTORY).item((body.number() >> 4) + n & _HISTORY - 1, 32)
    with f.when(asleep.get().ne(0)):
        since.set(_now(f))
        recent = (since.get() - state.load(I64, LAST)).lt(_RECENT)
        debt.set(recent.choose(state.load(I64, DEBT), 0))
        seen = known.pointer(_BODY_OF).eq(body) & known.word(_N_OF).eq(n)
        guess = f.variable(I64, seen.choose(known.word(_TIME_OF), _LONG))
        with f.when(~seen & n.ge(_PROBED)):
            start.set(n // _PROBED)
            f.call("void", body, context, zero, start.get())
            guess.set((_now(f) - since.get()) * _PROBED)
        with f.when((debt.get() + guess.get()).lt(state.load(I64, WAKE_COST) * _WORTH)):
            asleep.set(0)
    first = start.get()
    most = limit * _CHUNKS
    chunks = pieces.lt(most).choose(pieces, most)
    job = state.at(JOB)
    for value, place in (body, _BODY), (context, _CONTEXT), (first, _FIRST), (n - first, _N):
        job.store(value, place)
    job.store(chunks, _CHUNK_COUNT)
    job.store(limit, _LIMIT)
    with f.count(limit) as k:
        state.at(SHARES).item(k, 64).store(k * chunks // limit << 32 | (k + 1) * chunks // limit)
    state.share(1, OPEN)
    state.exchange("add", 1, EPOCH, I32)
    with f.when(asleep.get().ne(0)):
        _wake(f, limit - 1, asleep.get())
    f.call("void", "pool_work", zero)
    state.share(0, OPEN)
    _until_done(f)
    with f.when(since.get().ne(0)):
        now = _now(f)
        alone = asleep.get().eq(0)
        took = now - since.get()
        known.store(body, 8 * _BODY_OF)
        known.store(n, 8 * _N_OF)
        known.store(alone.choose(took, took + took), 8 * _TIME_OF)
        state.store(alone.choose(debt.get() + took, 0), DEBT)
        state.store(now, LAST)
    state.share(0, BUSY, I32)
    f.ret()


def _wake(f: Function, count: Value, who: Value) -> None:
    """Wake some workers, and remember what it cost."""
    state = f.symbol("state")
    state.exchange("and", ~(who & _OWN_BITS), ASLEEP)
    before = _now(f)
    _futex(f, state.at(EPOCH), _WAKE_MASK, count, who)
    mean = (state.load(I64, WAKE_COST) * 3 + (_now(f) - before)) >> 2
    state.store(mean.lt(_WAKE_MOST).choose(mean, _WAKE_MOST), WAKE_COST)


def _until_done(f: Function) -> None:
    state = f.symbol("state")
    looks = f.variable(I64, 0)
    with f.forever():
        with f.when(state.shared(I32, ACTIVE).eq(0)):
            f.leave()
        _pause(f)
        looks.set(looks.get() + 1)
        with f.when(looks.get().gt(_WAITS)):
            state.share(1, WAITING)
            active = state.shared(I32, ACTIVE)
            with f.when(active.ne(0)):
                _futex(f, state.at(ACTIVE), _WAIT, active)
            state.share(0, WAITING)


def _worker(m: Module) -> None:
    f = m.function(PTR, "worker", {"unused": PTR})
    state = f.symbol("state")
    me = state.exchange("add", 1, IDENTITY)
    bit = _bit(f, me)
    most = f.constant(_SPINS[m.machine], I64)
    least = most >> 3
    patience = f.variable(I64, most)
    with f.forever():
        epoch = state.shared(I32, EPOCH)
        with f.when(state.shared(I64, STOP).ne(0)):
            f.ret(f.null())
        state.exchange("add", 1, ACTIVE, I32)
        with f.when(state.shared(I64, OPEN).ne(0)):
            with f.when((me + 1).lt(state.load(I64, JOB + _LIMIT))):
                f.call("void", "pool_work", me + 1)
        left = state.exchange("sub", 1, ACTIVE, I32)
        with f.when(left.eq(1)):
            with f.when(state.shared(I64, WAITING).ne(0)):
                _futex(f, state.at(ACTIVE), _WAKE, f.constant(1, I64))
        looks = f.variable(I64, 0)
        with f.forever():
            with f.when(state.shared(I32, EPOCH).ne(epoch)):
                f.leave()
            _pause(f)
            looks.set(looks.get() + 1)
            with f.when(looks.get().gt(patience.get())):
                state.exchange("or", bit, ASLEEP)
                _futex(f, state.at(EPOCH), _WAIT_MASK, epoch, bit)
        slept = looks.get().gt(patience.get())
        less = patience.get() >> 1
        patience.set(slept.choose(less.gt(least).choose(less, least), most))
    f.ret(f.null())
