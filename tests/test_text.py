"""Print, parse, print is byte-identical; and no text, however hostile, fails with anything but a readable FluxError.

The round trip is checked on hand-written programs of each level, on random programs, on lowered ones, and on every
kind of attribute value with hypothesis. Errors are checked for code, position and what they say was expected.
"""

from __future__ import annotations

import base64
import math
import random
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fluxir.ops  # noqa: F401  declares the ops
from fluxir.errors import FluxError, Location
from fluxir.ir import parser, syntax, tables
from fluxir.ir.attrtext import AttrReader, TextError, read_dim
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Attrs, Func, Module, array_digest
from fluxir.ir.dims import maximum, symbol
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.parser import parse_func, parse_module, read_module
from fluxir.ir.printer import _Printer, print_func, print_module
from fluxir.ir.types import MemType, TensorType, VectorType, tensor
from fluxir.ir.verify import verify_module
from tests.programs import random_program

HEAD = "func @f(%x: f32[B,4], %w: f32[4]) -> (f32[B,4]) {\n"


def round_trip(m: Module) -> Module:
    """The module read back; asserts that it prints the same bytes and is structurally equal."""
    text = print_module(m)
    again = parse_module(text)
    assert print_module(again) == text
    assert again.digest == m.digest
    verify_module(again)
    return again


def failure(text: str) -> FluxError:
    with pytest.raises(FluxError) as e:
        parse_module(text, "bad.fx")
    return e.value


# ---- the tables of the parser -----------------------------------------------------------------------------------------


def test_the_tables_in_the_package_are_those_of_the_grammar():
    """After a change of grammar.lark: `python -m fluxir.ir.tables`."""
    written = tables.TABLES.read_bytes().partition(b"\n")[0]
    assert written.split()[3] == tables.stamp().split()[3], "grammar.lark has changed"


def test_the_parser_from_tables_is_the_parser_from_the_grammar(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "TABLES", tmp_path / "grammar.tables")
    tables.TABLES.write_bytes(tables.tables_bytes())
    ready, built = tables.load_tables(*syntax.parts()), syntax.from_grammar()
    assert ready is not None
    assert ready.parse(TENSOR) == built.parse(TENSOR)
    assert sorted(map(str, ready.rules)) == sorted(map(str, built.rules))
    assert [(t.name, t.pattern.value) for t in ready.terminals] == [(t.name, t.pattern.value) for t in built.terminals]


@pytest.mark.parametrize("change", ["stamp", "cut", "empty", "none", "other"])
def test_without_fitting_tables_the_parser_is_built_from_the_grammar(tmp_path, monkeypatch, change):
    data = tables.tables_bytes()
    path = tmp_path / "grammar.tables"
    contents = {
        "stamp": b"lark 0.1" + data,
        "cut": data[:-100],
        "empty": b"",
        "other": tables.stamp() + b"\n" + zlib.compress(b'{"data": {}}'),
    }
    if change in contents:
        path.write_bytes(contents[change])
    monkeypatch.setattr(tables, "TABLES", path)
    assert tables.load_tables(*syntax.parts()) is None
    path.write_bytes(data)
    assert tables.load_tables(*syntax.parts()) is not None


# ---- round trips ------------------------------------------------------------------------------------------------------

