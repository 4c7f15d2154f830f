"""What breaks runtimes: sizes beyond 64 bits, texts that stand for more than they are long, damaged or forged files.

Only a FluxError may come out, and soon: no other exception, crash, hang or memory in proportion to what a file claims.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.driver import Lowered
from fluxir.errors import FluxError
from fluxir.ir.dims import MAX_NESTING, MAX_WEIGHT, Poly, evaluate, maximum, parse_dim, symbol
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_module
from fluxir.runtime import sizes
from fluxir.runtime.artifact import artifact_bytes, read_artifact
from fluxir.runtime.cache import Cache
from fluxir.runtime.elf import load_object
from fluxir.runtime.program import Program
from tests.fuzz.mutate import changed_text
from tests.programs import random_program
from tests.test_calls import HALVES, TWICE

# ---- sizes ------------------------------------------------------------------------------------------------------------


def square(x: fx.Tensor) -> fx.Tensor:
    return fx.zeros((x.shape[0], x.shape[0]), fx.f32) + 1


def cube_of_temporaries(x: fx.Tensor) -> fx.Tensor:
    n = x.shape[0]
    return fx.sum(fx.cumsum(fx.zeros((n, n, n), fx.f32), axis=0))


@pytest.mark.parametrize("fn", [square, cube_of_temporaries])
@pytest.mark.parametrize("size", [2**22 * 4, 2**31, 2**32, 2**40, 2**60])
def test_what_no_memory_holds_is_an_error(fn: object, size: int) -> None:
    """An empty array may have any size, and so may what is computed from it."""
    program = fx.jit(fn, signature=(fx.f32["B", 0],)).lower().compile("cpu").program
    huge = np.zeros((size, 0), "f4")
    for _ in range(2):  # the second call has a plan, if there is one
        with pytest.raises(FluxError) as e:
            program(huge)
        assert e.value.code == "FX0609"
    program(np.zeros((2, 0), "f4"))


def nested(n: int) -> str:
    text = "B"
    for i in range(n):
        text = f"(({text}+A)%{i + 2})"
    return text


def test_a_short_text_does_not_stand_for_a_large_size() -> None:
    """Each `%` mentions its operand twice."""
    assert isinstance(parse_dim(nested(8)), Poly)
    for n in (20, 40, 90):
        with pytest.raises(FluxError) as e:
            parse_dim(nested(n))
        assert e.value.code == "FX0109"
    with pytest.raises(FluxError):
        parse_module(f"module @m\nfunc @f(%x: f32[{nested(60)}]) -> () {{\n return\n}}\n")


def test_every_size_that_can_be_made_is_read_again() -> None:
    terms = parse_dim("+".join(f"A{i}*{i + 2}" for i in range(MAX_WEIGHT // 2 - 1)))
    deep = symbol("B")
    for i in range(MAX_NESTING):
        deep = maximum(deep * 2 + 1, symbol(f"A{i}")) // 7 if i % 2 else maximum(deep, symbol(f"A{i}"))
        if deep.nesting >= MAX_NESTING - 2:
            break
    for d in (terms, deep):
        text = str(d)
        assert parse_dim(text) == d and str(parse_dim(text)) == text
        env = dict.fromkeys(sizes.names(text), 3)
        assert sizes.evaluate(text, env) == evaluate(d, env)
    with pytest.raises(FluxError):
        for i in range(MAX_NESTING):
            deep = maximum(deep + 1, symbol(f"C{i}"))


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "(" * 5000 + "1" + ")" * 5000, "-" * 5000 + "1", "max(B," * 600 + "1" + ")" * 600, "1+" * 300_000 + "1", "*".join(["9" * 40] * 5000)],
    ids=["digits", "parentheses", "signs", "max", "long", "product"],
)  # fmt: skip
def test_size_texts_from_strangers(text: str) -> None:
    with pytest.raises(FluxError):
        sizes.evaluate(text, {"B": 1})
    if not text.startswith("1+") and "*" not in text:  # constants that the compiler folds are integers of any size
        with pytest.raises(FluxError):
            parse_dim(text)


def test_long_sums_and_products_are_read() -> None:
    assert sizes.evaluate("+".join(["B"] * 5000), {"B": 2}) == 10000
    assert sizes.names("*".join(["B"] * 5000)) == {"B"}
    assert str(parse_dim("+".join(["B"] * 5000))) == "B*5000"


def test_the_loops_of_many_symbolic_buffers_are_read_again() -> None:
    n = 6

    def model(*xs: fx.Tensor) -> fx.Tensor:
        a = [fx.cumsum(x * 2, axis=0) for x in xs]
        b = [fx.cumsum(fx.concat([a[i], a[(i + 1) % n]]), axis=0) for i in range(n)]
        return sum(fx.sum(v) for v in a + b)

    lowered = fx.jit(model, signature=tuple(fx.f32[f"S{i}"] for i in range(n))).lower()
    text = print_module(lowered.stage("loops", "cpu"))
    assert print_module(parse_module(text)) == text
    assert float(lowered.compile("cpu").program(*[np.ones(i + 1, "f4") for i in range(n)])) > 0


# ---- files: seeded mutations of good ones -----------------------------------------------------------------------------

WORDS = (
    "f32[B,4] i64 9999999999999999999999 -1 %x ( ) [ ] { } <B*2> none true @main scan call while !f32[3] axes carry=9 "
    "f32[99999999999,99999999999] f32[B-100] f32[0] dims 1e400 nan 0 7 bool f64 //"
).split(" ")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_programs_are_refused_or_mean_something(seed: int) -> None:
    """What the parser takes, the printer writes back and the compiler lowers; nothing is a defect (FX04xx internal)."""
    rng = random.Random(seed)
    texts = [TWICE, HALVES, *(print_module(random_program(rng.randrange(10**6)).module) for _ in range(2))]
    taken = 0
    for _ in range(400):
        text = changed_text(rng.choice(texts), rng, WORDS)
        try:
            module = parse_module(text)
            verify_module(module)
            assert print_module(parse_module(print_module(module))) == print_module(module)
            if taken % 4 == 0:
                Lowered(module).build("cpu", verify="changed")
            taken += 1
        except FluxError as e:
            assert e.exit_code != 70, (e, text)
    assert taken > 5


def test_a_loop_cannot_carry_more_than_it_has() -> None:
    """Found by the mutations: simplify failed on a carry beyond the operands."""
    text = """module @m
