"""The ops of GPU kernels in NVVM intrinsics: indices, warps, barriers, atomics, asynchronous copies, tensor cores.

Values of any width go through the 32-bit exchanges of a warp in words. A mistyped intrinsic becomes an external function,
which `checks.check_ptx` finds.

Sources: LLVM's NVPTX usage guide and IntrinsicsNVVM.td for names and types; PTX ISA for meanings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxir.codegen.emit import Emitter
from fluxir.errors import error
from fluxir.ir.core import Func, Op, Value
from fluxir.ir.types import Type
from fluxir.target import GpuTarget

__all__ = ["GpuOps", "check_features"]

_AXES = "xyz"
_REGISTERS = {"thread_id": "tid", "block_id": "ctaid", "block_dim": "ntid", "grid_dim": "nctaid"}
_SHUFFLES = {"xor": ("bfly", 31), "up": ("up", 0), "down": ("down", 31), "idx": ("idx", 31)}
_SCOPES = {"block": "cta", "device": "gl", "system": "sys"}
_GRID_BIT = 1 << 31


class GpuOps(Emitter):
    """Writes the ops that threads of a GPU have and loops on a CPU do not."""

    ptx_version: tuple[int, ...] = (6, 0)
    atomic_scope = ' syncscope("device")'

    def nvvm(self, name: str, result: str, *typed: str) -> str:
        """Call `llvm.nvvm.<name>` with arguments as `type value`; the result's register, or nothing for void."""
        f = self.unit.declare(f"llvm.nvvm.{name}", result, [t.rsplit(" ", 1)[0] for t in typed])
        text = f"call {result} {f}({', '.join(typed)})"
        if result == "void":
            self.do(text)
            return ""
        return self.let(text)

    # ---- indices
    def sreg(self, op: Op) -> str:
        narrow = self.nvvm(f"read.ptx.sreg.{_REGISTERS[op.name]}.{_AXES[op.attrs.axis]}", "i32")
        return self.let(f"zext nneg i32 {narrow} to i64")

    op_thread_id = op_block_id = op_block_dim = op_grid_dim = sreg

    def op_lane_id(self, op: Op) -> str:
        return self.let(f"zext nneg i32 {self.nvvm('read.ptx.sreg.laneid', 'i32')} to i64")

    # ---- warps
    def words(self, t: Type, v: str, each: Callable[[str], str]) -> str:
        """A value whose 32-bit words went through `each`."""
        r, bits = self.register(t), 1 if t.dtype.is_bool else t.dtype.bits
        if bits == 64:
            whole = v if t.dtype.is_integer else self.let(f"bitcast {r} {v} to i64")
            low = each(self.let(f"trunc i64 {whole} to i32"))
            high = each(self.let(f"trunc i64 {self.let(f'lshr i64 {whole}, 32')} to i32"))
            up = self.let(f"shl i64 {self.let(f'zext i32 {high} to i64')}, 32")
            joined = self.let(f"or i64 {up}, {self.let(f'zext i32 {low} to i64')}")
            return joined if t.dtype.is_integer else self.let(f"bitcast i64 {joined} to {r}")
        if r.startswith("i"):
            wide = v if bits == 32 else self.let(f"zext {r} {v} to i32")
            out = each(wide)
            return out if bits == 32 else self.let(f"trunc i32 {out} to {r}")
        raw = self.let(f"bitcast {r} {v} to i{bits}")
        out = each(raw if bits == 32 else self.let(f"zext i{bits} {raw} to i32"))
        return self.let(f"bitcast i{bits} {out if bits == 32 else self.let(f'trunc i32 {out} to i{bits}')} to {r}")

    def op_shuffle_xor(self, op: Op) -> str:
        (x,) = op.operands
        return self.words(x.type, self.get(x), lambda v: self.exchange("xor", v, str(op.attrs.mask), "-1"))

    def op_warp_shuffle(self, op: Op) -> str:
        x, by, mask = op.operands
        lane, members = self.get(by), self.get(mask)
        return self.words(x.type, self.get(x), lambda v: self.exchange(op.attrs.mode, v, lane, members))

    def exchange(self, mode: str, v: str, by: str, mask: str) -> str:
        name, clamp = _SHUFFLES[mode]
        return self.nvvm(f"shfl.sync.{name}.i32", "i32", f"i32 {mask}", f"i32 {v}", f"i32 {by}", f"i32 {clamp}")

    def op_warp_vote(self, op: Op) -> str:
        p, mask = op.operands
        result = "i32" if op.attrs.mode == "ballot" else "i1"
        return self.nvvm(f"vote.{op.attrs.mode}.sync", result, f"i32 {self.get(mask)}", f"i1 {self.get(p)}")

    def op_warp_match(self, op: Op) -> str:
        x, mask = op.operands
        bits = x.dtype.bits
        v = self.get(x) if x.dtype.is_integer else self.let(f"bitcast {self.typed(x)} to i{bits}")
        members = f"i32 {self.get(mask)}"
        if op.attrs.mode == "any":
            return self.nvvm(f"match.any.sync.i{bits}", "i32", members, f"i{bits} {v}")
        pair = self.nvvm(f"match.all.sync.i{bits}p", "{ i32, i1 }", members, f"i{bits} {v}")
        return self.let(f"extractvalue {{ i32, i1 }} {pair}, 0")

    def op_active_mask(self, op: Op) -> str:
        return self.nvvm("activemask", "i32")

    def op_warp_sync(self, op: Op) -> None:
        self.nvvm("bar.warp.sync", "void", f"i32 {self.get(op.operands[0])}")

    # ---- blocks and the grid
    def op_barrier(self, op: Op) -> None:
        self.nvvm("barrier.cta.sync.aligned.all", "void", "i32 0")

    def op_fence(self, op: Op) -> None:
        self.nvvm(f"membar.{_SCOPES[op.attrs.scope]}", "void")

    def op_grid_barrier(self, op: Op) -> None:
        """Every block's first thread adds 1 to a counter, the first block's what makes all of them flip its highest bit; they
        wait until it has flipped. The counter needs no clearing: the next barrier flips the bit back."""
        counter = "@grid_barrier"
        line = f"{counter} = internal addrspace(1) global i32 0, align 4"
        if line not in self.unit.globals:
            self.unit.globals.append(line)
        self.nvvm("barrier.cta.sync.aligned.all", "void", "i32 0")
        thread = self.let(
            " ".join(["or i32", self.nvvm("read.ptx.sreg.tid.x", "i32") + ",", self.nvvm("read.ptx.sreg.tid.y", "i32")])
        )
        thread = self.let(f"or i32 {thread}, {self.nvvm('read.ptx.sreg.tid.z', 'i32')}")
        first = self.let(f"icmp eq i32 {thread}, 0")
        leader, wait, after = self.new_label("leader"), self.new_label("wait"), self.new_label("together")
        self.do(f"br i1 {first}, label %{leader}, label %{after}")
        self.start(leader)
        with self.scope():
            blocks = self.let("add i32 0, 1")
            block = "0"
            for axis in _AXES:
                blocks = self.let(f"mul i32 {blocks}, {self.nvvm(f'read.ptx.sreg.nctaid.{axis}', 'i32')}")
                block = self.let(f"or i32 {block}, {self.nvvm(f'read.ptx.sreg.ctaid.{axis}', 'i32')}")
            most = self.let(f"sub i32 {_GRID_BIT + 1 - (1 << 32)}, {blocks}")
            by = self.let(f"select i1 {self.let(f'icmp eq i32 {block}, 0')}, i32 {most}, i32 1")
            self.nvvm("membar.gl", "void")
            old = self.let(f"atomicrmw add ptr addrspace(1) {counter}, i32 {by}{self.atomic_scope} monotonic")
            self.do(f"br label %{wait}")
            self.start(wait)
            now = self.let(
                f"load atomic volatile i32, ptr addrspace(1) {counter}{self.atomic_scope} monotonic, align 4"
            )
            flipped = self.let(f"icmp slt i32 {self.let(f'xor i32 {old}, {now}')}, 0")
            done = self.new_label("met")
            self.do(f"br i1 {flipped}, label %{done}, label %{wait}")
            self.start(done)
            self.nvvm("membar.gl", "void")
            self.do(f"br label %{after}")
        self.start(after)
        self.nvvm("barrier.cta.sync.aligned.all", "void", "i32 0")

    def op_halt_unless(self, op: Op) -> None:
        on, stop = self.new_label("on"), self.new_label("halt")
        self.do(f"br i1 {self.get(op.operands[0])}, label %{on}, label %{stop}")
        self.start(stop)
        self.nvvm("exit", "void")
        self.do("unreachable")
        self.start(on)

    def swapped(self, place: str, word: str, expected: str, new: str) -> str:
        """16 bits by the instruction itself: LLVM makes a loop over 32 bits of it, which reads beyond the element."""
        if word != "i16" or self.ptx_version < (6, 3):
            return super().swapped(place, word, expected, new)
        space = ".shared" if "addrspace(3)" in place else ".global" if "addrspace(1)" in place else ""
        text = f'"atom{space}.cas.b16 $0, [$1], $2, $3;", "=h,l,h,h,~{{memory}}"'
        return self.let(f"call i16 asm sideeffect {text}({place}, i16 {expected}, i16 {new})")

    # ---- memory
    def op_dynamic_shared(self, op: Op) -> str:
        name = "@dynamic_shared"
        line = f"{name} = external addrspace(3) global [0 x i8], align 16"
        if line not in self.unit.globals:
            self.unit.globals.append(line)
        at = self.get(op.operands[0])
        return name if at == "0" else self.let(f"getelementptr i8, ptr addrspace(3) {name}, i64 {at}")

    def op_async_copy(self, op: Op) -> None:
        dst, src, *indices = op.operands
        to = self.address(dst, indices[: dst.type.rank])  # type: ignore[union-attr]
        of = self.address(src, indices[dst.type.rank :])  # type: ignore[union-attr]
        nbytes = op.attrs.lanes * dst.dtype.itemsize
        cache = "cg" if nbytes == 16 else "ca"
        self.nvvm(
            f"cp.async.{cache}.shared.global.{nbytes}", "void", f"ptr addrspace(3) {to}", f"ptr addrspace(1) {of}"
        )

    def op_async_commit(self, op: Op) -> None:
        self.nvvm("cp.async.commit.group", "void")

    def op_async_wait(self, op: Op) -> None:
        if op.attrs.pending:
            f = self.unit.declare("llvm.nvvm.cp.async.wait.group", "void", ["i32 immarg"])
            self.do(f"call void {f}(i32 {op.attrs.pending})")
        else:
            self.nvvm("cp.async.wait.all", "void")

    # ---- tensor cores
    def op_mma(self, op: Op) -> str:
        a, b, c = op.operands
        d = a.dtype.name
        name = f"mma.{op.attrs.shape}.row.col." + {"f16": "f32.f32", "bf16": "bf16", "f32": "tf32"}[d]
        word = "<2 x half>" if d == "f16" else "i32"
        given = [f"{word} {r}" for x in (a, b) for r in self.registers(x, word)]
        given += [f"float {self.let(f'extractelement {self.typed(c)}, i64 {i}')}" for i in range(4)]
        result = "{ float, float, float, float }"
        found = self.nvvm(name, result, *given)
        out = "poison"
        for i in range(4):
            x = self.let(f"extractvalue {result} {found}, {i}")
            out = self.let(f"insertelement <4 x float> {out}, float {x}, i64 {i}")
        return out

    def registers(self, x: Value, word: str) -> list[str]:
        """The 32-bit registers of a part of a tile."""
        t: Any = x.type
        per = 32 // t.dtype.bits
        out = []
        for i in range(0, t.lanes, per):
            if per == 1:
                one = self.let(f"extractelement {self.typed(x)}, i64 {i}")
                out.append(self.let(f"bitcast {self.scalar(t.dtype)} {one} to i32"))
                continue
            pair = f"<2 x {self.scalar(t.dtype)}>"
            r = self.register(t)
            mask = f"<2 x i32> <i32 {i}, i32 {i + 1}>"
            v = self.let(f"shufflevector {r} {self.get(x)}, {r} poison, {mask}")
            out.append(v if pair == word else self.let(f"bitcast {pair} {v} to {word}"))
        return out

    def op_parallel(self, op: Op) -> None:
        raise error("FX0503", "a CPU kernel (parallel) reached the GPU code generator", loc=op.loc)


_NEEDS = {"async_copy": "cp.async", "async_commit": "cp.async", "async_wait": "cp.async"}
_MMA_NEEDS = {"f16": "mma.bf16", "bf16": "mma.bf16", "f32": "mma.tf32"}  # m16n8k16 of f16 came with sm_80 too


def check_features(f: Func, target: GpuTarget) -> None:
    """FX0502 for an op whose instruction the architecture lacks: LLVM would end the process."""
    version = tuple(map(int, target.ptx_version.split(".")))
    for op in f.walk():
        needed = _MMA_NEEDS.get(op.operands[0].dtype.name) if op.name == "mma" else _NEEDS.get(op.name)
        missing = needed is not None and not target.has(needed)
        if missing or (op.name == "active_mask" and version < (6, 2)):
            raise error("FX0502", f"{target.name} has no {op.name}", loc=op.loc, help="compile for sm_80 or newer")
