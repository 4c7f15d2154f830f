"""Calls of functions with sizes of their own: the interpreter, every stage and compiled code agree."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fluxir.ops  # noqa: F401  declares the ops
from fluxir.driver import Lowered
from fluxir.errors import FluxError
from fluxir.ir.interp import interpret
from fluxir.ir.parser import parse_module
from fluxir.ir.verify import verify_module

TWICE = """module @m
dims B >= 1
func @main(%x: f32[B,4], %n: i32) -> (f32[B,4], f32[2*B]) {
  %y = call(%x, %n) [callee="g", results=(!f32[B,4],), dims=(("S", <B>),)] : f32[B,4]
  %z = concat(%x, %x) [axis=0] : f32[2*B,4]
  %w = call(%z, %n) [callee="g", results=(!f32[2*B,4],), dims=(("S", <2*B>),)] : f32[2*B,4]
  %s = sum(%w) [axes=(1,)] : f32[2*B]
  return %y, %s
}
func @g(%x: f32[S,4], %n: i32) -> (f32[S,4]) {
  %0 = const [value=dense<i32: 0>] : i32
  %1 = le(%n, %0) : bool
  %2 = if(%1, %x, %n) : f32[S,4] {
    (%a: f32[S,4], %m: i32) ->
    yield %a
  } {
    (%a: f32[S,4], %m: i32) ->
    %one = const [value=dense<i32: 1>] : i32
    %3 = sub(%m, %one) : i32
    %r = reverse(%a) [axes=(0,)] : f32[S,4]
    %4 = add(%r, %a) : f32[S,4]
    %5 = call(%4, %3) [callee="g", results=(!f32[S,4],), dims=(("S", <S>),)] : f32[S,4]
    yield %5
  }
  return %2
}
"""

COUNT = """module @m
func @main(%n: i64) -> (i64) {
  %zero = const [value=dense<i64: 0>] : i64
  %one = const [value=dense<i64: 1>] : i64
  %p = le(%n, %zero) : bool
  %r = if(%p, %n, %one) : i64 {
    (%m: i64, %k: i64) ->
    yield %m
  } {
    (%m: i64, %k: i64) ->
    %d = sub(%m, %k) : i64
    %q = call(%d) [callee="main", results=(!i64[],)] : i64
    %s = add(%q, %k) : i64
    yield %s
  }
  return %r
}
"""

HALVES = """module @m
dims B >= 1
func @main(%x: f32[B]) -> (f32) {
  %y = call(%x) [callee="g", results=(!f32[],), dims=(("S", <B>),)] : f32
  return %y
}
func @g(%x: f32[S]) -> (f32) {
  %n = dim [value=<S>] : i64
  %c1 = const [value=dense<i64: 1>] : i64
  %p = le(%n, %c1) : bool
  %r = if(%p, %x) : f32 {
    (%a: f32[S]) ->
    %s = sum(%a) [axes=(0,)] : f32
    yield %s
  } {
    (%a: f32[S]) ->
    %h = slice(%a) [start=(0,), limit=(<S//2>,)] : f32[S//2]
    %k = slice(%a) [start=(<S//2>,), limit=(<S>,)] : f32[S-S//2]
    %q = call(%h) [callee="g", results=(!f32[],), dims=(("S", <S//2>),)] : f32
    %w = call(%k) [callee="g", results=(!f32[],), dims=(("S", <S-S//2>),)] : f32
    %d = sub(%q, %w) : f32
    yield %d
  }
  return %r
}
"""

# The callee's size is that of its argument, twice the caller's size of the same name.
LENGTH = """module @m
dims B >= 1
func @main(%x: f32[B]) -> (i64) {
  %z = concat(%x, %x) [axis=0] : f32[2*B]
  %y = call(%z) [callee="g", results=(!i64[],)DIMS] : i64
  return %y
}
func @g(%x: f32[B]) -> (i64) {
  %n = dim [value=<B>] : i64
  return %n
}
"""


def halves(x: np.ndarray) -> float:
    if len(x) <= 1:
        return float(x.sum())
    return halves(x[: len(x) // 2]) - halves(x[len(x) // 2 :])


def everywhere(text: str, *args: np.ndarray) -> list[list[np.ndarray]]:
    module = parse_module(text)
    verify_module(module)
    program = Lowered(module)
    out = [interpret(module, args)]
    out += [interpret(program.stage(stage, "cpu"), args) for stage in ("simplified", "fused")]
    return [*out, program.compile("cpu", cache=False).program.call_flat(list(args))]


@pytest.mark.parametrize("rename", ["S", "N", "B"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_recursion_at_two_sizes(rename: str, size: int) -> None:
    x = np.arange(size * 4, dtype="f4").reshape(size, 4)
    want, z = x, np.concatenate([x, x])
    for _ in range(3):
        want, z = want[::-1] + want, z[::-1] + z
    for y, s in everywhere(TWICE.replace("S", rename), x, np.int32(3)):
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(s, z.sum(1))


@pytest.mark.parametrize("rename", ["S", "B"])
@pytest.mark.parametrize("size", [1, 2, 7, 13])
def test_recursion_at_sizes_that_shrink(rename: str, size: int) -> None:
    x = np.arange(size, dtype="f4")
    for (y,) in everywhere(HALVES.replace("S", rename), x):
        assert float(y) == halves(x)


def test_a_size_of_the_same_name_is_never_confused() -> None:
    for (n,) in everywhere(LENGTH.replace("DIMS", ', dims=(("B", <2*B>),)'), np.zeros(3, "f4")):
        assert int(n) == 6
    with pytest.raises(FluxError, match="FX0108"):
        parse_module(LENGTH.replace("DIMS", ""))


def test_recursion_ends_before_the_stack_of_its_thread_does() -> None:
    """A thread may have less stack than the depth that is allowed needs."""
    program = Lowered(parse_module(COUNT)).compile("cpu", cache=False).program
    said: list[object] = []

    def run() -> None:
        for n in (50, 3900, 50):
            try:
                said.append(int(program(np.int64(n))))
            except FluxError as e:
                said.append(e.code)

    before = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert said == [50, "FX0109", 50]
    assert int(program(np.int64(3900))) == 3900  # this thread has more
