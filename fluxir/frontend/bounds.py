"""What a model takes for granted about its symbolic sizes, as facts of the program.

An ONNX file says that an axis may have any size, and then lays a window of 256 over it. Such a need becomes a fact
("sequence >= 192"), which every call of the compiled program checks with a clear message. Only needs that follow from one
symbol growing are stated; where a size depends on several, the op itself says what is missing.
"""

from __future__ import annotations

from fluxir.errors import FluxError, error
from fluxir.frontend.trace import assume, here, is_tracing
from fluxir.ir import dims
from fluxir.ir.dims import Dim, Poly

__all__ = ["at_least", "at_most", "ceil_padding"]

FAR = 1 << 24


def at_least(size: Dim, low: int) -> None:
    """State that `size` is at least `low`, where that takes one symbol being large enough."""
    if not isinstance(size, Poly) or not is_tracing() or dims.prove_le(low, size):
        return
    symbols = dims.symbols_of(size)
    if len(symbols) != 1:
        return
    (symbol,) = symbols
    first, last = 0, 1
    while _value(size, last) < low:
        first, last = last, last * 2
        if last > FAR:
            return
    while first < last:  # sizes of windows grow with the symbol, so the smallest that is enough can be searched
        middle = (first + last) // 2
        if _value(size, middle) < low:
            first = middle + 1
        else:
            last = middle
    _assume(f"{symbol} >= {last}")


def at_most(size: Dim, high: int) -> None:
    """State that `size` is at most `high`, where that is about one symbol."""
    if isinstance(size, Poly) and is_tracing() and not dims.prove_le(size, high):
        symbols = dims.symbols_of(size)
        if len(symbols) == 1 and str(size) in symbols:
            _assume(f"{size} <= {high}")


def ceil_padding(size: Dim, reach: int, stride: int, low: int, high: int) -> int:
    """How much more padding after an axis makes the number of windows of `reach` round up; FX1205 where that is not known.

    A window that would begin in the padding behind the axis is left out, as all frameworks have it.
    """
    room = size + low + high - reach
    rest = dims.mod(room, stride)
    if not isinstance(rest, int):
        raise error("FX1205", f"ceil_mode needs a size that is known when compiling, not {size}", loc=here())
    windows = dims.ceildiv(room, stride) + 1
    return stride - rest if rest and (windows - 1) * stride < size + low else 0


def _value(size: Poly, n: int) -> int:
    (symbol,) = dims.symbols_of(size)
    try:
        return dims.evaluate(size, {symbol: n})
    except (FluxError, ZeroDivisionError):
        return -1


def _assume(fact: str) -> None:
    try:
        assume(fact)
    except FluxError:  # it contradicts what is known: the op that needs it will say so better
        return
