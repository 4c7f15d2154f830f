"""`Lowered.cost().flops` against counts by hand: loops by their rounds, functions by their calls."""

from __future__ import annotations

import fluxir as fx


def flops(f, *types, **sizes):
    return fx.jit(f).lower(*types).cost("cpu", **sizes).flops


def recurrence(h, w, x):
    """A matrix-vector product (32), a tanh (4) and a sum (4) in each round."""
    return fx.scan(lambda c, r: (fx.tanh(c @ w) + r, c), h, x)


def test_a_scan_counts_each_round():
    types = fx.f32[4], fx.f32[4, 4]
    assert flops(recurrence, *types, fx.f32[7, 4]) == 7 * 40
    assert flops(recurrence, *types, fx.f32["T", 4]) == "T*40"
    assert flops(recurrence, *types, fx.f32["T", 4], T=9) == 9 * 40


def test_a_scan_in_a_scan_counts_the_product_of_rounds():
    def f(h, w, x):
        return fx.scan(lambda c, rows: (recurrence(c, w, rows)[0], None), h, x)[0]

    assert flops(f, fx.f32[4], fx.f32[4, 4], fx.f32[3, 5, 4]) == 3 * 5 * 40
    assert flops(f, fx.f32[4], fx.f32[4, 4], fx.f32["S", "T", 4], S=2, T=6) == 2 * 6 * 40


def test_a_while_counts_one_iteration():
    def f(x):
        while fx.max(x) > 1.0:
            x = x * x * x
        return x

    assert flops(f, fx.f32[100]) == 100 + 1 + 200  # the largest element, its comparison, two products


@fx.function
def halved(x):
    """Calls itself: not inlined. One frame: the largest element, its comparison, a product."""
    if fx.max(x) > 1.0:
        return halved(x * 0.5)
    return x


def test_a_function_counts_for_each_call_with_the_sizes_of_the_call():
    def f(x, y):
        return halved(x), halved(y)

    assert flops(halved, fx.f32[10]) == 10 + 1 + 10
    assert flops(f, fx.f32[10], fx.f32[10]) == 2 * flops(lambda x: halved(x), fx.f32[10])
    assert flops(f, fx.f32["N"], fx.f32["M"], N=10, M=10) == flops(f, fx.f32[10], fx.f32[10])
