"""Tracing: run a Python function on symbolic tensors and keep what it did as a program.

Owns the scopes. A `Scope` collects the ops of one block; the current one is a context variable. Regions of control flow
are child scopes: using a tensor of an outer scope there *captures* it, which adds an operand to the op and an argument to
its blocks, so that regions stay closed. Without a trace, a public function opens an `EagerScope`, in which every op is
evaluated by its numpy meaning as it is made: outside a trace the public functions take and return numpy arrays.
Each op carries the location of the first frame outside fluxir. Sizes that must be equal and cannot be proven so become
facts of the module (entry guards).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ParamSpec, TypeVar

import numpy as np

import fluxir.ops  # noqa: F401  (declares every op)
from fluxir.errors import FluxError, Location, error
from fluxir.frontend import tree
from fluxir.ir import dims
from fluxir.ir.build import Builder, with_operands
from fluxir.ir.core import Block, Func, Module, Op, Value
from fluxir.ir.dtypes import DType, bool_, dtype_of, f32, i64
from fluxir.ir.interp import Interpreter
from fluxir.ir.opdef import lookup, normalise_attrs
from fluxir.ir.types import TensorType, Type

P = ParamSpec("P")
R = TypeVar("R")

SMALL_CONSTANT = 16  # elements; smaller constants are repeated in each region, larger ones captured

# ---- where the user is -----------------------------------------------------------------------------------------------

_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"
_EXAMPLES = _PACKAGE + "examples/"


class _Code:
    """What is known of one code object: whether it is ours, and the places (and assigned names) of its instructions."""

    __slots__ = ("code", "ours", "places", "targets")

    def __init__(self, code: CodeType) -> None:
        self.code = code  # kept alive, so that its id stays its own
        file = code.co_filename
        ours = file.startswith(_PACKAGE) and not file.startswith(_EXAMPLES)
        self.ours = ours or file.endswith(("/functools.py", "/contextlib.py"))
        self.places: dict[int, Location] = {}
        self.targets: dict[int, str] | None = None

    def place(self, instruction: int, line: int | None) -> Location:
        found = self.places.get(instruction)
        if found is None:
            column = 0
            for i, position in enumerate(self.code.co_positions()):
                if i == instruction // 2:
                    line, column = position[0] or line, (position[2] if position[2] is not None else -1) + 1
                    break
            code = self.code
            found = self.places[instruction] = Location(
                code.co_filename, line or code.co_firstlineno, column, code.co_name
            )
        return found

    def target(self, instruction: int) -> str:
        """The variable that the result of an instruction is assigned to right away; "" if none."""
        if self.targets is None:
            import dis

            self.targets = {}
            before = None
            for i in dis.get_instructions(self.code):
                if before is not None and i.opname.startswith("STORE_") and i.opname != "STORE_SUBSCR":
                    name = i.argval[0] if isinstance(i.argval, tuple) else i.argval
                    if isinstance(name, str) and i.opname != "STORE_ATTR":
                        # The frame may point at the instruction or at one of its caches.
                        self.targets.update(dict.fromkeys(range(before, i.offset), name))
                before = i.offset
        return self.targets.get(instruction, "")


_codes: dict[int, _Code] = {}


def _known(code: CodeType) -> _Code:
    found = _codes.get(id(code))
    if found is None:
        found = _codes[id(code)] = _Code(code)
    return found


def is_ours(code: CodeType) -> bool:
    """Whether code belongs to fluxir, not to its user."""
    return _known(code).ours


def user_frame() -> FrameType | None:
    """The innermost frame outside fluxir."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _known(frame.f_code).ours:
        frame = frame.f_back
    return frame


_place: contextvars.ContextVar[Location | None] = contextvars.ContextVar("fluxir_place", default=None)


@contextlib.contextmanager
def placed(at: Location) -> Iterator[None]:
    """Ops made in the `with` block come from `at`: for importers, whose users wrote a file and not the Python around it."""
    token = _place.set(at)
    try:
        yield
    finally:
        _place.reset(token)


def here() -> Location | None:
    """Where the user's code stands now."""
    if (at := _place.get()) is not None:
        return at
    frame = user_frame()
    return None if frame is None else _known(frame.f_code).place(frame.f_lasti, frame.f_lineno)


