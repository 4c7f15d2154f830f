"""Calls that are not inlined: of a function from itself, through pointers, and of the functions the device brings along.

A real call runs the function in a frame of its own, for the calling threads, to its end; a barrier of the block inside one is
refused. The device's own functions are `vprintf`, `__assertfail`, `malloc` and `free`.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from . import isa
from .code import Place
from .link import call_parts
from .memory import ALLOCATED, WRITTEN
from .ptx import Function, Instruction, Register, Symbol, type_bytes
from .values import Array

if TYPE_CHECKING:
    from .code import Code, Step
    from .scope import Scope
    from .wave import Mask, Wave

__all__ = ["call_step"]

DEPTH = 64  # of recursion


def call_step(x: Instruction, scope: Scope) -> Step:
    results, callee, arguments, table = call_parts(x)
    if isinstance(callee, Symbol):
        f = scope.image.functions.get(callee.name)
        if f is not None and f.body is not None:
            return _real(x, scope, {callee.name: f}, None)
        builtin = _BUILTINS.get(callee.name)
        if builtin is None:
            isa.reject(x, f"the function `{callee.name}` has no body here")
        return builtin(x, scope, results, arguments)
    names = scope.function.tables.get(table.name) if table is not None else None
    candidates = (
        {n: scope.image.functions[n] for n in names} if names else _by_shape(scope, len(results), len(arguments))
    )
    return _real(x, scope, candidates, callee)


def _by_shape(scope: Scope, results: int, arguments: int) -> dict[str, Function]:
    """The functions that a pointer may mean: with a body, and as many results and parameters."""
    return {
        n: f
        for n, f in scope.image.functions.items()
        if f.body is not None and not f.is_entry and (len(f.results), len(f.parameters)) == (results, arguments)
    }


def _real(x: Instruction, scope: Scope, targets: dict[str, Function], pointer: Register | None) -> Step:
    results, _, arguments, _ = call_parts(x)
    codes: dict[str, Code] = {}

    known = scope.image.by_address
    read = scope.read(pointer, "u64", x) if pointer is not None else None

    def value_reader(a: Any, kind: str) -> Any:
        return scope.read(a, kind, x)

    def enter(w: Wave, m: Mask, name: str) -> None:
        code = codes.get(name)
        if code is None:
            code = codes[name] = scope.linker.code(targets[name], kernel=False)
        if w.depth >= DEPTH:
            w.stuck("limit", f"calls nest deeper than {DEPTH}")
        registers = code.fresh()
        base = -(-max(w.frame_top, w.frame) // 16) * 16
        if base + code.local_bytes > w.memory.sizes["local"]:
            w.report("limit", "the stack of a thread is full", x, m.index)
            _stop()
        shadow = w.memory.local.shadow[: w.size * w.memory.sizes["local"]].reshape(w.size, -1)
        rows = m.index
        for offset, size, _ in code.locals:
            shadow[rows[:, None], base + offset + np.arange(size)] = ALLOCATED
        given: list[tuple[int, Any]] = []
        f = targets[name]
        for (where, slot), v, a in zip(code.arguments, f.parameters, arguments):
            if where == "register":
                registers[slot] = value_reader(a, v.type)(w)
            elif isinstance(a, Symbol):
                given.append((slot, _bytes(w, m, scope.place(a.name, x), v.nbytes)))
            else:
                raw = np.broadcast_to(value_reader(a, f"b{8 * type_bytes(v.type)}")(w), (w.size,))[rows]
                given.append((slot, np.ascontiguousarray(raw).view(np.uint8).reshape(len(rows), -1)))
        data = w.memory.local.data[: w.size * w.memory.sizes["local"]].reshape(w.size, -1)
        for slot, (raw, states) in [
            (s, g if isinstance(g, tuple) else (g, np.full_like(g, ALLOCATED | WRITTEN))) for s, g in given
        ]:
            at = base + slot + np.arange(raw.shape[1])
            data[rows[:, None], at], shadow[rows[:, None], at] = raw, states
        frame, top = w.frame, w.frame_top
        w.frame, w.frame_top, w.depth = base, base + code.local_bytes, w.depth + 1
        outer = w.registers
        try:
            w.run(code, m, registers)
        finally:
            after = w.last_registers
            w.frame, w.frame_top, w.depth = frame, top, w.depth - 1
        for (where, slot), v, r in zip(code.results, f.results, results):
            if where == "register":
                scope.write(r, v.type, x)(w, after[slot], m)
            else:
                assert isinstance(r, Symbol)
                to = w.address(scope.place(r.name, x))
                at, source = to + np.arange(v.nbytes), base + slot + np.arange(v.nbytes)
                data[rows[:, None], at] = data[rows[:, None], source]
                shadow[rows[:, None], at] = shadow[rows[:, None], source]
        for offset, size, _ in code.locals:
            shadow[rows[:, None], base + offset + np.arange(size)] = 0
        assert w.registers is outer

    def run(w: Wave, m: Mask) -> None:
        if read is None:
            enter(w, m, next(iter(targets)))
            return
        address = np.broadcast_to(read(w), (w.size,))
        for value in np.unique(address[m.index]):
            name = known.get(int(value))
            those = w.mask(m.bits & (address == value))
            if name is None or name not in targets:
                w.report("out-of-bounds", f"{int(value):#x} is no function that is called so", x, those.index)
                w.exit(those)
                continue
            enter(w, those, name)

    return run


def _stop() -> None:
    from .wave import Stop

    raise Stop


def _bytes(w: Wave, m: Mask, place: Place, n: int) -> tuple[Array, Array]:
    """The bytes of a local variable, and their shadow."""
    size = w.memory.sizes["local"]
    at = w.address(place) + np.arange(n)
    both = (w.memory.local.data, w.memory.local.shadow)
    data, shadow = (a[: w.size * size].reshape(w.size, -1)[m.index[:, None], at] for a in both)
    return data, shadow


# ---- the device's own functions


def _inputs(x: Instruction, scope: Scope, arguments: Any, kinds: list[str]) -> list[Any]:
    """Readers of the arguments, which lie in call parameters or registers."""
    out: list[Any] = []
    for a, kind in zip(arguments, kinds):
        if isinstance(a, Symbol):
            place = scope.place(a.name, x)
            width = type_bytes(kind)
            out.append(_from_memory(place, width))
        else:
            read = scope.read(a, kind, x)
            out.append(_from_register(read))
    return out


def _from_memory(place: Place, width: int) -> Any:
    return lambda w, m: np.ascontiguousarray(_bytes(w, m, place, width)[0]).view(f"u{width}")[:, 0]


def _from_register(read: Any) -> Any:
    return lambda w, m: np.broadcast_to(read(w), (w.size,))[m.index]


def _result(x: Instruction, scope: Scope, results: Any, kind: str) -> Any:
    """A function that stores the result of each thread."""
    if not results:
        return lambda w, m, values: None
    (r,) = results
    if isinstance(r, Symbol):
        return lambda w, m, values: w.memory.store(
            m, "local", np.uint64(w.address(scope.place(r.name, x))), type_bytes(kind), [m.spread(values)], x
        )
    write = scope.write(r, kind, x)
    return lambda w, m, values: write(w, m.spread(values), m)


def _text(w: Wave, address: int, limit: int = 4096) -> bytes:
    out = bytearray()
    near = w.launch.heap.nearest(address)
    if near is None or near.freed or not near.address <= address < near.address + near.nbytes:
        return b"(a bad address)"
    raw = w.launch.heap.read(address, min(limit, near.address + near.nbytes - address)).tobytes()
    out += raw.split(b"\0")[0]
    return bytes(out)


def _vprintf(x: Instruction, scope: Scope, results: Any, arguments: Any) -> Step:
    text, data = _inputs(x, scope, arguments, ["u64", "u64"])
    result = _result(x, scope, results, "b32")

    def run(w: Wave, m: Mask) -> None:
        formats, places = text(w, m), data(w, m)
        printed = np.zeros(len(m.index), np.uint32)
        for i, lane in enumerate(m.index):
            form = _text(w, int(formats[i])).decode("utf-8", "replace")
            single = w.mask(np.arange(w.size) == lane)

            def argument(at: int, width: int, single: Mask = single, base: int = int(places[i])) -> int:
                (v,) = w.memory.load(single, "generic", np.uint64(base + at), width, 1, x)
                return int(v[single.index[0]])

            line = _formatted(form, argument, w)
            printed[i] = len(line)
            w.launch.device.print(line)
        result(w, m, printed)

    return run


_CONVERSION = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?(hh|h|ll|l|z|t|j|q)?([diouxXeEfFgGaAcsp%])")


def _formatted(form: str, argument: Any, w: Wave) -> str:
    """C's printf over arguments laid out in a buffer: 4 or 8 bytes each, aligned to their size."""
    at = 0

    def take(width: int) -> int:
        nonlocal at
        at = -(-at // width) * width
        value = argument(at, width)
        at += width
        return int(value)

    def one(found: re.Match[str]) -> str:
        flags, width, precision, length, kind = found.groups()
        if kind == "%":
            return "%"
        if width == "*":
            width = str(_signed(take(4), 32))
        if precision == "*":
            precision = str(take(4))
        spec = "%" + (flags or "") + (width or "") + (f".{precision}" if precision is not None else "")
        if kind in "eEfFgGaA":
            value = struct.unpack("<d", struct.pack("<Q", take(8)))[0]
            return str(value.hex() if kind in "aA" else (spec + kind) % value)
        if kind == "s":
            return (spec + "s") % _text(w, take(8)).decode("utf-8", "replace")
        if kind == "p":
            return f"{take(8):#x}"
        bits = 64 if length in ("ll", "l", "z", "t", "j", "q") else 32
        raw = take(bits // 8)
        if kind == "c":
            return chr(raw & 255)
        return (spec + ("d" if kind in "diu" else kind)) % (_signed(raw, bits) if kind in "di" else raw)

    return _CONVERSION.sub(one, form)


def _signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def _assertfail(x: Instruction, scope: Scope, results: Any, arguments: Any) -> Step:
    message, file, line, function = _inputs(x, scope, arguments[:4], ["u64", "u64", "b32", "u64"])

    def run(w: Wave, m: Mask) -> None:
        text, name, number, where = (r(w, m)[0] for r in (message, file, line, function))
        shown = [_text(w, int(a)).decode("utf-8", "replace") for a in (name, where, text)]
        w.report("assert", f"{shown[0]}:{int(number)}: {shown[1]}: assertion `{shown[2]}` failed", x, m.index)
        _stop()

    return run


def _malloc(x: Instruction, scope: Scope, results: Any, arguments: Any) -> Step:
    (size,) = _inputs(x, scope, arguments, ["u64"])
    result = _result(x, scope, results, "b64")

    def run(w: Wave, m: Mask) -> None:
        out = [w.launch.device_malloc(int(n)) for n in size(w, m)]
        result(w, m, np.array(out, np.uint64))

    return run


def _free(x: Instruction, scope: Scope, results: Any, arguments: Any) -> Step:
    (pointer,) = _inputs(x, scope, arguments, ["u64"])

    def run(w: Wave, m: Mask) -> None:
        for lane, p in zip(m.index, pointer(w, m)):
            if p and not w.launch.device_free(int(p)):
                w.report("use-after-free", f"{int(p):#x} is no live allocation", x, [lane], int(p))

    return run


_BUILTINS = {
    "vprintf": _vprintf,
    "__assertfail": _assertfail,
    "__assert_fail": _assertfail,
    "malloc": _malloc,
    "free": _free,
}
