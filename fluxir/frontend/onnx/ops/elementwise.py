"""Operators that work element by element: arithmetic, comparison, logic, activations, conversions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import ELEMENTS, STRING, element
from fluxir.frontend.onnx.narrow import rounded
from fluxir.frontend.onnx.registry import Const, Float, Floats, Int, Ints, Known, Raw, Sparse, Text, Texts, op
from fluxir.frontend.onnx.values import Narrow, Sizes, element_of, is_texts, sizes_of, tensor

# ---- arithmetic ----------------------------------------------------------------------------------------------------


def is_float(x: Any) -> bool:
    return bool(fx.dtype(x).is_float)


def legacy(x: Any, y: Any, axis: int | None, broadcast: int) -> Any:
    """The second operand as it broadcasts in opsets before 7: its axes stand from `axis` on."""
    if broadcast and axis is not None and fx.rank(y) < fx.rank(x):
        return fx.reshape(y, (*y.shape, *[1] * (fx.rank(x) - fx.axis_of(axis, fx.rank(x)) - fx.rank(y))))
    return y


def _binary(name: str, f: Any) -> None:
    op(name, since=7)(lambda x, y: f(x, y))

    def old(x: Any, y: Any, *, axis: Int | None = None, broadcast: Int = 0) -> Any:
        return f(x, legacy(x, y, axis, broadcast))

    op(name)(old)


def power(x: Any, y: Any) -> Any:
    """x ** y in the type of x."""
    d = fx.dtype(x)
    if d != fx.dtype(y):
        if d.is_integer and is_float(y):  # through floats, as numpy does
            return fx.cast(fx.pow(fx.cast(x, fx.dtype(y)), y), d)
        y = fx.cast(y, d)
    return fx.pow(x, y)


_binary("Add", fx.add)
_binary("Sub", fx.subtract)
_binary("Mul", fx.multiply)
_binary("Div", lambda x, y: fx.primitive("div", x, y))
_binary("Pow", power)
_binary("And", fx.logical_and)
_binary("Or", fx.logical_or)
_binary("Xor", fx.logical_xor)
_binary("Greater", fx.greater)
_binary("Less", fx.less)
op("GreaterOrEqual", since=12)(lambda x, y: fx.greater_equal(x, y))
op("LessOrEqual", since=12)(lambda x, y: fx.less_equal(x, y))
op("BitwiseAnd", since=18)(lambda x, y: fx.bitwise_and(x, y))
op("BitwiseOr", since=18)(lambda x, y: fx.bitwise_or(x, y))
op("BitwiseXor", since=18)(lambda x, y: fx.bitwise_xor(x, y))
op("BitwiseNot", since=18)(lambda x: fx.bitwise_invert(x))


@op("Equal", since=7)
def equal(x: Raw, y: Raw) -> Any:
    if is_texts(x) and is_texts(y):
        return np.asarray(np.equal(x, y), bool)
    return fx.equal(tensor(x), tensor(y))


@op("Equal")
def equal_old(x: Any, y: Any, *, axis: Int | None = None, broadcast: Int = 0) -> Any:
    return fx.equal(x, legacy(x, y, axis, broadcast))


@op("Mod", since=10)
def mod(x: Any, y: Any, *, fmod: Int = 0) -> Any:
    return fx.fmod(x, y) if fmod else fx.remainder(x, y)


@op("BitShift", since=11)
def bit_shift(x: Any, y: Any, *, direction: Text) -> Any:
    shift = {"LEFT": fx.bitwise_left_shift, "RIGHT": fx.bitwise_right_shift}
    if direction not in shift:
        raise ValueError(f"direction is {direction!r}, not LEFT or RIGHT")
    return shift[direction](x, y)


def _variadic(name: str, f: Any) -> None:
    def run(x: Any, *more: Any) -> Any:
        for y in more:
            x = f(x, y)
        return fx.asarray(x)

    op(name)(run)


_variadic("Max", fx.maximum)
_variadic("Min", fx.minimum)
_variadic("Sum", fx.add)


@op("Mean")
def mean(x: Any, *more: Any) -> Any:
    for y in more:
        x = fx.add(x, y)
    return fx.divide(x, fx.scalar(1 + len(more), x))


@op("Clip", since=11)
def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    if low is not None:
        x = fx.maximum(x, fx.reshape(low, ()))
    return fx.asarray(x) if high is None else fx.minimum(x, fx.reshape(high, ()))


@op("Clip", since=6)
def clip_old(x: Any, *, min: Float = -math.inf, max: Float = math.inf) -> Any:
    return fx.clip(x, fx.scalar(min, x), fx.scalar(max, x))


@op("Where", since=9)
def where(condition: Any, x: Raw, y: Raw) -> Any:
    if is_texts(x) and isinstance(condition, np.ndarray):
        return np.where(condition, x, y)
    return fx.where(condition, tensor(x), tensor(y))


# ---- functions of one number ---------------------------------------------------------------------------------------


def _unary(functions: dict[str, Any]) -> None:
    for name, f in functions.items():
        op(name)(_one(f))


def _one(f: Any) -> Any:
    return lambda x: f(x)


_unary(
    {
        "Abs": fx.abs, "Neg": fx.negative, "Ceil": fx.ceil, "Floor": fx.floor, "Round": fx.round, "Sqrt": fx.sqrt,
        "Reciprocal": fx.reciprocal, "Exp": fx.exp, "Log": fx.log, "Sin": fx.sin, "Cos": fx.cos, "Tan": fx.tan,
        "Asin": fx.asin, "Acos": fx.acos, "Atan": fx.atan, "Sinh": fx.sinh, "Cosh": fx.cosh, "Tanh": fx.tanh,
        "Asinh": fx.asinh, "Acosh": fx.acosh, "Atanh": fx.atanh, "Erf": fx.erf, "Sign": fx.sign, "Not": fx.logical_not,
        "IsNaN": fx.isnan, "Sigmoid": fx.sigmoid, "Relu": lambda x: fx.maximum(x, fx.scalar(0, x)),
        "Softplus": fx.nn.softplus, "Softsign": fx.nn.softsign, "HardSwish": fx.nn.hard_swish, "Mish": fx.nn.mish,
    }
)  # fmt: skip


@op("IsInf", since=10)
def is_inf(x: Any, *, detect_negative: Int = 1, detect_positive: Int = 1) -> Any:
    found = fx.isinf(x)
    if not detect_negative:
        found = fx.logical_and(found, fx.greater(x, fx.scalar(0, x)))
    return found if detect_positive else fx.logical_and(found, fx.less(x, fx.scalar(0, x)))


@op("LeakyRelu")
def leaky_relu(x: Any, *, alpha: Float = 0.01) -> Any:
    return fx.nn.leaky_relu(x, alpha)


@op("Elu")
def elu(x: Any, *, alpha: Float = 1.0) -> Any:
    return fx.nn.elu(x, alpha)


@op("Celu", since=12)
def celu(x: Any, *, alpha: Float = 1.0) -> Any:
    low = fx.multiply(fx.expm1(fx.minimum(fx.divide(x, fx.scalar(alpha, x)), fx.scalar(0, x))), fx.scalar(alpha, x))
    return fx.where(fx.greater_equal(x, fx.scalar(0, x)), x, low)


@op("Selu", since=6)
def selu(x: Any, *, alpha: Float = 1.6732632423543772, gamma: Float = 1.0507009873554805) -> Any:
    return fx.multiply(fx.nn.elu(x, alpha), fx.scalar(gamma, x))


@op("Selu")
def selu_old(x: Any, *, alpha: Float = 1.6732, gamma: Float = 1.0507) -> Any:
    return selu(x, alpha=alpha, gamma=gamma)


@op("PRelu")
def prelu(x: Any, slope: Any) -> Any:
    if fx.rank(slope) == 1 and fx.rank(x) > 1 and slope.shape[0] != 1 and slope.shape[0] != x.shape[-1]:
        slope = fx.reshape(slope, (-1, *[1] * (fx.rank(x) - 2)))  # one of each channel, as before opset 7
    return fx.where(fx.less(x, fx.scalar(0, x)), fx.multiply(x, slope), x)


@op("ThresholdedRelu", since=10)
def thresholded_relu(x: Any, *, alpha: Float = 1.0) -> Any:
    return fx.where(fx.greater(x, fx.scalar(alpha, x)), x, fx.scalar(0, x))


@op("HardSigmoid")
def hard_sigmoid(x: Any, *, alpha: Float = 0.2, beta: Float = 0.5) -> Any:
    y = fx.add(fx.multiply(x, fx.scalar(alpha, x)), fx.scalar(beta, x))
    return fx.clip(y, fx.scalar(0, x), fx.scalar(1, x))


@op("Shrink", since=9)
def shrink(x: Any, *, bias: Float = 0.0, lambd: Float = 0.5) -> Any:
    b, limit = fx.scalar(bias, x), fx.scalar(lambd, x)
    high = fx.where(fx.greater(x, limit), fx.subtract(x, b), fx.scalar(0, x))
    return fx.where(fx.less(x, fx.negative(limit)), fx.add(x, b), high)


@op("Gelu", since=20)
def gelu(x: Any, *, approximate: Text = "none") -> Any:
    return fx.nn.gelu(x, approximate=approximate == "tanh")


@op("Swish", since=24)
def swish(x: Any, *, alpha: Float = 1.0) -> Any:
    return fx.multiply(x, fx.sigmoid(fx.multiply(x, fx.scalar(alpha, x))))


# ---- conversions ---------------------------------------------------------------------------------------------------


@op("Identity")
def identity(x: Raw) -> Any:
    return x


@op("Cast", since=6)
def cast(x: Raw, *, to: Int, saturate: Int = 1, round_mode: Text = "up") -> Any:
    return converted(x, element(to, "Cast"), bool(saturate), round_mode)


@op("Cast")
def cast_old(x: Raw, *, to: Text) -> Any:
    numbers = {e.name.upper(): e for e in ELEMENTS.values()}
    return converted(x, numbers[to], True, "up")


@op("CastLike", since=15)
def cast_like(x: Raw, like: Raw, *, saturate: Int = 1, round_mode: Text = "up") -> Any:
    return converted(x, element_of(like), bool(saturate), round_mode)


def converted(x: Any, to: Any, saturate: bool, round_mode: str = "up") -> Any:
    """A value with elements of another type, as Cast defines it."""
    if to is STRING or is_texts(x):
        return _texts(x, to)
    if to.carrier is None:
        raise error("FX1208", f"there is no type for {to.name} elements here")
    if isinstance(x, Sizes):
        if to.carrier.is_integer and to.bits >= 32:
            return Sizes(x.array, to.carrier)
        x = x.tensor()
    source = element_of(x)
    data = x.data if isinstance(x, Narrow) else x
    if not to.narrow:
        return _plain(data, to.carrier)
    if source is to:
        return x
    return Narrow(rounded(data, to, saturate, round_mode), to)


def _plain(x: Any, d: Any) -> Any:
    if fx.dtype(x) == d:
        return fx.asarray(x)
    if d.is_bool:
        return fx.not_equal(x, fx.scalar(0, x))
    return fx.cast(x, d)


def _texts(x: Any, to: Any) -> Any:
    if not isinstance(x, np.ndarray):
        raise error("FX1208", "texts cannot be made when a program runs, only of what is known when it is compiled")
    if to is not STRING:
        values = np.array([float(t) for t in x.flat]).reshape(x.shape)
        return np.asarray(values.astype(to.carrier.numpy))
    out = np.empty(x.shape, object)
    out.reshape(-1)[:] = [str(v) if x.dtype != bool else str(int(v)) for v in x.flat]
    return out


@op("BitCast", since=26)
def bit_cast(x: Any, *, to: Int) -> Any:
    d = element(to, "BitCast").carrier
    if d is None:
        raise error("FX1208", "BitCast to texts or complex numbers")
    if d.is_bool:
        return fx.not_equal(x, fx.scalar(0, x))
    return fx.bitcast(fx.cast(x, "u8") if fx.dtype(x).is_bool else x, d)


# ---- constants -----------------------------------------------------------------------------------------------------


@op("Constant")
def constant(
    *,
    value: Const | None = None,
    value_float: Float | None = None,
    value_floats: Floats | None = None,
    value_int: Int | None = None,
    value_ints: Ints | None = None,
    value_string: Text | None = None,
    value_strings: Texts | None = None,
    sparse_value: Sparse | None = None,
) -> Any:
    if value_float is not None:
        return np.float32(value_float)
    if value_int is not None:
        return np.int64(value_int)
    if value_floats is not None:
        return np.array(value_floats, np.float32)
    if value_ints is not None:
        return np.array(value_ints, np.int64)
    if value_string is not None or value_strings is not None:
        out = np.empty(() if value_strings is None else len(value_strings), object)
        out[...] = value_string if value_strings is None else value_strings
        return out
    return value if value is not None else sparse_value


@op("ConstantOfShape", since=9)
def constant_of_shape(shape: Known, *, value: Const | None = None) -> Any:
    fill = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return fx.full(sizes_of(shape, "the shape"), fill.reshape(()))
