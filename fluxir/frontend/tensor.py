"""Tensor: what a traced function computes with. A value of the program under construction, with Python's operators.

Owns coercion (`as_tensor`), promotion of operands (`promote_operands`) and the class. Promotion follows the Python Array
API standard; a Python number, a size and a *weak* tensor (an argument that was a Python number) take the type of the
tensor they meet and never widen it. Numpy arrays and numpy scalars are strong: they keep their type.
Invariants: a Tensor belongs to one scope; its value never changes except by `x[i] = v`, which rebinds this one object.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.frontend.methods import Methods
from fluxir.frontend.trace import EagerScope, Scope, array_dtype, here, scope, user_frame
from fluxir.frontend.undefined import Undefined
from fluxir.ir.core import Block, Value
from fluxir.ir.dims import Dim, Poly
from fluxir.ir.dtypes import DType, bool_, dtype_of, f32, i64, promote, scalar_dtype
from fluxir.ir.types import TensorType

if TYPE_CHECKING:
    from fluxir.frontend.indexing import At

Shape = tuple[Dim, ...]
Scalar = bool | int | float


# ---- making values ------------------------------------------------------------------------------------------------------


def emit(name: str, *operands: Any, blocks: Sequence[Block] = (), **attrs: Any) -> Tensor:
    """Append op `name` to the current scope; its only result."""
    (r,) = emit_many(name, *operands, blocks=blocks, **attrs)
    return r


def emit_many(name: str, *operands: Any, blocks: Sequence[Block] = (), **attrs: Any) -> tuple[Tensor, ...]:
    """Append op `name` to the current scope; all its results."""
    s = scope()
    values = [s.use(t.value, t.scope) for t in map(as_tensor, operands)]
    return tuple(Tensor(v, s) for v in s.emit(name, values, blocks, attrs))


def as_dtype(x: Any) -> DType:
    """The element type meant by `x`; Python's `int`, `float`, `bool` mean the default types i64, f32, bool."""
    if x is int:
        return i64
    return dtype_of(x)


def is_scalar(x: Any) -> bool:
    """Whether `x` is a plain Python number (numpy scalars are arrays here)."""
    return isinstance(x, bool | int | float) and not isinstance(x, np.generic)


def default_dtype(x: Scalar) -> DType:
    """The type of a Python number with nothing beside it: bool, i64 or f32."""
    return bool_ if isinstance(x, bool) else i64 if isinstance(x, int) else f32


def constant(x: Any, dtype: DType) -> Tensor:
    """A Python number as a rank-0 tensor of `dtype`."""
    s = scope()
    return Tensor(s.constant(np.asarray(x).astype(dtype.numpy)), s)


def as_tensor(x: Any) -> Tensor:
    """A tensor from a tensor, array, number, size, or nested lists of those; FX0229 for anything else."""
    if isinstance(x, Tensor):
        return x
    s = scope()
    if is_scalar(x):
        if isinstance(x, int) and not isinstance(x, bool) and not -(2**63) <= x < 2**63:
            raise error("FX0217", f"{x} does not fit in i64", help="give a dtype: fx.asarray(x, dtype=fx.u64)")
        return Tensor(s.constant(np.asarray(x, default_dtype(x).numpy)), s, weak=True)
    if isinstance(x, np.ndarray | np.generic):
        array_dtype(x.dtype)
        return Tensor(s.constant(np.asarray(x)), s)
    if isinstance(x, Poly):
        return Tensor(s.size(x), s, weak=True)
    if isinstance(x, list | tuple):
        return _from_list(x)
    if hasattr(x, "__dlpack__") or hasattr(x, "__array__"):
        a = np.asarray(x)
        array_dtype(a.dtype)
        return Tensor(s.constant(a), s)
    if isinstance(x, Undefined):
        x._fail()
    raise error("FX0229", f"a value of type {type(x).__name__} cannot become a tensor: {_short(x)}")


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_list(x: Any) -> Tensor:
    if not _has_tensor(x):
        try:
            a = np.asarray(x)
        except ValueError:
            raise error("FX0229", f"the nested list is ragged: {_short(x)}") from None
        if a.dtype.kind == "f" and not _has_numpy(x):
            a = a.astype(np.float32)
        array_dtype(a.dtype, "the list")
        s = scope()
        return Tensor(s.constant(a), s)
    parts = promote_operands(*[as_tensor(v) if isinstance(v, list | tuple) else v for v in x])
    shapes = {p.shape for p in parts}
    if len(shapes) > 1:
        raise error("FX0229", f"the nested list is ragged: shapes {', '.join(map(str, shapes))}")
    return emit("concat", *[emit("reshape", p, shape=(1, *p.shape)) for p in parts], axis=0)


