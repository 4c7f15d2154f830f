"""IR text that nests, repeats or claims more than a reader should follow."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile import hostile


def fx(code: str) -> Callable[[Callable[[], bytes | str]], None]:
    return hostile(code, ".fx")


def program(body: str, arguments: str = "%x: f32[4]", result: str = "f32[4]") -> str:
    return f"module @m\nfunc @f({arguments}) -> ({result}) {{\n  {body}\n  return %0\n}}\n"


def constant(text: str) -> str:
    return program(f"%0 = const [value={text}] : f32[4]")


@fx("FX0116")
def nothing() -> str:
    """No program at all."""
    return ""


@fx("FX0101")
def other_bytes() -> bytes:
    """Bytes that are no text."""
    return b"\xff\xfe\0\0" * 1000


@fx("FX0101")
def nul() -> str:
    """A character that ends texts in C."""
    return program("%0 = exp(%x)\0 : f32[4]")


@fx("FX0109")
def regions_in_regions() -> str:
    """Branches in branches, a thousand deep."""
    return program("%0 = if(%x) : f32[4] {" * 1000)


@fx("FX0109")
def size_of_parentheses() -> str:
    """A size in five thousand parentheses: overflows the stack of a reader that recurses."""
    return program("%0 = exp(%x) : f32[4]", f"%x: f32[{'(' * 5000}4{')' * 5000}]")


@fx("FX0109")
def size_of_maxima() -> str:
    """The same by maxima, which are functions."""
    return program("%0 = exp(%x) : f32[4]", f"%x: f32[{'max(B,' * 5000}4{')' * 5000}]")


@fx("FX0109")
def size_that_doubles() -> str:
    """A size that mentions what it is made of twice, sixty times."""
    text = "B"
    for i in range(60):
        text = f"(({text}+A)%{i + 2})"
    return program("%0 = exp(%x) : f32[4]", f"%x: f32[{text}]")


@fx("FX0109")
def size_of_many_digits() -> str:
    """A number that takes long to read."""
    return program("%0 = exp(%x) : f32[4]", f"%x: f32[{'9' * 100_000}]")


@fx("FX0109")
def size_of_exabytes() -> str:
    """A value of more bytes than addresses reach."""
    return program(f"%0 = exp(%x) : f32[{1 << 62}]", f"%x: f32[{1 << 62}]", f"f32[{1 << 62}]")


@fx("FX0218")
def size_negative() -> str:
    """Less than nothing."""
    return program("%0 = exp(%x) : f32[-4]", "%x: f32[-4]")


@fx("FX0109")
def thousand_axes() -> str:
    """More axes than arrays have."""
    return program("%0 = exp(%x) : f32[4]", f"%x: f32[{','.join('1' * 1000)}]")


@fx("FX0109")
def attributes_in_attributes() -> str:
    """A value of an attribute in a thousand parentheses."""
    return program(f"%0 = reshape(%x) [shape={'(' * 1000}4{',)' * 1000}] : f32[4]")


@fx("FX0118")
def constant_of_terabytes() -> str:
    """One number for 2^40 elements."""
    return program(f"%0 = const [value=dense<f32[{1 << 40}]: 1.0>] : f32[{1 << 40}]", "%x: f32", f"f32[{1 << 40}]")


@fx("FX0118")
def constant_too_long() -> str:
    """More numbers than the type has."""
    return constant("dense<f32[4]: " + "1.0 " * 100_000 + ">")


@fx("FX0118")
def constant_of_words() -> str:
    """Numbers that are none."""
    return constant("dense<f32[4]: __import__ os system ls>")


@fx("FX0109")
def constant_of_many_digits() -> str:
    """A number of a hundred thousand digits."""
    return program(f"%0 = sum(%x) [axes=({'9' * 100_000},)] : f32")


@fx("FX0118")
def resource_forged() -> str:
    """A constant in a resource whose contents are others than its digest says."""
    digest = "0" * 24
    return constant(f"#{digest}") + f'resource #{digest} : f32[4] = "AAAAAAAAAAAAAAAAAAAAAA=="\n'


@fx("FX0118")
def resource_missing() -> str:
    """A constant that is nowhere."""
    return constant(f"#{'0' * 24}")


@fx("FX0118")
def resource_shorter() -> str:
    """A resource of a terabyte in a line."""
    return constant(f"#{'0' * 24}") + f'resource #{"0" * 24} : f32[{1 << 38}] = "AAAA"\n'


@fx("FX0101")
def string_without_end() -> str:
    """A text that does not end."""
    return 'module @"' + "x" * 100_000


@fx("FX0102")
def unknown_op() -> str:
    """An op called like an attribute of Python objects."""
    return program("%0 = __class__(%x) : f32[4]")


@fx("FX0103")
def value_from_nowhere() -> str:
    """A value that nothing gives."""
    return program("%0 = exp(%y) : f32[4]")


@fx("FX0112")
def two_functions_of_one_name() -> str:
    """One of them is never looked at."""
    return program("%0 = exp(%x) : f32[4]") + program("%0 = exp(%x) : f32[4]").removeprefix("module @m\n")


@fx("FX0107")
def call_of_nothing() -> str:
    """A call of a function that is not there."""
    return program('%0 = call(%x) [callee="g", results=(!f32[4],)] : f32[4]')


def chain(count: int, last: str) -> str:
    """Functions that call the next one."""
    one = 'func @f{0}(%x: f32[4]) -> (f32[4]) {{\n  %0 = call(%x) [callee="{1}", results=(!f32[4],)] : f32[4]\n  return %0\n}}\n'
    return "module @m\n" + "".join(one.format(i, f"f{i + 1}" if i < count - 1 else last) for i in range(count))


@fx("FX0316")
def functions_in_a_circle() -> str:
    """Functions that call each other without an end."""
    return chain(3, "f0")


@fx("FX0109")
def functions_that_double() -> str:
    """Each function calls the next one twice: inlining all of it makes 2^40 ops."""
    one = (
        'func @f{0}(%x: f32[4]) -> (f32[4]) {{\n  %0 = call(%x) [callee="f{1}", results=(!f32[4],)] : f32[4]\n'
        '  %1 = call(%0) [callee="f{1}", results=(!f32[4],)] : f32[4]\n  return %1\n}}\n'
    )
    last = "func @f40(%x: f32[4]) -> (f32[4]) {\n  %0 = exp(%x) : f32[4]\n  return %0\n}\n"
    return "module @m\n" + "".join(one.format(i, i + 1) for i in range(40)) + last


@fx("FX0213")
def loop_carries_more_than_it_has() -> str:
    """A loop that says it carries a billion values."""
    return program(
        "%0 = while(%x) [carry=1000000000] : f32[4] {\n (%a: f32[4]) ->\n yield %a\n } {\n (%a: f32[4]) ->\n yield %a\n }"
    )


@fx("FX0813")
def lowered() -> str:
    """A kernel, which says itself which memory it writes to."""
    return "module @m\nkernel @k(%p: &f32[4]) {\n  return\n}\n"


@fx("FX0109")
def facts_of_thousands() -> str:
    """Facts about sizes, a hundred thousand of them."""
    return (
        "module @m\ndims "
        + ", ".join(f"B >= {i}" for i in range(100_000))
        + "\n"
        + program("%0 = exp(%x) : f32[B]", "%x: f32[B]", "f32[B]").removeprefix("module @m\n")
    )


@fx("FX0109")
def millions_of_ops() -> str:
    """More ops than any program has."""
    return program("\n  ".join(["%0 = exp(%x) : f32"] * 300_000))
