"""Trees: nested containers of tensors, their structure as a value, and paths into them.

Owns `flatten`/`unflatten` over dict, list, tuple, namedtuple, dataclass, None and registered classes. What names a choice
belongs to the structure: a function (an activation in a model), text, an enum member, a dtype, a class. A `TreeDef` is the
structure without the leaves; equal structures compare equal. Invariants: `unflatten(flatten(x)) == x`; dict keys are
visited in sorted order, so two dicts with the same keys have one structure; a structure turns into plain JSON and back
without naming code to import (a dataclass of an unknown class comes back as a dict, a namedtuple as a fresh one).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np

from fluxir.errors import Location, error
from fluxir.frontend.undefined import Undefined
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType, TensorType, VectorType

Path = tuple[Any, ...]  # keys (str), positions (int) and field names (str) from the root to a leaf


@dataclass(frozen=True, slots=True)
class TreeDef:
    """The structure of a tree. `kind` is leaf, none, static, dict, list, tuple, namedtuple, dataclass or custom."""

    kind: str
    keys: tuple[Any, ...] = ()
    children: tuple[TreeDef, ...] = ()
    cls: Any = None  # the class of a namedtuple, dataclass or registered container
    aux: Any = None  # what a registered container needs besides its children; what is static

    @property
    def leaf_count(self) -> int:
        """How many leaves a tree of this structure has."""
        return 1 if self.kind == "leaf" else sum(c.leaf_count for c in self.children)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The tree of this structure with these leaves; FX0313 unless there are `leaf_count` of them."""
        if len(leaves) != self.leaf_count:
            raise error("FX0313", f"a tree of {self.leaf_count} leaves was given {len(leaves)}")
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "none":
            return None
        if self.kind == "static":
            return self.aux.x
        return rebuilt(self, [c._build(leaves) for c in self.children])

    def paths(self) -> list[Path]:
        """The path of every leaf, in order."""
        return list(self._paths(()))

    def _paths(self, prefix: Path) -> Iterator[Path]:
        if self.kind == "leaf":
            yield prefix
        for key, child in zip(self.keys, self.children, strict=True):
            yield from child._paths((*prefix, key))

    def to_json(self) -> Any:
        """The structure as JSON-ready data; see `from_json`."""
        if self.kind in ("leaf", "none"):
            return self.kind
        if self.kind == "static":
            # Text is data. Code is not: nothing stands in its place.
            return {"kind": "text", "text": self.aux.x} if type(self.aux.x) is str else "none"
        out: dict[str, Any] = {"kind": self.kind, "children": [c.to_json() for c in self.children]}
        if self.kind not in ("list", "tuple"):
            out["keys"] = list(self.keys)
        if self.cls is not None:
            out["name"] = self.cls.__name__
        return out

    def __str__(self) -> str:
        match self.kind:
            case "leaf":
                return "*"
            case "none":
                return "None"
            case "static":
                return str(self.aux.name)
            case "list":
                return "[" + ", ".join([str(c) for c in self.children]) + "]"
            case "tuple":
                return "(" + ", ".join([str(c) for c in self.children]) + ("," if len(self.children) == 1 else "") + ")"
            case "dict":
                return "{" + ", ".join(f"{k!r}: {c}" for k, c in zip(self.keys, self.children, strict=True)) + "}"
        inner = ", ".join(f"{k}={c}" for k, c in zip(self.keys, self.children, strict=True))
        return f"{self.cls.__name__}({inner})"


def rebuilt(structure: TreeDef, items: Sequence[Any]) -> Any:
    """The container of this structure (its topmost one) with these children."""
    match structure.kind:
        case "dict":
            return dict(zip(structure.keys, items, strict=True))
        case "list":
            return list(items)
        case "tuple":
            return tuple(items)
        case "namedtuple":
            return structure.cls(*items)
        case "dataclass":
            return _rebuild(structure.cls, dict(zip(structure.keys, items, strict=True)), structure.aux)
    return _CUSTOM[structure.cls].unflatten(structure.aux, items)


class _Static:
    """A part of a structure. A function is equal to itself, and a bound method to the same method of the same object; text and
    what else names a choice is equal to what Python says, if of one class."""

    __slots__ = ("x",)

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static):
            return NotImplemented
        a, b = self.x, other.x
        if isinstance(a, MethodType) and isinstance(b, MethodType):
            return a.__func__ is b.__func__ and a.__self__ is b.__self__
        return a is b or type(a) is type(b) and isinstance(a, _CHOICES) and bool(a == b)

    def __hash__(self) -> int:
        x = self.x
        if isinstance(x, _CHOICES):
            return hash((type(x), x))
        return hash((id(x.__func__), id(x.__self__))) if isinstance(x, MethodType) else id(x)

    @property
    def name(self) -> str:
        if isinstance(self.x, _CHOICES):
            return repr(self.x)
        return str(getattr(self.x, "__name__", None) or type(self.x).__name__)