def _has_tensor(x: Any) -> bool:
    return isinstance(x, Tensor | Poly) or isinstance(x, list | tuple) and any(map(_has_tensor, x))


def _has_numpy(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) or isinstance(x, list | tuple) and any(map(_has_numpy, x))


# ---- promotion ------------------------------------------------------------------------------------------------------------


def cast(x: Tensor, dtype: DType) -> Tensor:
    """`x` as `dtype`; itself if it has it."""
    return x if x.dtype == dtype else emit("cast", x, dtype=dtype)


def result_dtype(*xs: Any) -> DType:
    """The type that tensors, arrays, dtypes and Python numbers meet in."""
    strong: DType | None = None
    weak: DType | None = None
    for x in xs:
        if is_scalar(x):
            weak = _weaker(weak, default_dtype(x))
        elif isinstance(x, Poly):
            weak = _weaker(weak, i64)
        elif isinstance(x, Tensor) and x.weak:
            weak = _weaker(weak, x.dtype)
        else:
            d = (
                x.dtype
                if isinstance(x, Tensor)
                else array_dtype(x.dtype)
                if isinstance(x, np.ndarray | np.generic)
                else as_dtype(x)
            )
            strong = d if strong is None else promote(strong, d)
    if strong is None:
        return weak or f32
    return strong


_RANK = {"bool": 0, "int": 1, "uint": 1, "float": 2}


def _weaker(a: DType | None, b: DType) -> DType:
    return b if a is None or _RANK[b.kind] > _RANK[a.kind] else a


def promote_operands(*xs: Any) -> list[Tensor]:
    """The operands as tensors of one element type (shapes as they are); FX0201 where there is none."""
    prepared = [x if isinstance(x, Tensor | Poly) or is_scalar(x) else as_tensor(x) for x in xs]
    try:
        d = result_dtype(*prepared)
        return [_to(x, d) for x in prepared]
    except FluxError as e:
        if not e.labels:
            e.loc = e.loc or here()
            names = local_names()
            e.labels += [(names.get(id(x), f"operand {i}"), _describe(x)) for i, x in enumerate(prepared)]
        raise


def _to(x: Any, d: DType) -> Tensor:
    if is_scalar(x):
        t = constant(x, scalar_dtype(x, d))
        t.weak = False
        return t
    x = as_tensor(x)
    if x.weak and x.dtype != d:
        if _RANK[x.dtype.kind] > _RANK[d.kind]:
            raise error(
                "FX0201",
                f"a Python {'float' if x.dtype.is_float else 'int'} does not fit next to a {d} tensor",
                help="a Python number never changes a tensor's type: cast the tensor first, for example x.astype('f32')",
            )
    return cast(x, d)


def _describe(x: Any) -> str:
    return str(x.type) if isinstance(x, Tensor) else repr(x)


def local_names() -> dict[int, str]:
    """The names of the tensors in the user's frame, by identity of the tensor; for messages only."""
    frame = user_frame()
    return {id(v): n for n, v in list(frame.f_locals.items()) if isinstance(v, Tensor)} if frame is not None else {}


