"""Staged Python: every function here runs as plain Python on arrays, interpreted as traced IR, and as native code.

A case is a function and several sets of arguments of the same types. It is traced once, so one program has to take all
of its branches; the answers of plain Python are the reference.
"""

from __future__ import annotations

import contextlib
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import driver
from fluxir.frontend import tree
from fluxir.frontend.staging import Function
from fluxir.frontend.trace import trace
from fluxir.ir.interp import interpret
from fluxir.ir.types import TensorType
from fluxir.ir.verify import verify_module

CASES: list[Any] = []
INTS = [(np.int64(n),) for n in (-3, 0, 1, 2, 5, 9)]
FLOATS = [(np.float32(v),) for v in (-2.5, 0.0, 0.5, 3.0)]
VECTORS = [(np.array(v, np.float32),) for v in ([1, 2, 3, 4], [4, -1, 0, 2], [-5, -1, -2, -3])]
X = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def case(*sets: tuple[Any, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function with the arguments to run it on."""

    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        CASES.append(pytest.param(f, sets, id=f.__name__))
        return f

    return register


def same(got: Any, want: Any, note: str) -> None:
    a, b = tree.flatten(got), tree.flatten(want)
    assert str(a[1]) == str(b[1]), note
    for g, w in zip(a[0], b[0], strict=True):
        g, w = np.asarray(g), np.asarray(w)
        assert g.shape == w.shape and g.dtype.kind == w.dtype.kind, (
            f"{note}: {g.dtype}{g.shape}, not {w.dtype}{w.shape}"
        )
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6, err_msg=note)


def copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.copy() if isinstance(a, np.ndarray) else a for a in args)


def staged(f: Callable[..., Any]) -> Callable[..., Any]:
    return f if isinstance(f, Function) else fx.function(f)  # type: ignore[no-any-return]


# ---- if, ternary, logic ----------------------------------------------------------------------------------------------


@case(*INTS)
def if_elif_else(n: Any) -> Any:
    if n < 0:
        y = n * 2
    elif n == 0:
        y = 100
    elif n < 3:
        y = n + 10
    else:
        y = n * n
    return y


@case(*INTS)
def if_without_else(n: Any) -> Any:
    y = n
    if n > 1:
        y = y + 1
        if n > 4:
            y *= 3
    return y


@case(*INTS)
def early_returns(n: Any) -> Any:
    if n < 0:
        return n, "negative"[:0] == ""
    if n == 0:
        return n + 7, True
    m = n * 3
    if m > 9:
        return m - 1, False
    return m, True


@case(*VECTORS)
def early_return_of_trees(x: Any) -> Any:
    if x[0] > 3:
        return {"a": x, "b": (x[0], 1)}
    for i in range(4):
        if x[i] > 1:
            return {"b": (x[i], i), "a": x * i}
    return {"a": -x, "b": (x[3], -1)}


@case(*INTS)
def nothing_returned_in_between(n: Any) -> Any:
    total = 0
    if n > 1:
        pass
    else:
        total = 5
    if n > 100:
        return total
    total += n
    return total


@case(*[(np.float32(a), np.float32(b)) for a in (-1, 0, 2) for b in (-1, 0, 2)])
def logic(a: Any, b: Any) -> Any:
    r = 0
    if a > 0 and b > 0:
        r += 1
    if a > 0 or b > 0:
        r += 10
    if not (a > 0):
        r += 100
    if not a > 0 and not b > 0 or a == b:
        r += 1000
    return r, (a > 0 and b > 0), (a > 1 or b < 0), not b > 0


@case(*[(np.float32(a), np.float32(b)) for a in (-1, 0, 2) for b in (-1, 0, 2)])
def chained(a: Any, b: Any) -> Any:
    return -1 < a < 2, 0 <= a <= b < 5, a < b > 0, (1 < 2 < a), a == b == 0, 3 < 2 < a


@case(*FLOATS)
def ternary(x: Any) -> Any:
    y = x * 2 if x > 0 else -x
    return y if y > 1 else (y + 1 if x < 0 else 0.5)


@case(*[(np.int64(i),) for i in range(-1, 6)])
def short_circuit_guards_an_index(i: Any) -> Any:
    x = fx.arange(4)
    found = 0
    if 0 <= i < 4 and x[i] > 1:
        found = 1
    return found


@case(*FLOATS)
def python_conditions_stay_python(x: Any) -> Any:
    mode = "double"
    items = []
    if mode == "double" and x is not None:
        items.append(x * 2)
    if not items or mode in ("none",):
        return x
    return items[0] if isinstance(mode, str) else undefined_name


# ---- loops -----------------------------------------------------------------------------------------------------------


@case(*INTS)
def while_counts(n: Any) -> Any:
    i, total = 0, 0
    while i < n:
        total += i * i
        i += 1
    return i, total


@case(*[(np.int64(n),) for n in (1, 6, 7, 27)])
def collatz(n: Any) -> Any:
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


@case(*INTS)
def for_over_traced_range(n: Any) -> Any:
    total = 0
    for i in range(n):
        total += i
    for i in range(2, n):
        total += 100 * i
    for i in range(n, 0, -2):
        total += 10_000 * i
    for i in range(-4, n, 3):
        total -= i
    return total


@case(*VECTORS)
def for_over_tensor(x: Any) -> Any:
    low, total = x[0], 0.0
    for v in x:
        total += v
        if v < low:
            low = v
    return low, total


@case((X,), (-X,))
def for_over_rows(x: Any) -> Any:
    best = x[0]
    for row in x:
        if row.sum() > best.sum():
            best = row
    return best


@case(*VECTORS)
def for_over_python_things(x: Any) -> Any:
    total = 0.0
    for k, name in enumerate(("a", "b", "c")):
        total += x[k] * len(name)
    for a, b in zip([1, 2], [3.0, 4.0]):
        total += a * b
    for key, v in {"p": x[0], "q": x[1]}.items():
        if v > 0:
            total += 1 if key == "p" else 2
    for v in [x[0], x[1], 3.0]:
        if v > 2:
            total += v
    return total


@case(*[(np.int64(n), np.int64(s)) for n in (0, 3, 8) for s in (-1, 0, 2, 5, 20)])
def break_and_else(n: Any, stop: Any) -> Any:
    r = 0
    for i in range(n):
        if i == stop:
            break
        r += i
    else:
        r += 1000
    i = 0
    while i < n:
        if i * 2 == stop:
            r += 7
            break
        i += 1
    else:
        r += 5000
    return r


@case(*INTS)
def else_without_break(n: Any) -> Any:
    r = 0
    for i in range(n):
        r += i
    else:
        r += 100
    while r < 50:
        r += 9
    else:
        r -= 1
    return r


@case(*INTS)
def continue_skips(n: Any) -> Any:
    r = 0
    for i in range(n):
        if i % 2 == 0:
            continue
        if i == 3:
            r += 50
            continue
        r += i
    k = 0
    while k < n:
        k += 1
        if k % 3 != 0:
            continue
        r -= k
    return r


@case(*[(np.int64(n), np.int64(m)) for n in (0, 1, 4) for m in (0, 2, 3, 9)])
def nested_loops_with_everything(n: Any, m: Any) -> Any:
    r, seen = 0, 0
    for i in range(n):
        j = 0
        while j < 5:
            j += 1
            if j == i:
                continue
            if i * j > m:
                if i % 2 == 0:
                    break
                seen += 1
                if seen > 6:
                    return r, -1
            for k in range(j):
                if k == 2:
                    if m > 2:
                        continue
                    break
                r += i + j + k
        else:
            r += 1000
    return r, seen


@case(*[(np.int64(n), np.int64(m)) for n in (1, 4, 7) for m in (0, 3, 100)])
def return_from_the_middle(n: Any, m: Any) -> Any:
    for i in range(n):
        for j in range(i):
            k = 0
            while True:
                k += 1
                if i * j * k > m:
                    return i * 10_000 + j * 100 + k
                if k >= 3:
                    break
    return -1


@case(*INTS)
def while_true(n: Any) -> Any:
    i = 0
    while True:
        i += 2
        if i > n:
            break
    return i


@case(*INTS)
def flag_driven(n: Any) -> Any:
    going, i = True, 0
    while going and i < 10:
        i += 1
        going = i * i < n
    return i, going


@case(*INTS)
def python_loop_with_traced_break(n: Any) -> Any:
    r = 0
    for i in range(5):
        if i > n:
            break
        if i == 1:
            continue
        r += 10**i
    else:
        r = -r
    return r


@case(*INTS)
def loop_variable_after_the_loop(n: Any) -> Any:
    last = -1
    for i in range(n):
        last = i
    for j in range(3):
        last += j
    return last + j


@case(*VECTORS)
def python_list_grows_in_a_python_loop(x: Any) -> Any:
    out = []
    for i in range(4):
        v = x[i]
        if v > 0:
            v = v * 2
        out.append(v)
    return fx.stack(out), out[-1]


@case(*INTS)
def weak_numbers_become_floats(n: Any) -> Any:
    y = 0
    x = fx.ones(3)
    while y < n:
        y = y + 1
        x = x + y
    return x, y


@case((np.float32(10), np.int64(5)), (np.float32(0), np.int64(3)), (np.float32(3), np.int64(0)))
def number_that_turns_float_in_the_loop(x: Any, n: Any) -> Any:
    total = 0
    for _ in range(n):
        total = total + x / 2
    return total + 0.0


# ---- trees and unpacking ---------------------------------------------------------------------------------------------


Point = namedtuple("Point", ["x", "y"])


@dataclass
class State:
    value: Any
    count: Any


@case(*INTS)
def trees_in_loops(n: Any) -> Any:
    p, s, d, t = Point(0, 1), State(1.0, 0), {"a": 1, "b": [2, 3]}, (0, (1, 2))
    for i in range(n):
        p = Point(p.y, p.x + p.y)
        s = State(s.value * 0.5, s.count + i)
        d = {"a": d["a"] + i, "b": [d["b"][1], d["b"][0]]}
        a, (b, c) = t
        t = c, (a, b + 1)
    return p, s.value, s.count, d, t


@case(*INTS)
def tuple_unpacking(n: Any) -> Any:
    a, b = 0, 1
    i = 0
    while i < n:
        a, b = b, a + b
        i += 1
    (c, *rest), d = [a, b, i], {"k": n}
    first, *_ = rest
    return a, c, first, d["k"]


@case(*INTS)
def unpacking_in_for(n: Any) -> Any:
    total = 0
    for a, (b, c) in [(1, (2, n)), (n, (3, 4))]:
        if a > b:
            total += c
        else:
            total -= a
    return total


@case(*VECTORS)
def augmented(x: Any) -> Any:
    i, m = 3, 7
    y = x + 0
    if x[0] > 0:
        y += 1
        y -= x[1]
        y *= 2.0
        y /= 3
        y **= 2
        i <<= 2
        m &= 6
    else:
        y @= fx.eye(4)
        i >>= 1
        m |= 8
        m ^= 1
    i //= 2
    i %= 5
    return y, i, m


@case(*INTS)
def walrus(n: Any) -> Any:
    total = 0
    if (m := n * 2) > 4:
        total += m
    i = 0
    while (k := i * i) < n:
        total += k
        i += 1
    y = (z := total + 1) * 2
    return total, m, y + z


@case(*INTS)
def walrus_in_logic(n: Any) -> Any:
    r = m = 0
    if n > 0 and (m := n + 1) > 2:
        r = m
    m = 5
    t = (m := n) if n > 2 else 7
    return r, t, m


# ---- index assignment ------------------------------------------------------------------------------------------------


@case((np.ones(8, np.int64),), (np.arange(8),))
def fibonacci_in_place(x: Any) -> Any:
    for i in range(2, x.shape[0]):
        x[i] = x[i - 1] + x[i - 2]
    return x


@case((X, np.int64(1)), (-X, np.int64(2)), (X, np.int64(0)))
def writes(x: Any, n: Any) -> Any:
    for i in range(n):
        x[i, 0] = i * 2.0
        x[i] += 1
        x[:, i + 1] -= x[i, 3]
        x[i, 1:3] *= 2
    if n > 1:
        x[0] = 0
        x[1:, ::2] = x[1:, 1::2]
    x[x > 4] = 4
    x[-1, -1] = 9
    return x


@case((X, np.int64(2)), (X, np.int64(0)))
def rows_through_masks(x: Any, n: Any) -> Any:
    y = fx.zeros((3, 4))
    for i in range(n):
        row = fx.where(x[i] > 0, x[i], 0)
        y[i] = row
        y[i, row > 3] = -1
    return y


@case(*VECTORS)
def sort_by_insertion(x: Any) -> Any:
    for i in range(1, 4):
        j = i
        while j > 0 and x[j - 1] > x[j]:
            t = x[j - 1]
            x[j - 1] = x[j]
            x[j] = t
            j -= 1
    return x


@case(*VECTORS)
def swap_by_tuple(x: Any) -> Any:
    for i in range(2):
        if x[i] > x[3 - i]:
            a, b = x[3 - i], x[i]
            x[i], x[3 - i] = a, b
    return x


@case(*INTS)
def python_containers(n: Any) -> Any:
    d: dict[str, Any] = {"a": 1}
    d["b"] = n
    items = [0, 0]
    items[1] = n + 1
    items[0] += 4
    if n > 1:
        d = {**d, "a": 5}
    return d, items


# ---- functions -------------------------------------------------------------------------------------------------------


@case(*VECTORS)
def closures(x: Any) -> Any:
    scale = x[0]

    def twice(v: Any, by: Any = 2) -> Any:
        if v > by:
            return v * scale
        return v + scale

    def deeper(v: Any) -> Any:
        def inner() -> Any:
            return twice(v) + twice(v, by=3)

        return inner()

    add = lambda v: v + scale  # noqa: E731
    return deeper(x[1]), add(x[2]), twice(by=1, v=x[3])


@case(*VECTORS)
def closure_sees_later_values(x: Any) -> Any:
    k = 1

    def f() -> Any:
        return x * k

    if x[0] > 2:
        k = 3
    a = f()
    k = 5
    return a, f()


@fx.function
def variadic(first: Any, *args: Any, scale: Any = 2, **named: Any) -> Any:
    total = first
    for a in args:
        if a > 0:
            total += a
    for k in sorted(named):
        total += named[k] * scale
    return total if scale > 1 else -total


@case(*INTS)
def arguments_of_all_kinds(n: Any) -> Any:
    more = {"p": n, "q": 3}
    return variadic(n), variadic(n, 1, n, -5), variadic(1, *[n, 2], scale=n, **more)


@case(*INTS)
def comprehensions(n: Any) -> Any:
    xs = [n + i for i in range(4) if i != 2]
    d = {k: v * n for k, v in zip("ab", (1, 2), strict=True)}
    return xs, d, sum(v for v in xs), [a * b for a in xs for b in (1, n)], [v if v > 2 else 0 for v in xs]


@case((X,), (-X,))
def comprehension_over_rows(x: Any) -> Any:
    return sum(row.sum() if row[0] > 0 else row[1] for row in x), [r[0] and not r[1] for r in [x[0] > 0]]


@fx.function
def factorial(n: Any) -> Any:
    if n <= 1:
        return 1
    return n * factorial(n - 1)


@fx.function
def gcd(a: Any, b: Any) -> Any:
    return a if b == 0 else gcd(b, a % b)


@fx.function
def is_even(n: Any) -> Any:
    if n == 0:
        return True
    return is_odd(n - 1)


@fx.function
def is_odd(n: Any) -> Any:
    if n == 0:
        return False
    return is_even(n - 1)


@fx.function
def ackermann(m: Any, n: Any) -> Any:
    if m == 0:
        return n + 1
    if n == 0:
        return ackermann(m - 1, 1)
    return ackermann(m - 1, ackermann(m, n - 1))


@fx.function
def tree_sum(x: Any, low: Any, high: Any) -> Any:
    if high - low == 1:
        return x[low]
    middle = (low + high) // 2
    left = tree_sum(x, low, middle)
    return left + tree_sum(x, middle, high)


@case(*[(np.int64(n),) for n in (0, 1, 5, 10)])
def recursion(n: Any) -> Any:
    return factorial(n), gcd(n + 12, n * 4), is_even(n), is_odd(n)


@case((np.int64(2), np.int64(3)), (np.int64(0), np.int64(4)), (np.int64(1), np.int64(0)))
def double_recursion(m: Any, n: Any) -> Any:
    return ackermann(m, n)


@case(*VECTORS)
def recursion_with_tensors(x: Any) -> Any:
    low = fx.asarray(0) if fx.is_tracing() else np.int64(0)
    return tree_sum(x, low, low + 4)


@case(*VECTORS)
def local_recursion(x: Any) -> Any:
    def power(v: Any, n: int) -> Any:
        return v if n == 0 else v * power(v, n - 1)

    return power(x, 3)


@case(*FLOATS)
def methods_and_objects(x: Any) -> Any:
    class Layer:
        scale = 3

        def __call__(self, v: Any) -> Any:
            return v * self.scale

    with contextlib.nullcontext(5) as five:
        y = Layer()(x) + five
        if x > 0:
            y = y * 2
    try:
        y = y + 1
        {}["missing"]
    except KeyError:
        y = y * 3
    finally:
        y = y - 1
    return y


@case(*FLOATS)
def match_on_python_values(x: Any) -> Any:
    for kind in ("relu", "neg", ("scale", 3)):
        match kind:
            case "relu":
                x = x if x > 0 else 0.0
            case ("scale", k):
                x = x * k
            case _:
                x = -x
    return x


@case(*INTS)
def match_on_traced_values(n: Any) -> Any:
    r = 0
    match n:
        case 0 | 1:
            r = 10
        case 2:
            return 77
        case k if k > 6:
            r = k * 2
        case _:
            r = -n
    match r:
        case 10:
            return r + 1
        case _:
            return r


@case(*INTS)
def with_and_try_in_loops(n: Any) -> Any:
    k = 0
    for i in range(n):
        with contextlib.nullcontext():
            if i > 3:
                break
            k += 1
        try:
            if i == 2:
                continue
            k += 10
        except ValueError:
            k = 5
        finally:
            k += 1000
    return k


@case(*INTS)
def return_inside_with(n: Any) -> Any:
    for i in range(n):
        with contextlib.nullcontext():
            if i * i > n:
                return i
    return -n


@case(*INTS)
def raise_on_paths_not_taken(n: Any) -> Any:
    if n > 1000:
        raise ValueError(f"too large for {len('me')}")
    for i in range(n):
        if i > 1000:
            raise ValueError
    if n < 3:
        return n
    elif n > 2000:
        raise TypeError("never")
    else:
        return n + 1


@case(*INTS)
def deleted_names(n: Any) -> Any:
    k = n
    if n > 0:
        m = k + 1
        k = m
        del m
    return k


@case(*INTS)
def containers_in_branches(n: Any) -> Any:
    d, items = {"a": 1, "b": n}, [1, 2]
    if n > 1:
        d["a"] = n
        items[0] += 5
    for i in range(n):
        d["b"] += i
        parts = []
        parts.append(i)
        parts.append(d["b"])
        items[1] = parts[0] + parts[1]
    return d, items


@case(*INTS)
def local_recursion_on_traced_values(n: Any) -> Any:
    def add_up(k: Any, step: Any = 1) -> Any:
        if k <= 0:
            return 0
        return k + add_up(k - step, step)

    return add_up(n), add_up(n, 2)


@fx.function
def accumulate(n: Any, total: Any = 0) -> Any:
    if n <= 0:
        return total
    return accumulate(n - 1, total + n)


@fx.function
def counts_calls(n: Any, depth: Any) -> Any:
    if n <= 0:
        return depth
    return counts_calls(n - 1, depth + 1)


@fx.function
def ping(n: Any, x: Any) -> Any:
    if n <= 0:
        return x
    if n > 5:
        return ping(n - 3, x + 1)
    return pong(n - 1, x * 2)


@fx.function
def pong(n: Any, x: Any) -> Any:
    if n <= 0:
        return x - 1
    if n % 2 == 0:
        return pong(n - 2, x + 3)
    y = ping(n - 1, x)
    return y + pong(n - 2, x)


@case(*[(np.int64(n), np.float32(x)) for n in (0, 1, 4, 9) for x in (1, -2)])
def recursion_of_two(n: Any, x: Any) -> Any:
    return ping(n, x), pong(n, x), accumulate(n), counts_calls(n, 0)


@fx.function
def even_by_or(n: Any) -> Any:
    return n == 0 or odd_by_and(n - 1)


@fx.function
def odd_by_and(n: Any) -> Any:
    return n != 0 and even_by_or(n - 1)


@case(*[(np.int64(n),) for n in (0, 1, 5, 8)])
def recursion_stops_by_short_circuit(n: Any) -> Any:
    return even_by_or(n), odd_by_and(n)


@case(*FLOATS)
def values_of_and_or(x: Any) -> Any:
    return x or 7.0, x and 2.5, x and x * 2 or 9.0


# ---- Python's own functions ------------------------------------------------------------------------------------------


@case(*[(np.float32(a), np.float32(b)) for a, b in ((1.5, -2.5), (-3.5, 4.0), (2.5, 2.5))])
def builtins_on_floats(a: Any, b: Any) -> Any:
    return (
        min(a, b),
        max(a, b, 0.0),
        min([a, b, 1.0]),
        abs(a),
        round(a),
        round(a * 1.23, 1),
        pow(a, 2),
        sum([a, b, 1.0]),
    )


@case(*[(np.int64(a), np.int64(b)) for a, b in ((7, 3), (-7, 3), (7, -3), (0, 5))])
def builtins_on_ints(a: Any, b: Any) -> Any:
    q, r = divmod(a, b)
    return q, r, divmod(17, b), max(a, b), min(a, 3), pow(a, 3), abs(b), bool(a > b) if not fx.is_tracing() else a > b


@case((X,), (-X,))
def builtins_on_tensors(x: Any) -> Any:
    total = 0.0
    for i, row in enumerate(x):
        total += row[i] * i
    for a, b in zip(x, reversed(x)):
        total += (a * b).sum()
    return len(x), sum(x), total, list(x)[1], [*x[0]], any([True, False]), all([len(x) == 3]), sum(x[0], 10.0)


@case(*VECTORS)
def builtin_min_max_of_tensors(x: Any) -> Any:
    return max(x), min(x), max(v * 2 for v in x), sorted([3, 1, 2]), min(x[0], x[1], x[2])


@case(*[(np.float32(v),) for v in (0.25, 0.5, 0.75)])
def math_functions(x: Any) -> Any:
    return (
        math.sqrt(x), math.exp(x), math.log(x), math.sin(x), math.tanh(x), math.pow(x, 2), math.atan2(x, 2.0), math.floor(x * 9),
        math.ceil(x * 9), math.erf(x), math.log2(x), math.isnan(x), math.hypot(x, 1.0), math.pi * x, math.fabs(-x), math.degrees(x),
        math.sqrt(4.0), math.lgamma(x), math.log(x, 3), math.copysign(x, -1.0), math.isfinite(x),
    )  # fmt: skip


@case((X,))
def types_and_shapes(x: Any) -> Any:
    n, d = x.shape
    kind = isinstance(x, np.ndarray | fx.Tensor), isinstance(n, int)
    y = x.reshape(n * d) if x.ndim == 2 else x
    assert y.shape == (12,), f"the shape is {y.shape}"
    text = f"{x.shape}"
    return y if text == "(3, 4)" and all(kind) else None


@case(*FLOATS)
def asserts(x: Any) -> Any:
    assert x < 100, "too large"
    assert True
    return x + 1


@case((np.int64(3), np.array([1, 0, 1, 1], bool)), (np.int64(0), np.zeros(4, bool)))
def masks_of_bools(n: Any, m: Any) -> Any:
    count = 0
    for b in m:
        if b:
            count += 1
        elif n > 1 or b:
            count += 10
    return count, any([m[0], m[1]]) if not fx.is_tracing() else fx.any(m[:2])


@case((X[:, 0].copy(), X[:, 1].copy()), (X[:2, 2].copy(), X[:2, 3].copy()), (X[:0, 0].copy(), X[:0, 1].copy()))
def symbolic_iteration(x: Any, y: Any) -> Any:
    total = 0.0
    for i, v in enumerate(x):
        total += v * (i + 1)
    for a, b in zip(x, y):
        if a > b:
            continue
        total += a * b
    for v in reversed(x):
        total = total * 0.5 + v
        if total > 50:
            break
    for i in range(len(x)):
        total += i * y[i]
    return total, y, len(x)


# ---- the three ways --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("f", "sets"), CASES)
def test_staged_is_python(f: Callable[..., Any], sets: Any) -> None:
    types = sets[0]
    if len({tuple(np.shape(a) for a in args) for args in sets}) > 1:  # sizes differ: leading axes are symbols
        types = tuple(TensorType.of(a.dtype, ("N", *a.shape[1:])) for a in sets[0])
    t = trace(staged(f), types)
    verify_module(t.module)
    compiled = driver.compile_module(t.module, "cpu", cache=False)
    for args in sets:
        with np.errstate(all="ignore"):
            want = f(*copies(args))
        leaves = tree.leaves(copies(args))
        same(t.out_tree.unflatten(interpret(t.module, leaves)), want, f"interpreted, {args}")
        same(t.out_tree.unflatten(compiled.program.call_flat(tree.leaves(copies(args)))), want, f"compiled, {args}")
