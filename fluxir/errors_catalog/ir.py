"""Owns the codes FX01xx: IR text, its parser, and the verifier."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0101",
    "syntax error in IR text",
    "user",
    """
    The text is not FluxIR. The message shows the line, what was found and what could stand there.

        func @f(%x: f32[4] -> (f32[4]) {
                           ^ expected `,` or `)`

    The form of a line is: results, `=`, op, operands in parentheses, attributes in brackets, `:`, result types, and
    optionally `@ file:line`. Regions stand in braces. `fluxir show FILE` prints any program in the exact form.
    """,
    "`fluxir show FILE` prints any program in the exact form of the text",
)

declare(
    "FX0102",
    "unknown op",
    "user",
    """
    No op of this name is declared.

        %1 = tahn(%x) : f32[4,4]                unknown op `tahn`; did you mean `tanh`?

    `fluxir ops` lists every op with its operands and attributes. A file written by a newer fluxir may use ops that this
    version does not have: compare with `fluxir version`.
    """,
)

declare(
    "FX0103",
    "use of an undefined value",
    "user",
    """
    A value is used that no line above it in the same block defines.

        func @f(%x: f32[4]) -> (f32[4]) {
          %1 = add(%x, %2) : f32[4]             %2 is not defined here
          return %1
        }

    Values are visible from their definition to the end of their block. At tensor level a region sees only its own
    arguments: pass what it needs as an operand of the op that owns the region. At loop level it also sees the values
    around it.
    """,
    "define it above its use; a region of a tensor program sees only its own arguments",
)

declare(
    "FX0104",
    "value defined twice",
    "user",
    """
    Every value has exactly one definition, and this name has two.

        %1 = add(%x, %y) : f32[4]
        %1 = mul(%x, %y) : f32[4]               %1 is already defined

    Give the second one another name, and change the uses that mean it.
    """,
    "every value is defined once: give the second one another name",
)

declare(
    "FX0105",
    "declared result type differs from the type rule",
    "user",
    """
    The type written behind the colon is not the one that the op's type rule gives for these operands and attributes.

        %1 = dot(%x, %w) [lhs_contract=(1,), rhs_contract=(0,)] : f32[B,11]
             x: f32[B,784]  w: f32[784,10]      the rule gives f32[B,10]

    Correct the type, or the operands if the type is what you meant. `fluxir ops NAME` prints the rule in words.
    """,
    "correct the declared type, or the operands if the type is what you meant",
)

declare(
    "FX0106",
    "wrong attribute",
    "user",
    """
    An attribute in brackets is not one that the op has, is missing, or has a value of the wrong kind.

        %1 = transpose(%x) [perm="abc"] : f32[4, 3]     perm takes a tuple of axes, such as (1,0)

    `fluxir ops NAME` lists the attributes of an op with their types and defaults.
    """,
    "`fluxir ops NAME` lists the attributes of an op",
)

declare(
    "FX0107",
    "unknown function",
    "user",
    """
    A `call` names a function that the module does not hold.

        %1 = call(%x) [callee=@layer2] : f32[4]         this module has @main, @layer1

    Correct the name, or add the function to the module.
    """,
    "name a function of this module, or add it",
)

declare(
    "FX0108",
    "operands or regions do not match the op",
    "user",
    """
    The op got the wrong number or kind of operands, or a region whose arguments or results are not those the op needs.

        %1 = add(%x) : f32[4]                           add takes 2 operands, 1 given

        %2 = if(%p, %x) : f32[4] { (%a: f32[5]) -> ... }    the region takes f32[5], the operand is f32[4]

    `fluxir ops NAME` shows operands, attributes and regions of an op with an example. A tensor-level op in a loop-level
    function, or the reverse, is this error too: the two levels meet only in lowering.
    """,
    "`fluxir ops NAME` shows the operands and regions of an op with examples",
)

declare(
    "FX0109",
    "limit of size, nesting or steps reached",
    "limit",
    """
    A limit that protects from runaway or hostile input was reached: the size of the text, the depth of nested regions,
    types or trees, the depth of calls, or the number of steps the interpreter takes.

    Programs made by fluxir stay far below. If yours is honest and larger, move repeated parts into functions and `call`
    them, or roll repeated layers into a `scan`.
    """,
)

declare(
    "FX0111",
    "terminator does not match the region or function",
    "user",
    """
    A block ends in `return` (functions) or `yield` (regions), whose values must have the declared result types.

        func @f(%x: f32[4]) -> (f32[4], f32[4]) {
          return %x                                     1 value, but 2 results are declared
        }
    """,
    "make the returned values and the declared types the same",
)

declare(
    "FX0112",
    "function defined twice",
    "user",
    """
    Two functions of one module have the same name. Rename one of them, together with the calls that mean it.
    """,
    "rename one of them, and the calls that mean it",
)

declare(
    "FX0113",
    "unknown type in IR text",
    "user",
    """
    A type is not one FluxIR has.

        %x: float32[4]                                  write f32[4]

    Dtypes are: bool i8 i16 i32 i64 u8 u16 u32 u64 f16 bf16 f32 f64. A tensor type is a dtype and its dims, `f32[B, 10]`;
    a scalar is `f32`; a vector at loop level is `f32x8`.
    """,
)

declare(
    "FX0114",
    "unknown or contradictory dimension facts",
    "user",
    """
    A `dims` line states something about a symbol that the module cannot hold at once, or in a form that is not known.

        dims B >= 1, B == 0                             no B satisfies both

    Facts have the forms `B >= 1`, `B <= 4096`, `K <= N`, `T % 8 == 0` and `N == 2*M`. Remove or correct one of them.
    """,
)

declare(
    "FX0115",
    "the verifier found invalid IR",
    "internal",
    """
    A pass, or the frontend, produced a program that breaks a rule of the IR. This is a defect of fluxir, or of a pass of
    your own. The message names the pass; a reproducer was written: run it with `fluxir opt`, and please report it.

    `--verify off` skips the check and is no fix: the program that follows may be wrong.
    """,
)

declare(
    "FX0116",
    "entry function is ambiguous or missing",
    "user",
    """
    The file holds several functions, or several that are marked as entry points, and none was named.

        fluxir compile model.py --entry classify

    `fluxir check FILE` lists the entry points of a file.
    """,
)

declare(
    "FX0118",
    "constant data does not fit its type",
    "user",
    """
    The data of a `constant` has another number of elements, or other values, than its type can hold.

        %1 = constant() [value=[1, 2, 3]] : f32[4]      3 values for 4 elements
    """,
    "give as many values as the type has elements",
)
