"""Owns the codes FX04xx: passes, pipelines, derivatives and batching."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0401",
    "unknown pass",
    "usage",
    """
    No pass of this name is registered. `fluxir passes` lists all with their options.

        fluxir opt model.fx --passes "simplfy,cse"      did you mean simplify?
    """,
)

declare(
    "FX0402",
    "unknown or wrong pass option",
    "usage",
    """
    Options stand in brackets behind the pass and have the types that `fluxir passes` shows.

        --passes "fuse[max_ops=8]"
    """,
)

declare(
    "FX0403",
    "a pass broke the program",
    "internal",
    """
    The verifier accepted the program before a pass and rejects it after. This is a defect of the pass. A reproducer was
    written that holds the program before it: `fluxir opt REPRODUCER` shows the failure again. Please report it.
    """,
)

declare(
    "FX0404",
    "a pass changed the answer",
    "mismatch",
    """
    With `--verify numeric` every pass's program is run on random inputs before and after. The named pass is the first one
    after which the results differ by more than rounding allows. This is a defect of the pass; please report the dump
    before it.
    """,
)

declare(
    "FX0405",
    "rewriting does not come to rest",
    "limit",
    """
    A set of rewrite rules kept changing the program beyond the limit of rounds: two rules probably undo each other. The
    message names the rules that fired last. For rules of your own, make one of them not match the other's result.
    """,
)

declare(
    "FX0406",
    "no derivative for this op",
    "user",
    """
    A gradient runs through an op that has none: its result is not differentiable (sorting indices, rounding by bits), or
    the rule does not exist yet; `fluxir ops` shows which. A missing gradient is never taken to be zero.

    If the path should carry no gradient, say so: `fx.stop_gradient(x)`. Otherwise give the function its own derivative
    with `@fx.custom_vjp`.
    """,
)

declare(
    "FX0407",
    "batching is not defined for this op",
    "user",
    """
    `vmap` met an op without a batching rule. `fluxir ops` shows which ops have one. `fx.map` applies a function one
    element at a time and works with every op.
    """,
)

declare(
    "FX0409",
    "dump cannot be resumed from here",
    "usage",
    """
    The file is not a dump of a stage from which compiling can go on: it is assembly, a report, or a kernel alone. Every
    `NN-pass.fx` in a dump directory can be resumed from.
    """,
)

declare(
    "FX0410",
    "program is too large after expansion",
    "limit",
    """
    Unrolling or inlining made more ops than the limit. Roll repeated layers into `fx.scan`, or keep large functions out of
    line with `fx.checkpoint`.
    """,
)

declare(
    "FX0411",
    "derivative of a non-float value",
    "user",
    """
    Derivatives are defined with respect to floats and of floats; a result to differentiate is a scalar.

        fx.grad(f)(fx.arange(3))                        arange gives i64: use fx.arange(3.0)
        fx.grad(lambda x: x * 2)(x)                     returns f32[3]: reduce it, or use fx.vjp
    """,
)

declare(
    "FX0412",
    "cotangent or tangent of another type",
    "user",
    """
    A cotangent has the structure, shapes and types of the result it belongs to, a tangent those of the argument: nothing
    is broadcast or converted, because a mistake there gives wrong numbers without a sign.

        out, pull = fx.vjp(f, x)        out is f32[3]
        pull(1.0)                       a number stands for an array full of it: fine
        pull(fx.ones((3, 1)))           another shape: reshape it
    """,
)

declare(
    "FX0413",
    "a rule does not fit its function",
    "user",
    """
    The forward and backward functions of `fx.custom_vjp`, or the rule of `fx.custom_jvp`, return something else than
    they must: `fwd(*args)` returns `(out, residuals)`, `bwd(residuals, cotangent)` a tuple with one cotangent for each
    argument (None for zero), a jvp rule `rule(primals, tangents)` returns `(out, tangent_out)`. Structures, shapes and
    types are those of the function's result and arguments. Traced values from outside are passed as arguments.

    A rule serves the other mode by its transpose, which needs a rule that is linear in the cotangent (tangent) from one op
    to the next. A loop that runs until the cotangent's image no longer changes is not: such a rule serves its own mode.
    """,
)

declare(
    "FX0414",
    "axes that cannot be mapped",
    "user",
    """
    `fx.vmap` maps a function over one axis of its arguments: `in_axes` names it for each (an integer, None for an argument
    that all calls share, or a tree of these that begins like the argument), and these axes have one size. `out_axes` says
    where it goes in the results; None is for a result that is the same for all calls.

        fx.vmap(f)(x, 2.0)                      a number has no axis: in_axes=(0, None)
        fx.vmap(f)(x, y)                        x is f32[3,2], y is f32[4]: 3 is not 4
        fx.vmap(f, in_axes=None)(x)             nothing is mapped: give axis_size
    """,
)

declare(
    "FX0415",
    "derivative does not agree with differences",
    "user",
    """
    `fx.check_grads` found that a derivative differs from finite differences by more than the tolerance. A rule given with
    `fx.custom_vjp` or `fx.custom_jvp` is wrong, the point is one where the function has no derivative (a kink, a jump), or
    the tolerance is too small for the element type: check in f64 first.
    """,
)

declare(
    "FX0416",
    "a kernel without a derivative",
    "user",
    """
    Reverse mode reached a GPU kernel whose adjoint cannot be made: the message says what stands against it. An adjoint
    is made for kernels whose threads do not meet (no barriers, shuffles, atomics, shared arrays), that store each
    element at most once, read no element after it was stored, and whose `for` loops carry sums. `fx.custom_vjp` gives
    any kernel a derivative: its backward function may call another kernel. Forward mode needs `fx.custom_jvp`.
    """,
)

declare(
    "FX0499",
    "a pass failed",
    "internal",
    """
    A pass stopped with an exception of its own. This is a defect of the pass. A reproducer was written that holds the
    program before it: `fluxir opt REPRODUCER` shows the failure again. Please report it.
    """,
)

declare(
    "FX0417",
    "a bundle's results differ",
    "mismatch",
    """
    The test program of a C bundle gives other results than the program that was compiled in Python, or stops with an error,
    which is shown. This is a defect of fluxir: please report the model.
    """,
)
