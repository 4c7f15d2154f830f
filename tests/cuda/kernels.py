"""PTX of our own for tests of the driver: small kernels, by name."""

from __future__ import annotations

__all__ = ["MODULE"]

HEADER = """
.version 7.0
.target sm_80
.address_size 64
.visible .global .align 4 .f32 factor = 0f40000000;
.visible .const .align 4 .b32 table[4] = {1, 2, 3, 4};
.extern .shared .align 16 .b8 dynamic[];
"""

INDEX = """
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r4, %r1, %r2, %r3;
    mul.wide.u32 %rd3, %r4, 4;
"""

SCALE = f"""
// x[i] *= factor for i < n
.visible .entry scale(.param .u64 x, .param .u32 n) {{
    .reg .b64 %rd<5>; .reg .b32 %r<6>; .reg .pred %p<2>; .reg .f32 %f<4>;
    ld.param.u64 %rd1, [x];
    ld.param.u32 %r5, [n];
    cvta.to.global.u64 %rd2, %rd1;
    {INDEX}
    setp.ge.u32 %p1, %r4, %r5;
    @%p1 bra done;
    add.s64 %rd2, %rd2, %rd3;
    ld.global.f32 %f1, [%rd2];
    ld.global.f32 %f2, [factor];
    mul.f32 %f3, %f1, %f2;
    st.global.f32 [%rd2], %f3;
done:
    ret;
}}
"""

REVERSE = f"""
// within a block, through dynamic shared memory
.visible .entry reverse(.param .u64 x) .maxntid 64, 1, 1 {{
    .reg .b64 %rd<6>; .reg .b32 %r<12>; .reg .f32 %f<4>;
    ld.param.u64 %rd1, [x];
    cvta.to.global.u64 %rd2, %rd1;
    {INDEX}
    add.s64 %rd2, %rd2, %rd3;
    ld.global.f32 %f1, [%rd2];
    mov.u32 %r6, dynamic;
    shl.b32 %r7, %r3, 2;
    add.u32 %r8, %r6, %r7;
    st.shared.f32 [%r8], %f1;
    bar.sync 0;
    sub.u32 %r9, %r2, %r3;
    sub.u32 %r9, %r9, 1;
    shl.b32 %r9, %r9, 2;
    add.u32 %r9, %r6, %r9;
    ld.shared.f32 %f2, [%r9];
    st.global.f32 [%rd2], %f2;
    ret;
}}
"""

MIXED = """
// out = a + b * c + d, of parameters of every width
.visible .entry mixed(.param .u64 out, .param .u8 a, .param .f64 b, .param .u16 c, .param .u32 d) {
    .reg .b64 %rd<3>; .reg .b32 %r<4>; .reg .b16 %h<3>; .reg .f64 %d<6>;
    ld.param.u64 %rd1, [out];
    cvta.to.global.u64 %rd1, %rd1;
    ld.param.u8 %h1, [a];
    ld.param.f64 %d1, [b];
    ld.param.u16 %h2, [c];
    ld.param.u32 %r1, [d];
    cvt.rn.f64.u16 %d2, %h1;
    cvt.rn.f64.u16 %d3, %h2;
    cvt.rn.f64.u32 %d4, %r1;
    fma.rn.f64 %d5, %d1, %d3, %d2;
    add.f64 %d5, %d5, %d4;
    st.global.f64 [%rd1], %d5;
    ret;
}
"""

TRAP = """
.visible .entry stop() {
    trap;
    ret;
}
"""

TABLE = f"""
// out[i] = table[i]
.visible .entry look(.param .u64 out) {{
    .reg .b64 %rd<6>; .reg .b32 %r<7>;
    ld.param.u64 %rd1, [out];
    cvta.to.global.u64 %rd2, %rd1;
    {INDEX}
    mov.u64 %rd4, table;
    add.s64 %rd4, %rd4, %rd3;
    ld.const.b32 %r6, [%rd4];
    add.s64 %rd2, %rd2, %rd3;
    st.global.b32 [%rd2], %r6;
    ret;
}}
"""

MODULE = HEADER + SCALE + REVERSE + MIXED + TRAP + TABLE