def user_error(code: str, message: str, *, help: str | None = None) -> FluxError:
    """The error `code` at the user's line, for libraries on top: `raise fx.error("FX1001", "...")`."""
    return error(code, message, help=help, loc=here())


def here_and_target() -> tuple[Location | None, str]:
    """Where the user's code stands, and the variable that takes the result of what runs there."""
    if (at := _place.get()) is not None:
        return at, ""
    frame = user_frame()
    if frame is None:
        return None, ""
    known = _known(frame.f_code)
    return known.place(frame.f_lasti, frame.f_lineno), known.target(frame.f_lasti)


def locate(e: FluxError) -> FluxError:
    """Give an error that has no place the innermost place outside fluxir on its traceback."""
    if e.loc is None:
        tb = e.__traceback__
        while tb is not None:
            if not _known(tb.tb_frame.f_code).ours:
                e.loc = _known(tb.tb_frame.f_code).place(tb.tb_lasti, tb.tb_lineno)
            tb = tb.tb_next
    return e


def raised_by_user(e: BaseException) -> Location | None:
    """The user's line on the way to an exception that was not raised in a file of ours; None if it was."""
    tb, at, ours = e.__traceback__, None, True
    while tb is not None:
        known = _known(tb.tb_frame.f_code)
        ours = known.ours
        if not ours:
            at = known.place(tb.tb_lasti, tb.tb_lineno)
        tb = tb.tb_next
    return None if ours else at


# ---- scopes ----------------------------------------------------------------------------------------------------------


class Trace:
    """What all scopes of one trace share: functions made beside the entry, and the facts about sizes."""

    def __init__(self, assumptions: dims.Assumptions | None = None, entry: str = "") -> None:
        self.entry = entry
        self.assumptions = assumptions or dims.Assumptions(record=True)
        self.funcs: dict[str, Func] = {}
        self.labels: dict[str, int] = {}
        self.sizes: set[str] = set()  # names of sizes that are taken
        self.unbounded: set[str] = set()  # those known only at run time that nothing bounds
        self.calls: dict[Any, Any] = {}  # for `@fx.function`: functions in progress, by identity and argument types

    def fresh_label(self, name: str) -> str:
        """A name for a value that no other value has: `h`, then `h.1`, `h.2`."""
        n = self.labels[name] = self.labels.get(name, -1) + 1
        return f"{name}.{n}" if n else name

    def fresh_size(self) -> str:
        """A name for a size that is known only at run time."""
        n = 0
        while f"K{n}" in self.sizes:
            n += 1
        self.sizes.add(f"K{n}")
        return f"K{n}"

    def fresh_name(self, base: str) -> str:
        """A function name not used in this trace yet."""
        name, n = base, 1
        while name in self.funcs or name == self.entry:
            name, n = f"{base}_{n}", n + 1
        return name


