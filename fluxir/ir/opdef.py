"""How an op is declared: one `OpDef` in one place holds everything the house knows about it.

A declaration gives the type rule, the numpy meaning, how one element is computed at loop level, how the op is
spelled in LLVM, composites' expansion, derivative and batching rules, and samples from which the test suite
checks all of that. `REGISTRY` finds a definition by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, Poly, as_dim
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.types import Type

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()

# What an attribute may hold; the parser and the verifier check against it.
ATTR_KINDS = (
    "int",
    "float",
    "bool",
    "str",
    "dim",
    "dims",
    "ints",
    "strs",
    "dtype",
    "array",
    "type",
    "types",
    "scalar",
    "any",
)


@dataclass(frozen=True)
class AttrSpec:
    """One attribute: its kind and default (`REQUIRED` if it must be given)."""

    kind: str
    default: Any = REQUIRED


class ElementContext(Protocol):
    """What an element rule may use: a loop-level builder and access to the op's operands by index."""

    b: Any  # Builder

    def at(self, value: Value, index: Sequence[Value]) -> Value:
        """The scalar of tensor `value` at `index` (one i64 scalar a dimension); bounds are the caller's duty."""

    def dim(self, d: Dim) -> Value:
        """The size `d` as an i64 scalar."""


InferRule = Callable[[tuple[Type, ...], Attrs, tuple[Block, ...]], Sequence[Type]]


@dataclass(frozen=True, eq=False)
class OpDef:
    """Everything about one op. Fields that are `None` are rules it does not have (see `fluxir ops`)."""

    name: str
    infer: InferRule
    doc: str
    ref: Callable[..., Any] | None = None  # ref(attrs, *arrays) -> array | tuple; attrs' dims already integers
    eval: Callable[..., Any] | None = None  # eval(interp, op, attrs, args) -> list; for ops with regions or effects
    attrs: Mapping[str, AttrSpec] = field(default_factory=dict)
    category: str = (
        "other"  # elementwise | shape | reduce | contract | index | control | random | composite | loop | ...
    )
    level: str = "tensor"  # tensor | loop | both
    commutes: bool = False
    effects: bool = False  # writes memory or otherwise must not be removed or duplicated
    regions: int = 0  # number of blocks
    expand: Callable[..., Any] | None = None  # expand(b, op) -> value(s): a composite in terms of simpler ops
    whole: Callable[[Op, str], bool] | None = None  # whole(op, target kind): has a kernel, and so is not expanded there
    element: Callable[..., Any] | None = None  # element(cx, op, index) -> scalar(s): one element at loop level
    approx: Callable[..., Any] | None = (
        None  # approx(b, *scalars) -> scalar: in simpler arithmetic, where LLVM has no spelling
    )
    llvm: Any = None  # spelling by dtype kind, or a callable used by codegen
    cost: Callable[[Op], Dim] | None = None  # floating-point operations; default one per output element if elementwise
    rounds: Callable[[Op], Dim] | None = None  # how often its regions run, where the operands' types say so
    vjp: Callable[..., Any] | None = None  # vjp(b, op, cotangents of results) -> of operands; see ops/adjoint.py
    jvp: Callable[..., Any] | None = None  # jvp(b, op, tangents of operands) -> of results
    linear: str = ""  # "all": linear in its float operands together; "each": in each of them, the others fixed
    constant: str = ""  # why its derivative is zero everywhere (or is not defined by its values)
    batch: Callable[..., Any] | None = None  # batch(b, op, operands, flags, size) -> results with the batch axis first
    samples: tuple[Any, ...] = ()  # Sample or tuple of operand type texts

    @property
    def pure(self) -> bool:
        return not self.effects


@dataclass(frozen=True)
class Sample:
    """One checked use of an op: operand types, attributes, and the range its random inputs are drawn from."""

    types: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0
    make: Callable[..., Any] | None = None  # make(rng) -> list of arrays, where a range does not do
    rtol: float | None = None


