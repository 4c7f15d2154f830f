"""Control flow on the virtual GPU: the order of blocks, and random programs against one thread at a time.

The oracle runs every thread alone over the list of instructions, with no masks, blocks or order of any kind.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from fluxir.runtime import vgpu
from fluxir.runtime.vgpu.flow import order


def test_a_loop_lies_before_its_exit_whichever_way_the_branch_is_written() -> None:
    # 0 -> 1 (header) -> 2 (body) -> 1; 1 -> 3 (exit)
    assert order([[1], [2, 3], [1], []]) == [0, 1, 2, 3]
    assert order([[1], [3, 2], [1], []]) == [0, 1, 2, 3]
    # the exit stands before the body in the text
    assert order([[1], [2, 3], [], [1]]) == [0, 1, 3, 2]


def test_nested_loops_and_branches_lie_together() -> None:
    # 0 -> 1 outer -> 2 inner -> 3 -> 2, 2 -> 4 -> 1, 1 -> 5
    assert order([[1], [2, 5], [3, 4], [2], [1], []]) == [0, 1, 2, 3, 4, 5]
    # a diamond: the join after both sides
    assert order([[2, 1], [3], [3], []])[-1] == 3


def test_blocks_nobody_reaches_come_last() -> None:
    assert order([[2], [2], []]) == [0, 2, 1]


def _reachable(successors: list[list[int]], start: int) -> set[int]:
    seen, work = {start}, [start]
    while work:
        for s in successors[work.pop()]:
            if s not in seen:
                seen.add(s)
                work.append(s)
    return seen


def test_random_graphs_are_ordered_topologically_outside_of_loops() -> None:
    rng = random.Random(5)
    for _ in range(300):
        n = rng.randint(1, 12)
        graph = [sorted(rng.sample(range(n), rng.randint(0, min(2, n)))) for _ in range(n)]
        found = order(graph)
        assert sorted(found) == list(range(n)) and found[0] == 0
        at = {b: i for i, b in enumerate(found)}
        reach = [_reachable(graph, b) for b in range(n)]
        for b in reach[0]:
            for s in graph[b]:
                if b not in reach[s]:  # no loop goes through this edge
                    assert at[b] < at[s]
                else:  # what lies between two blocks of a loop is reached from the loop
                    low, high = sorted((at[b], at[s]))
                    assert all(found[i] in reach[b] or found[i] not in reach[0] for i in range(low, high + 1))


# ---- random programs


class _Program:
    """Instructions on eight u32 registers, with branches to anywhere. Termination: every backward branch spends fuel."""

    OPS = ("add", "sub", "xor", "mul", "min", "shl")

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.blocks = []
        n = rng.randint(2, 9)
        for _ in range(n):
            body = [
                (
                    rng.choice(self.OPS),
                    rng.randrange(8),
                    rng.randrange(8),
                    rng.choice([rng.randrange(8), -rng.randrange(1, 40)]),
                )
                for _ in range(rng.randint(0, 5))
            ]
            kind = rng.choice(["if", "if", "if", "goto", "next", "exit_if"])
            self.blocks.append((body, kind, rng.randrange(8), rng.randrange(1, 1 << 20), rng.randrange(n)))

    def ptx(self) -> str:
        lines = []
        for i, (body, kind, r, c, target) in enumerate(self.blocks):
            lines.append(f"B{i}:")
            lines.append("  sub.s32 %fuel, %fuel, 1;\n  setp.lt.s32 %q, %fuel, 0;\n  @%q bra DONE;")
            for op, d, a, b in body:
                second = f"%r{b}" if b >= 0 else str(-b)
                if op == "shl":
                    lines.append(f"  and.b32 %t, {second}, 7;\n  shl.b32 %r{d}, %r{a}, %t;")
                else:
                    name = {"mul": "mul.lo.u32", "xor": "xor.b32"}.get(op, f"{op}.u32")
                    lines.append(f"  {name} %r{d}, %r{a}, {second};")
            lines.append(f"  and.b32 %t, %r{r}, {0xFFFFF};\n  setp.lt.u32 %p, %t, {c};")
            if kind == "if":
                lines.append(f"  @%p bra B{target};")
            elif kind == "goto":
                lines.append(f"  bra.uni B{target};")
            elif kind == "exit_if":
                lines.append("  @!%p bra DONE;")
        lines.append("DONE:")
        body = "\n".join(lines)
        loads = "\n".join(f"  mad.lo.u32 %r{i}, %tid, {2 * i + 1}, {i * 77};" for i in range(8))
        stores = "\n".join(f"  st.global.u32 [%rd2+{4 * i}], %r{i};" for i in range(8))
        return f""".version 7.0
.target sm_70
.address_size 64
.visible .entry k(.param .u64 out) {{
  .reg .b32 %r<8>, %t, %tid, %fuel; .reg .b64 %rd<4>; .reg .pred %p, %q;
  mov.u32 %tid, %tid.x;
  mov.u32 %fuel, 40;
{loads}
{body}
  ld.param.u64 %rd1, [out];
  mul.wide.u32 %rd3, %tid, 32;
  add.u64 %rd2, %rd1, %rd3;
{stores}
  ret;
}}
"""

    def run(self, tid: int) -> list[int]:
        r, fuel, at, m = [(tid * (2 * i + 1) + i * 77) & 0xFFFFFFFF for i in range(8)], 40, 0, 0xFFFFFFFF
        while at < len(self.blocks):
            body, kind, reg, c, target = self.blocks[at]
            fuel -= 1
            if fuel < 0:
                break
            for op, d, a, b in body:
                x, y = r[a], r[b] if b >= 0 else -b
                done = {"add": x + y, "sub": x - y, "xor": x ^ y, "mul": x * y, "min": min(x, y), "shl": x << (y & 7)}
                r[d] = done[op] & m
            taken = (r[reg] & 0xFFFFF) < c
            if (kind == "if" and taken) or kind == "goto":
                at = target
            elif kind == "exit_if" and not taken:
                break
            else:
                at += 1
        return r


def _agrees(seed: int) -> None:
    program, threads = _Program(seed), 70
    gpu = vgpu.Device("sm_80")
    out = gpu.zeros((threads, 8), np.uint32)
    gpu.load(program.ptx())["k"].launch(1, threads, [out])
    expected = np.array([program.run(t) for t in range(threads)], np.uint32)
    np.testing.assert_array_equal(out.numpy(), expected, err_msg=f"seed {seed}\n{program.ptx()}")


@pytest.mark.parametrize("share", range(4))
def test_random_control_flow_agrees_with_single_threads(share: int) -> None:
    for seed in range(share * 15, share * 15 + 15):
        _agrees(seed)


@pytest.mark.deep
@pytest.mark.parametrize("share", range(8))
def test_more_random_control_flow(share: int) -> None:
    for seed in range(1000 + 100 * share, 1100 + 100 * share):
        _agrees(seed)