TENSOR = """module @mlp
dims B >= 1, T % 8 == 0, M == N*2
func @fwd(%x: f32[B,4], %w: f32[4,3], %xs: f32[T,B,3], %p: bool) -> (out: f32[B,3], f32[T,B,3]) {
  %0 = dot(%x, %w) [lhs_contract=(1,), rhs_contract=(0,)] : f32[B,3]  @ model.py:12:9 in forward
  %h, %ys = scan(%0, %xs) [carry=1] : f32[B,3], f32[T,B,3]  @ "odd name.py":13 {
    (%1: f32[B,3], %e: f32[B,3]) ->
    %2 = add(%1, %e) : f32[B,3]
    %3 = tanh(%2) : f32[B,3]
    yield %3, %3
  }
  %6 = if(%p, %h) : f32[B,3] {
    (%4: f32[B,3]) ->
    %f64 = neg(%4) : f32[B,3]
    yield %f64
  } {
    (%5: f32[B,3]) ->
    yield %5
  }
  %7 = call(%6) [callee="later", results=(!f32[B,3],)] : f32[B,3]
  return %7, %ys
}
func @later(%x: f32[B,3]) -> (f32[B,3]) {
  %0 = const [value=dense<f32[3]: 1.0 -0.0 nan:7fc00001>] : f32[3]
  %1 = mul(%x, %0) : f32[B,3]
  return %1
}
"""

LOOPS = """module @loops [tuned=true]
dims B >= 1
host @main(%x: &f32[B,8], %out: &f32[B,8], %arena: &u8[B*32]) [inputs=1, arena=<B*32>] {
  %0 = view(%arena) [type=!&f32[B,8], offset=0] : &f32[B,8]
  launch(%x, %0) [callee="k"]
  %1 = dim [value=<B>] : i64
  %2 = const [value=dense<i64: 0>] : i64
  %3 = const [value=dense<i64: 1>] : i64
  for(%2, %1, %3) {
    (%i: i64) ->
    %4 = subview(%0, %i) : &f32[8]
    %5 = subview(%out, %i) : &f32[8]
    copy(%5, %4)
  }
  return
}
kernel @k(%x: &f32[B,8], %out: &f32[B,8]) [grid=(<B>, 1, 1), block=(32, 1, 1)] {
  %0 = dim [value=<B>] : i64
  parallel(%0) [grain=16] {
    (%i: i64) ->
    %1 = const [value=dense<i64: 0>] : i64
    %2 = load(%x, %i, %1) [lanes=8, align=32] : f32x8
    %3 = mul(%2, %2) : f32x8
    %4 = alloc [type=!&local.f32[2]] : &local.f32[2]
    store(%out, %3, %i, %1)
    barrier
  }
  return
}
"""


@pytest.mark.parametrize("text", [TENSOR, LOOPS], ids=["tensor", "loops"])
def test_hand_written_programs_print_as_they_are_written(text: str) -> None:
    m = parse_module(text)
    assert print_module(m) == text
    verify_module(m)
    round_trip(m)


def test_without_locations() -> None:
    m = parse_module(TENSOR)
    text = print_module(m, locations=False)
    assert "@ model.py" not in text
    assert print_module(parse_module(text)) == text
    assert parse_module(text).digest == m.digest


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int) -> None:
    round_trip(random_program(seed, ops=15).module)


def test_comments_and_free_form() -> None:
    m = parse_module(
        "# a comment\nfunc @f( %x : f32[4] ) -> ( f32[ 4 ] ) { // another\n %1=neg(%x):f32[4]# end\nreturn %1 } // last"
    )
    assert (
        print_module(m) == "module @main\nfunc @f(%x: f32[4]) -> (f32[4]) {\n  %0 = neg(%x) : f32[4]\n  return %0\n}\n"
    )


def test_locations_stand_in_for_missing_ones() -> None:
    f = parse_func("func @f(%x: f32[4]) -> (f32[4]) {\n  %1 = neg(%x) : f32[4]\n  return %1 }", "a.fx", locate=True)
    assert f.ops[0].loc == Location("a.fx", 2, 8)
    assert parse_func(print_func(f, locations=False)).ops[0].loc is None


def test_names_of_values_survive_and_clash_harmlessly() -> None:
    def body(b: Builder, x: object, y: object) -> object:
        z = b.add(x, y)
        z.name = "x"  # the same as the argument's
        w = b.neg(z)
        w.name = "größe"  # not a name the text can hold
        v = b.exp(w)
        v.name = "v.1_a"
        return v

    m = Module("m", {"f": build_func("f", [tensor("f32[2]")] * 2, body, ["x", "return"])})
    again = round_trip(m)
    assert [v.name for v in again.entry.args] == ["x", "return"]
    assert [op.results[0].name for op in again.entry.ops] == ["", "", "v.1_a"]


