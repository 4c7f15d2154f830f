"""A compiled CPU program that can be called: `Program.load("m.fxb")`, `program(x, w)`.

Inputs are numpy arrays, anything with `__dlpack__` or `__array__`, and Python numbers for rank-0 inputs. Dtypes are
never converted (FX0603); strided or misaligned arrays are copied; the copy is not kept. Results are fresh numpy arrays,
aligned to 64 bytes where they are large, or the arrays given as `out`.

A call whose arguments look like earlier ones takes a *route* (see `route.py`): no shape is read in Python, no size evaluated.
Otherwise the inputs are brought into form, their shapes pick (or make) a *plan*: the values of the size symbols, the
guards checked, output shapes, arena size. Thread-safe: plans never change, each call has its own arena.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.errors import FluxError, error
from fluxir.runtime import arguments, donated, pool, route, sizes
from fluxir.runtime.arena import Arenas
from fluxir.runtime.elf import load_object
from fluxir.target import host

__all__ = ["Program", "empty"]

Array = NDArray[Any]
_MAX_PLANS = 256
_TOO_LARGE = 1 << 62  # bytes: compiled code counts in 64-bit integers


class _Plan:
    """All that follows from the shapes of the inputs."""

    __slots__ = ("arena", "dims", "outputs", "shapes")

    def __init__(self, program: Program, shapes: tuple[tuple[int, ...], ...]) -> None:
        values = arguments.solve(program.spec, shapes)
        self.shapes = shapes
        self.dims = (ctypes.c_int64 * max(1, len(values)))(*[values[s] for s in program.spec["symbols"]])
        self.outputs = [
            (tuple(sizes.evaluate(d, values) for d in o["shape"]), t)
            for o, t in zip(program.spec["outputs"], program.output_dtypes, strict=True)
        ]
        for o, (shape, t) in zip(program.spec["outputs"], self.outputs, strict=True):
            _check_size(program.spec["name"], o, shape, t)
        self.arena = sizes.evaluate(program.spec["arena"], values)
        if not 0 <= self.arena < _TOO_LARGE:
            raise _no_memory(program.spec["name"], self.arena, "temporaries")


class Program(route.Routed):
    """A loaded program. `spec` is described in `fluxir/codegen/abi.py`; `constants` are its arrays in order."""

    def __init__(self, spec: Mapping[str, Any], code: bytes, constants: Sequence[Array] = ()) -> None:
        """Load object code. FX0509 where this machine lacks an instruction set the code uses, FX0514 where it does not load."""
        super().__init__()
        _check_target(spec["target"])
        self.spec = dict(spec)
        self.constants = [_aligned_copy(a) for a in constants]
        self.constant_table = (ctypes.c_void_p * max(1, len(self.constants)))(*[a.ctypes.data for a in self.constants])
        self.input_dtypes = [arguments.dtype(t["dtype"]) for t in spec["inputs"]]
        self.output_dtypes = [arguments.dtype(t["dtype"]) for t in spec["outputs"]]
        self.code = load_object(code)
        self.entry = self.code.address(spec["entry"])
        self._raw = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)(self.entry)
        self._plans: dict[tuple[tuple[int, ...], ...], _Plan] = {}
        self.arenas = Arenas()
        self._recursive = bool(spec.get("recursive"))
        self.cut = "extents" in spec  # the last result holds sizes, by which the others are cut
        self.donated = {int(j): int(i) for j, i in spec.get("donated", ())}  # result: input
        self.note = functools.partial(donated.note, [spec["inputs"][i]["name"] for i in self.donated.values()])

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes) -> Program:
        """Load an artifact from a path or its bytes. FX0801 to FX0803 where it cannot be read or trusted."""
        from fluxir.runtime.artifact import read_artifact

        a = read_artifact(source)
        return cls(a.spec, a.code, a.constants)

    # ---- calling
    def _called(self, *args: Any, **given: Any) -> Any:
        """Run on arrays by position or by input name. One array, or a tuple of them where there are several results.

        `out`: the array (or sequence of arrays) that takes the results. Raises FX0601 to FX0612.
        """
        out = given.get("out")
        named = {n: x for n, x in given.items() if n != "out"}
        values = arguments.bind(self.spec, args, named) if named or len(args) != len(self.input_dtypes) else args
        results = self.checked(values, [out] if isinstance(out, np.ndarray) and len(self.output_dtypes) == 1 else out)
        self._remember(len(args), given, values, out)
        return results[0] if len(results) == 1 else tuple(results)

    def call_flat(self, arrays: Sequence[Any], out: Sequence[Array] | None = None) -> list[Array]:
        """Run on the inputs in order; returns the results in order (`out` itself where given)."""
        results = self(*arrays) if out is None else self(*arrays, out=out)
        return [results] if len(self.output_dtypes) - self.cut == 1 else list(results)

    def _remember(self, positional: int, named: Mapping[str, Any], values: Sequence[Any], out: Any) -> None:
        """Let calls like this one take a route. The leaves are the inputs in order, then the arrays of `out`."""
        names = [t["name"] for t in self.spec["inputs"]]
        guards = {n: route.same(None) if n == "out" else route.leaf(names.index(n)) for n in named}
        leaves = list(values)
        if out is not None:
            first, given = len(leaves), [out] if isinstance(out, np.ndarray) else out
            nodes = [route.leaf(first + j) for j in range(len(given))]
            guards["out"] = nodes[0] if isinstance(out, np.ndarray) else route.items(type(out), nodes)
            leaves += given
        if self.cut:
            return
        tree = route.items(tuple, [route.leaf(j) for j in range(len(self.output_dtypes))])
        if len(self.output_dtypes) == 1:
            tree = route.leaf(0)
        places = [route.leaf(i) for i in range(positional)]
        made = self.route(places, guards, leaves, tree, out=out is not None)
        if made is not None:
            self.remember(made)

    def route(
        self,
        args: Sequence[route.Node],
        named: Mapping[str, route.Node],
        leaves: Sequence[Any],
        tree: route.Node,
        **options: Any,
    ) -> route.Route | None:
        """A route for calls that look like one that has just been made, with these leaves; None where there is none. A
        recursive program has none: it needs a context of the thread that calls; nor one whose results are cut to size."""
        inputs = [*leaves[: len(self.input_dtypes) - len(options.get("fixed", ()))], *options.get("fixed", ())]
        plan = self._plans.get(tuple([np.shape(x) for x in inputs]))
        if plan is None or self._recursive or self.cut:
            return None
        try:
            return route.Route(self, plan, args, named, leaves, tree, **options)
        except ValueError:
            return None

    def context(self, settings: config.Config) -> int:
        """The runtime context for calls under these settings."""
        return pool.context(settings.threads())

    def fail(self, number: int) -> None:
        """Raise the error that the entry's number stands for."""
        raise self._failure(number)

    def checked(self, arrays: Sequence[Any], out: Sequence[Array] | None = None) -> list[Array]:
        """As `call_flat`, and leaves no route: bring the inputs into form, find the plan of their shapes, and run."""
        donated.check(arrays)
        if self.cut and out is not None:
            raise error(
                "FX0605", f"{self.spec['name']}: results of a size known only at run time cannot be written to `out`"
            )
        given = arguments.prepare(self.spec, self.input_dtypes, arrays)
        places, taken = self._given_away(arrays, given, out) if self.donated else ({}, [])
        key = tuple([a.shape for a in given])
        plan = self._plans.get(key)
        if plan is None:
            plan = _Plan(self, key)
            if len(self._plans) >= _MAX_PLANS:
                self._plans = {}
            self._plans[key] = plan
        if out is None:
            results = self._results(plan, places)
        else:
            results = list(out)
            arguments.check_out(self.spec, plan.outputs, results, given)
        pointers = [a.ctypes.data for a in (*given, *results, *self.constants)]
        if taken:
            donated.mark(taken)
        table = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        with self._arena(plan.arena) as arena, self._runtime() as context:
            status = self._raw(table, plan.dims, arena, context)
        if status:
            raise self._failure(status)
        return arguments.cut(self.spec, results, key) if self.cut else results

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
        for i in self.donated.values():
            name, a = self.spec["inputs"][i]["name"], arrays[i]
            if not given[i].flags.writeable:
                given[i] = given[i].copy()
            elif isinstance(a, np.ndarray) and (a is given[i] or np.may_share_memory(a, given[i])):
                taken.append((a, name))
        starts = [a.ctypes.data for a in given]
        spans = sorted((at, at + a.nbytes, i) for i, (at, a) in enumerate(zip(starts, given, strict=True)) if a.nbytes)
        gone = set(self.donated.values())
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
        return {j: given[i].view() for j, i in self.donated.items()}, taken

    @contextmanager
    def _runtime(self) -> Iterator[int]:
        """The context to call with: shared, but for recursive programs, which must know the end of their thread's stack."""
        shared = self.context(config.get())
        mine = pool.with_stack(shared) if self._recursive else None
        yield shared if mine is None else ctypes.addressof(mine)

    @contextmanager
    def _arena(self, nbytes: int) -> Iterator[int]:
        """The address of memory for one call's temporaries. FX0609 where there is none."""
        try:
            found = self.arenas.take(nbytes)
        except MemoryError:
            raise _no_memory(self.spec["name"], nbytes, "temporaries") from None
        try:
            yield found.address
        finally:
            found.give_back()

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
    return n < route.LARGE


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
    code = str(target.get("triple", "x86_64")).partition("-")[0]
    if code != machine.machine:
        raise error("FX0509", f"the program is {code} code, and this machine is {machine.machine}")
    missing = sorted(set(target["features"]) - set(machine.features))
    if missing:
        raise error(
            "FX0509",
            f"the program was compiled for {target['name']}, and this machine ({machine.model}) lacks {', '.join(missing)}",
            help=f"compile it for this machine, or for --target {machine.target}",
        )
