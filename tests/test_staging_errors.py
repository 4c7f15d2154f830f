"""What a `@fx.function` refuses: each error names the function, the line, the variable, and what to write instead."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend.trace import trace
from fluxir.ir.interp import interpret

CASES: list[Any] = []


def test_a_staged_raise_fails_when_the_program_gets_there() -> None:
    @fx.jit
    def f(n: Any) -> Any:
        total = 0
        for i in range(n):
            if i == 3:
                raise ValueError("three is too much")
            total += i
        return total

    assert f(np.int64(3)) == 3
    with pytest.raises(FluxError, match="ValueError: three is too much"):
        f(np.int64(5))
    with pytest.raises(FluxError, match="ValueError: three is too much"):
        interpret(f.lower(np.int64(5)).module, [np.int64(5)])


def test_numbers_are_python_numbers() -> None:
    def f(x: Any) -> Any:
        return round(x), math.floor(x), math.trunc(x), round(x, 1), x[None][round(x) - 2]

    t = trace(fx.function(f), [np.float32(2.4)])
    assert [str(v.type) for v in t.entry.outs] == ["i64", "i64", "i64", "f32", "f32"]
    np.testing.assert_allclose(interpret(t.module, [np.float32(2.4)]), [2, 2, 2, 2.4, 2.4])


class Counter:
    n = 0


def undefined_in_one_branch(n: Any) -> Any:
    if n > 0:
        y = 1
    return y  # FX0306 'y' ... only one branch


def undefined_through_another_name(n: Any) -> Any:
    if n > 0:
        y = 1
    if n > 1:
        z = y
    else:
        z = 2
    return z  # FX0306 'y' ... only one branch


def undefined_after_a_loop(n: Any) -> Any:
    for i in range(n):
        last = i
    q = last + 1  # FX0306 'last' ... may not run at all
    return q


def undefined_in_augmented(n: Any) -> Any:
    if n > 0:
        z = n
    z += 1  # FX0306 'z'
    return z


def loop_changes_dtype(n: Any) -> Any:
    x = fx.zeros(3)
    for _ in range(n):  # FX0213 'x' enters as f32[3] and leaves as f64[3]
        x = x.astype("f64")
    return x


def loop_changes_shape(n: Any) -> Any:
    x = {"a": fx.zeros(3)}
    while n > 0:  # FX0213 'x.a' enters as f32[3] and leaves as f32[4]
        x = {"a": fx.append(x["a"], 1.0)}
        n -= 1
    return x


def loop_with_break_changes_dtype(n: Any) -> Any:
    k = fx.asarray(0, dtype="i32")
    for i in range(n):  # FX0213 'k' enters as i32 and leaves as i64
        k = k + fx.asarray(i, dtype="i64")
        if k > 3:
            break
    return k


def branches_of_two_shapes(n: Any) -> Any:
    if n > 0:  # FX0212 f32[3] and f32[4] in 'y'
        y = fx.zeros(3)
    else:
        y = fx.zeros(4)
    return y


def returns_of_two_shapes(n: Any) -> Any:
    if n > 0:  # FX0212 f32[3] and f32[4]
        return fx.zeros(3)
    return fx.zeros(4)


def returns_on_some_paths(n: Any) -> Any:
    for i in range(n):
        if i > 3:
            return i  # FX0305 only where a traced condition holds


def string_in_a_loop(n: Any) -> Any:
    s = "a"
    for _ in range(n):  # FX0322 's' is a Python str
        s = s + "b"
    return n


def append_in_a_loop(n: Any) -> Any:
    xs: list[Any] = []
    for i in range(n):  # FX0304 the list 'xs' is changed
        xs.append(i)
    return xs


def append_in_a_branch(n: Any) -> Any:
    xs = [0]
    if n > 0:  # FX0304 the list 'xs' is changed
        xs.append(1)
    return sum(xs)


def attribute_in_a_branch(n: Any) -> Any:
    c = Counter()
    if n > 0:  # FX0304 the Counter 'c' is changed
        c.n = 1
    return c.n


def element_of_an_element(n: Any) -> Any:
    y = {"a": fx.zeros(3)}
    if n > 0:
        y["a"][0] = 1  # FX0304 from outside is changed
    return y


def new_key_in_a_branch(n: Any) -> Any:
    d = {"a": n}
    if n > 0:  # FX0212 key 'b' ... in 'd'
        d["b"] = 2
    return d


def condition_of_many(n: Any) -> Any:
    x = fx.zeros(4)
    while x < 3:  # FX0219 shape [4]
        x = x + n.astype("f32")
    return x


def yields(n: Any) -> Any:
    yield n  # FX0308 a generator


def assigns_globals(n: Any) -> Any:
    global CASES  # FX0308 global CASES
    CASES = n


def number_asked_for(n: Any) -> Any:
    return int(n)  # FX0302 int() of a traced tensor


def format_asked_for(n: Any) -> Any:
    return f"{n:.2f}"  # FX0302 formatted with '.2f'


def list_by_a_traced_index(n: Any) -> Any:
    return [1, 2, 3][n]  # FX0302 index


def comprehension_over_a_traced_range(n: Any) -> Any:
    return [i + 1 for i in range(n)]  # FX0302 known only at run time


def min_of_vectors(n: Any) -> Any:
    return max(fx.zeros(3), fx.ones(3))  # FX0219 single values


def mask_with_values(n: Any) -> Any:
    x = fx.zeros(4)
    x[x > 0] = fx.ones(3)  # FX0202 does not fit each place of a mask
    return x


def step_of_a_range(n: Any) -> Any:
    for _ in range(0, 10, n):  # FX0302 step
        pass
    return n


@fx.function
def endless(n: Any) -> Any:
    return endless(n - 1) + 1  # FX0310


def not_marked(n: Any) -> Any:
    return not_marked(n - 1) if n > 0 else 0


def recursion_unmarked(n: Any) -> Any:
    return not_marked(n)


WRONG = [
    undefined_in_one_branch, undefined_through_another_name, undefined_after_a_loop, undefined_in_augmented, loop_changes_dtype,
    loop_changes_shape, loop_with_break_changes_dtype, branches_of_two_shapes, returns_of_two_shapes, returns_on_some_paths,
    string_in_a_loop, append_in_a_loop, append_in_a_branch, attribute_in_a_branch, element_of_an_element, new_key_in_a_branch,
    condition_of_many, yields, assigns_globals, number_asked_for, format_asked_for, list_by_a_traced_index,
    comprehension_over_a_traced_range, min_of_vectors, mask_with_values, step_of_a_range,
]  # fmt: skip


@pytest.mark.parametrize("f", WRONG, ids=lambda f: f.__name__)
def test_what_cannot_be_staged_names_line_variable_and_rewrite(f: Any) -> None:
    """The comment `# CODE words ... more words` stands on the line that the error must name."""
    lines, first = inspect.getsourcelines(f)
    at, code, words = next(
        (first + i, m[1], m[2]) for i, text in enumerate(lines) if (m := re.search(r"# (FX\d{4})(.*)", text))
    )
    with pytest.raises(FluxError) as caught:
        trace(fx.function(f), [np.int64(3)])
    e = caught.value
    assert e.code == code and e.help
    assert all(part.strip() in e.message for part in words.split("...")), e.message
    assert e.loc is not None and (e.loc.file, e.loc.line) == (__file__, at)
    assert e.loc.func in (f.__name__, "")


def test_recursion_without_end() -> None:
    with pytest.raises(FluxError) as caught:
        trace(lambda n: endless(n), [np.int64(3)])
    assert caught.value.code == "FX0310" and "'endless'" in caught.value.message
    with pytest.raises(FluxError) as caught:
        trace(fx.function(recursion_unmarked), [np.int64(3)])
    assert caught.value.code in ("FX0301", "FX0310") and "@fx.function" in str(caught.value.help)


def test_a_long_unrolled_loop_with_an_early_end_compiles() -> None:
    @fx.jit
    def halvings(x: Any) -> Any:
        for step in range(60):  # a Python range: 60 branches, one in the other's results
            if x < 1:
                return step, x
            x = x / 2
        return 60, x

    assert [int(v) for v in halvings(np.float32(100))] == [7, 0]