@pytest.mark.parametrize("name", ["main", "a.b_1", "weird name", 'quo"te', "größe", "1st", "", "new\nline", "\udc80"])
def test_names_of_functions_modules_and_results(name: str) -> None:
    b = Builder()
    f = Func(name, b.block([tensor("f32[2]")], lambda b, x: b.neg(x)), result_names=(name,), loc=Location("f.py", 1))
    m = round_trip(Module(name, {name: f}))
    assert m.name == m.entry.name == name
    assert m.entry.result_names == ((name,) if name else ())


@pytest.mark.parametrize("word", ["f32", "bool", "f32x8", "return", "yield", "module", "func", "kernel", "dims", "i7"])
def test_result_names_that_look_like_something_else(word: str) -> None:
    f = Func("f", Builder().block([tensor("f32[2]")], lambda b, x: b.neg(x)), result_names=(word,))
    assert round_trip(Module("m", {"f": f})).entry.result_names == (word,)


@pytest.mark.parametrize("file", ["a.py", "/tmp/a b.py", "C:\\x\\y.py", "<stdin>", "it's \"x\".py", "a:3.py", "größe.py", "\udcff.py", "new\nline.py", "a]b#c//d.py"])  # fmt: skip
@pytest.mark.parametrize("scope", ["", "f", "Net.<lambda>", "odd scope", "f.<locals>.g"])
def test_locations(file: str, scope: str) -> None:
    place = Location(file, 7, 3, scope)
    f = build_func("f", [tensor("f32[2]")], lambda b, x: b.emit("neg", x, loc=place))
    assert round_trip(Module("m", {"f": f})).entry.ops[0].loc == place


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_bit_pattern_of_a_constant(dtype: str) -> None:
    """Inline and large constants of all types, NaN payloads and the sign of zero included."""
    d = DTYPES[dtype]
    rng = np.random.default_rng(5)
    for size in (0, 1, 7, 16, 17, 300):
        raw = rng.integers(0, 2, size * d.itemsize) if d.is_bool else rng.integers(0, 256, size * d.itemsize)
        a = raw.astype(np.uint8).view(d.numpy).reshape(-1)
        if d.is_float and size:
            bits = a.view(f"u{d.itemsize}")
            bits[0] |= {"f16": 0x7C01, "bf16": 0x7F81, "f32": 0x7F800001, "f64": 0x7FF0000000000001}[
                dtype
            ]  # signalling
        m = Module("m", {"f": build_func("f", [], lambda b, a=a: b.emit("const", value=a))})
        value = round_trip(m).entry.ops[0].attrs["value"]
        assert value.dtype == d.numpy and value.tobytes() == a.tobytes() and value.shape == a.shape


def test_constants_of_any_shape_and_layout() -> None:
    arrays = [
        np.zeros((0, 4), "f"), np.zeros((3, 0, 2), bool), np.float32(2.5), np.arange(24).reshape(2, 3, 4).T, np.arange(5, dtype=">i4"),
        np.arange(100, dtype=">f8").reshape(10, 10)[::2, ::-3], np.full((2, 2), -0.0), np.array([1e-45, 3.4e38], "f"),
    ]  # fmt: skip
    m = Module("m", {"f": build_func("f", [], lambda b: [b.emit("const", value=np.asarray(a))[0] for a in arrays])})
    text = print_module(m)
    again = parse_module(text)
    assert print_module(again) == text
    for op, a in zip(again.entry.ops, arrays, strict=True):
        np.testing.assert_array_equal(op.attrs["value"], a)
        assert op.attrs["value"].shape == np.shape(a)


