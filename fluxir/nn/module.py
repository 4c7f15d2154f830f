"""`Module`: models as trees that can be called. Owns how a class becomes one, its fields, and calling one layer.

A subclass of `Module` is a dataclass whose fields are the children of a tree: arrays, other modules, lists and dicts of
those. Functions among them, and fields made with `static()`, belong to the structure, so that programs are compiled once for
each of them. So a model is an argument like any other:

    class Affine(fx.nn.Module):
        w: Any
        b: Any
        scale: float = fx.nn.static(default=1.0)

        def __call__(self, x):
            return (x @ self.w + self.b) * self.scale

    model = Affine(w, b)
    grads = fx.grad(lambda m: fx.mean(m(x)))(model)      # an Affine too

A class may have an `__init__` of its own, which sets all fields. After it a module never changes (FX1006).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, dataclass_transform

import numpy as np

import fluxir as fx

Self = TypeVar("Self", bound="Module")


def static(**options: Any) -> Any:
    """A field that belongs to the structure of a module: a size, a flag, a name. It must be hashable (FX1003)."""
    return dataclasses.field(metadata={"static": True}, **options)


def state(**options: Any) -> Any:
    """A field with running statistics: saved and compiled like a parameter, and none (see `trainable`)."""
    return dataclasses.field(metadata={"state": True}, **options)


@dataclass_transform(eq_default=False, field_specifiers=(static, state))
class ModuleType(type):
    """The class of module classes: makes each a dataclass, and closes instances when `__init__` is done."""

    _own_init: bool

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> ModuleType:
        cls: Any = super().__new__(mcs, name, bases, namespace, **options)
        cls._own_init = "__init__" in namespace or any(getattr(b, "_own_init", False) for b in bases)
        made: Any = dataclasses.dataclass(eq=False, repr=False, init=not cls._own_init)(cls)
        return made  # type: ignore[no-any-return]

    def __call__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        x = object.__new__(cls)
        x.__dict__["_open"] = True
        x.__init__(*args, **kwargs)
        del x.__dict__["_open"]
        for f in dataclasses.fields(x):
            if f.name not in x.__dict__:
                raise fx.error("FX1006", f"{cls.__name__}.__init__ sets no field {f.name!r}",
                               help=f"assign self.{f.name}, or remove the annotation in the class")  # fmt: skip
            if f.metadata.get("static"):
                _check_static(cls.__name__, f.name, getattr(x, f.name))
        return x


def _check_static(owner: str, name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise fx.error("FX1003", f"the static field {name!r} of {owner} is a {type(value).__name__}, which cannot be hashed",
                       help="use a tuple instead of a list; arrays are ordinary fields") from None  # fmt: skip


class Module(metaclass=ModuleType):
    """The base class of layers and models; see the text at the head of this file."""

    def __setattr__(self, name: str, value: Any) -> None:
        if "_open" not in self.__dict__:
            raise fx.error("FX1006", f"{type(self).__name__}.{name} is assigned after the module was made")
        if name not in type(self).__dataclass_fields__:
            raise fx.error("FX1006", f"{type(self).__name__} has no field {name!r}",
                           help=f"declare it in the class: `{name}: Any`")  # fmt: skip
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        raise fx.error("FX1006", f"{type(self).__name__}.{name} is deleted")

    def replace(self: Self, **fields: Any) -> Self:
        """A copy with other values in some fields. FX1006 for a name that is no field."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        known = type(self).__dataclass_fields__
        for name, value in fields.items():
            if name not in known:
                raise fx.error("FX1006", f"{type(self).__name__} has no field {name!r}",
                               help="its fields are " + ", ".join(known))  # fmt: skip
            if known[name].metadata.get("static"):
                _check_static(type(self).__name__, name, value)
            new.__dict__[name] = value
        return new

    def about(self) -> str:
        """What stands in the parentheses when the module is printed; by default its static fields."""
        parts = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("static") and value is not None:
                parts.append(f"{f.name}={value}")
            elif fx.tree.is_function(value):
                parts.append(f"{f.name}={function_name(value)}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        from fluxir.nn.show import render

        return render(self)


def function_name(fn: Any) -> str:
    """How a function is written when a model is printed."""
    if isinstance(fn, functools.partial):
        return function_name(fn.func)
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


# ---- walking ---------------------------------------------------------------------------------------------------------


def children(x: Any) -> list[Module]:
    """The modules directly below `x`, in order."""
    below = fx.tree.flatten(x, lambda y: y is not x and isinstance(y, Module))[0]
    return [c for c in below if isinstance(c, Module)]


def modules(x: Any) -> Iterator[Module]:
    """All modules in a tree, `x` itself first."""
    if isinstance(x, Module):
        yield x
    for c in children(x):
        yield from modules(c)


def map_modules(f: Callable[[Module], Any], x: Any) -> Any:
    """The tree with every module replaced by `f` of it, after those below it. `f` is given each original with new children."""
    below, structure = fx.tree.flatten(x, lambda y: y is not x and isinstance(y, Module))
    new = structure.unflatten([map_modules(f, c) if isinstance(c, Module) else c for c in below])
    return f(new) if isinstance(x, Module) else new


def trainable(model: Any) -> Any:
    """A tree of the same structure that says of each leaf whether it is a parameter: a float, and no running statistics."""

    def go(x: Any, held: bool) -> Any:
        if not isinstance(x, Module):
            below, structure = fx.tree.flatten(x, lambda y: isinstance(y, Module))
            return structure.unflatten(
                [go(c, held) if isinstance(c, Module) else is_float(c) and not held for c in below]
            )
        out = object.__new__(type(x))
        for f in dataclasses.fields(x):
            value = getattr(x, f.name)
            out.__dict__[f.name] = (
                value if f.metadata.get("static") else go(value, held or bool(f.metadata.get("state")))
            )
        return out

    return go(model, False)


def is_float(x: Any) -> bool:
    """Whether a leaf is a float array, tensor or type."""
    d = getattr(x, "dtype", None)
    return d is not None and fx.isdtype(fx.dtype(d), "real floating")


def cast(model: Any, dtype: Any) -> Any:
    """The model with its float leaves in another float type: `fx.nn.cast(model, "bf16")`."""
    return fx.tree.map(lambda x: fx.astype(x, dtype) if is_float(x) else x, model)


# ---- calling ---------------------------------------------------------------------------------------------------------


def call(layer: Callable[..., Any], *args: Any, train: bool = False, key: Any = None, **options: Any) -> Any:
    """Call any layer: `train` and `key` are handed to those that take them, `options` always.

    Of a module those are named parameters of its `__call__`; of a plain function they must be keyword-only, so that a
    function with another meaning of `key` is left alone.
    """
    takes_train, takes_key = _takes(
        type(layer).__call__ if isinstance(layer, Module) else layer, isinstance(layer, Module)
    )
    if takes_train:
        options["train"] = train
    if takes_key:
        options["key"] = key
    return layer(*args, **options)


@functools.lru_cache(maxsize=4096)
def _takes(fn: Any, named: bool) -> tuple[bool, bool]:
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False, False
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)[: 2 if named else 1]
    train, key = (name in parameters and parameters[name].kind in kinds for name in ("train", "key"))
    return train, key


