"""The thread pool: every index once, whoever is there to run it; workers that sleep, forks, many callers, the end."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxir import config
from fluxir.runtime import native, pool, pool_code, writer
from fluxir.runtime.elf import load_object

REPO = Path(__file__).resolve().parent.parent


@functools.cache
def body() -> Any:
    """Machine code of a region's body `count(numbers, lo, hi)`: adds 1 to each of numbers[lo:hi], after some steps each."""
    m = writer.Module(native.machine())
    f = m.function("void", "count", {"numbers": "ptr", "lo": "i64", "hi": "i64"})
    steps = f["numbers"].word(0)
    with f.count(f["hi"], f["lo"]) as i:
        x = f.variable("i64", i)
        with f.count(steps):
            x.set(x.get() * 6364136223846793005 + 1442695040888963407)
        place = f["numbers"].item(i + 2)
        place.store(place.word(0) + 1)
        f["numbers"].store(x.get(), 8)
    f.ret()
    return load_object(native.compiled(m, m.text("test")))


class Counts:
    """What a region of n indices counts: index i in `numbers[i + 2]`."""

    def __init__(self, n: int, steps: int = 0) -> None:
        self.n, self.numbers = n, np.zeros(n + 2, np.int64)
        self.numbers[0] = steps

    def run(self, threads: int, grain: int = 1, times: int = 1) -> None:
        parallel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64)(
            native.native().parallel
        )
        context, code, at = pool.context(threads), body().address("count"), self.numbers.ctypes.data
        for _ in range(times):
            parallel(context, code, at, self.n, grain)

    def check(self, times: int) -> None:
        assert (self.numbers[2:] == times).all()


@pytest.mark.parametrize("threads", [2, 3, 8, 40])
def test_every_index_runs_once_whatever_the_grain(threads: int) -> None:
    for n in (0, 1, 2, 3, 15, 16, 17, 31, 33, 1000, 4097):
        for grain in (1, 2, 7, 1000, 10**9):
            c = Counts(n)
            c.run(threads, grain, 4)
            c.check(4)


def test_workers_that_sleep_and_workers_that_are_awake() -> None:
    """Pauses of all lengths between regions, from none to longer than a worker's patience, and regions of all lengths."""
    rng = np.random.default_rng(0)
    for steps in (0, 100, 3000):
        c = Counts(64, steps)
        for k in range(60):
            time.sleep(float(rng.choice([0, 1e-5, 1e-4, 1e-3])))
            c.run(int(rng.integers(1, 6)))
            c.check(k + 1)


def test_many_callers_at_once() -> None:
    """One has the pool, the others run alone; regions of different programs never mix."""
    done = [Counts(97, 20) for _ in range(6)]

    def work(c: Counts) -> None:
        for _ in range(50):
            c.run(4, 1, 4)

    threads = [threading.Thread(target=work, args=(c,)) for c in done]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for c in done:
        c.check(200)


def test_a_neighbour_that_keeps_the_cores_busy() -> None:
    """Workers that are not running hold nobody up."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * config.cores())]
    try:
        c = Counts(128, 200)
        c.run(4, 1, 50)
        c.check(50)
    finally:
        for p in busy:
            p.kill()
            p.wait()


def test_signals_reach_python_and_workers_go_on() -> None:
    caught = []
    before = signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        c = Counts(64, 2000)
        for _ in range(20):
            c.run(4, 1, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    c.check(40)
    assert caught


def test_forks_of_python_and_of_others() -> None:
    """A child that Python forked has workers of its own; one that the C library forked runs alone and never waits."""
    Counts(64).run(3)
    for fork in (os.fork, ctypes.PyDLL(None).fork):
        child = fork()
        if child == 0:
            c = Counts(500, 10)
            c.run(3, 1, 20)
            os._exit(0 if (c.numbers[2:] == 20).all() else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    c = Counts(64)
    c.run(3, 1, 3)
    c.check(3)


def test_a_fork_in_the_middle_of_a_region() -> None:
    c = Counts(64, 20_000)
    t = threading.Thread(target=c.run, args=(3, 1, 6))
    t.start()
    statuses = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            mine = Counts(100, 10)
            mine.run(3, 1, 5)
            os._exit(0 if (mine.numbers[2:] == 5).all() else 1)
        statuses.append(os.waitpid(child, 0)[1])
    t.join()
    c.check(6)
    assert statuses == [0, 0, 0]


def test_the_end_of_the_interpreter() -> None:
    """Workers that spin or sleep, and a thread in a region, while the process ends."""
    for pause in (0, 0.01):
        done = subprocess.run(
            [
                sys.executable, "-c",
                "import sys, time, threading\nsys.path.insert(0, '.')\nfrom tests.test_pool import Counts\n"
                "c = Counts(64, 100)\nc.run(4, 1, 10)\n"
                "threading.Thread(target=Counts(64, 100000).run, args=(4, 1, 100000), daemon=True).start()\n"
                f"time.sleep({pause})",
            ],
            cwd=REPO, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_more_threads_than_the_pool_has() -> None:
    c = Counts(3 * pool_code.MAX_THREADS)
    pool._refused.append(True)  # the system gives no more
    try:
        c.run(2 * pool_code.MAX_THREADS, 1, 3)
    finally:
        pool._refused.clear()
    c.check(3)
    assert pool._workers < pool_code.MAX_THREADS


def test_the_quota_of_a_control_group(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert config._group_quota(str(tmp_path), False, 8) == 2
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert config._group_quota(str(tmp_path), False, 8) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert config._group_quota(str(tmp_path), False, 8) == 8
    assert config._group_quota(str(tmp_path / "none"), True, 8) == 8
    (tmp_path / "cpu.cfs_quota_us").write_text("300000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert config._group_quota(str(tmp_path), True, 8) == 3
    (tmp_path / "cpu.cfs_quota_us").write_text("-1")
    assert config._group_quota(str(tmp_path), True, 8) == 8
    assert 1 <= config.cores() <= len(os.sched_getaffinity(0))