class Scope:
    """One block under construction. `captures` maps a value of the parent scope to this block's argument for it."""

    def __init__(self, trace: Trace, parent: Scope | None = None) -> None:
        self.trace, self.parent = trace, parent
        self.builder = Builder()
        self.captures: dict[Value, Value] = {}
        self.open = True
        self.sizes: set[str] = set()  # known only at run time, that were made here
        self._constants: dict[Any, Value] = {}
        self._named: tuple[Location | None, Value] | None = None

    @property
    def root(self) -> Scope:
        return self if self.parent is None else self.parent.root

    def emit(
        self, name: str, values: Sequence[Value], blocks: Sequence[Block], attrs: Mapping[str, Any]
    ) -> tuple[Value, ...]:
        """Append an op at the user's place; a type error names the operands as the user does."""
        place, target = here_and_target()
        self.builder.loc = place
        try:
            results = self.builder.emit(name, *values, blocks=blocks, **attrs)
        except FluxError as e:
            from fluxir.frontend.labels import name_operands

            name_operands(e, values)
            raise
        if target and len(results) == 1:
            # `h = f(x)` names the last op that f makes: an op made later at the same place takes the name over.
            # Names are for readers and no part of the program.
            if self._named is not None and self._named[0] is place:
                results[0].name, self._named[1].name = self._named[1].name, ""
            else:
                results[0].name = self.trace.fresh_label(target)
            self._named = (place, results[0])
        return results

    def use(self, value: Value, owner: Scope) -> Value:
        """`value` of the scope `owner` as seen here: itself, or this block's argument that captures it."""
        if owner is self:
            return value
        if (
            value.owner is not None
            and value.owner.name == "const"
            and value.owner.attrs["value"].size <= SMALL_CONSTANT
        ):
            return self.constant(value.owner.attrs["value"])
        if self.parent is None or not owner.open:
            raise error(
                "FX0311",
                f"a tensor of type {value.type} is used outside the trace that made it",
                help="return it from the traced function, or from the branch or loop body, instead of keeping it",
                labels=[(value.owner.loc, "it was made here")] if value.owner is not None and value.owner.loc else (),
                loc=here(),
            )
        outer = self.parent.use(value, owner)
        inner = self.captures.get(outer)
        if inner is None:
            inner = self.captures[outer] = Value(outer.type, None, 0, outer.name)
        return inner

    def constant(self, array: np.ndarray[Any, Any]) -> Value:
        """An array as a value of this scope; large ones live in the outermost scope and are captured."""
        if array.size > SMALL_CONSTANT:
            root = self.root
            if root is not self:
                return self.use(root.constant(array), root)
        frozen = np.array(array, dtype=dtype_of(array.dtype).numpy, order="C", copy=True)
        frozen.flags.writeable = False  # its digest is remembered from now on, and is of what is kept
        key = _constant_key(frozen)
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = self.emit("const", (), (), {"value": frozen})[0]
        return found

    def array(self, value: Value) -> np.ndarray[Any, Any] | None:
        """The array of a value of this scope that is a constant, or captures one from a scope around; None for others."""
        s: Scope | None = self
        while value.owner is None and s is not None:
            outer = next((o for o, inner in s.captures.items() if inner is value), None)
            if outer is None:
                return None
            value, s = outer, s.parent
        return value.owner.attrs["value"] if value.owner is not None and value.owner.name == "const" else None

    def size(self, d: dims.Dim) -> Value:
        """A size as an i64 scalar of this scope."""
        if isinstance(d, int):
            return self.constant(np.asarray(d, np.int64))
        key = ("dim", d)
        if key not in self._constants:
            self._constants[key] = self.emit("dim", (), (), {"value": d})[0]
        return self._constants[key]


def _constant_key(array: np.ndarray[Any, Any]) -> Any:
    from fluxir.ir.core import array_digest

    if array.size <= SMALL_CONSTANT:
        return (array.dtype.str if array.dtype.kind != "V" else array.dtype.name, array.shape, array.tobytes())
    return array_digest(array)


class TooLarge(Exception):
    """An eager computation would go beyond what `suspended(most)` allows."""


class EagerScope(Scope):
    """A scope that evaluates: every value has an array at once. Regions inside it are ordinary scopes."""

    def __init__(self) -> None:
        super().__init__(Trace(dims.Assumptions()))
        self.arrays: dict[Value, Any] = {}
        self.most = _most.get()
        self.interpreter = Interpreter(
            Module("eager", self.trace.funcs), None, None if self.most is None else MAX_STEPS
        )

    def emit(
        self, name: str, values: Sequence[Value], blocks: Sequence[Block], attrs: Mapping[str, Any]
    ) -> tuple[Value, ...]:
        defn = lookup(name)
        try:
            op = Op(defn, values, normalise_attrs(defn, attrs), blocks)
        except FluxError as e:
            with_operands(e, name, values, here())
            raise
        if self.most is not None:
            sizes = [r.type.size for r in op.results if isinstance(r.type, TensorType)]
            if any(isinstance(n, int) and n > self.most for n in sizes):
                raise TooLarge
        self.arrays.update(zip(op.results, self.interpreter.step(op, self.arrays), strict=True))
        return op.results

    def use(self, value: Value, owner: Scope) -> Value:
        if owner is self:
            return value
        return super().use(value, owner)

    def constant(self, array: np.ndarray[Any, Any]) -> Value:
        d = dtype_of(array.dtype)
        v = Value(TensorType.of(d, array.shape))
        self.arrays[v] = array.astype(d.numpy, copy=False)
        return v