def all_weak(xs: Sequence[Any]) -> bool:
    return all(is_scalar(x) or isinstance(x, Poly) or isinstance(x, Tensor) and x.weak for x in xs)


def binary(name: str, x: Any, y: Any) -> Tensor:
    """Elementwise op `name` of two promoted operands."""
    a, b = promote_operands(x, y)
    r = emit(name, a, b)
    r.weak = not r.shape and all_weak((x, y))
    return r


def unary(name: str, x: Any) -> Tensor:
    """Elementwise op `name` of one operand."""
    t = as_tensor(x)
    r = emit(name, t)
    r.weak = t.weak
    return r


# ---- operators --------------------------------------------------------------------------------------------------------------


def divide(x: Any, y: Any) -> Tensor:
    """True division, of floats."""
    a, b = promote_operands(x, y)
    if not a.dtype.is_float:
        raise error("FX0209", f"true division is defined for floats, not {a.dtype}",
                    help="use // for whole numbers, or cast first: x.astype('f32') / y", loc=here())  # fmt: skip
    return emit("div", a, b)


def power(x: Any, y: Any) -> Tensor:
    """`x ** y`; squares are one multiplication."""
    if is_scalar(y) and not isinstance(y, bool) and y == 2 and isinstance(x, Tensor):
        a, _ = promote_operands(x, y)
        return emit("mul", a, a)
    return binary("pow", x, y)


def bitwise(word: str, x: Any, y: Any) -> Tensor:
    """and, or, xor: of bools logically, of integers by bits."""
    a, b = promote_operands(x, y)
    return emit(f"logical_{word}" if a.dtype.is_bool else f"bit_{word}", a, b)


def invert(x: Any) -> Tensor:
    t = as_tensor(x)
    return emit("logical_not" if t.dtype.is_bool else "bit_not", t)


