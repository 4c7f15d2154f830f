"""Planted bugs: the sanitizer finds every one, where it is, and is silent on its clean twin, whose answer is right.

`tests/vgpu/bugs/` holds the kernels, `tests/vgpu/planted.py` their launches and what has to be found.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

import tests.vgpu.cases_collective
import tests.vgpu.cases_elementwise
import tests.vgpu.planted_hostile
import tests.vgpu.planted_hostile_90  # noqa: F401  (each declares its bugs)
from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from tests.vgpu.case import CASES, HERE, Launch, device_for, start, text
from tests.vgpu.cases_elementwise import F
from tests.vgpu.planted import BUGS, Bug, marks

PARAMETERS = [pytest.param(b, id=f"{b.family}-{b.kernel}") for b in BUGS]
KINDS = {
    "out-of-bounds", "misaligned", "uninitialised", "use-after-free", "shared-race", "global-race", "divergent-barrier", "deadlock",
    "absent-lanes", "async-copy", "leak", "assert", "trap", "limit",
}  # fmt: skip


def findings(bug: Bug, faulty: bool, executor: str = "auto") -> list[vgpu.Finding]:
    module, kernel, launch = bug.twin(faulty)
    try:
        return start(module, kernel, launch, "collect", executor=executor)[0].findings
    except vgpu.SanitizerError as e:  # what ends a launch, or keeps it from beginning, is raised in any case
        return e.findings


@pytest.mark.parametrize("bug", PARAMETERS)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    kind, lines = bug.expected
    found = [f for f in findings(bug, True) if f.kind == kind]
    assert found
    if bug.family == "by_hand":
        assert {f.line for f in found} & lines
    elif lines:
        assert {(f.location.file.rpartition("/")[2], f.location.line) for f in found if f.location} & {
            (f"{bug.family}.cu", line) for line in lines
        }
    assert all(f.kernel.startswith(bug.kernel) and str(f) for f in found)


@pytest.mark.parametrize("bug", PARAMETERS)
def test_its_clean_twin_is_right_and_raises_no_alarm(bug: Bug) -> None:
    assert findings(bug, False) == []  # `start` compares the answer


def test_every_kernel_is_launched_and_every_kind_planted() -> None:
    launched = Counter((b.family, b.kernel) for b in BUGS)
    written = {(family, kernel) for family in {b.family for b in BUGS} for kernel in marks(family)}
    assert set(launched) == written and max(launched.values()) == 1
    kinds = Counter(b.expected[0] for b in BUGS)
    assert set(kinds) == KINDS - {"leak"}  # a leak is the host's: below
    assert kinds.total() >= 120


# ---- the host's bugs
def test_an_array_that_is_never_freed_is_a_leak() -> None:
    gpu = vgpu.Device("sm_80")
    x, y = gpu.array(np.ones(10, F), "weights"), gpu.empty(20)
    y.free()
    assert [f.kind for f in gpu.leaks()] == ["leak"]
    with pytest.raises(vgpu.SanitizerError, match=r"leak.*`weights`, 40 bytes"):
        gpu.close()
    x.free()
    gpu.close()


def test_memory_that_a_kernel_keeps_is_a_leak() -> None:
    gpu = vgpu.Device("sm_80")
    module = gpu.load(
        """.version 8.0
.target sm_80
.address_size 64
.extern .func (.param .b64 result) malloc(.param .b64 size);
.visible .entry keep() {
  .reg .b64 %rd<2>;
  { .param .b64 size; .param .b64 result;
    st.param.b64 [size], 24;
    call.uni (result), malloc, (size);
    ld.param.b64 %rd1, [result]; }
  ret;
}"""
    )
    module["keep"].launch(1, 2)
    assert [f.kind for f in gpu.leaks()] == ["leak", "leak"]


def test_memory_is_freed_once() -> None:
    gpu = vgpu.Device("sm_80")
    x = gpu.empty(10)
    x.free()
    with pytest.raises(FluxError, match="not the address of a live allocation"):
        x.free()
    with pytest.raises(FluxError, match="not inside a live allocation"):
        x.numpy()


# ---- bugs that nobody planted by hand: a clean kernel loses a barrier, or goes one element further
def mutants(module: str, pattern: str, instead: str) -> list[tuple[str, int, str]]:
    """(kernel, line, the module's text) for each line that matches, with `instead` in its place."""
    out, kernel = [], ""
    lines = module.split("\n")
    for i, line in enumerate(lines):
        if begins := re.match(r"\.visible \.entry (\w+)\(", line):
            kernel = begins[1]
        elif re.fullmatch(pattern, line):
            out.append((kernel, i + 1, "\n".join([*lines[:i], re.sub(pattern, instead, line), *lines[i + 1 :]])))
    return out


def outcome(ptx: str, kernel: str, launch: Launch) -> tuple[bool, set[str]]:
    """Whether a mutant's answer is right, and the kinds of what was found."""
    try:
        report, _ = start(device_for(ptx).load(ptx), kernel, launch, "collect", max_steps=1_000_000)
    except vgpu.SanitizerError as e:
        return False, {f.kind for f in e.findings}
    except AssertionError:  # nothing was found, and the answer is another one
        return False, set()
    return True, {f.kind for f in report.findings}


@pytest.mark.deep
@pytest.mark.parametrize("fixture, found", [("elementwise", 14), ("collective", 21)])
def test_no_kernel_that_lost_a_barrier_gives_a_wrong_answer_unnoticed(fixture: str, found: int) -> None:
    kinds: list[set[str]] = []
    path = HERE / "ptx" / f"{fixture}.ptx"
    cases = {c.kernel: c for c in CASES if c.path == path and not c.deep}  # the last size of each, which is an odd one
    for kernel, line, ptx in mutants(text(path), r"bar\.sync 0;", ""):
        case = cases[kernel]
        right, noticed = outcome(ptx, kernel, case.make(np.random.default_rng(5), *case.size))
        assert right or noticed, f"{kernel} without its barrier in line {line}"
        kinds.append(noticed)
    assert sum(bool(k & {"shared-race", "global-race"}) for k in kinds) >= found, (
        kinds
    )  # the others are not needed with these sizes


@pytest.mark.deep
def test_kernels_whose_guards_let_one_thread_more_pass_are_out_of_bounds() -> None:
    path = HERE / "ptx" / "elementwise.ptx"
    cases = {c.kernel: c for c in CASES if c.path == path and not c.deep}
    found = set()
    for kernel, _, ptx in mutants(text(path), r"setp\.ge\.s32 (%p\d+), (%r\d+), (%r\d+);", r"setp.gt.s32 \1, \2, \3;"):
        case = cases[kernel]
        _, noticed = outcome(ptx, kernel, case.make(np.random.default_rng(5), *case.size))
        if noticed & {"out-of-bounds", "uninitialised", "global-race"}:
            found.add(kernel)
    assert found >= {"half2_arithmetic", "bf16_arithmetic", "mandelbrot", "stencil2d", "nbody", "sgemm", "sgemm_tiled"}