def test_equal_constants_are_written_once() -> None:
    a = np.arange(50.0)
    m = Module(
        "m", {"f": build_func("f", [], lambda b: [b.emit("const", value=a)[0], b.emit("const", value=a.copy())[0]])}
    )
    assert print_module(m).count("resource #") == 1
    round_trip(m)


DIMS = st.recursive(
    st.one_of(st.integers(0, 9), st.sampled_from(["B", "T", "M"]).map(symbol)),
    lambda d: st.one_of(
        st.tuples(d, d).map(lambda t: t[0] + t[1]),
        st.tuples(d, d).map(lambda t: t[0] * t[1]),
        st.tuples(d, d).map(lambda t: t[0] - t[1]),
        st.tuples(d, st.integers(1, 8)).map(lambda t: t[0] // t[1]),
        st.tuples(d, st.integers(1, 8)).map(lambda t: t[0] % t[1]),
        st.tuples(d, d).map(lambda t: maximum(*t)),
    ),
    max_leaves=8,
)
TYPES = st.one_of(
    st.builds(lambda d, s: TensorType(d, tuple(s)), st.sampled_from(list(DTYPES.values())), st.lists(DIMS.filter(lambda d: not isinstance(d, int) or d >= 0), max_size=4)),
    st.builds(lambda d, n: VectorType(d, n), st.sampled_from(list(DTYPES.values())), st.integers(1, 64)),
    st.builds(lambda d, s, p: MemType(d, tuple(s), p), st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 99), max_size=3), st.sampled_from(["global", "shared", "local", "constant"])),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.integers(-(2**64), 2**64), st.floats(), st.booleans(), st.none(), st.text(max_size=12), DIMS, TYPES, st.sampled_from(list(DTYPES.values()))),
    lambda v: st.one_of(st.lists(v, max_size=3).map(tuple), st.dictionaries(st.text(max_size=5), v, max_size=3)),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_attribute_values(values: dict[str, object]) -> None:
    text = _Printer(False).attr_list(values)
    if values:
        back = AttrReader({}).read(text.strip())
        assert _Printer(False).attr_list(back) == text
        assert list(back) == list(values)
    m = Module("m", {"f": build_func("f", [tensor("f32")], lambda b, x: x)}, attrs=Attrs(values))
    text = print_module(m)
    assert print_module(parse_module(text)) == text


@given(DIMS)
def test_sizes(d: object) -> None:
    assert read_dim(str(d)) == d


def test_element_types_and_scalar_types_are_told_apart() -> None:
    attrs = Attrs({"a": DTYPES["f32"], "b": TensorType(DTYPES["f32"]), "c": (DTYPES["i8"], TensorType(DTYPES["i8"]))})
    m = Module("m", {"f": build_func("f", [tensor("f32")], lambda b, x: b.cast(x, dtype="i64"))}, attrs=attrs)
    again = round_trip(m)
    assert again.attrs == attrs
    assert again.entry.ops[0].attrs["dtype"] is DTYPES["i64"]


def test_defaults_are_left_out_unless_they_differ_in_sign() -> None:
    f = build_func(
        "f",
        [tensor("f32[3]")],
        lambda b, x: [b.var(x, axes=(0,)), b.var(x, axes=(0,), correction=-0.0), b.var(x, axes=(0,), correction=1)],
    )
    text = print_func(f)
    assert "correction=0.0" not in text and "correction=-0.0" in text and "correction=1.0" in text
    assert math.copysign(1, parse_func(text).ops[1].attrs["correction"]) == -1


def test_sizes_proven_equal_by_facts_come_back_as_written() -> None:
    """A type written before a fact was known stays as it is, though the rule now gives a simpler one."""
    text = "module @m\ndims B >= 4\nfunc @f(%x: f32[max(4,B)]) -> (f32[B]) {\n  %0 = neg(%x) : f32[B]\n  return %0\n}\n"
    assert print_module(parse_module(text)) == text
    assert "FX0105" in str(failure(text.replace("B >= 4", "B >= 3")))