_CHOICES = (str, bytes, enum.Enum, np.dtype, DType)
"""Classes whose values name a choice. A `DType` is one where it is `fixed`; elsewhere it is the type of a scalar."""


def fixed(x: Any) -> Any:
    """Something that stands for `x` in a tree and makes it a part of the structure: the tree is built with `x` in its place."""
    return _Static(x)


def is_static(x: Any) -> bool:
    """Whether `x` in a tree belongs to the structure: a function, text, an enum member, a dtype, a class."""
    cls: Any = type(x)
    return _kind(cls) == "static" or is_function(x)


def is_function(x: Any) -> bool:
    """Whether `x` can be called and holds no data of its own that a tree could see: a function, a ufunc, a jitted function."""
    cls: Any = type(x)
    return _kind(cls) == "callable" and not hasattr(x, "dtype")


LEAF = TreeDef("leaf")
NONE = TreeDef("none")


@dataclass(frozen=True, slots=True)
class _Custom:
    flatten: Callable[[Any], tuple[Sequence[Any], Any]]
    unflatten: Callable[[Any, Sequence[Any]], Any]
    keys: Callable[[Any], Sequence[Any]] | None


_CUSTOM: dict[type, _Custom] = {}


def register(
    cls: type,
    flatten: Callable[[Any], tuple[Sequence[Any], Any]],
    unflatten: Callable[[Any, Sequence[Any]], Any],
    keys: Callable[[Any], Sequence[Any]] | None = None,
) -> None:
    """Make `cls` a container: `flatten(x) -> (children, aux)`, `unflatten(aux, children) -> x`, `aux` hashable.

    `keys(x)` names the children in paths (default: their positions).
    """
    _CUSTOM[cls] = _Custom(flatten, unflatten, keys)
    _kind.cache_clear()


def is_namedtuple(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(type(x), "_fields")


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], TreeDef]:
    """Leaves in order, and the structure. Whatever is no container and not static is a leaf; `is_leaf` can stop earlier."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves, is_leaf, 0)


def _flatten(x: Any, leaves: list[Any], is_leaf: Callable[[Any], bool] | None, depth: int) -> TreeDef:
    if depth > 200:
        raise error("FX0109", "a tree is nested more than 200 deep (does it contain itself?)")
    if is_leaf is not None and is_leaf(x):
        leaves.append(x)
        return LEAF
    if x is None:
        return NONE
    cls: Any = type(x)
    kind = _kind(cls)
    keys: tuple[Any, ...]
    items: list[Any]
    aux: Any = None
    shown: Any = cls
    match kind:
        case "leaf":
            leaves.append(x)
            return LEAF
        case "callable":
            if hasattr(x, "dtype"):
                leaves.append(x)
                return LEAF
            return TreeDef("static", aux=_Static(x))
        case "static":
            return TreeDef("static", aux=x if cls is _Static else _Static(x))
        case "dict":
            keys, shown = _sorted_keys(x), None
            items = [x[k] for k in keys]
        case "list" | "tuple":
            keys, items, shown = tuple(range(len(x))), list(x), None
        case "namedtuple":
            keys, items = tuple(cls._fields), list(x)
        case "dataclass":
            keys, static = _fields(cls)
            items, aux = [getattr(x, n) for n in keys], tuple([(n, getattr(x, n)) for n in static])
        case _:
            c = _CUSTOM[cls]
            children, aux = c.flatten(x)
            items = list(children)
            keys = tuple(c.keys(x)) if c.keys else tuple(range(len(items)))
    return TreeDef(kind, keys, tuple([_flatten(v, leaves, is_leaf, depth + 1) for v in items]), shown, aux)


@functools.lru_cache(maxsize=4096)
def _kind(cls: Any) -> str:
    """How instances of a class are taken apart; "callable" is a function, unless the instance has a dtype."""
    if cls in _CUSTOM:
        return "custom"
    if issubclass(cls, _Static | str | bytes | enum.Enum | np.dtype | type):
        return "static"
    if issubclass(cls, dict):
        return "dict"
    if issubclass(cls, list):
        return "list"
    if issubclass(cls, tuple):
        return "namedtuple" if hasattr(cls, "_fields") else "tuple"
    if issubclass(cls, DType | TensorType | VectorType | MemType | Undefined):
        return "leaf"
    if dataclasses.is_dataclass(cls):
        return "dataclass"
    return "callable" if any("__call__" in c.__dict__ for c in cls.__mro__) else "leaf"


@functools.lru_cache(maxsize=4096)
def _fields(cls: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(children, static fields) of a dataclass: fields marked `field(metadata={"static": True})` belong to the structure."""
    fields = dataclasses.fields(cls)
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    return tuple(f.name for f in fields if f.name not in static), static


