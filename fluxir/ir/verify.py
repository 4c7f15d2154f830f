"""The verifier replays the type rules: a program is well formed when building it again gives the same types. An op whose
types the rule gave under the facts in force has been built that way, and never changes: it is not built again.

Checks: values defined before use and inside the right region (closed at tensor level), declared result types equal
the type rule's, attributes fit the schema, the op belongs to the level, called functions exist and their signatures
fit, no value defined twice, results and nesting in bounds. Errors name function, op path, location, and show the op;
independent ones are reported together. The parser uses the same checks, op by op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluxir.errors import FluxError, Location, combine, error
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Dim, Poly, assuming, facts, prove_equal, substitute
from fluxir.ir.dtypes import DType
from fluxir.ir.opdef import REGISTRY, OpDef
from fluxir.ir.printer import format_op
from fluxir.ir.types import MemType, TensorType, Type, VectorType

MAX_DEPTH = 100  # of regions: deeper ones would overflow the stack of whoever walks them
MAX_RANK = 64  # of numpy's arrays
MAX_ELEMENTS = 1 << 58  # of one value: its bytes, a few times over, are numbers of 64 bits
MAX_ERRORS = 20  # reported in one go
_TYPES = (TensorType, VectorType, MemType)


def verify_module(m: Module) -> None:
    """Raise every independent violation in `m` as one error (FX0101-FX0115, or the type rule's own)."""
    errors: list[FluxError] = []
    with assuming(m.facts):
        for name, f in m.funcs.items():
            if name != f.name:
                errors.append(error("FX0112", f"the function @{f.name} stands in the module as @{name}"))
            errors += _Verifier(f, m).run()
    _raise(errors)


def verify_func(f: Func, m: Module | None = None) -> None:
    """Raise every independent violation in `f` as one error."""
    _raise(_Verifier(f, m).run())


def _raise(errors: list[FluxError]) -> None:
    if errors:
        raise combine(errors[:MAX_ERRORS])


# ---- one op -------------------------------------------------------------------------------------------------------------


def _is_int(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool)


def _is_dim(v: Any) -> bool:
    return _is_int(v) or isinstance(v, Poly)


def _tuple_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(test(x) for x in v)


KINDS: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": lambda v: isinstance(v, float),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "dim": _is_dim,
    "dims": _tuple_of(_is_dim),
    "ints": _tuple_of(_is_int),
    "strs": _tuple_of(lambda v: isinstance(v, str)),
    "dtype": lambda v: isinstance(v, DType),
    "array": lambda v: isinstance(v, np.ndarray),
    "type": lambda v: isinstance(v, _TYPES),
    "types": _tuple_of(lambda v: isinstance(v, _TYPES)),
    "scalar": lambda v: isinstance(v, (int, float)),
    "any": lambda v: True,
}
"""What a normalised attribute of each kind is."""


def check_attrs(d: OpDef, attrs: Mapping[str, Any]) -> None:
    """FX0106 unless `attrs` are all of the op's attributes, in normal form, and no others."""
    for key in attrs:
        if key not in d.attrs:
            raise error(
                "FX0106", f"{d.name} has no attribute {key!r}", help=f"it takes: {', '.join(d.attrs) or 'none'}"
            )
    for key, spec in d.attrs.items():
        if key not in attrs:
            raise error("FX0106", f"{d.name} lacks the attribute {key!r} ({spec.kind})")
        v = attrs[key]
        if v is not spec.default and not KINDS[spec.kind](v) and not (v is None and spec.default is None):
            raise error("FX0106", f"{d.name}: attribute {key!r} must be {spec.kind}, not {v!r}")


def check_level(d: OpDef, level: str, blocks: Sequence[Block]) -> None:
    """FX0108 unless the op may stand in a function of `level` and has the regions it needs."""
    if d.level != "both" and (d.level == "tensor") != (level == "tensor"):
        raise error("FX0108", f"{d.name} is a {d.level}-level op in a {level} function")
    if (
        (d.category == "host" and level != "host")
        or (d.category == "gpu" and level != "kernel")
        or (d.name == "call" and level == "kernel")
    ):
        raise error("FX0108", f"{d.name} cannot stand in a {level} function")
    if d.regions >= 0 and len(blocks) != d.regions:
        raise error("FX0108", f"{d.name} has {len(blocks)} regions, needs {d.regions}")