_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("fluxir_scope", default=None)
_most: contextvars.ContextVar[int | None] = contextvars.ContextVar("fluxir_most", default=None)
MAX_STEPS = 50_000  # ops that the regions of one eager op run where what it makes is limited


def current() -> Scope | None:
    """The scope in which ops are made now; None outside a trace."""
    return _scope.get()


def scope() -> Scope:
    """The current scope; there must be one."""
    s = _scope.get()
    assert s is not None, "no scope is open: a public function lacks @public"
    return s


def is_tracing() -> bool:
    """Whether a trace is under way. An eager call is none, but the regions of its control flow are traced."""
    s = _scope.get()
    return s is not None and not isinstance(s, EagerScope)


@contextlib.contextmanager
def entered(s: Scope) -> Iterator[Scope]:
    """Make `s` the current scope inside the `with` block; afterwards its tensors are dead."""
    token = _scope.set(s)
    try:
        yield s
    finally:
        s.open = False
        _scope.reset(token)


@contextlib.contextmanager
def suspended(most: int | None = None) -> Iterator[None]:
    """No trace is under way inside the `with` block: public functions compute with numpy there. With `most`, `TooLarge` is
    raised before an op would make more elements, and FX0109 where one takes too many steps."""
    token, limit = _scope.set(None), _most.set(most)
    try:
        yield
    finally:
        _most.reset(limit)
        _scope.reset(token)


def public(fn: Callable[P, R]) -> Callable[P, R]:
    """A public function: inside a trace it emits ops; outside it evaluates on numpy arrays and returns numpy arrays."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if _scope.get() is not None:
                return fn(*args, **kwargs)
            return eager(fn, *args, **kwargs)  # type: ignore[no-any-return]
        except FluxError as e:
            from fluxir.frontend.labels import label_call

            label_call(e, fn, args, kwargs)
            raise

    return call


def eager(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run `fn` with every op evaluated at once; tensors in its result tree become numpy arrays."""
    from fluxir.frontend.tensor import Tensor

    s = EagerScope()
    with entered(s):
        out = fn(*args, **kwargs)
        return tree.map(lambda x: s.arrays[s.use(x.value, x.scope)] if isinstance(x, Tensor) else x, out)


# ---- regions ---------------------------------------------------------------------------------------------------------


@dataclass
class Region:
    """A traced block before its captures are known: the arguments, the ops, the results and their structure."""

    scope: Scope
    args: list[Value]
    out: Any  # the tree the function returned; leaves are Tensors of this scope or plain values
    outs: list[Value] = field(default_factory=list)


def trace_region(
    types: Sequence[Type], fn: Callable[..., Any], names: Sequence[str] = (), weak: Sequence[bool] = ()
) -> Region:
    """Run `fn` on fresh tensors of `types` (`weak[i]`: a Python number) in a child of the current scope.

    The result tree is in `out`; the caller turns its leaves into `outs` (ops made with `inside(region)` are part of the
    region), then closes all regions of the op together with `close_regions`.
    """
    from fluxir.frontend.tensor import Tensor

    s = Scope(scope().trace, scope())
    args = [Value(t, None, i, names[i] if i < len(names) else "") for i, t in enumerate(types)]
    token = _scope.set(s)
    try:
        return Region(s, args, fn(*[Tensor(a, s, i < len(weak) and weak[i]) for i, a in enumerate(args)]))
    finally:
        _scope.reset(token)


@contextlib.contextmanager
def inside(region: Region) -> Iterator[Scope]:
    """Make ops at the end of a region that is not closed yet."""
    token = _scope.set(region.scope)
    try:
        yield region.scope
    finally:
        _scope.reset(token)


