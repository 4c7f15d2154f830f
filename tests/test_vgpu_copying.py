"""Memory that nobody has written may be copied, not computed with: holes of structures, variables that are set later, bit fields."""

from __future__ import annotations

import numpy as np
import pytest

from fluxir.runtime import vgpu

HEAD = """.version 8.8
.target sm_80
.address_size 64
.visible .entry k(.param .u64 k_param_0)
{
  .local .align 8 .b8 a[16];
  .local .align 8 .b8 b[16];
  .reg .b16 %rs<8>; .reg .b32 %r<16>; .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [k_param_0];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 8;
  add.s64 %rd3, %rd1, %rd2;
  st.local.u8 [a], 7;
"""


def findings(body: str) -> tuple[list[str], np.ndarray]:
    """What is found, by kind and text of the instruction, and what the kernel of 2 threads stores: u32[2, 2]."""
    gpu = vgpu.Device("sm_80")
    out = gpu.array(np.zeros((2, 2), np.uint32))
    report = gpu.load(HEAD + body + "  ret;\n}\n")["k"].launch(1, 2, [out], check="collect", executor="numpy")
    return [f"{f.kind}: {f.text}" for f in report.findings], out.numpy()


COPY = "ld.local.u32 %r2, [a]; mov.b32 %r3, %r2; st.local.u32 [b], %r3;\n"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (COPY + "ld.local.u8 %rs1, [b]; cvt.u32.u16 %r4, %rs1; st.global.u32 [%rd3], %r4;", []),
        (COPY + "ld.local.u32 %r4, [b]; add.u32 %r5, %r4, 1;", ["uninitialised: ld.local.u32 %r4, [b];"]),
        ("ld.local.u32 %r2, [a]; add.u32 %r5, %r2, 1;", ["uninitialised: ld.local.u32 %r2, [a];"]),
        ('.pragma "used_bytes_mask 1"; ld.local.u32 %r2, [a]; st.global.u32 [%rd3], %r2;', []),
        ('.pragma "used_bytes_mask 0x1"; ld.local.u32 %r2, [a]; add.u32 %r5, %r2, 1;', []),
        (
            '.pragma "used_bytes_mask 1"; ld.local.u32 %r2, [a]; ld.local.u32 %r4, [a]; add.u32 %r5, %r4, 1;',
            ["uninitialised: ld.local.u32 %r4, [a];"],
        ),
        (
            "ld.local.u32 %r2, [a+4]; st.global.u32 [%rd3], %r2;",
            ["uninitialised: st.global.u32 [%rd3], %r2;"],
        ),
        ("ld.local.v2.u32 {%r2, %r3}, [a]; st.local.v2.u32 [b], {%r2, %r3};", []),
        ("ld.local.u32 %r2, [a+4]; and.b32 %r3, %r2, -256; or.b32 %r4, %r3, 5; st.local.u32 [a+4], %r4;", []),
        (
            "ld.local.u32 %r2, [a+4]; and.b32 %r3, %r2, 1; st.global.u32 [%rd3], %r3;",
            ["uninitialised: ld.local.u32 %r2, [a+4];"],
        ),
        (
            "ld.local.u32 %r2, [a+4]; @%p1 bra L; add.u32 %r2, %r2, 1; L: st.local.u32 [b], %r2;",
            ["uninitialised: ld.local.u32 %r2, [a+4];"],
        ),
    ],
    ids=["hole", "hole-used", "used", "mask", "mask-used", "mask-of-one", "to-global", "vector", "field", "bit", "changed"],
)  # fmt: skip
def test_unwritten_bytes_may_be_carried(body: str, found: list[str]) -> None:
    if "%p1" in body:
        body = ".reg .pred %p<2>; setp.eq.u32 %p1, %r1, 0;" + body
    assert findings(body)[0] == found


def test_what_is_copied_is_right() -> None:
    kinds, out = findings(
        "st.local.u32 [a+4], %r1;" + COPY + "ld.local.u32 %r5, [a+4]; st.local.u32 [b+4], %r5;"
        "ld.local.u8 %rs1, [b]; ld.local.u32 %r6, [b+4]; cvt.u32.u16 %r4, %rs1; st.global.v2.u32 [%rd3], {%r4, %r6};"
    )
    assert kinds == [] and out.tolist() == [[7, 0], [7, 1]]


def test_threads_carry_apart() -> None:
    """Only the thread that had written its own word may use the copy."""
    body = (
        ".reg .pred %p<2>; setp.eq.u32 %p1, %r1, 0; @%p1 st.local.u32 [a+4], 3; ld.local.u32 %r2, [a+4]; st.local.u32 [b], %r2;"
        "ld.local.u32 %r4, [b]; add.u32 %r5, %r4, 1; st.global.u32 [%rd3], %r5;"
    )
    gpu = vgpu.Device("sm_80")
    out = gpu.array(np.zeros((2, 2), np.uint32))
    report = gpu.load(HEAD + body + "  ret;\n}\n")["k"].launch(1, 2, [out], check="collect", executor="numpy")
    (found,) = report.findings
    assert (found.kind, found.thread, found.count) == ("uninitialised", (1, 0, 0), 1)