def infer(d: OpDef, types: Sequence[Type], attrs: Attrs, blocks: Sequence[Block]) -> tuple[Type, ...]:
    """The type rule's answer. A rule that trips over operands it does not expect counts as FX0108."""
    try:
        return tuple(d.infer(tuple(types), attrs, tuple(blocks)))
    except FluxError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError, ArithmeticError) as e:
        shown = ", ".join(map(str, types))
        why = f"its type rule stopped with {type(e).__name__}: {e}"
        raise error(
            "FX0108", f"{d.name} does not take ({shown}) with these attributes", notes=[why], help=d.doc
        ) from None


def check_result_types(name: str, inferred: Sequence[Type], declared: Sequence[Type]) -> None:
    """FX0105 unless the types are the same for all sizes."""
    if len(inferred) != len(declared) or not all(map(same_type, inferred, declared)):
        want, got = ", ".join(map(str, inferred)) or "none", ", ".join(map(str, declared)) or "none"
        raise error("FX0105", f"{name}: the type rule gives {want}, the program says {got}")


def check_value_type(t: Type, level: str) -> None:
    """FX0108 unless a function of `level` can hold values of type `t`."""
    if level == "tensor" and not isinstance(t, TensorType):
        raise error("FX0108", f"a tensor function has no values of type {t}")
    if level != "tensor" and isinstance(t, TensorType) and t.shape:
        raise error("FX0108", f"a {level} function has no values of type {t}: tensors are memory there, &{t}")


def check_op(d: OpDef, operands: Sequence[Value], attrs: Attrs, blocks: Sequence[Block], level: str, loc: Location | None,
             declared: Sequence[Type]) -> Op:  # fmt: skip
    """The op, with the declared result types, if it is well formed on its own."""
    check_attrs(d, attrs)
    check_level(d, level, blocks)
    check_result_types(d.name, infer(d, [v.type for v in operands], attrs, blocks), declared)
    for t in declared:
        check_value_type(t, level)
    return Op(d, operands, attrs, blocks, loc, declared)


# ---- types under facts --------------------------------------------------------------------------------------------------


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal under the facts in force. Normal forms made under other facts are made anew."""
    return a == b or prove_equal(a, b) or prove_equal(substitute(a, {}), substitute(b, {}))


def same_type(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if type(a) is not type(b) or isinstance(a, VectorType) or a.dtype != b.dtype or len(a.shape) != len(b.shape):
        return False
    if isinstance(a, MemType) and a.space != b.space:
        return False
    return all(map(same_dim, a.shape, b.shape))


def substituted(t: Type, env: Mapping[str, Dim]) -> Type:
    """A type with the symbols of `env` replaced, all at once."""
    if isinstance(t, VectorType) or not any(isinstance(d, Poly) for d in t.shape):
        return t
    shape = tuple(substitute(d, env) for d in t.shape)
    return MemType(t.dtype, shape, t.space) if isinstance(t, MemType) else TensorType(t.dtype, shape)


# ---- calls --------------------------------------------------------------------------------------------------------------


def check_references(op: Op, m: Module) -> None:
    """FX0107 if the function that `op` names is not there, FX0108 if the op does not fit its signature."""
    callee = op.attrs.get("callee")
    if callee is None:
        return
    if callee not in m.funcs:
        raise error(
            "FX0107",
            f"{op.name}: there is no function @{callee}",
            help="functions: " + ", ".join("@" + n for n in m.funcs),
        )
    f = m.funcs[callee]
    if op.name == "launch":
        _check_launch(op, f)
    elif op.name == "kernel":
        _check_kernel(op, f)
    elif op.name == "call" and not op.attrs["transform"]:
        _check_call(op, f)


def _check_launch(op: Op, f: Func) -> None:
    """A kernel runs with its caller's sizes, so its argument types are compared as they are."""
    if f.level != "kernel":
        raise error("FX0108", f"launch of @{f.name}, which is a {f.level} function, not a kernel")
    _check_arguments(op, f, {})
    outputs, memories = op.attrs["outputs"], sum(isinstance(a.type, MemType) for a in f.args)
    if not 0 <= outputs <= memories:
        raise error(
            "FX0108",
            f"launch: @{f.name} has {memories} memory arguments, of which the last {outputs} cannot be outputs",
        )
    for pair in op.attrs["inplace"]:
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and all(_is_int(i) and 0 <= i < len(op.operands) for i in pair)
        ):
            raise error("FX0106", f"launch: {pair!r} in `inplace` is not a pair (output argument, input argument)")


