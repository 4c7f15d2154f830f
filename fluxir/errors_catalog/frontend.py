"""Owns the codes FX03xx: tracing Python, staging control flow, and loading model files."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0301",
    "truth value of a traced tensor",
    "user",
    """
    While a function is traced, tensors stand for values that are known only when the compiled program runs. Python asked
    for the truth of one here, and code that was not rewritten cannot wait for it.

        def relu(x):
            if x > 0: ...                               x is traced

    Decorate the function with `@fx.function`, which turns `if` and `while` over traced values into program control flow;
    or write `fx.where(x > 0, x, 0)`, `fx.cond(...)` or `fx.while_loop(...)`. In a lambda, a comprehension condition or
    library code only the second way works.
    """,
)

declare(
    "FX0302",
    "Python number asked of a traced tensor",
    "user",
    """
    `int(x)`, `float(x)`, `x.item()`, `range(x)`, `x.tolist()` and numpy functions need a value now, and a traced tensor has
    none yet.

        for i in range(n): ...      n: i64              use fx.fori_loop(0, n, body, init), or @fx.function

    If the number is known when compiling, pass it as a static argument: `@fx.jit(static=("n",))`.
    """,
)

declare(
    "FX0303",
    "argument of this type cannot be traced",
    "user",
    """
    Arguments are arrays, Python numbers and bools, and nested dicts, lists, tuples, named tuples and dataclasses of those.
    None, text, enum members, dtypes, classes and functions may stand in them too, and a program is compiled for each.
    Anything else is either configuration, then make it static: `@fx.jit(static_argnames=("mode",))`, or a container, then
    register it with `fx.tree.register`.
    """,
    "pass arrays, numbers or trees of them, and make configuration static",
)

declare(
    "FX0304",
    "in-place change that cannot be staged",
    "user",
    """
    Tensors never change. Inside `@fx.function`, `x[i] = v` and `x += v` on a *local* variable become `x = x.at[i].set(v)`.
    Changing a tensor that someone else holds (an argument's element, an attribute, a captured list) would be lost or seen
    elsewhere, so it is refused.

        self.mean[i] = v                                write: mean = self.mean.at[i].set(v), and return it
    """,
)

declare(
    "FX0305",
    "return types differ between branches",
    "user",
    """
    Which branch runs is decided when the program runs, so every `return` must give the same structure and types.

        if x.sum() > 0:
            return x                                    f32[4]
        return None

    Return values of one structure, with equal shapes and dtypes, on every path; the end of a function returns None.
    """,
)

declare(
    "FX0306",
    "variable may be undefined",
    "user",
    """
    A variable that is used later gets a value on one path only, and the condition is known only at run time.

        if p:
            y = x + 1
        return y                                        no y where p is false

    Give it a value before the `if`, or in both branches. For a loop that may run zero times, give it one before the loop.
    """,
)

declare(
    "FX0308",
    "statement not supported in @fx.function",
    "user",
    """
    Under a condition or in a loop over traced values some statements have no program form: `yield`, `await`, `try`,
    `with`, `global`, `nonlocal`, `del`, `match` on traced values, class definitions and import.

    Move the statement out of the traced branch, or split the function: what needs Python goes outside and passes its result
    in as an argument.
    """,
)

declare(
    "FX0309",
    "@fx.model signature needs type annotations",
    "user",
    """
    An entry point is compiled without example inputs, so each of its parameters says its type.

        @fx.model
        def classify(x: fx.f32["B", 64]) -> fx.f32["B", 10]: ...

    Symbols such as "B" stand for sizes known at run time. Weights are not parameters: use them from the module's globals
    or from a `fluxir.nn` module.
    """,
)

declare(
    "FX0310",
    "recursion on traced values does not end",
    "user",
    """
    A function calls itself with traced arguments while it is being traced. In `@fx.function` this becomes a `call` of the
    program, for which the function's result type must be known from a branch that does not recurse.

        @fx.function
        def power(x, n):
            if n == 0: return fx.ones_like(x)           this branch gives the type
            return x * power(x, n - 1)
    """,
)

declare(
    "FX0311",
    "traced tensor used outside its trace",
    "user",
    """
    A tensor from inside a traced function was kept (in a global, an attribute, a list) and used after tracing ended, or
    inside another trace. It stands for a value that no longer exists.

        saved = []
        @fx.jit
        def f(x): saved.append(x * 2); return x
        f(1.0); saved[0] + 1                            return the value from f instead
    """,
)

declare(
    "FX0312",
    "source of the function is not available",
    "user",
    """
    `@fx.function` rewrites the source of the function, which Python could not find: it was typed into a bare interpreter,
    made by `exec`, or is a lambda that shares its line with another. Put it into a file or a notebook cell, or use
    `fx.cond`, `fx.scan` and `fx.while_loop` with `@fx.jit`, which need no source.
    """,
)

declare(
    "FX0313",
    "tree structures differ",
    "user",
    """
    Two trees (nested dicts, lists, tuples, dataclasses) must have the same keys and lengths here, such as the carry before
    and after a loop body, or the arguments of `fx.tree.map`.

        {"w": a, "b": b}  and  {"w": a}                 key "b" is missing in the second
    """,
    "use the same keys and lengths in both",
)

declare(
    "FX0314",
    "iteration over a traced tensor",
    "user",
    """
    A Python loop over a tensor needs its length when tracing, and here the length is symbolic, or the tensor is a scalar.

        for row in x: ...       x: f32[T, 4]            use fx.scan(body, init, x), or @fx.function
    """,
)

declare(
    "FX0315",
    "NumPy function called on a traced tensor",
    "user",
    """
    NumPy computes now, and a traced tensor has no value yet.

        np.sin(x)                                       write fx.sin(x)

    The functions of the Array API and most of NumPy's exist in `fluxir` under the same names.
    """,
)

declare(
    "FX0316",
    "model file has no entry point",
    "user",
    """
    A `.py` model marks what to compile.

        @fx.model
        def main(x: fx.f32["B", 4]) -> fx.f32["B"]: ...

    In `.fx` files every function that no other function calls is an entry point.
    """,
)

declare(
    "FX0317",
    "model file failed while running",
    "user",
    """
    The Python file raised an exception before its entry points were defined. The message shows where. A model file is a
    normal program: run it with `python FILE` to debug it.
    """,
    "run the file with Python itself to debug it",
)

declare(
    "FX0318",
    "static argument is not hashable",
    "user",
    """
    Static arguments select among compiled programs, so they are looked up by value and must be hashable: numbers, strings,
    tuples, frozen dataclasses, functions. Use a tuple in place of a list.
    """,
)

declare(
    "FX0319",
    "wrong arguments to a traced function",
    "user",
    """
    A function given to `fx.cond`, `fx.scan`, `fx.while_loop` or a transform does not take the arguments it is called with,
    or does not return what is needed there.

        fx.scan(lambda carry, x: carry + x, 0.0, xs)    the body must return (carry, output)
    """,
    "check what the function takes and returns",
)

declare(
    "FX0322",
    "Python value depends on a traced condition",
    "user",
    """
    Both branches assign a Python value (a string, a function, None) to the same variable. Which one holds is known only at
    run time, and such a value cannot live in the program.

        mode = "a" if p else "b"                        p is traced

    Use numbers and `fx.where`, or let each branch finish the computation that needs the value.
    """,
)

declare(
    "FX0323",
    "annotation is not a tensor type",
    "user",
    """
    Entry point annotations are `fx.f32["B", 784]`, `fx.i32[()]` (a scalar), or trees of those (dict, list, tuple,
    dataclass).

        def f(x: "float32 tensor"): ...                 write fx.f32[...]
    """,
    'write for example x: fx.f32["B", 64]',
)

declare(
    "FX0325",
    "data that has no tensor form",
    "user",
    """
    Complex, structured, string, datetime and object arrays have no dtype here. For complex numbers keep two tensors, real
    and imaginary part.
    """,
    "keep real and imaginary part, or the fields, in tensors of their own",
)