def test_every_sample_of_every_op_round_trips() -> None:
    for d in REGISTRY.values():
        if d.level != "loop" and d.category != "control":
            for s in d.samples:
                f = build_func(
                    "f", [tensor(t) for t in s.types], lambda b, *xs, d=d, s=s: b.emit(d.name, *xs, **s.attrs)
                )
                round_trip(Module("m", {"f": f}))


# ---- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "place", "words"),
    [
        ("func @f(%x: f32[4] -> (f32[4]) {\n}", "FX0101", (1, 20), "expected `)` or `,`, found `->`"),
        (HEAD + "  return %x", "FX0101", (2, 12), "the end of the text"),
        (HEAD + "  %1 = add(%x %w) : f32[B,4]\n return %x }", "FX0101", (2, 15), "`)` or `,`, found `%w`"),
        (HEAD + "  %1 = add(%x, %w) [a=1 : f32[B,4]\n return %x }", "FX0101", (2, 20), "no matching `]`"),
        (HEAD + '  %1 = add(%x, %w) [a="1] : f32[B,4]\n return %x }', "FX0101", (2, 20), "no matching"),
        (HEAD + "  %1 = add(%x, %w) [axis=] : f32[B,4]\n return %x }", "FX0101", (2, 26), "expected a value, found ']'"),
        (HEAD + "  %1 = add(%x, %w) [axis=$] : f32[B,4]\n return %x }", "FX0101", (2, 26), "cannot start with '$'"),
        (HEAD + "  %1 = add(%x, %w) [a=1, a=2] : f32[B,4]\n return %x }", "FX0106", (2, 26), "'a' is given twice"),
        (HEAD + "  ^\n return %x }", "FX0101", (2, 3), "unexpected '^'"),
        (HEAD + "  %1 = addd(%x, %w) : f32[B,4]\n return %1 }", "FX0102", (2, 8), "did you mean add?"),
        (HEAD + "  %1 = add(%x, %y) : f32[B,4]\n return %1 }", "FX0103", (2, 16), "%y is not defined here"),
        (HEAD + "  return %out }", "FX0103", (2, 10), "%out is not defined"),
        (HEAD + "  %x = neg(%w) : f32[4]\n return %x }", "FX0104", (2, 3), "%x is already defined"),
        (HEAD + "  %1 = add(%x, %w) : f32[B,5]\n return %x }", "FX0105", (2, 8), "gives f32[B,4], the program says f32[B,5]"),
        (HEAD + "  %1 = add(%x, %w) : f32[B,4], f32\n return %x }", "FX0105", (2, 22), "1 results, 2 types"),
        (HEAD + "  %1 = add(%x, %w) [axis=1] : f32[B,4]\n return %x }", "FX0106", (2, 8), "has no attribute 'axis'"),
        (HEAD + '  %1 = transpose(%x) [perm="abc"] : f32[4,B]\n return %x }', "FX0106", (2, 8), "must be ints"),
        (HEAD + "  %1 = transpose(%x) [perm=none] : f32[4,B]\n return %x }", "FX0106", (2, 8), "must be ints"),
        (HEAD + '  %1 = call(%x) [callee="g", results=(!f32[4],)] : f32[4]\n return %x }', "FX0107", (2, 8), "no function @g"),
        (HEAD + '  %1 = call(%w) [callee="f", results=(!f32[4],)] : f32[4]\n return %x }', "FX0108", (2, 8), "takes 2 arguments, 1 given"),
        (HEAD + "  %1 = add(%x) : f32[B,4]\n return %x }", "FX0108", (2, 8), "add takes 2 operands, 1 given"),
        (HEAD + "  %1 = splat(%x) [lanes=4] : f32x4\n return %x }", "FX0108", (2, 8), "loop-level op in a tensor function"),
        (HEAD + "  %1 = neg(%x) : f32[B,4] {\n }\n return %x }", "FX0108", (2, 8), "has 1 regions, needs 0"),
        (HEAD + "  %1 = const [value=dense<f32[2]: 1.0>] : f32[2]\n return %x }", "FX0118", (2, 21), "1 values for the 2 elements"),
        (HEAD + "  %1 = const [value=dense<i8: 300>] : i8\n return %x }", "FX0118", (2, 21), "'300' is not a value of i8"),
        (HEAD + "  %1 = const [value=dense<f32: 1e60>] : f32\n return %x }", "FX0118", (2, 21), "'1e60' is not a value of f32"),
        (HEAD + "  %1 = const [value=dense<f32: nan:1>] : f32\n return %x }", "FX0118", (2, 21), "'nan:1' is not a value of f32"),
        (HEAD + "  %1 = const [value=dense<f32: nan:1ffc00000>] : f32\n return %x }", "FX0118", (2, 21), "is not a value of f32"),
        (HEAD + "  %1 = const [value=dense<bool: 1>] : bool\n return %x }", "FX0118", (2, 21), "'1' is not a value of bool"),
        (HEAD + "  %1 = const [value=#0123abcd] : f32\n return %x }", "FX0118", (2, 22), "no resource #0123abcd"),
        (HEAD + "  return %w }", "FX0111", (2, 10), "returns (f32[4]), declared is (f32[B,4])"),
        (HEAD + "}", "FX0111", (1, 6), "returns ()"),
        ("func @f(%x: f32[4]) -> () {\n return }\nfunc @f() -> () { return }", "FX0112", (3, 6), "defined twice"),
        ("func @f(%x: float32[4]) -> () {}", "FX0113", (1, 13), "`float32` is not a type"),
        ("func @f(%x: &heap.f32[4]) -> () {}", "FX0113", (1, 13), "is not a type"),
        ("func @f(%x: f32[4,]) -> () {}", "FX0113", (1, 13), ""),
        ("func @f(%x: f32[B+]) -> () {}", "FX0113", (1, 13), "cannot read the size"),
        ("func @f(%x: f32[-3]) -> () {}", "FX0218", (1, 13), "negative"),
        ("func @f(%x: f33[4]) -> () {}", "FX0113", (1, 13), "is not a type"),
        ("dims B >= 1, B <= 0\nfunc @f() -> () {}", "FX0114", (1, 14), "no B satisfies"),
        ("dims B ~ 1\nfunc @f() -> () {}", "FX0114", (1, 6), "not a fact"),
        ("dims B >= 1, B == 0\nfunc @f() -> () {}", "FX0114", (1, 14), "contradicts"),
        ("dims B*2 >= 1\nfunc @f() -> () {}", "FX0114", (1, 6), "a bound has the form"),
        ("module @m\n", "FX0116", (1, 10), "no function"),
        ("module @m module @n", "FX0101", (1, 11), "found `module`"),
        ("func @f() -> () { return } }", "FX0101", (1, 28), "found `}`"),
        ("func @f(%x: &f32[4]) -> () { return }", "FX0108", (1, 13), "no values of type &f32[4]"),
        ("kernel @f(%x: f32[4]) { return }", "FX0108", (1, 15), "tensors are memory there"),
        ("kernel @f() -> (i64) { %0 = dim [value=3] : i64\n return %0 }", "FX0111", (1, 8), "a kernel returns nothing"),
    ],
)  # fmt: skip
def test_messages(text: str, code: str, place: tuple[int, int], words: str) -> None:
    e = failure(text)
    assert (e.code, (e.loc.line, e.loc.col)) == (code, place), e.render()
    assert words in e.render()
    excerpt = text.splitlines()[place[0] - 1].strip()
    assert not excerpt or excerpt[:40] in e.render()