def _check_kernel(op: Op, f: Func) -> None:
    """A kernel called from a tensor function: each operand is a memory of its type."""
    if f.level != "kernel":
        raise error("FX0108", f"kernel: @{f.name} is a {f.level} function, not a kernel")
    wanted = [MemType(v.type.dtype, v.type.shape) for v in op.operands]
    if len(wanted) != len(f.args) or not all(same_type(a.type, t) for a, t in zip(f.args, wanted)):
        takes = ", ".join(str(a.type) for a in f.args)
        raise error("FX0108", f"kernel: @{f.name} takes ({takes}), given ({', '.join(map(str, wanted))})")


def _check_call(op: Op, f: Func) -> None:
    env: dict[str, Dim] = {}
    for entry in op.attrs["dims"]:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and _is_dim(entry[1])):
            raise error("FX0106", f"call: {entry!r} in `dims` is not a pair (symbol, size)")
        env[entry[0]] = entry[1]
    # A symbol that is not named is the caller's of the same name: inlining and code generation take it so.
    _check_arguments(op, f, env, _sizes_meant(op, f, env))
    outs = [substituted(v.type, env) for v in f.outs]
    says = [r.type for r in op.results]
    if len(outs) != len(says) or not all(map(same_type, outs, says)):
        raise error(
            "FX0108",
            f"call: @{f.name} returns ({', '.join(map(str, outs))}), the call says ({', '.join(map(str, says))})",
        )


def _sizes_meant(op: Op, f: Func, env: Mapping[str, Dim]) -> str | None:
    """A hint where the operands would fit if `dims` named the callee's sizes."""
    meant: dict[str, Dim] = dict(env)
    for v, a in zip(op.operands, f.args, strict=False):
        for given, wanted in zip(getattr(v.type, "shape", ()), getattr(a.type, "shape", ()), strict=False):
            if isinstance(wanted, Poly) and str(wanted).isidentifier():
                meant.setdefault(str(wanted), given)
    fits = all(same_type(v.type, substituted(a.type, meant)) for v, a in zip(op.operands, f.args, strict=False))
    if not fits or meant == env:
        return None
    named = ", ".join(f'("{name}", <{size}>)' for name, size in sorted(meant.items()))
    return f"a size that is not named is the caller's: write dims=({named},)"


def _check_arguments(op: Op, f: Func, env: Mapping[str, Dim], hint: str | None = None) -> None:
    given, wanted = [v.type for v in op.operands], [substituted(a.type, env) for a in f.args]
    if (
        "arena" in f.attrs and len(given) == len(wanted) - 1
    ):  # planned functions get their arena from the caller's later
        wanted.pop()
    if len(given) != len(wanted):
        raise error("FX0108", f"{op.name}: @{f.name} takes {len(wanted)} arguments, {len(given)} given")
    for a, g, w in zip(f.args, given, wanted, strict=False):
        if not same_type(g, w):
            as_written = f" ({a.type} there)" if a.type != w else ""
            raise error(
                "FX0108",
                f"{op.name}: argument {a.name or a.index} of @{f.name} is {w}{as_written}, given {g}",
                help=hint,
            )


# ---- one function ---------------------------------------------------------------------------------------------------------


