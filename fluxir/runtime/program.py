"""A compiled CPU program that can be called: `Program.load("m.fxb")`, `program(x, w)`.

Inputs are numpy arrays, anything with `__dlpack__` or `__array__`, and Python numbers for rank-0 inputs. Dtypes are
never converted (FX0603); strided or misaligned arrays are copied; the copy is not kept. Results are fresh numpy arrays,
aligned to 64 bytes where they are large, or the arrays given as `out`.

A call takes the fast way when its arrays look like those of the call before (see `native.py`): no shape is read in
Python, no size evaluated. Otherwise the inputs are brought into form, their shapes pick (or make) a *plan*: the
values of the size symbols, the guards checked, output shapes, arena size. Thread-safe: plans never change, each
thread has its own arena.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.errors import FluxError, error
from fluxir.runtime import arguments, donated, native, pool, sizes
from fluxir.runtime.elf import load_object
from fluxir.target import host

__all__ = ["Program"]

Array = NDArray[Any]
_ALIGNED_FROM = 16384  # bytes from which a result is worth the time that aligning it takes
_MAX_PLANS = 256
_TOO_LARGE = 1 << 62  # bytes: compiled code counts in 64-bit integers
_SHARED_ARENA = 1 << 20  # bytes up to which a program has an arena besides those of its threads


class _Plan:
    """All that follows from the shapes of the inputs. `address` is the table that the native `invoke` reads."""

    __slots__ = ("address", "arena", "dims", "keep", "outputs", "small")

    def __init__(self, program: Program, shapes: Sequence[tuple[int, ...]]) -> None:
        values = arguments.solve(program.spec, shapes)
        self.dims = (ctypes.c_int64 * max(1, len(values)))(*[values[s] for s in program.spec["symbols"]])
        self.outputs = [
            (tuple(sizes.evaluate(d, values) for d in o["shape"]), t)
            for o, t in zip(program.spec["outputs"], program.output_dtypes, strict=True)
        ]
        for o, (shape, t) in zip(program.spec["outputs"], self.outputs, strict=True):
            _check_size(program.spec["name"], o, shape, t)
        self.small = all(_small(shape, t) for shape, t in self.outputs)
        self.arena = sizes.evaluate(program.spec["arena"], values)
        if not 0 <= self.arena < _TOO_LARGE:
            raise _no_memory(program.spec["name"], self.arena, "temporaries")
        expected = (ctypes.c_int64 * max(1, 3 * len(shapes)))()
        rows = []
        for i, (shape, t) in enumerate(zip(shapes, program.input_dtypes, strict=True)):
            row = (ctypes.c_int64 * max(1, len(shape)))(*shape)
            rows.append(row)
            expected[3 * i : 3 * i + 3] = [id(t), len(shape), ctypes.addressof(row)]
        results = (ctypes.c_int64 * max(1, 3 * len(self.outputs)))()
        for i, (shape, t) in enumerate(self.outputs):
            row = (ctypes.c_int64 * max(1, len(shape)))(*shape)
            rows.append(row)
            results[3 * i : 3 * i + 3] = [id(t), len(shape), ctypes.addressof(row)]
        table = (ctypes.c_int64 * 10)(
            program.entry, len(shapes), len(self.outputs), len(program.constants),
            ctypes.addressof(self.dims), ctypes.addressof(program.constant_table), id(np.ndarray), ctypes.addressof(expected),
            ctypes.addressof(results), self.arena,
        )  # fmt: skip
        self.address = ctypes.addressof(table)
        self.keep = (table, expected, results, rows)


class Program:
    """A loaded program. `spec` is described in `fluxir/codegen/abi.py`; `constants` are its arrays in order."""

    def __init__(self, spec: Mapping[str, Any], code: bytes, constants: Sequence[Array] = ()) -> None:
        """Load object code. FX0509 where this machine lacks an instruction set the code uses, FX0514 where it does not load."""
        _check_target(spec["target"])
        self.spec = dict(spec)
        self.constants = [_aligned_copy(a) for a in constants]
        self.constant_table = (ctypes.c_void_p * max(1, len(self.constants)))(*[a.ctypes.data for a in self.constants])
        self.input_dtypes = [arguments.dtype(t["dtype"]) for t in spec["inputs"]]
        self.output_dtypes = [arguments.dtype(t["dtype"]) for t in spec["outputs"]]
        self.code = load_object(code)
        self.entry = self.code.address(spec["entry"])
        self._raw = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)(self.entry)
        self._fast = native.native().invoke if native.layout_is_known() else None
        self._state = np.zeros(6, np.int64)  # what `_call` works on, see native.py
        self._call = native.bound(self._state) if native.calls_are_known() else _no_call
        self._plans: dict[tuple[tuple[int, ...], ...], _Plan] = {}
        self._retired: Any = None  # the plans before these: a running call may still read one of them
        self._arenas: list[Array] = []  # those that `_call` has had; a running call may still use one of them
        self._last: _Plan | None = None
        self._local = threading.local()
        self._config: config.Config | None = None
        self.follows_device = False
        """The caller chooses another program where the setting `device` is not the CPU: `call_same` leaves it to them."""
        self._context = 0
        self._recursive = bool(spec.get("recursive"))
        self._donated = {int(j): int(i) for j, i in spec.get("donated", ())}  # result: input
        pool.on_fork(self)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes) -> Program:
        """Load an artifact from a path or its bytes. FX0801 to FX0803 where it cannot be read or trusted."""
        from fluxir.runtime.artifact import read_artifact

        a = read_artifact(source)
        return cls(a.spec, a.code, a.constants)

    # ---- calling
    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        """Run on arrays by position or by input name. One array, or a tuple of them where there are several results.

        `out`: the array (or sequence of arrays) that takes the results. Raises FX0601 to FX0612.
        """
        if out is None and not named and (results := self.call_same(args)) is not None:
            return results[0] if len(results) == 1 else tuple(results)
        values = arguments.bind(self.spec, args, named) if named or len(args) != len(self.input_dtypes) else args
        if out is not None and len(self.output_dtypes) == 1 and isinstance(out, np.ndarray):
            out = [out]
        results = self.call_flat(values, out)
        return results[0] if len(results) == 1 else tuple(results)

    def call_flat(self, arrays: Sequence[Any], out: Sequence[Array] | None = None) -> list[Array]:
        """Run on the inputs in order; returns the results in order (`out` itself where given)."""
        if out is None and (results := self.call_same(arrays)) is not None:
            return results
        if config.get() is not self._config:
            self._configure(config.get())
        return self._slow(arrays, out)

    def call_same(self, arrays: Sequence[Any]) -> list[Array] | None:
        """Run on inputs that look like those of the call before (exact ndarrays, same dtypes and shapes); None, with
        nothing done, where they do not."""
        settings = config.get()
        if settings is not self._config:
            if self.follows_device and settings.device != "cpu":
                return None
            self._configure(settings)
        if donated.DONATED:
            donated.check(arrays)
        if self._donated:
            return None
        results = self._call(*arrays)
        if type(results) is list:
            return results
        if results is not None:
            raise self._failure(results)
        plan = self._last
        if plan is None or self._fast is None:
            return None
        results = self._results(plan)
        arena = self._arena(plan.arena) if plan.arena else 0
        status = self._fast(plan.address, list(arrays), results, arena, self._runtime())
        if status == 0:
            return results
        if status == native.NOT_READY:
            return None
        raise self._failure(status)

    def _slow(self, arrays: Sequence[Any], out: Sequence[Array] | None) -> list[Array]:
        """Bring the inputs into form, find the plan of their shapes, and run."""
        given = arguments.prepare(self.spec, self.input_dtypes, arrays)
        places, taken = self._given_away(arrays, given, out) if self._donated else ({}, [])
        key = tuple([a.shape for a in given])
        plan = self._plans.get(key)
        if plan is None:
            plan = _Plan(self, key)
            if len(self._plans) >= _MAX_PLANS:
                self._retired, self._plans = self._plans, {}
            self._plans[key] = plan
        if out is None:
            results = self._results(plan, places)
        else:
            results = list(out)
            arguments.check_out(self.spec, plan.outputs, results, given)
        arena = self._arena(plan.arena) if plan.arena else 0
        pointers = [a.ctypes.data for a in (*given, *results, *self.constants)]
        if taken:
            donated.mark(taken)
        status = self._raw((ctypes.c_void_p * max(1, len(pointers)))(*pointers), plan.dims, arena, self._runtime())
        if status:
            raise self._failure(status)
        if not self._donated:
            self._remember(plan)
        return results

    def _given_away(
        self, arrays: Sequence[Any], given: list[Array], out: Sequence[Array] | None
    ) -> tuple[dict[int, Array], list[tuple[Any, str]]]:
        """The arrays of the results that take the place of donated inputs, and the inputs that are gone, with their names.

        FX0605 with `out`, FX0614 where a donated input shares memory with another one.
        """
        if out is not None:
            raise error(
                "FX0605", f"{self.spec['name']}: results that take the place of inputs cannot be written to `out`"
            )
        taken = []
        for i in self._donated.values():
            name, a = self.spec["inputs"][i]["name"], arrays[i]
            if not given[i].flags.writeable:
                given[i] = given[i].copy()
            elif isinstance(a, np.ndarray) and (a is given[i] or np.may_share_memory(a, given[i])):
                taken.append((a, name))
        starts = [a.ctypes.data for a in given]
        spans = sorted((at, at + a.nbytes, i) for i, (at, a) in enumerate(zip(starts, given, strict=True)) if a.nbytes)
        gone = set(self._donated.values())
        # The furthest end so far, of all inputs and of the donated ones, and whose it is.
        last = last_gone = (0, -1)
        for start, end, k in spans:
            reached, i = last if k in gone else last_gone
            if start < reached:
                names = [self.spec["inputs"][n]["name"] for n in ((i, k) if i in gone else (k, i))]
                raise error(
                    "FX0614",
                    f"{self.spec['name']}: the donated input {names[0]} shares memory with {names[1]}",
                    help="pass a copy of one of them",
                )
            last = max(last, (end, k))
            if k in gone:
                last_gone = max(last_gone, (end, k))
        return {j: given[i].view() for j, i in self._donated.items()}, taken

    def _remember(self, plan: _Plan) -> None:
        """Make `plan` the one that the next call tries first. Large results are aligned, which `_call` does not do,
        and recursive programs need a context of their thread."""
        self._last = plan
        if plan.arena > self._state[4] and plan.small and plan.arena <= _SHARED_ARENA:
            memory = empty((max(plan.arena, 2 * int(self._state[4])),), np.dtype(np.uint8), aligned=True)
            self._arenas.append(memory)
            self._state[4] = 0  # in this order: a call between these lines finds an arena that is too small
            self._state[3], self._state[4] = memory.ctypes.data, memory.nbytes
        self._state[0] = plan.address if plan.small and not self._recursive else 0

    def _configure(self, settings: config.Config) -> None:
        self._context = pool.context(settings.threads())
        self._state[1] = self._context
        self._config = settings

    def _runtime(self) -> int:
        """The context to call with: shared, but for recursive programs, which must know the end of their thread's stack."""
        if not self._recursive:
            return self._context
        local = self._local
        if getattr(local, "context_of", 0) != self._context:
            local.context, local.context_of = pool.with_stack(self._context), self._context
        return ctypes.addressof(local.context)

    def _arena(self, nbytes: int) -> int:
        """The address of this thread's arena, at least `nbytes` long. FX0609 where there is no memory."""
        local = self._local
        if getattr(local, "size", 0) < nbytes:
            local.memory = None  # freed before the larger one is asked for
            local.size = 0
            try:
                local.memory = empty((nbytes,), np.dtype(np.uint8), aligned=True)
            except MemoryError:
                raise _no_memory(self.spec["name"], nbytes, "temporaries") from None
            local.size = nbytes
            local.address = local.memory.ctypes.data
        return int(local.address)

    def _results(self, plan: _Plan, places: Mapping[int, Array] = MappingProxyType({})) -> list[Array]:
        """Arrays for the results: fresh ones, but for those in `places`. FX0609 where there is no memory."""
        try:
            if places:
                return [places[j] if j in places else empty(*o) for j, o in enumerate(plan.outputs)]
            return [empty(shape, t) for shape, t in plan.outputs]
        except MemoryError:
            nbytes = sum(math.prod(shape) * t.itemsize for shape, t in plan.outputs)
            raise _no_memory(self.spec["name"], nbytes, "results") from None

    def _failure(self, status: int) -> FluxError:
        code, message = self.spec["errors"].get(
            str(status), ("FX0514", f"the program stopped with the unknown number {status}")
        )
        return error(code, f"{self.spec['name']}: {message}")

    def __repr__(self) -> str:
        def show(tensors: Sequence[Mapping[str, Any]]) -> str:
            return ", ".join(f"{t['name']}: {arguments.show_type(t)}" for t in tensors)

        signature = f"{self.spec['name']}({show(self.spec['inputs'])}) -> ({show(self.spec['outputs'])})"
        return f"<Program {signature} for {self.spec['target']['name']}>"