def test_a_region_of_a_tensor_program_sees_only_its_arguments() -> None:
    e = failure(
        HEAD + "  %p = const [value=dense<bool: true>] : bool\n"
        "  %1 = if(%p) : f32[B,4] {\n yield %x } {\n yield %x }\n return %1 }"
    )
    assert e.code == "FX0103" and "regions of tensor programs are closed" in e.render() and len(e.more) == 1


def test_independent_mistakes_are_reported_together() -> None:
    e = failure(
        HEAD
        + """  %0 = add(%x, %nope) : f32[B,4]
  %1 = addd(%0, %w) : f32[B,4]
  %2 = add(%1, %w) : f32[B,5]  @ model.py:3:4
  %3 = neg(%2) : f32[B,5]
  return %0
}"""
    )
    assert [(x.code, x.loc.line) for x in [e, *e.more]] == [("FX0103", 2), ("FX0102", 3), ("FX0105", 4)]
    assert "%1: f32[B,4]" in e.render() and "the op was written at model.py:3:4" in e.render()


def test_not_more_mistakes_than_one_can_read() -> None:
    e = failure(HEAD + "".join(f"  %{i} = nope{i}(%x) : f32\n" for i in range(500)) + "return %x }")
    assert len(e.more) == parser.MAX_ERRORS - 1