class _Verifier:
    def __init__(self, func: Func, module: Module | None) -> None:
        self.func, self.module = func, module
        self.closed = func.level == "tensor"
        self.facts = facts()
        self.defined: set[Value] = set()
        self.errors: list[FluxError] = []

    def run(self) -> list[FluxError]:
        f, path = self.func, f"@{self.func.name}"
        if f.level not in ("tensor", "kernel", "host"):
            return [error("FX0108", f"{path}: there is no level {f.level!r}", loc=f.loc)]
        for a in f.args:
            try:
                check_value_type(a.type, f.level)
            except FluxError as e:
                self.errors.append(self.placed(e, path, None))
        if f.result_names and len(f.result_names) != len(f.outs):
            self.errors.append(
                error("FX0111", f"{path}: {len(f.result_names)} result names for {len(f.outs)} results", loc=f.loc)
            )
        named = [n for n in f.result_names if n]
        if len(set(named)) != len(named):
            self.errors.append(
                error("FX0111", f"{path}: two results have the same name: {', '.join(named)}", loc=f.loc)
            )
        if f.level == "kernel" and f.outs:
            self.errors.append(error("FX0111", f"{path}: a kernel returns nothing, it writes memory", loc=f.loc))
        self.block(f.block, set(), path, 0)
        return self.errors

    def placed(self, e: FluxError, here: str, op: Op | None) -> FluxError:
        """An error with the place it is at."""
        e.loc = e.loc or (op.loc if op else self.func.loc)
        e.message = f"{here}: {e.message}"
        e.args = (e.message,)
        if op is not None:
            e.notes.append(format_op(op))
        return e

    def fits(self, v: Value, here: str, op: Op | None) -> None:
        """A value has no more bytes than addresses reach, and no more axes than arrays have. Sizes that are open count as 1, and
        so do those of 0: the others are multiplied by machine code, too."""
        shape = v.type.shape
        if len(shape) > MAX_RANK or math.prod([d for d in shape if isinstance(d, int) and d]) >= MAX_ELEMENTS:
            what = f"{len(shape)} axes" if len(shape) > MAX_RANK else f"the shape [{', '.join(map(str, shape))}]"
            self.errors.append(self.placed(error("FX0109", f"a value has {what}, which no memory holds"), here, op))

    def block(self, block: Block, visible: set[Value], path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise error("FX0109", f"{path[:200]}: regions are nested more than {MAX_DEPTH} deep")
        # Open regions see what is around them; their own values are forgotten at their end.
        scope: set[Value] = set() if self.closed else visible
        own: list[Value] = []
        for v in block.args:
            self.fits(v, path, None)
            if v in self.defined:
                self.twice(v, path, None)
        self.defined.update(block.args)
        scope.update(block.args)
        own.extend(block.args)
        for i, op in enumerate(block.ops):
            for v in op.operands:
                if v not in scope:
                    self.undefined(v, f"{path}/{i}:{op.name}: operand", op)
            for j, inner in enumerate(op.blocks):
                self.block(inner, scope, f"{path}/{i}:{op.name}.{j}", depth + 1)
            try:
                self.op(op)
            except FluxError as e:
                self.errors.append(self.placed(e, f"{path}/{i}:{op.name}", op))
            for r in op.results:
                self.fits(r, f"{path}/{i}:{op.name}", op)
                if r in self.defined:
                    self.twice(r, f"{path}/{i}:{op.name}", op)
                self.defined.add(r)
                scope.add(r)
                own.append(r)
        for v in block.outs:
            if v not in scope:
                self.undefined(v, f"{path}: yielded value", None)
        scope.difference_update(own)

    def undefined(self, v: Value, what: str, op: Op | None) -> None:
        help = None
        if v in self.defined and self.closed:
            help = "regions of tensor programs are closed: pass the value as an operand"
        self.errors.append(error("FX0103", f"{what} {v!r} is not defined here", loc=op.loc if op else self.func.loc,
                                 notes=[format_op(op)] if op else [], help=help))  # fmt: skip

    def twice(self, v: Value, here: str, op: Op | None) -> None:
        loc = op.loc if op else self.func.loc
        self.errors.append(error("FX0104", f"{here}: value {v!r} is defined twice", loc=loc))

    def op(self, op: Op) -> None:
        d, level = op.defn, self.func.level
        if REGISTRY.get(op.name) is not d:
            raise error("FX0102", f"{op.name!r} is not a registered op")
        check_attrs(d, op.attrs)
        check_level(d, level, op.blocks)
        types = [r.type for r in op.results]
        if op.inferred is not self.facts:
            check_result_types(d.name, infer(d, [v.type for v in op.operands], op.attrs, op.blocks), types)
        for t in types:
            check_value_type(t, level)
        if self.module is not None:
            check_references(op, self.module)
