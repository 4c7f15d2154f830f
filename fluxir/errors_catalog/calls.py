"""Owns the codes FX06xx: calling a compiled program."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0601",
    "wrong number of arguments",
    "user",
    """
    A compiled function takes the arguments of the function it was made from; the message lists them with their types.
    Keyword arguments and defaults work as in Python.
    """,
    "call it with one array for each of its inputs",
)

declare(
    "FX0602",
    "argument has the wrong shape",
    "user",
    """
    A dim that is fixed in the signature has another size in the argument, or the rank differs.

        x: f32[B, 784], given f32[32, 28, 28]           x.reshape(-1, 784) gives the declared shape

    Sizes written as symbols accept any value that fulfils the facts of the program.
    """,
    "bring the array to the declared shape; sizes written as symbols accept any value",
)

declare(
    "FX0603",
    "argument has the wrong dtype",
    "user",
    """
    Compiled programs do not convert: a hidden copy costs time, and narrowing loses digits.

        x: f32[B, 784], given float64                   x.astype(np.float32)

    numpy makes float64 and int64 by default.
    """,
    "convert the array first: x.astype(np.float32)",
)

declare(
    "FX0604",
    "entry guard failed",
    "user",
    """
    The program was compiled under a condition on its sizes, which these arguments break. The message shows the condition,
    the sizes and the line that needs it.

        T % 8 == 0 is needed at model.py:12 (reshape), and T is 30

    Pad the input, or change the model so that it does not need the condition.
    """,
)

declare(
    "FX0605",
    "output array cannot be used",
    "user",
    """
    An array given as `out` must be writable, C-contiguous, of exactly the result's shape and dtype, and must not overlap
    an input, which is read while it is written.
    """,
    "give a writable, C-contiguous array of the result's exact shape and dtype",
)

declare(
    "FX0606",
    "argument is not an array",
    "user",
    """
    Arguments are numpy arrays, objects with `__dlpack__` or `__array__`, Python numbers for scalars, or trees of those as
    the function was written.
    """,
    "give a numpy array, or an object with __dlpack__ or __array__",
)

declare(
    "FX0607",
    "unknown argument name",
    "user",
    """
    The program has no input of this name. `fluxir show FILE` and the message list the names; a nested argument is
    addressed as `params.layers.0.w`.
    """,
)

declare(
    "FX0608",
    "assertion in the model failed",
    "user",
    """
    An `assert` over traced values became a check of the compiled program, and it does not hold for these inputs. The
    message of the assert and its line are shown.
    """,
)

declare(
    "FX0609",
    "out of memory for the arena",
    "limit",
    """
    A program's temporary memory is one block whose size follows from the arguments' sizes, and the system refused it. The
    message says how many bytes. Use a smaller batch; `fluxir show FILE --stage plan` shows what is alive at the peak.
    """,
)

declare(
    "FX0610",
    "argument is on another device",
    "user",
    """
    A program runs on one device, and its arguments must be there; nothing is copied between devices unasked.

        x.to("cpu")    or    compiled(fx.device_put(x, "cuda:0"))
    """,
)

declare(
    "FX0611",
    "one dimension has two values",
    "user",
    """
    A symbol stands for one size, and the arguments give it several.

        x: f32[B, 784] says B = 32; y: i32[B] says B = 31
    """,
    "make the sizes that share a symbol the same",
)

declare(
    "FX0612",
    "DLPack exchange is not possible",
    "unsupported",
    """
    The array's memory cannot be shared: its device or dtype is unknown here, it is read-only for a consumer that may
    write, or its producer refuses the export. Copy it with `np.array(x)` first.
    """,
)

declare(
    "FX0614",
    "memory of a donated array used again",
    "user",
    """
    An argument named in `donate_argnums` gives its memory to a result: a training step then updates its parameters in place
    and allocates nothing. Afterwards the old array must not be used, and no other argument may share its memory.

        step = fx.jit(step, donate_argnums=0)
        new = step(params, x)
        step(params, x)                    params was given away: pass `new`
    """,
)

declare(
    "FX0613",
    "unknown entry function",
    "user",
    """
    The artifact or file has no entry point of this name; the message lists those it has. Choose with `--entry`.
    """,
    "`fluxir check FILE` lists the entry points",
)
