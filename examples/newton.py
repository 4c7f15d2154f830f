"""Control flow: square roots by Newton's method, with as many steps as each number needs, and a sorted list of them.

`while`, `if`, `break` and `x[i] = v` are Python's own; over tensors they become control flow of the compiled program.
"""

from __future__ import annotations

import fluxir as fx


@fx.function
def root(a):
    """The square root of a number, and the steps it took."""
    if a <= 0:
        return 0.0, 0
    guess = a
    step = 0
    while step < 60:
        better = (guess + a / guess) / 2
        if abs(better - guess) <= 1e-6 * better:
            return better, step
        guess = better
        step += 1
    return guess, 60


@fx.model(facts="N >= 1")
def newton(x: fx.f32["N"]) -> {"roots": fx.f32["N"], "steps": fx.i64["N"], "sorted": fx.f32["N"]}:
    roots, steps = fx.map(root, x)
    ordered = roots
    for i in range(1, len(x)):  # insertion sort: a loop of unknown length around one that ends early
        j = i
        while j > 0 and ordered[j - 1] > ordered[j]:
            ordered[j - 1], ordered[j] = ordered[j], ordered[j - 1]
            j -= 1
    return {"roots": roots, "steps": steps, "sorted": ordered}