def _rebuild(cls: Any, values: dict[str, Any], static: Any) -> Any:
    """A dataclass instance without running its `__post_init__`: the leaves may be types or tensors by then."""
    x = object.__new__(cls)
    for name, value in {**values, **dict(static or ())}.items():
        object.__setattr__(x, name, value)
    return x


def _sorted_keys(d: dict[Any, Any]) -> tuple[Any, ...]:
    for k in d:
        if not isinstance(k, str | int) or isinstance(k, bool):
            raise error("FX0303", f"a dict key in a tree must be a string or an integer, not {k!r}")
    return tuple(sorted(d, key=lambda k: (isinstance(k, str), k)))


def unflatten(structure: TreeDef, leaves: Sequence[Any]) -> Any:
    """The tree of `structure` with `leaves`."""
    return structure.unflatten(leaves)


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree, in order."""
    return flatten(tree)[0]


def map(f: Callable[..., Any], tree: Any, *rest: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Apply `f` to the leaves of trees of one structure; FX0313 names the path where they differ."""
    first, structure = flatten(tree, is_leaf)
    columns = [first]
    for other in rest:
        more, s = flatten(other, is_leaf)
        check_same(structure, s, "fx.tree.map: the first tree", "another")
        columns.append(more)
    return structure.unflatten([f(*xs) for xs in zip(*columns, strict=True)])


def path_text(path: Path, root: str = "") -> str:
    """A path as it is written in messages and argument names: `params.layers.0.w`."""
    return ".".join([*([root] if root else []), *(str(p) for p in path)])


def difference(a: TreeDef, b: TreeDef, path: Path = ()) -> str | None:
    """Where two structures first differ, in words with the path; None if they are equal."""
    if a == b:
        return None
    at = f" at {path_text(path)}" if path else ""
    if (a.kind, a.cls) != (b.kind, b.cls) or a.kind == "static":
        return f"{_noun(a)} and {_noun(b)}{at}"
    if a.keys != b.keys:
        if a.kind in ("list", "tuple"):
            return f"{_noun(a)}s of {len(a.keys)} and {len(b.keys)} elements{at}"
        odd = [k for k in (*a.keys, *b.keys) if (k in a.keys) != (k in b.keys)]
        return f"key {odd[0]!r} is in one of them only{at}" if odd else f"keys in another order{at}"
    for key, x, y in zip(a.keys, a.children, b.children, strict=True):
        found = difference(x, y, (*path, key))
        if found:
            return found
    return f"static fields differ{at}"


def _noun(t: TreeDef) -> str:
    if t.kind == "static":
        return t.aux.name if isinstance(t.aux.x, _CHOICES) else f"the function {t.aux.name!r}"
    return {"leaf": "a tensor", "none": "None", "dict": "a dict", "list": "a list", "tuple": "a tuple"}.get(
        t.kind
    ) or f"a {t.cls.__name__}"


def check_same(
    a: TreeDef, b: TreeDef, a_name: str, b_name: str, code: str = "FX0313", loc: Location | None = None
) -> None:
    """Raise `code` (FX0313) with the first difference unless the structures are equal."""
    found = difference(a, b)
    if found:
        labels = [(a_name, str(a)), (b_name, str(b))]
        raise error(code, f"{a_name} and {b_name} differ in structure: {found}", labels=labels, loc=loc)


def from_json(data: Any) -> TreeDef:
    """The structure written by `TreeDef.to_json`. A dataclass or registered class comes back as a dict of its fields."""
    if data == "leaf":
        return LEAF
    if data == "none":
        return NONE
    try:
        kind = data["kind"]
        if kind == "text":
            return TreeDef("static", aux=_Static(str(data["text"])))
        children = tuple(from_json(c) for c in data["children"])
        if kind in ("list", "tuple"):
            return TreeDef(kind, tuple(range(len(children))), children)
        keys = tuple(data["keys"])
        if len(keys) != len(children) or not all(isinstance(k, str | int) for k in keys):
            raise ValueError("keys")
        if kind == "namedtuple":
            fields = [str(k) for k in keys]
            return TreeDef(kind, tuple(fields), children, namedtuple(str(data["name"]), fields))
        if kind in ("dict", "dataclass", "custom"):
            return TreeDef("dict", keys, children)
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise error("FX0313", "this is not the description of a tree")


register_tree = register

__all__ = [
    "LEAF", "NONE", "Path", "TreeDef", "check_same", "difference", "fixed", "flatten", "from_json", "is_function",
    "is_static", "leaves", "map", "path_text", "rebuilt", "register", "register_tree", "unflatten",
]  # fmt: skip
