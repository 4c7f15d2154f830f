"""What breaks runtimes: sizes beyond 64 bits, texts that stand for more than they are long, damaged or forged files.

Only a FluxError may come out, and soon: no other exception, crash, hang or memory in proportion to what a file claims.
"""

from __future__ import annotations

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.ir.dims import MAX_NESTING, MAX_WEIGHT, Poly, evaluate, maximum, parse_dim, symbol
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.runtime import sizes

# ---- sizes ------------------------------------------------------------------------------------------------------------


def square(x: fx.Tensor) -> fx.Tensor:
    return fx.zeros((x.shape[0], x.shape[0]), fx.f32) + 1


def cube_of_temporaries(x: fx.Tensor) -> fx.Tensor:
    n = x.shape[0]
    return fx.sum(fx.cumsum(fx.zeros((n, n, n), fx.f32), axis=0))


@pytest.mark.parametrize("fn", [square, cube_of_temporaries])
@pytest.mark.parametrize("size", [2**22 * 4, 2**31, 2**32, 2**40, 2**60])
def test_what_no_memory_holds_is_an_error(fn: object, size: int) -> None:
    """An empty array may have any size, and so may what is computed from it."""
    program = fx.jit(fn, signature=(fx.f32["B", 0],)).lower().compile("cpu").program
    huge = np.zeros((size, 0), "f4")
    for _ in range(2):  # the second call has a plan, if there is one
        with pytest.raises(FluxError) as e:
            program(huge)
        assert e.value.code == "FX0609"
    program(np.zeros((2, 0), "f4"))


def nested(n: int) -> str:
    text = "B"
    for i in range(n):
        text = f"(({text}+A)%{i + 2})"
    return text


def test_a_short_text_does_not_stand_for_a_large_size() -> None:
    """Each `%` mentions its operand twice."""
    assert isinstance(parse_dim(nested(8)), Poly)
    for n in (20, 40, 90):
        with pytest.raises(FluxError) as e:
            parse_dim(nested(n))
        assert e.value.code == "FX0109"
    with pytest.raises(FluxError):
        parse_module(f"module @m\nfunc @f(%x: f32[{nested(60)}]) -> () {{\n return\n}}\n")


def test_every_size_that_can_be_made_is_read_again() -> None:
    terms = parse_dim("+".join(f"A{i}*{i + 2}" for i in range(MAX_WEIGHT // 2 - 1)))
    deep = symbol("B")
    for i in range(MAX_NESTING):
        deep = maximum(deep * 2 + 1, symbol(f"A{i}")) // 7 if i % 2 else maximum(deep, symbol(f"A{i}"))
        if deep.nesting >= MAX_NESTING - 2:
            break
    for d in (terms, deep):
        text = str(d)
        assert parse_dim(text) == d and str(parse_dim(text)) == text
        env = dict.fromkeys(sizes.names(text), 3)
        assert sizes.evaluate(text, env) == evaluate(d, env)
    with pytest.raises(FluxError):
        for i in range(MAX_NESTING):
            deep = maximum(deep + 1, symbol(f"C{i}"))


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "(" * 5000 + "1" + ")" * 5000, "-" * 5000 + "1", "max(B," * 600 + "1" + ")" * 600, "1+" * 300_000 + "1", "*".join(["9" * 40] * 5000)],
    ids=["digits", "parentheses", "signs", "max", "long", "product"],
)  # fmt: skip
def test_size_texts_from_strangers(text: str) -> None:
    with pytest.raises(FluxError):
        sizes.evaluate(text, {"B": 1})
    if not text.startswith("1+") and "*" not in text:  # constants that the compiler folds are integers of any size
        with pytest.raises(FluxError):
            parse_dim(text)


def test_long_sums_and_products_are_read() -> None:
    assert sizes.evaluate("+".join(["B"] * 5000), {"B": 2}) == 10000
    assert sizes.names("*".join(["B"] * 5000)) == {"B"}
    assert str(parse_dim("+".join(["B"] * 5000))) == "B*5000"


def test_the_loops_of_many_symbolic_buffers_are_read_again() -> None:
    n = 6

    def model(*xs: fx.Tensor) -> fx.Tensor:
        a = [fx.cumsum(x * 2, axis=0) for x in xs]
        b = [fx.cumsum(fx.concat([a[i], a[(i + 1) % n]]), axis=0) for i in range(n)]
        return sum(fx.sum(v) for v in a + b)

    lowered = fx.jit(model, signature=tuple(fx.f32[f"S{i}"] for i in range(n))).lower()
    text = print_module(lowered.stage("loops", "cpu"))
    assert print_module(parse_module(text)) == text
    assert float(lowered.compile("cpu").program(*[np.ones(i + 1, "f4") for i in range(n)])) > 0
