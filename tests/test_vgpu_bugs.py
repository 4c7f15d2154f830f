"""Planted bugs: the sanitizer finds every one, where it is, and is silent on its clean twin, whose answer is right.

`tests/vgpu/bugs/` holds the kernels, `tests/vgpu/planted.py` their launches and what has to be found.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.runtime import vgpu
from tests.vgpu.case import CASES, HERE, Launch, Out, check, device_for, start, text
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


# ---- bugs that nobody planted by hand: a clean kernel loses a barrier, or reads and writes one element further
def mutants(module: str) -> list[tuple[str, str, str]]:
    """(kernel, what is done to it, the module's text) for each barrier dropped and each guard against the end loosened."""
    out, kernel = [], ""
    lines = module.split("\n")
    for i, line in enumerate(lines):
        if begins := re.match(r"\.visible \.entry (\w+)\(", line):
            kernel = begins[1]
        if line == "bar.sync 0;":
            out.append((kernel, f"line {i + 1}: no barrier", "\n".join([*lines[:i], "", *lines[i + 1 :]])))
        elif guard := re.match(r"setp\.ge\.s32 (%p\d+), (%r\d+), (%r\d+);$", line):
            looser = f"setp.gt.s32 {guard[1]}, {guard[2]}, {guard[3]};"
            out.append((kernel, f"line {i + 1}: {looser}", "\n".join([*lines[:i], looser, *lines[i + 1 :]])))
    return out


def differs(ptx: str, kernel: str, launch: Launch, reference: list[np.ndarray]) -> tuple[bool, list[str]]:
    """Whether a kernel's answer is another one, or not all of it there, and what was found."""
    gpu = device_for(ptx)
    args = [gpu.empty(a.shape, a.dtype) if isinstance(a, Out) else gpu.array(a) if isinstance(a, np.ndarray) and a.ndim else a
            for a in launch.args]  # fmt: skip
    arrays = {i: a for i, a in enumerate(args) if isinstance(a, vgpu.DeviceArray)}
    try:
        report = gpu.load(ptx)[kernel].launch(
            launch.grid, launch.block, args, launch.shared, "collect", max_steps=100_000
        )
        kinds = [f.kind for f in report.findings]
    except vgpu.SanitizerError as e:
        return True, [f.kind for f in e.findings]
    try:
        check(launch, arrays)
    except AssertionError:
        return True, kinds
    return False, kinds


@pytest.mark.deep
@pytest.mark.parametrize("fixture", ["elementwise", "collective"])
def test_a_mutant_whose_answer_is_wrong_is_found(fixture: str) -> None:
    import tests.vgpu.cases_collective
    import tests.vgpu.cases_elementwise  # noqa: F401

    path = HERE / "ptx" / f"{fixture}.ptx"
    launches = {c.kernel: c for c in CASES if c.path == path and not c.deep}  # the last size, which is an odd one
    wrong = missed = found = 0
    for kernel, what, ptx in mutants(text(path)):
        case = launches[kernel]
        launch = case.make(np.random.default_rng(5), *case.size)
        bad, kinds = differs(ptx, kernel, launch, [])
        found += bool(kinds)
        wrong += bad
        missed += bad and not kinds
        if bad and not kinds:
            print(kernel, what)
    assert found >= 20 and missed == 0, (found, wrong, missed)