def sample(
    *types: str, low: float = -2.0, high: float = 2.0, make: Any = None, rtol: float | None = None, **attrs: Any
) -> Sample:
    return Sample(types, attrs, low, high, make, rtol)


REGISTRY: dict[str, OpDef] = {}


def register(d: OpDef) -> OpDef:
    """Add a definition; each name is declared once."""
    if d.name in REGISTRY:
        raise ValueError(f"op {d.name!r} is declared twice")
    REGISTRY[d.name] = d
    return d


def op(
    name: str,
    infer: InferRule,
    *,
    doc: str,
    attrs: Mapping[str, Any] | None = None,
    samples: Sequence[Any] = (),
    **kw: Any,
) -> OpDef:
    """Declare an op. `attrs` maps a name to a kind (required) or to `(kind, default)`."""
    specs = {k: AttrSpec(v) if isinstance(v, str) else AttrSpec(*v) for k, v in (attrs or {}).items()}
    for k, s in specs.items():
        assert s.kind in ATTR_KINDS, f"{name}.{k}: unknown attribute kind {s.kind}"
    listed = tuple(s if isinstance(s, Sample) else Sample(tuple(s)) for s in samples)
    return register(OpDef(name=name, infer=infer, doc=doc, attrs=specs, samples=listed, **kw))


def lookup(name: str) -> OpDef:
    """The definition of `name`; FX0102 with near names if there is none."""
    try:
        return REGISTRY[name]
    except KeyError:
        import difflib

        near = difflib.get_close_matches(name, REGISTRY, 3)
        hint = f"did you mean {', '.join(near)}?" if near else "`fluxir ops` lists all ops"
        raise error("FX0102", f"there is no op named {name!r}", help=hint) from None


def normalise_attrs(d: OpDef, given: Mapping[str, Any]) -> Attrs:
    """Check attributes against the schema, convert to canonical types, fill defaults. Raises FX0106."""
    out = Attrs()
    for key in given:
        if key not in d.attrs:
            raise error(
                "FX0106", f"{d.name} has no attribute {key!r}", help=f"it takes: {', '.join(d.attrs) or 'none'}"
            )
    for key, spec in d.attrs.items():
        value = given.get(key, spec.default)
        if value is REQUIRED:
            raise error("FX0106", f"{d.name} needs the attribute {key!r} ({spec.kind})")
        dict.__setitem__(
            out, key, value if value is None or value is spec.default else _convert(d, key, spec.kind, value)
        )
    return out


def _convert(d: OpDef, key: str, kind: str, v: Any) -> Any:
    try:
        match kind:
            case "int":
                return v.__index__()
            case "float":
                return float(v)
            case "bool" if isinstance(v, (bool, int)):
                return bool(v)
            case "str" if isinstance(v, str):
                return v
            case "dim":
                return as_dim(v)
            case "dims":
                return tuple(as_dim(x) for x in v)
            case "ints":
                return tuple(x.__index__() for x in v)
            case "strs" if all(isinstance(x, str) for x in v):
                return tuple(v)
            case "dtype":
                return dtype_of(v)
            case "array" | "type" | "scalar" | "any":
                return v
            case "types":
                return tuple(v)
    except (TypeError, AttributeError, ValueError):
        pass
    raise error("FX0106", f"{d.name}: attribute {key!r} must be {kind}, not {v!r}")


def set_batch(name: str, rule: Callable[..., Any]) -> None:
    """Give a declared op its batching rule: the rules live in files of their own, apart from the declarations."""
    d = lookup(name)
    if d.batch is not None:
        raise ValueError(f"op {name!r} has a batching rule already")
    object.__setattr__(d, "batch", rule)


def default_of(d: OpDef, key: str) -> Any:
    spec = d.attrs.get(key)
    return spec.default if spec else REQUIRED


__all__ = [
    "AttrSpec",
    "DType",
    "ElementContext",
    "OpDef",
    "Poly",
    "REGISTRY",
    "REQUIRED",
    "Sample",
    "lookup",
    "normalise_attrs",
    "op",
    "register",
    "sample",
    "set_batch",
]