def fold(key: Any, i: int) -> Any:
    """The key of the i-th part of a layer that was given `key`."""
    return None if key is None else fx.random.fold_in(key, i)


def per_axis(value: Any, count: int, owner: str, what: str) -> tuple[int, ...]:
    """One integer for each of `count` axes, from an integer or a sequence of them. FX1003."""
    if isinstance(value, int | np.integer):
        return (int(value),) * count
    out = tuple(int(v) for v in value)
    if len(out) != count:
        raise fx.error("FX1003", f"{owner}: {what} has {len(out)} numbers for {count} axes")
    return out


def require_features(owner: str, x: Any, axis: int, size: int, ndim: int | None = None) -> None:
    """FX1002 unless `x` has `size` elements along `axis` (and `ndim` axes)."""
    shape = fx.shape(x)
    shown = "[" + ", ".join(map(str, shape)) + "]"
    if ndim is not None and len(shape) != ndim:
        raise fx.error("FX1002", f"{owner} takes {ndim} axes and is given {shown}")
    if len(shape) < (axis + 1 if axis >= 0 else -axis):
        raise fx.error("FX1002", f"{owner} is given {shown}, which has no axis {axis}")
    if not isinstance(shape[axis], int) or shape[axis] == size:
        return  # a symbolic size is decided by the op
    raise fx.error("FX1002", f"{owner} takes {size} along axis {axis} and is given {shape[axis]}: {shown}")


__all__ = [
    "Module", "call", "cast", "children", "fold", "function_name", "is_float", "map_modules", "modules", "per_axis",
    "require_features", "state", "static", "trainable",
]  # fmt: skip