# ---- hostile text -------------------------------------------------------------------------------------------------------


def resource(t: str, data: bytes, digest: str = "") -> str:
    text = base64.b64encode(data).decode()
    return f'func @f() -> () {{ return }}\nresource #{digest or "ab" * 12} : {t} = "{text}"'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (resource("f32[4]", b"\0" * 16), "has the digest"),
        (resource("f32[4]", b"\0" * 15), "takes 16 bytes"),
        (resource("f32[1000000000000]", b"\0" * 15), "takes 4000000000000 bytes"),
        (resource("f32[B]", b"\0" * 4), "fixed sizes"),
        (resource("f32x4", b"\0" * 16), "fixed sizes"),
        (resource("bool[3]", b"\0\1\2"), "a bool is a byte 0 or 1"),
        (resource("f32[1]", b"\0" * 4).replace("AAAA", "A!AA"), "not base64"),
        (resource("f32[1]", b"\0" * 4).replace("AA==", "A==="), "base64"),
        (resource("f32[0,99999999999999999]", b""), "has the digest"),
    ],
)
def test_resources_are_checked(text: str, words: str) -> None:
    e = failure(text)
    assert e.code in ("FX0118", "FX0109") and words in e.render(), e.render()


def test_a_resource_with_the_right_digest_is_read() -> None:
    a = np.arange(4, dtype="f")
    m = parse_module(
        resource("f32[4]", a.tobytes(), array_digest(a)).replace(
            "() -> () { return }", f"() -> (f32[4]) {{ %0 = const [value=#{array_digest(a)}] : f32[4]\n return %0 }}"
        )
    )
    np.testing.assert_array_equal(m.entry.ops[0].attrs["value"], a)


