"""Owns the codes FX02xx: the rules of types and shapes."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0201",
    "dtypes do not promote",
    "user",
    """
    The operands have dtypes with no common dtype. Promotion follows the Python Array API standard: within signed, within
    unsigned and within floating dtypes the wider one wins; signed with unsigned gives the next wider signed one;
    integers and floats do not mix, nor does bool with either, and u64 mixes with no signed dtype.

        fx.ones(4, "i32") + fx.ones(4, "f32")           i32 and f32 do not promote

    Cast one of them: `x.astype(fx.f32)`. A Python number never widens a tensor: `x_f32 * 2` stays f32.
    """,
    "cast one of them, for example x.astype('f32')",
)

declare(
    "FX0202",
    "shapes do not broadcast",
    "user",
    """
    Shapes are aligned at their last axis; each pair of dims must be equal, or one of them 1.

        x: f32[32, 10]   b: f32[32]                     10 (x, axis 1) is not 32 (b, axis 0)

    To add a value per row, give it an axis of size 1: `x + b[:, None]`. Two different symbols are taken
    to be equal, and the compiled program checks that they are when it is called (FX0604).
    """,
)

declare(
    "FX0203",
    "matmul inner dimensions differ",
    "user",
    """
    In `x @ w` the last axis of x and the second to last axis of w are summed over, so they must have the same size.

        x: f32[32, 4]   w: f32[5, 6]                    4 (x, axis 1) is not 5 (w, axis 0)

    Often one of them is stored transposed (`x @ w.T`, as PyTorch's Linear keeps its weight) or an input was not
    flattened (`x.reshape(B, -1)`).
    """,
    "the axes that are summed over must have the same size",
)

declare(
    "FX0204",
    "reshape changes the number of elements",
    "user",
    """
    A reshape keeps all elements and their order, so the product of the dims must stay the same.

        x: f32[6, 4]    x.reshape(5, 5)                 24 elements cannot become 25

    At most one dim may be -1 and is then computed; with symbolic dims the division must come out evenly for every value.
    To drop or repeat elements use a slice, `pad` or `broadcast_to`.
    """,
)

declare(
    "FX0205",
    "axis out of range",
    "user",
    """
    A tensor of rank r has axes 0 to r-1, or -r to -1 counted from the end.

        x: f32[32, 10]  fx.sum(x, axis=2)               axes run from -2 to 1

    A missing batch axis is the usual reason: `x[None]` adds one.
    """,
    "axes count from 0, or from -1 at the end",
)

declare(
    "FX0206",
    "axis given twice",
    "user",
    """
    Every axis may be named once, and negative axes count: for rank 2, axis 1 and axis -1 are the same.

        fx.sum(x, axis=(1, -1))
    """,
    "name every axis once; for rank 2, axis 1 and axis -1 are the same",
)

declare(
    "FX0207",
    "not a permutation of the axes",
    "user",
    """
    A transpose names every axis exactly once.

        x: f32[2, 3, 4]  fx.transpose(x, (0, 2))        axis 1 is missing

    To swap two axes write `fx.swapaxes(x, 1, 2)`, to move one `fx.moveaxis(x, 0, -1)`.
    """,
    "name every axis exactly once; fx.swapaxes and fx.moveaxis move single ones",
)

declare(
    "FX0208",
    "shapes to join differ",
    "user",
    """
    `concat` joins along one axis: all other dims, and the rank, must be equal. `stack` needs equal shapes.

        fx.concat([x, y], axis=0)    x: f32[2, 3]  y: f32[2, 4]      3 (x, axis 1) is not 4 (y, axis 1)
    """,
    "all axes but the one joined along must be equal",
)

declare(
    "FX0209",
    "dtype not allowed for this op",
    "user",
    """
    The op is not defined for this dtype: transcendental functions take floats, bit operations integers or bool, and so on.

        fx.exp(fx.arange(4))                            exp takes floats, not i64

    Cast first: `fx.exp(x.astype(fx.f32))`. `fluxir ops NAME` lists the dtypes of an op.
    """,
    "cast the operand first; `fluxir ops NAME` lists the dtypes of an op",
)

declare(
    "FX0210",
    "convolution or window shapes do not fit",
    "user",
    """
    The input's channels must be the weight's input channels times the groups, the output channels must be divisible by
    the groups, strides and dilations must be positive, and the (dilated) window must fit into the padded input.

        x: f32[N, 3, 32, 32]   w: f32[8, 4, 3, 3]       3 channels of x, 4 of w

    The layout is batch, channels, space for inputs and out, in, space for weights, unless the call says otherwise.
    """,
)

declare(
    "FX0212",
    "branches give different types",
    "user",
    """
    Both branches of an `if` must give the same number of values with the same types: which branch runs is known only at
    run time. The condition is a bool scalar.

        fx.cond(p, lambda x: x, lambda x: x.sum(), x)   f32[4] and f32

    Bring both to one shape and dtype, for example with `fx.broadcast_to` or `.astype`, or use `fx.where` to choose
    element by element.
    """,
    "bring both branches to the same shapes and dtypes, or choose elements with fx.where",
)

declare(
    "FX0213",
    "loop carry changes its type",
    "user",
    """
    What a loop hands from one iteration to the next must keep its type and shape, since one body serves all of them.

        total = 0                                       i64
        for v in xs: total = total + v                  f32 after the first iteration

    Start with the right type: `total = fx.zeros((), fx.f32)`. A list that grows is no carry: let `scan` stack it.
    """,
    "a loop's carry keeps its type: start with the right one, or cast inside the body",
)

declare(
    "FX0214",
    "index must have an integer dtype",
    "user",
    """
    Indices of gather, scatter, dynamic slices and `x[i]` are integers; a bool tensor is a mask, and its number of hits is
    not known when compiling.

        x[mask]                                         use fx.where(mask, x, 0), or fx.nonzero(mask, size=n)
    """,
    "cast the index, i.astype('i64'); for a mask use fx.where(mask, x, 0)",
)

declare(
    "FX0215",
    "einsum equation is wrong",
    "user",
    """
    The equation has one letter per axis of every operand, separated by commas, then `->` and the letters of the result,
    each of which occurs in an operand. A letter stands for one size throughout; `...` stands for the remaining axes.

        fx.einsum("ij,jk->il", a, b)                    l is in no operand
    """,
    "one letter per axis, operands apart by commas: 'ij,jk->ik'",
)

declare(
    "FX0216",
    "slice or index out of range",
    "user",
    """
    A constant index must lie inside its axis, and a slice step must not be 0. Slice bounds are cut to the axis, as in
    Python.

        x: f32[4]   x[4]                                indices run from -4 to 3

    Indices known only at run time are clamped to the axis; see docs/numerics.md.
    """,
    "give at most one index per axis, from -n to n-1 for an axis of size n",
)

declare(
    "FX0217",
    "Python number does not fit the dtype",
    "user",
    """
    A Python number takes the dtype of the tensor it meets, and must have a value there.

        fx.zeros(4, fx.u8) + 256                        u8 holds 0 to 255
        fx.arange(4, dtype=fx.i8) * 300                 i8 holds -128 to 127

    Cast the tensor first: `x.astype(fx.i32) + 256`.
    """,
)

declare(
    "FX0218",
    "invalid dimension",
    "user",
    """
    A dim is an integer of at least 0 or an expression over symbols, and is at least 0 for all values the facts allow.

        fx.zeros((3, -1))                               a dim cannot be negative
        x: f32[B]   x[2:]                               B - 2 may be negative: state B >= 2

    Sizes that depend on the *values* of tensors do not exist here: every op has a form with a bound.
    """,
    "sizes are whole numbers of at least 0, or expressions over symbols that are",
)

declare(
    "FX0219",
    "condition must be a boolean scalar",
    "user",
    """
    `if`, `while`, `fx.cond` and `assert` need one truth value; this condition has several elements, or another dtype.

        if x > 0: ...       x: f32[4]                   which of the four?

    Reduce it with `fx.all(...)` or `fx.any(...)`, or choose element by element with `fx.where`.
    """,
    "reduce it with fx.all or fx.any, or choose elements with fx.where",
)

declare(
    "FX0220",
    "rank is wrong for this op",
    "user",
    """
    The op needs more axes than the tensor has, or an exact number of them.

        fx.linalg.norm(x, ord="fro")  x: f32[4]         a matrix has 2 axes

    `x[None]` adds an axis, `x.reshape(...)` or `fx.squeeze` removes axes of size 1.
    """,
    "x[None] adds an axis, fx.squeeze and x.reshape remove axes",
)

declare(
    "FX0221",
    "argument value not allowed for this op",
    "user",
    """
    An argument that is fixed when compiling (a mode, a size, a count) has a value the op does not take.

        fx.topk(x, k=20)   x: f32[32, 10]               k is at most 10
        fx.argmax(x)       x: f32[0]                    an empty axis has no largest element
    """,
    "see the function's documentation for the values it takes",
)

declare(
    "FX0222",
    "scan inputs differ in length",
    "user",
    """
    A scan takes one step per element of the leading axis of its sequences, so they must all have the same length; with no
    sequence the length is given.

        fx.scan(body, init, (xs, ys))   xs: f32[8, 4]  ys: f32[7]       8 (xs, axis 0) is not 7 (ys, axis 0)
    """,
    "all sequences of a scan have the same leading axis",
)

declare(
    "FX0223",
    "padding is wrong",
    "user",
    """
    Padding is one (before, after) pair per axis. Reflecting needs fewer elements than the axis has.

        fx.pad(x, ((1, 1),) * 3)   x: f32[2, 3]         2 axes, 3 pairs
    """,
    "give one (before, after) pair for each axis",
)

declare(
    "FX0224",
    "gather or scatter shapes do not fit",
    "user",
    """
    The shapes of operand, indices and updates must go together: updates have the shape that a gather with the same
    indices would give.
    """,
    "updates have the shape that a gather with the same indices gives",
)

declare(
    "FX0225",
    "reduction over an empty axis has no value",
    "user",
    """
    The sum of nothing is 0, but `max`, `min`, `argmax` and `argmin` of nothing do not exist.

        fx.max(x, axis=0)   x: f32[0, 4]                give initial=-fx.inf if that is what you mean
    """,
)

declare(
    "FX0226",
    "cast or bitcast is not possible",
    "user",
    """
    A bitcast keeps the bits, so both dtypes need the same width; bool has no bit form. A cast changes the value and is
    possible between all dtypes.

        fx.bitcast(x_f32, fx.i64)                       32 bits cannot become 64
    """,
)

declare(
    "FX0227",
    "bad random key",
    "user",
    """
    Random ops take an explicit key, a `u32[2]` tensor made by `fx.random.key(seed)`, and never change it: the same key
    gives the same numbers on every target. Make new keys with `fx.random.split(key, n)`.

        fx.random.normal(0, (3,))                       0 is a seed, not a key: fx.random.key(0)
    """,
    "make a key with fx.random.key(seed)",
)

declare(
    "FX0229",
    "value cannot become a tensor",
    "user",
    """
    Arrays of numbers and bool, nested lists of them and Python numbers become tensors. Ragged lists, strings, objects,
    complex numbers and sparse matrices do not.

        fx.asarray([[1, 2], [3]])                       the rows have lengths 2 and 1
    """,
    "give numbers, arrays, or nested lists whose rows are equally long",
)

declare(
    "FX0230",
    "a size known only at run time cannot be used here",
    "user",
    """
    The size of `x[x > 0]` or `fx.nonzero(x)` depends on values, so in a compiled program it becomes known when it runs.
    What follows uses it like any other size, within limits: it stays in the branch, loop body or transformed function
    that it was made in; results of such a size need a bound, since their memory is allocated before; all lanes of a vmap
    have one size.

        fx.vmap(fx.nonzero)(x)                          each row has a count of its own: fx.nonzero(x, size=n)
        fx.arange(fx.extent(n))  as a result            how many at most? fx.extent(n, most=100)
    """,
    "give a bound: fx.nonzero(x, size=n), or fx.extent(n, most=m)",
)