func @f(%x: f32, %p: bool) -> (f32, bool) {
  %0, %1 = while(%x, %p) [carry=2] : f32, bool {
    (%a: f32, %b: bool) ->
    yield %b
  } {
    (%a: f32, %b: bool) ->
    yield %a, %b
  }
  return %0, %1
}
"""
    parse_module(text)
    for carry in ("3", "-1", "9999999"):
        with pytest.raises(FluxError, match="FX0213"):
            parse_module(text.replace("carry=2", f"carry={carry}"))


@functools.cache
def artifact() -> tuple[dict[str, Any], bytes, list[Any], bytes]:
    def f(x: fx.Tensor, w: fx.Tensor) -> tuple[fx.Tensor, fx.Tensor]:
        return fx.tanh(x @ w) + np.arange(3, dtype="f4"), fx.sum(x)

    c = fx.jit(f, signature=(fx.f32["B", 4], fx.f32[4, 3])).lower().compile("cpu")
    return dict(c.spec), c.code, c.constants, artifact_bytes(c.spec, c.code, c.constants, {"program.fx": "module @m\n"})


VALUES = [None, -1, 0, 2**70, "", "B", "Q", "B//0", "9" * 40, "max(", [], {}, [1, 2], {"a": 1}, True, 1.5, "f99"]


def places(x: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ():
        yield from places(x[key], (*path, key))


def test_a_forged_spec_is_refused_before_it_is_used() -> None:
    """The digests are right: whoever writes the file can make them so."""
    spec, code, constants, _ = artifact()
    rng = random.Random(0)
    refused = 0
    for path in places(json.loads(json.dumps(spec))):
        for value in (*rng.sample(VALUES, 3), "gone"):
            changed = json.loads(json.dumps(spec))
            at = changed
            for key in path[:-1]:
                at = at[key]
            if value == "gone":
                del at[path[-1]]
            else:
                at[path[-1]] = value
            try:
                Program.load(artifact_bytes_of(changed, code, constants))
            except FluxError as e:
                refused += 1
                assert e.exit_code != 70 or e.code == "FX0514", e
    assert refused > 100


@pytest.mark.parametrize("pairs", [None, 3, [[0]], [[0, 9]], [[0, 1]], [["0", 0]], [[0, 0], [1, 0]], {"0": 0}])
def test_forged_donations_are_refused(pairs: Any) -> None:
    """A result that takes the memory of an input writes there: the two must have one type."""
    spec, code, constants, _ = artifact()
    with pytest.raises(FluxError, match="donated"):
        read_artifact(artifact_bytes_of({**spec, "donated": pairs}, code, constants))


def artifact_bytes_of(spec: Any, code: bytes, constants: list[Any]) -> bytes:
    """`artifact_bytes` of a spec that may be anything: its constants keep their names."""
    good = {**artifact()[0], "constants": artifact()[0]["constants"]}
    data = artifact_bytes(good, code, constants)
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        members = {n: z.read(n) for n in z.namelist()}
    table = json.loads(members["manifest.json"])
    (row,) = table["targets"]
    members["manifest.json"] = json.dumps({**table, "targets": [{**row, "spec": spec}]}).encode()
    return zipped(members)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        for name, content in members.items():
            z.writestr(zipfile.ZipInfo(name), content)
        z.comment = hashlib.sha256(members["manifest.json"]).hexdigest().encode()
    return out.getvalue()


def test_members_that_share_bytes_take_no_memory() -> None:
    """A thousand directory entries for one member: the file stays small, what it claims to hold does not."""
    data = artifact()[3]
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    directory = data[start : start + size]
    entries = re.split(rb"(?=PK\x01\x02)", directory)[1:]
    largest = max(entries, key=lambda e: struct.unpack_from("<I", e, 24)[0])
    extra = b"".join(largest.replace(largest[46:50], b"%04d" % i, 1) for i in range(1000))
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, count + 1000, count + 1000, size + len(extra))
    with pytest.raises(FluxError, match="larger than the file"):
        read_artifact(data[:start] + directory + extra + bytes(tail))


def test_manifests_of_other_forms() -> None:
    for table in ([], 3, {"fxb": 1}, {"fxb": 1, "spec": [], "members": []}, {"fxb": 1, "spec": {}, "members": {}}):
        with pytest.raises(FluxError):
            read_artifact(zipped({"manifest.json": json.dumps(table).encode(), "code": b""}))


def test_mutated_artifacts_and_objects() -> None:
    _, code, _, data = artifact()
    rng = random.Random(1)
    for source, read in ((data, read_artifact), (code, check_object_form)):
        for _ in range(150):
            changed = bytearray(source)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(rng.choice([64, len(changed)]))] = rng.randrange(256)
            with contextlib.suppress(FluxError):
                read(bytes(changed[: rng.choice([len(changed), rng.randrange(len(changed))])]))


def check_object_form(data: bytes) -> None:
    """Loading maps and relocates code, and never runs it."""
    load_object(data)


def test_mutated_cache_entries_are_misses(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 1 << 20)
    rng = random.Random(2)
    for _ in range(60):
        cache.put("k", {"a": b"x" * 50}, {"name": "n"})
        (path,) = (tmp_path / "c").rglob("*.fxc")
        changed = bytearray(path.read_bytes())
        at = rng.randrange(len(changed))
        changed[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.5:  # with a digest that fits
            changed[-32:] = hashlib.sha256(changed[:-32]).digest()
        path.write_bytes(changed[: rng.choice([len(changed), at])])
        cache.ls()
        found = cache.get("k")
        assert found is None or isinstance(found.files, dict)
        cache.prune(0)


def test_programs_run_where_no_cache_can_be_written(tmp_path: Path) -> None:
    """In a process of its own: this one has the runtime's machine code already."""
    path = tmp_path / "m.fxb"
    path.write_bytes(artifact()[3])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fluxir.cli",
            "run",
            str(path),
            "--dim",
            "B=2",
            "--input",
            "x=ones",
            "--input",
            "w=ones",
        ],
        env={**os.environ, "FLUXIR_CACHE_DIR": "/proc/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