def close_regions(regions: Sequence[Region], position: int | None = None) -> tuple[list[Value], list[Block]]:
    """Blocks of the regions of one op, and the captured values it takes as operands.

    Every block gets one argument per value captured by any of them, at `position` among its arguments (default last).
    """
    captured: dict[Value, None] = {}
    for r in regions:
        _require_inside(r)
        captured.update(dict.fromkeys(r.scope.captures))
    blocks = []
    for r in regions:
        extra = [r.scope.captures.get(v) or Value(v.type, None, 0, v.name) for v in captured]
        at = len(r.args) if position is None else position
        args = [*r.args[:at], *extra, *r.args[at:]]
        for i, a in enumerate(args):
            a.index = i
        r.scope.open = False
        blocks.append(Block(args, r.scope.builder.ops, r.outs))
    return list(captured), blocks


def _require_inside(r: Region) -> None:
    """FX0230 for a result whose size became known in the region: outside nobody knows it."""
    for v in r.outs if r.scope.sizes else ():
        names = {name for d in v.type.shape for name in dims.symbols_of(d)} & r.scope.sizes
        if names:
            raise error(
                "FX0230",
                f"a branch or loop body gives {v.type}, where {', '.join(sorted(names))} is known only inside it",
                help="give a bound, such as fx.nonzero(x, size=n), or reduce the result to a fixed size",
                loc=here(),
            )


# ---- whole functions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """A traced function: the module (entry first), the structure of `(args, kwargs)` and of the result."""

    module: Module
    in_tree: tree.TreeDef
    out_tree: tree.TreeDef

    @property
    def entry(self) -> Func:
        return self.module.entry

    @property
    def arg_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.entry.args)

    @property
    def result_names(self) -> tuple[str, ...]:
        return self.entry.result_names


def abstract(leaf: Any, name: str = "argument") -> TensorType:
    """The tensor type of an argument: of a TensorType itself, an array, a numpy scalar or a Python number. FX0303 otherwise.

    A Python bool, int, float becomes a `bool`, `i64`, `f32` scalar.
    """
    if isinstance(leaf, TensorType):
        return leaf
    if isinstance(leaf, DType):
        return TensorType(leaf)
    if isinstance(leaf, np.ndarray | np.generic):
        return TensorType.of(array_dtype(leaf.dtype, name), leaf.shape)
    if isinstance(leaf, bool | int | float):
        return TensorType(bool_ if isinstance(leaf, bool) else i64 if isinstance(leaf, int) else f32)
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is not None and dtype is not None:
        try:
            return TensorType.of(dtype_of(dtype), shape)
        except (FluxError, TypeError):
            pass
    raise error(
        "FX0303",
        f"{name} is a {type(leaf).__name__}, which cannot be traced",
        help="pass arrays, numbers or trees of them; make configuration static, or register a container with fx.tree.register",
    )


def array_dtype(d: np.dtype[Any], name: str = "the array") -> DType:
    """The element type of a numpy array; FX0325 for complex, object, string and structured data."""
    if d.kind in "biuf" or d.name == "bfloat16":
        with contextlib.suppress(FluxError):
            return dtype_of(d)
    raise error("FX0325", f"{name} has the numpy dtype {d}, which has no tensor form")