def _no_call(*arrays: Any) -> None:
    """`native.call` where it cannot be used."""


def _check_size(program: str, output: Mapping[str, Any], shape: tuple[int, ...], t: np.dtype[Any]) -> None:
    """FX0604 for a result of negative size, FX0609 for one that no memory could hold (numpy counts a size 0 as 1)."""
    if min(shape, default=0) < 0:
        raise error(
            "FX0604", f"{program}: the result {output['name']}: {arguments.show_type(output)} has shape {shape}"
        )
    if (nbytes := math.prod(max(1, d) for d in shape) * t.itemsize) >= _TOO_LARGE:
        raise _no_memory(program, nbytes, f"the result {output['name']}: {arguments.show_type(output)}")


def _no_memory(program: str, nbytes: int, what: str) -> FluxError:
    return error("FX0609", f"the program {program} needs {nbytes} bytes for {what}, which the system refused")


def _small(shape: tuple[int, ...], t: np.dtype[Any]) -> bool:
    n = t.itemsize
    for d in shape:
        n *= d
    return n < _ALIGNED_FROM


def empty(shape: tuple[int, ...], t: np.dtype[Any], aligned: bool = False) -> Array:
    """An uninitialised array; where it is large (or `aligned`) its data starts at a multiple of 64 bytes."""
    if not aligned and _small(shape, t):
        return np.empty(shape, t)
    nbytes = t.itemsize
    for d in shape:
        nbytes *= d
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(t).reshape(shape)


def _aligned_copy(a: Array) -> Array:
    """`a` itself where it is contiguous and aligned to its elements, else a copy that is."""
    return a if a.flags.c_contiguous and a.flags.aligned else np.array(a, order="C", copy=True)


def _check_target(target: Mapping[str, Any]) -> None:
    if target.get("kind") != "cpu":
        raise error(
            "FX0707",
            f"the program was compiled for {target.get('name')}, which is no CPU target",
            help="run it with --device cuda",
        )
    machine = host()
    if not machine.level:
        raise error("FX0509", f"the program is x86-64 code, and this machine is {machine.machine}")
    missing = sorted(set(target["features"]) - set(machine.features))
    if missing:
        raise error(
            "FX0509",
            f"the program was compiled for {target['name']}, and this machine ({machine.model}) lacks {', '.join(missing)}",
            help=f"compile it for this machine, or for --target cpu:x86-64-v{machine.level}",
        )