@pytest.mark.parametrize(
    "text",
    [
        "func @f(%x: f32[" + "9" * 5000 + "]) -> () {}",
        "func @f(%x: f32[" + "B*" * 3000 + "B]) -> () {}",
        "func @f(%x: f32[" + "(" * 3000 + "B" + ")" * 3000 + "]) -> () {}",
        "func @f(%x: f32[" + "*".join(["(A+B+C+D+E+F+G+H)"] * 150) + "]) -> () {}",
        "func @f(%x: f32[" + "//".join(f"S{i}" for i in range(900)) + "]) -> () {}",
        "func @f(%x: f32[" + "*".join(["9" * 19] * 300) + "]) -> () {}",
        "func @f(%x: f32[" + ",".join(["1"] * 40) + "]) -> () {}",
        "func @f(%x: f32x99999999) -> () {}",
        "func @f(%x: f32) -> () { for(%x) " + "{ for(%x) " * 100_000,
        "func @f(%x: f32) -> () [" + "a=" + "(" * 5000 + ")" * 5000 + "] { return }",
        "func @f(%x: f32) -> () [a=" + "9" * 5000 + "] { return }",
        "func @f(%x: f32) -> () [a=1e" + "9" * 5000 + "] { return }",
        "func @f(%x: f32) -> () { %1 = const [value=dense<f32[1000000000,1000000000]: 1.0>] : f32 return }",
        "func @f(%x: f32) -> () { neg @ a.py:" + "9" * 5000 + " return }",
        "func @f(%x: f32) -> () {" + "neg " * (parser.MAX_OPS + 1) + "}",
        "dims B % 0 == 0\nfunc @f() -> () { return }",
        "dims " + "B >= 1, " * 10_000 + "\nfunc @f() -> () { return }",
        "\0", "\x1b[31m", "\udc80", '"', "@", "#", "//", "%", "[", "{" * 1000, "[" * 100_000, "(" * 100_000, '"' * 100_001, "f32[" * 50_000,
        "func @f() -> () { return }" * 3,
    ],
    ids=lambda t: t[:24] + "..." if len(t) > 24 else t,
)  # fmt: skip
def test_hostile_text_fails_quickly_and_readably(text: str) -> None:
    start = time.perf_counter()
    e = failure(text)
    assert time.perf_counter() - start < 20
    assert e.code.startswith("FX01") and len(e.render()) < 20_000


def test_files(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.fx"  # type: ignore[operator]
    path.write_text(TENSOR)
    assert read_module(path, locate=False).digest == parse_module(TENSOR).digest
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FluxError, match="not UTF-8"):
        read_module(path)
    with pytest.raises(FluxError, match="FX0803"):
        read_module(path.with_name("none.fx"))
    monkeypatch.setattr(parser, "MAX_BYTES", 10)
    with pytest.raises(FluxError, match="FX0109"):
        read_module(path.with_name("a.fx").write_text(TENSOR) and path)


def test_nothing_but_flux_errors_from_damaged_text() -> None:
    """Bytes of real programs cut, doubled, swapped and replaced: a FluxError with a place, or a module that prints."""
    rng = random.Random(7)
    sources = [TENSOR, LOOPS, *(print_module(random_program(s, ops=6).module) for s in range(4))]
    pieces = [
        "",
        "0",
        "-1",
        "%x",
        "f32[B]",
        "f32x4",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        ",",
        "nan",
        "#ab",
        '"',
        "<B>",
        "!f32",
        "none",
        "99999999999",
        "if",
        "call",
    ]
    for _ in range(600):
        text = rng.choice(sources)
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(text))
            j = min(len(text), i + rng.choice([0, 1, 3, 10]))
            text = text[:i] + rng.choice([rng.choice(pieces), text[j : j + rng.randint(1, 20)]]) + text[j:]
        try:
            m = parse_module(text)
        except FluxError as e:
            assert e.loc is not None or e.more, e.render()
            continue
        printed = print_module(m)
        assert print_module(parse_module(printed)) == printed


def test_reading_is_quick() -> None:
    """At most 150 us an op on an idle machine; the bound here leaves room for a busy one."""
    f = build_func("f", [tensor("f32[B,10]"), tensor("f32[10]")], lambda b, x, w: _chain(b, x, w, 2000))
    text = print_module(Module("m", {"f": f}))
    parse_module(text)
    best = min(_timed(text) for _ in range(3))
    assert best / 2000 < 600e-6


def _chain(b: Builder, x: object, w: object, n: int) -> object:
    for i in range(n):
        b.loc = Location("model.py", i, 3)
        x = b.add(x, w)
    return x


def _timed(text: str) -> float:
    start = time.perf_counter()
    parse_module(text)
    return time.perf_counter() - start


def test_what_has_no_text_form_is_not_printed() -> None:
    with pytest.raises(TypeError, match="no text form"):
        _Printer(False).attr(object())
    with pytest.raises(TextError, match="expected a value"):
        AttrReader({}).read("[a=thing]")