def _operators(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    f: Callable[[Any, Any], Tensor] = {
        "div": divide,
        "pow": power,
        "and": lambda x, y: bitwise("and", x, y),
        "or": lambda x, y: bitwise("or", x, y),
        "xor": lambda x, y: bitwise("xor", x, y),
    }.get(name) or (lambda x, y: binary(name, x, y))

    def forward(self: Any, other: Any) -> Any:
        return f(self, other) if _is_operand(other) else NotImplemented

    def reflected(self: Any, other: Any) -> Any:
        return f(other, self) if _is_operand(other) else NotImplemented

    return forward, reflected


def _is_operand(x: Any) -> bool:
    return isinstance(x, Tensor | bool | int | float | np.ndarray | np.generic | Poly | list)


def _no_value(code: str, what: str, help: str) -> NoReturn:
    raise error(code, f"{what}: its value is known only when the compiled program runs", help=help, loc=here())


class Tensor(Methods):
    """A tensor in a function that is being traced: `shape` (ints and symbolic sizes), `dtype`, and numpy's operators.

    Made by the trace and by the public functions, never by hand. Indexing follows numpy with integers, slices, None,
    `...` and integer tensors; run-time indices are clamped to the axis. `x[i] = v` makes this object stand for the
    changed tensor; `x.at[i].set(v)` returns the changed tensor.
    """

    __slots__ = ("value", "scope", "weak", "is_view", "__weakref__")
    __hash__ = object.__hash__

    def __init__(self, value: Value, scope: Scope, weak: bool = False) -> None:
        self.value, self.scope, self.weak, self.is_view = value, scope, weak, False

    # -- what it is
    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        t = self.value.type
        assert isinstance(t, TensorType)
        return t

    @property
    def shape(self) -> Shape:
        """Sizes of the axes: integers, or symbolic sizes such as `B`."""
        return self.value.type.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        d: DType = self.value.type.dtype
        return d

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.value.type.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return self.type.size

    @property
    def nbytes(self) -> Dim:
        """Bytes of the elements."""
        return self.type.nbytes

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def device(self) -> str:
        """Traced tensors are on no device yet."""
        return "traced"

    def to_device(self, device: Any, /, *, stream: Any = None) -> Tensor:
        """Itself: where a program runs is chosen when it is compiled."""
        return self

    def __repr__(self) -> str:
        name = self.value.name
        return f"Tensor({name + ': ' if name else ''}{self.type})"

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        """The module with the Array API functions: `fluxir`."""
        return sys.modules[__name__.partition(".")[0]]

    # -- Python asks for a value now
    def _now(self) -> Any:
        """The value in an eager call; None while tracing."""
        s = self.scope
        return s.arrays.get(self.value) if isinstance(s, EagerScope) else None

    def __bool__(self) -> bool:
        a = self._now()
        if a is not None:
            return bool(a)
        _no_value(
            "FX0301",
            f"the truth of a traced tensor ({self.type}) was asked for",
            "decorate the function with @fx.function, or use fx.where(c, x, y), fx.cond(c, f, g, ...) or fx.while_loop",
        )

    def _number(self, convert: Callable[[Any], Any], word: str, help: str = "") -> Any:
        a = self._now()
        if a is not None:
            return convert(a)
        _no_value(
            "FX0302",
            f"{word} of a traced tensor ({self.type}) was asked for",
            help or "keep it a tensor (x.astype, fx.fori_loop, fx.dynamic_slice), or make the argument static",
        )

    def __int__(self) -> int:
        return int(self._number(int, "int()"))

    def __float__(self) -> float:
        return float(self._number(float, "float()"))

    def __complex__(self) -> complex:
        return complex(self._number(complex, "complex()"))

    def __index__(self) -> int:
        a = self._now()
        if a is not None and a.ndim == 0 and a.dtype.kind in "iu":
            return int(a)
        return int(
            self._number(
                int,
                "a Python index or count",
                "pick from a tensor, fx.asarray(items)[i]; for a size, make the argument static",
            )
        )

    def item(self) -> Any:
        """Refused while tracing (FX0302)."""
        return self._number(lambda a: a.item(), "item()")

    def tolist(self) -> Any:
        """Refused while tracing (FX0302)."""
        return self._number(lambda a: a.tolist(), "tolist()")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a scalar tensor has no length")
        n = self.shape[0]
        if not isinstance(n, int):
            raise error("FX0302", f"len() of a tensor whose leading size is {n} was asked for",
                        help="x.shape[0] is the size as a symbol", loc=here())  # fmt: skip
        return n

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise error(
                "FX0314",
                f"a scalar tensor ({self.type}) cannot be iterated over",
                help="x[None] gives it an axis",
                loc=here(),
            )
        n = self.shape[0]
        if not isinstance(n, int):
            raise error("FX0314", f"iterating over {self.type} needs its length, and {n} is known only at run time",
                        help="use fx.scan(body, init, x), or @fx.function", loc=here())  # fmt: skip
        return (self[i] for i in range(n))

    def __contains__(self, x: Any) -> bool:
        return bool(self == x if not self.shape else emit("any", self == x, axes=tuple(range(self.ndim))))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        a = self._now()
        if a is not None:
            return np.asarray(a, *args)
        _no_value(
            "FX0315", f"a traced tensor ({self.type}) was given to NumPy", "use the function of the same name in fluxir"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        # `array + tensor` arrives here as np.add: an operator is honoured, a ufunc called by name is not.
        operator = _UFUNC_OPERATORS.get(ufunc.__name__)
        if operator is None or method != "__call__" or kwargs.get("out") is not None:
            if kwargs.get("out") is not None:
                raise error("FX0304", f"np.{ufunc.__name__} would write a traced tensor into a numpy array",
                            help="write a = a + x instead of a += x", loc=here())  # fmt: skip
            raise error(
                "FX0315",
                f"np.{ufunc.__name__} was called on a traced tensor",
                help=f"write fx.{_fluxir_name(ufunc.__name__)}(...)",
                loc=here(),
            )
        if len(inputs) == 1:
            return operator(as_tensor(inputs[0]))
        return operator(as_tensor(inputs[0]), inputs[1])

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        raise error(
            "FX0315", f"np.{name} was called on a traced tensor", help=f"write fx.{_fluxir_name(name)}(...)", loc=here()
        )

    # -- operators
    __add__, __radd__ = _operators("add")
    __sub__, __rsub__ = _operators("sub")
    __mul__, __rmul__ = _operators("mul")
    __truediv__, __rtruediv__ = _operators("div")
    __floordiv__, __rfloordiv__ = _operators("floordiv")
    __mod__, __rmod__ = _operators("remainder")
    __pow__, __rpow__ = _operators("pow")
    __and__, __rand__ = _operators("and")
    __or__, __ror__ = _operators("or")
    __xor__, __rxor__ = _operators("xor")
    __lshift__, __rlshift__ = _operators("shift_left")
    __rshift__, __rrshift__ = _operators("shift_right")
    __lt__ = _operators("lt")[0]
    __le__ = _operators("le")[0]
    __gt__ = _operators("gt")[0]
    __ge__ = _operators("ge")[0]
    __eq__ = _operators("eq")[0]
    __ne__ = _operators("ne")[0]

    def __divmod__(self, other: Any) -> tuple[Tensor, Tensor]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Tensor, Tensor]:
        return other // self, other % self

    def __neg__(self) -> Tensor:
        return unary("neg", self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return unary("abs", self)

    def __invert__(self) -> Tensor:
        return invert(self)

    def __round__(self, ndigits: int | None = None) -> Tensor:
        return self._whole("round") if ndigits is None and not self.shape else self.round(ndigits or 0)

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        a = self._now()
        if a is not None and not a.ndim:
            return format(a[()], spec)
        _no_value(
            "FX0302",
            f"a traced tensor ({self.type}) was formatted with {spec!r}",
            "format the result of the compiled function; f'{x}' shows the tensor's type",
        )

    def __copy__(self) -> Tensor:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.copy()

    def __reduce__(self) -> Any:
        _no_value(
            "FX0302", f"a traced tensor ({self.type}) cannot be stored or sent", "return it from the traced function"
        )

    def __matmul__(self, other: Any) -> Tensor:
        from fluxir.frontend.api_linalg import matmul

        return matmul(self, other) if _is_operand(other) else NotImplemented

    def __rmatmul__(self, other: Any) -> Tensor:
        from fluxir.frontend.api_linalg import matmul

        return matmul(other, self) if _is_operand(other) else NotImplemented

    # -- indexing
    def __getitem__(self, key: Any) -> Tensor:
        from fluxir.frontend.indexing import getitem

        return getitem(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        from fluxir.frontend.indexing import setitem

        setitem(self, key, value)

    @property
    def at(self) -> At:
        """`x.at[i].set(v)`, `.add`, `.mul`, `.min`, `.max`, `.get()`: a changed copy."""
        from fluxir.frontend.indexing import At

        return At(self)


_UFUNC_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "true_divide": lambda x, y: x / y,
    "floor_divide": lambda x, y: x // y,
    "remainder": lambda x, y: x % y,
    "power": lambda x, y: x**y,
    "matmul": lambda x, y: x @ y,
    "bitwise_and": lambda x, y: x & y,
    "bitwise_or": lambda x, y: x | y,
    "bitwise_xor": lambda x, y: x ^ y,
    "left_shift": lambda x, y: x << y,
    "right_shift": lambda x, y: x >> y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
}


def _fluxir_name(numpy_name: str) -> str:
    return {"absolute": "abs", "arctan2": "atan2", "concatenate": "concat"}.get(numpy_name, numpy_name)


__all__ = [
    "Tensor", "as_dtype", "as_tensor", "binary", "cast", "constant", "emit", "emit_many", "is_scalar",
    "promote_operands", "result_dtype", "unary",
]  # fmt: skip
