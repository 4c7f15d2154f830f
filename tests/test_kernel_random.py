"""Random kernels: integer arithmetic, divergent branches, loops, barriers, shuffles and votes, the same on every device.

A kernel is made so that it has no races: a thread writes its own place in shared memory, and others read it between barriers
that all threads reach. Loops and branches that all threads take alike may hold barriers; loops whose length differs between
threads hold votes, which every thread takes part in until the last one leaves.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from tests.kernel_harness import DEVICES, agree

HEAD = """import fluxir as fx


@fx.kernel
def k(x, y, out, n):
    s = fx.gpu.shared(({threads},), fx.i32)
    mine = fx.gpu.local((3,), fx.i32, zero=True)
    t = fx.gpu.thread_id.x
    lane = fx.i32(fx.gpu.lane_id())
    a = x[fx.gpu.global_id.x]
    b = y[fx.gpu.global_id.x]
    c = fx.i32(t)
"""
LEAVE = """    s[t] = 0
    fx.gpu.barrier()
    if fx.gpu.global_id.x >= len(x) - 3 - n:
        return
"""
TAIL = """    out[0, fx.gpu.global_id.x] = a
    out[1, fx.gpu.global_id.x] = b + mine[0]
    out[2, fx.gpu.global_id.x] = c ^ mine[1]
"""


def _is_zero(text: str) -> bool:
    """Whether an expression is a number, 0."""
    try:
        return bool(eval(text, {"__builtins__": {}}, {"min": min, "max": max}) == 0)
    except (NameError, ZeroDivisionError, SyntaxError, TypeError):
        return False


class Maker:
    """The source of one random kernel."""

    def __init__(self, seed: int, threads: int) -> None:
        self.r, self.threads = random.Random(seed), threads
        self.lines: list[str] = []
        self.count = 0
        self.leaves = seed % 3 == 0  # some threads return before the others meet: they take no part in what a warp does

    def expr(self, depth: int = 2) -> str:
        r = self.r
        if depth == 0 or r.random() < 0.25:
            return r.choice(["a", "b", "c", "lane", "mine[0]", "mine[2]", str(r.randint(-9, 9)), "fx.i32(n)"])
        x, y = self.expr(depth - 1), self.expr(depth - 1)
        form = r.choice(["({} + {})", "({} - {})", "({} * {})", "({} & {})", "({} ^ {})", "min({}, {})", "max({}, {})", "({} // {})",
                         "({} % {})", "({} if c > a else {})"])  # fmt: skip
        if form in ("({} // {})", "({} % {})") and _is_zero(y):  # a division of constants by 0 does not compile
            y = "lane"
        return form.format(x, y)

    def test(self) -> str:
        r = self.r
        found = f"{self.expr(1)} {r.choice(['<', '>', '==', '!=', '<='])} {self.expr(1)}"
        return found if r.random() < 0.7 else f"{found} {r.choice(['and', 'or'])} not b > {self.expr(1)}"

    def line(self, indent: int, text: str) -> None:
        self.lines.append("    " * indent + text)

    def name(self) -> str:
        return self.r.choice("abc")

    def plain(self, indent: int, depth: int) -> None:
        """Statements that threads need not take together."""
        r = self.r
        for _ in range(r.randint(1, 3)):
            kind = r.random()
            if kind < 0.5 or depth == 0:
                self.line(indent, f"{self.name()} = {self.expr()}")
            elif kind < 0.6:
                self.line(indent, f"mine[{r.randint(0, 2)}] = {self.expr()}")
            elif kind < 0.8:
                self.line(indent, f"if {self.test()}:")
                self.plain(indent + 1, depth - 1)
                if r.random() < 0.5:
                    self.line(indent, "else:")
                    self.plain(indent + 1, depth - 1)
            else:
                self.count += 1
                i = f"i{self.count}"
                self.line(indent, f"for {i} in range({r.choice(['lane % 4', 'n', '3', '(c & 3)'])}):")
                self.plain(indent + 1, depth - 1)
                if r.random() < 0.5:
                    self.line(indent + 1, f"if {self.test()}:")
                    self.line(indent + 2, r.choice(["break", "continue"]))
                    self.line(indent + 1, f"{self.name()} += fx.i32({i})")

    def together(self, indent: int, depth: int) -> None:
        """Statements that all threads of a block take."""
        r = self.r
        for _ in range(r.randint(2, 4)):
            kind = r.random()
            if kind < 0.3 or depth == 0:
                self.plain(indent, 2)
            elif kind < 0.5:
                self.line(indent, f"s[t] = {self.expr()}")
                self.line(indent, "fx.gpu.barrier()")
                self.line(indent, f"{self.name()} += s[(t + {r.randint(0, 9)}) % {self.threads}]")
                self.line(indent, "fx.gpu.barrier()")
            elif (
                kind < 0.65 and self.threads % 32 == 0 and not self.leaves
            ):  # a lane that the block lacks has no value to give
                mode = r.choice([f"shuffle_xor({{}}, {r.randint(1, 31)})", f"shuffle_up({{}}, {r.randint(0, 5)})",
                                 "shuffle_down({}, lane % 3)", f"shuffle({{}}, {r.randint(0, 31)})"])  # fmt: skip
                self.line(indent, f"{self.name()} = fx.gpu.{mode.format(self.name())}")
            elif kind < 0.75 and not self.leaves:
                vote = r.choice(
                    ["fx.i32(fx.gpu.ballot({}) & 0xFFFF)", "fx.i32(fx.gpu.any_({}))", "fx.i32(fx.gpu.all_({}))"]
                )
                self.line(indent, f"{self.name()} ^= {vote.format(self.test())}")
            elif kind < 0.85:
                self.count += 1
                self.line(indent, f"for i{self.count} in range({r.choice(['n', '2', 'fx.gpu.block_id.x + 1'])}):")
                self.together(indent + 1, depth - 1)
            elif kind < 0.92:
                self.line(indent, f"if n {r.choice(['>', '<='])} 2:")
                self.together(indent + 1, depth - 1)
            elif self.leaves:
                self.plain(indent, 2)
            else:
                self.count += 1
                q = f"q{self.count}"
                self.line(indent, f"{q} = 0")
                self.line(indent, f"while fx.gpu.any_({q} < (c & 3)):")
                self.line(indent + 1, f"{q} += 1")
                self.plain(indent + 1, 1)

    def source(self) -> str:
        self.together(1, 2)
        leave = LEAVE if self.leaves else ""
        return HEAD.format(threads=self.threads) + leave + "\n".join(self.lines) + "\n" + TAIL


def made(seed: int, threads: int, folder: Path) -> Any:
    path = folder / f"kernel_{seed}.py"
    path.write_text(Maker(seed, threads).source())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.k


def check(seed: int, folder: Path) -> None:
    threads = random.Random(seed).choice([7, 32, 40, 64])
    k = made(seed, threads, folder)
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-50, 50, 2 * threads).astype("i4") for _ in range(2))
    try:
        # A barrier without the threads that have returned is right since Volta; the virtual GPU's sanitizer refuses it.
        devices = ("cpu",) if seed % 3 == 0 else DEVICES
        agree(k, 2, threads, x, y, np.zeros((3, 2 * threads), "i4"), 3, devices=devices)
    except fx.FluxError as e:
        raise AssertionError(f"seed {seed}: {e.render()}") from e


@pytest.mark.parametrize("seed", range(8))
def test_random_kernels_agree(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("group", range(16))
def test_many_random_kernels_agree(group: int, tmp_path: Path) -> None:
    for seed in range(100 + 6 * group, 106 + 6 * group):
        check(seed, tmp_path)
