"""Owns the codes FX0330 to FX0339: GPU kernels written in Python."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0330",
    "Python that kernels do not have",
    "unsupported",
    """
    A function under `@fx.kernel`, and every function it calls, is compiled from its source for thousands of threads
    that have neither objects nor exceptions. It may use numbers, arrays, tuples, named tuples and dataclasses; `if`,
    `for` over a range or a tuple, `while`, `break`, `continue`, `return`, `assert`; functions of `math`, numpy, `fx`
    and `fx.gpu`; and plain functions, which are inlined.

        out = []                                        write fx.gpu.local((n,), fx.f32)
        x[1:5]                                          index element by element
    """,
)

declare(
    "FX0331",
    "types do not fit in a kernel",
    "user",
    """
    Every variable of a kernel has one type wherever paths meet, kinds do not mix, and an array takes elements of its
    own kind. Python numbers take the type of what they meet.

        i * x[i]                                        fx.f32(i) * x[i]: an integer and a float do not mix
        if p: y = x[i]                                  y is unassigned where p does not hold: assign it before
        for i in range(n): s += x[i]                    give s its type before the loop: s = 0.0
    """,
    "`fluxir explain FX0331` tells what a kernel takes and how types meet in it",
)

declare(
    "FX0332",
    "recursion in a kernel",
    "unsupported",
    """
    Functions that a kernel calls are inlined, so that none may call itself, directly or through others. Write a loop;
    a small stack is `fx.gpu.local((depth,), fx.i32)` and an index.
    """,
)

declare(
    "FX0333",
    "a kernel's name used outside of a kernel",
    "user",
    """
    The names of `fx.gpu` stand for what a thread of a GPU does; Python itself cannot call them. Call them in a
    function under `@fx.kernel`, or in a function that such a one calls.
    """,
)

declare(
    "FX0334",
    "kernel cannot run on this device",
    "unsupported",
    """
    On the CPU the threads of a block run in turns between barriers, and what lives across a barrier is kept for each
    thread. What cannot be kept so (an array chosen at run time), and what all blocks do together while they run one
    after the other (a barrier of the grid), does not run there. The message says which it is. Run the kernel with
    `.on("vgpu")` or on a GPU.
    """,
)

declare(
    "FX0335",
    "wrong launch of a kernel",
    "user",
    """
    A launch says how many blocks and how many threads of a block: `k[grid, block](arguments)`, each a number or up to
    three. A third number is the bytes of dynamic shared memory, a fourth the stream. The limits of a block are those
    of the device: 1024 threads, and the shared memory that `fluxir targets NAME` lists.
    """,
    "write kernel[grid, block](arguments...)",
)