def argument_names(fn: Callable[..., Any], in_tree: tree.TreeDef) -> list[str]:
    """A name for every leaf of `(args, kwargs)`: the parameter's name and the path below it (`params.w`)."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), "arg")
    out = []
    for path in in_tree.paths():
        which, key, *below = path
        if which == 0:
            root = positional[key] if key < len(positional) else f"{rest}{key - len(positional)}"
        else:
            root = str(key)
        out.append(tree.path_text(tuple(below), root))
    return out


def result_names(out_tree: tree.TreeDef) -> tuple[str, ...]:
    """A name for every result: `y` for a single tensor, `y0`, `y1` for a tuple, keys and fields by their path."""
    out = []
    for path in out_tree.paths():
        first = f"y{path[0]}" if path and isinstance(path[0], int) else "" if path else "y"
        out.append(tree.path_text(path[1:], first) if first else tree.path_text(path))
    return tuple(out)


def function_name(fn: Any) -> str:
    """A name for `fn` (a function, or a name itself) that the text form can hold."""
    base = fn.func if isinstance(fn, functools.partial) else fn
    raw = base if isinstance(base, str) else getattr(base, "__name__", type(base).__name__)
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in raw).strip("_")
    return name if name and not name[0].isdigit() else "main"


def function_location(fn: Any) -> Location | None:
    """Where `fn` is defined."""
    base = inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn)
    code = getattr(getattr(base, "__func__", base), "__code__", None)
    return Location(code.co_filename, code.co_firstlineno, 0, code.co_name) if code is not None else None


def as_facts(facts: Any) -> dims.Facts:
    """Facts from themselves or from text such as "B >= 1, T % 8 == 0"; FX0114 where the text cannot be read."""
    if facts is None:
        return dims.Facts()
    if isinstance(facts, dims.Facts):
        return facts
    from fluxir.ir.attrtext import TextError, read_facts

    try:
        return read_facts(str(facts), dims.Facts())
    except TextError as e:
        raise error(e.code, f"the facts {facts!r}: {e.message}", help=e.help, loc=here()) from None


def assume(facts: str) -> None:
    """State facts about sizes, `fx.assume("N == B, T >= 1")`, which the compiled program checks at its entry."""
    t = scope().trace
    from fluxir.ir.attrtext import TextError, read_facts

    try:
        t.assumptions.facts = read_facts(facts, t.assumptions.facts)
    except TextError as e:
        raise error(e.code, f"the facts {facts!r}: {e.message}", help=e.help, loc=here()) from None


def trace(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    facts: dims.Facts | str | None = None,
) -> Traced:
    """Trace `fn(*args, **kwargs)`, whose leaves are TensorTypes, arrays (taken as their type) or Python numbers.

    A Python number becomes a scalar argument that, like the number itself, never widens a tensor. `facts` is what is
    known of the size symbols (`Facts`, or text such as "B >= 1, T % 8 == 0"); equations that the trace could not decide
    are added to the module's facts. Raises FX0303
    for an argument that cannot be traced, FX0229 for a result that is no tensor, and the errors of the ops.
    """
    from fluxir.frontend.tensor import Tensor, as_tensor

    leaves, in_tree = tree.flatten((tuple(args), dict(kwargs or {})))
    names = argument_names(fn, in_tree)
    types = [abstract(leaf, n) for leaf, n in zip(leaves, names, strict=True)]
    entry = function_name(name or fn)
    t = Trace(dims.Assumptions(as_facts(facts), record=True), entry)
    t.sizes.update(name for ty in types for d in ty.shape for name in dims.symbols_of(d))
    values = [Value(ty, None, i, n) for i, (ty, n) in enumerate(zip(types, names, strict=True))]
    with dims.assuming(t.assumptions), entered(Scope(t)) as s:
        tensors = [Tensor(v, s, weak=type(x) in (bool, int, float)) for v, x in zip(values, leaves, strict=True)]
        a, k = in_tree.unflatten(tensors)
        try:
            out, out_tree = tree.flatten(fn(*a, **k))
            outs = [s.use(x.value, x.scope) for x in map(as_tensor, out)]
        except FluxError as e:
            locate(e)
            raise
    _require_bounds(outs, t)
    block = Block(values, s.builder.ops, outs)
    func = Func(entry, block, result_names=result_names(out_tree), loc=function_location(fn))
    module = Module(entry, {entry: func, **t.funcs}, t.assumptions.facts)
    return Traced(module, in_tree, out_tree)


def _require_bounds(outs: Sequence[Value], t: Trace) -> None:
    """FX0230 for a result whose size is known only at run time and has no bound: its memory is allocated before."""
    for v in outs if t.unbounded else ():
        names = {name for d in v.type.shape for name in dims.symbols_of(d)} & t.unbounded
        if names:
            raise error(
                "FX0230",
                f"a result is {v.type}, and nothing bounds {', '.join(sorted(names))}, which is known only at run time",
                help="its memory is allocated before: give fx.extent a bound (most=)",
                loc=v.owner.loc if v.owner is not None else None,
            )


__all__ = [
    "EagerScope", "Region", "Scope", "Trace", "Traced", "abstract", "as_facts", "assume", "close_regions",
    "current", "eager", "entered", "here", "inside", "is_tracing", "placed", "public", "scope", "suspended", "trace",
    "trace_region",
]  # fmt: skip
