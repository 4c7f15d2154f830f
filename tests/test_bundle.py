"""Bundles: the C libraries that `fluxir bundle` makes are compiled with gcc and run; their launchers for GPUs run on the
virtual driver."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fluxir as fx
from fluxir import FluxError
from fluxir.bundle import Case, Program, c_bundle, cuda_bundle, features
from fluxir.bundle.interface import interface_of
from fluxir.bundle.names import comment, identifier, identifiers, prefix, string
from fluxir.bundle.sizes import SizeWriter
from fluxir.cli import main
from fluxir.codegen.checks import ALLOWED, undefined_symbols
from fluxir.runtime import arguments, sizes
from fluxir.runtime.native import machine
from fluxir.target import host

ROOT = Path(__file__).resolve().parent.parent
GCC = shutil.which("gcc") or shutil.which("cc")
PORTABLE = ["cpu:x86-64-v2", "cpu:x86-64-v3"] if machine() == "x86_64" else ["cpu:aarch64+neon"]
needs_gcc = pytest.mark.skipif(GCC is None, reason="no C compiler")
W = (np.arange(12).reshape(4, 3) / 8).astype(np.float32)


# ---- programs -----------------------------------------------------------------------------------------------------------------


def dense(x: Any) -> Any:
    return {"y": fx.tanh(x @ W), "n": fx.sum(x, axis=1)}


def branches(x: Any, k: Any) -> Any:
    """Control flow that looks at numbers."""
    n = fx.cond(k > 3, lambda v: fx.sum(v, axis=1), lambda v: fx.max(v, axis=1), x)
    _, v = fx.while_loop(lambda c: c[0] < k, lambda c: (c[0] + 1, c[1] * 0.5 + 1), (fx.zeros((), fx.i32), n))
    return v


def many_types(a: Any, b: Any, c: Any, d: Any) -> Any:
    return {
        "half": a + a,
        "brain": b * b,
        "flags": fx.logical_not(c),
        "whole": d * d + 7,
        "wide": fx.astype(d, fx.f64) / 3,
    }


def step(w: Any, x: Any) -> Any:
    """An argument that is written over."""
    return w - 0.5 * fx.mean(x, axis=0), fx.sum(x)


def recursive(n: Any, x: Any) -> Any:
    return _half(n, x)


@fx.function
def _half(n: Any, x: Any) -> Any:
    if n <= 0:
        y = x
    else:
        y = _half(n - 1, x * 0.5) + 1.0
    return y


def checked(x: Any) -> Any:
    return fx.sqrt(x)


def random_arrays(spec: Mapping[str, Any], dims: Mapping[str, int], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    out = []
    for t in spec["inputs"]:
        shape = tuple(sizes.evaluate(d, dims) for d in t["shape"])
        d = arguments.dtype(t["dtype"])
        numbers = (
            rng.standard_normal(shape) * 2 if d.kind in "fV" else rng.integers(0, 2 if d.kind == "b" else 6, shape)
        )
        out.append(np.asarray(numbers).astype(d))
    return out


def build(
    f: Any, types: Sequence[Any], dims: Mapping[str, int], targets: Sequence[str] = PORTABLE, **options: Any
) -> tuple[list[Program], Case, Any]:
    """The programs of a function for some targets, a case for the test program, and the compiled program to compare with."""
    low = fx.jit(f, **options).lower(*types)
    made = [low.compile(t) for t in targets]
    ours = low.compile("cpu")
    inputs = random_arrays(ours.spec, dims)
    results = ours.program.call_flat([a.copy() for a in inputs])
    case = Case(arguments.solve(ours.spec, [a.shape for a in inputs]), inputs, results, "the tests computed")
    return [Program(c.spec, c.code, c.constants) for c in made], case, ours


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def gcc(folder: Path, *arguments_: str) -> None:
    assert GCC is not None
    line = [GCC, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *arguments_]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_test(
    folder: Path, name: str, *options: str, before: Sequence[str] = (), flags: Sequence[str] = ("-O1",)
) -> str:
    gcc(folder, *flags, "-o", "t", f"test_{name}.c", f"{name}.c", f"{name}_code.o", "-lpthread", "-lm")
    done = subprocess.run(
        [*before, "./t", *options], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0 and done.stdout.rstrip().endswith("ok"), done.stdout + done.stderr
    return done.stdout


PROGRAMS: dict[str, tuple[Any, list[Any], dict[str, int], dict[str, Any]]] = {
    "dense": (dense, [fx.f32["B", 4]], {"B": 37}, {}),
    "branches": (branches, [fx.f32["B", 4], fx.i32[()]], {"B": 5}, {}),
    "types": (many_types, [fx.f16["N"], fx.bf16["N"], fx.bool["M", 3], fx.i64["N"]], {"N": 9, "M": 4}, {}),
    "step": (step, [fx.f32[4], fx.f32["B", 4]], {"B": 6}, {"donate_argnums": 0}),
    "recursive": (recursive, [fx.i32[()], fx.f32["N"]], {"N": 7}, {}),
    "fixed": (lambda x: fx.sum(x * x), [fx.f32[100, 3]], {}, {}),
}


@needs_gcc
@pytest.mark.parametrize("name", list(PROGRAMS))
@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "mapped"])
def test_a_bundle_computes_what_the_program_does(name: str, embed: bool, tmp_path: Path) -> None:
    f, types, dims, options = PROGRAMS[name]
    programs, case, _ = build(f, types, dims, **options)
    files = c_bundle(programs, name, case, embed)
    assert files == c_bundle(programs, name, case, embed), "same programs, same bytes"
    folder = write(tmp_path / "b", files)
    out = run_test(folder, name, "--threads", "3")
    assert f"{PORTABLE[-1]}, 1 thread" in out, "the best target that this machine has"
    # Nothing is needed but the C library; nothing of ours is visible but the functions of the header.
    assert not set(undefined_symbols(files[f"{name}_code.o"])) - ALLOWED - {"syscall", "clock_gettime"}


@needs_gcc
def test_the_bundle_of_another_machine_is_refused_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for a processor that this one is not: an error and no illegal instruction."""
    programs, case, _ = build(dense, [fx.f32["B", 4]], {"B": 3})
    monkeypatch.setitem(features._X86, "3dnow", (0x80000001, 0, 3, 31, 0))  # which no processor has any more
    wanted = "3dnow" if machine() == "x86_64" else "sve512"
    if wanted in host().features:
        pytest.skip("this machine has 512-bit registers")
    spec = {**programs[0].spec, "target": {**programs[0].spec["target"], "features": [wanted]}}
    files = c_bundle([Program(spec, programs[0].code, programs[0].constants)], "other", case)
    folder = write(tmp_path / "b", files)
    gcc(folder, "-o", "t", "test_other.c", "other.c", "other_code.o", "-lpthread", "-lm")
    done = subprocess.run(["./t"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "this machine lacks what the code needs" in done.stderr


@needs_gcc
def test_memory_is_used_as_it_should_be(tmp_path: Path) -> None:
    """Under valgrind, which knows AVX2; else with the compiler's own checks."""
    targets = ["cpu:x86-64-v3"] if machine() == "x86_64" else PORTABLE
    programs, case, _ = build(branches, [fx.f32["B", 4], fx.i32[()]], {"B": 200}, targets)
    folder = write(tmp_path / "b", c_bundle(programs, "model", case, embed=False))
    valgrind = shutil.which("valgrind")
    if valgrind is not None:
        checker = [valgrind, "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
        run_test(folder, "model", "--threads", "3", before=checker, flags=["-O1", "-g"])
    run_test(folder, "model", "--threads", "3", flags=["-O1", "-g", "-fsanitize=address,undefined"])


# ---- called from outside --------------------------------------------------------------------------------------------------------


class Library:
    """A bundle as a shared library, called as C would."""

    def __init__(self, folder: Path, prefix: str, dims: Sequence[str] = ()) -> None:
        gcc(folder, "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-o", f"lib{prefix}.so", f"{prefix}.c",
            f"{prefix}_code.o", "-lpthread")  # fmt: skip
        self.folder, self.prefix, self.names = folder, prefix, list(dims)
        self.dll = ctypes.CDLL(str(folder / f"lib{prefix}.so"))
        self("workspace_size").restype = ctypes.c_int64
        self("strerror").restype = ctypes.c_char_p

    def __call__(self, name: str) -> Any:
        return getattr(self.dll, f"{self.prefix}_{name}")

    def dims(self, values: Mapping[str, int]) -> Any:
        return (ctypes.c_int64 * len(self.names))(*[values[n] for n in self.names])

    def open(self, threads: int = 2, weights: bytes | None = None) -> tuple[int, ctypes.c_void_p]:
        model = ctypes.c_void_p()
        return self("open")(weights, threads, ctypes.byref(model)), model

    def run(self, model: Any, dims: Any, arrays: Sequence[Any], short: int = 0, shift: int = 0) -> int:
        nbytes = self("workspace_size")(dims)
        if nbytes < 0:
            return int(nbytes)
        room = np.empty(nbytes + 64, np.uint8)
        given = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
        return int(
            self("run")(model, dims, *given, ctypes.c_void_p(room.ctypes.data + shift), ctypes.c_size_t(nbytes - short))
        )


@needs_gcc
def test_every_size_and_every_number_of_threads(tmp_path: Path) -> None:
    def f(x: Any, y: Any) -> Any:
        z = fx.exp(x @ fx.transpose(y) * 0.1)
        z = z / fx.sum(z, axis=-1, keepdims=True)
        return fx.concatenate([z, x], axis=1), fx.max(z, axis=0)

    programs, case, ours = build(f, [fx.f32["B", 5], fx.f32["T", 5]], {"B": 2, "T": 3}, facts="B >= 1, T >= 1")
    lib = Library(write(tmp_path / "b", c_bundle(programs, "m", case)), "m", ["B", "T"])
    rng = np.random.default_rng(1)
    models = {n: lib.open(n)[1] for n in (1, 2, 3)}
    for b, t in [(1, 1), (1, 300), (257, 1), *rng.integers(1, 90, (12, 2)).tolist()]:
        dims = lib.dims({"B": b, "T": t})
        x, y = random_arrays(ours.spec, {"B": b, "T": t}, seed=b)
        want = ours.program.call_flat([x, y])
        shape = (ctypes.c_int64 * 2)()
        names = [t["name"] for t in ours.spec["outputs"]]
        assert lib(f"{names[0]}_shape")(dims, shape) == 0 and tuple(shape) == want[0].shape
        first = None
        for threads, model in models.items():
            out = [np.full_like(a, 9) for a in want]
            assert lib.run(model, dims, [x, y, *out], shift=threads) == 0
            for got, a in zip(out, want):
                np.testing.assert_allclose(got, a, rtol=1e-4, atol=1e-5)
            first = first or [a.copy() for a in out]
            assert all(np.array_equal(a, b) for a, b in zip(first, out)), "any number of threads, the same bits"
    for model in models.values():
        lib("close")(model)
    # Opened again after all were closed: threads begin anew.
    status, model = lib.open(3)
    out = [np.full_like(a, 9) for a in want]
    assert status == 0 and lib.run(model, dims, [x, y, *out]) == 0 and np.array_equal(out[0], first[0])
    lib("close")(model)
    lib("close")(None)


@needs_gcc
def test_what_is_wrong_is_an_error_number(tmp_path: Path) -> None:
    programs, case, _ = build(
        lambda x: fx.cumsum(x @ W, axis=0), [fx.f32["B", 4]], {"B": 4}, facts="B >= 2, B <= 100, B % 2 == 0"
    )
    files = c_bundle(programs, "m", case, embed=False)
    folder = write(tmp_path / "b", files)
    lib = Library(folder, "m", ["B"])
    weights = str(folder / "m.safetensors").encode()

    def said(number: int) -> str:
        return str(lib("strerror")(number).decode())

    for threads in (0, -1, 257):
        assert said(lib.open(threads, weights)[0]) == "an argument is null or out of range"
    assert said(lib.open(1, None)[0]) == "an argument is null or out of range"
    assert said(lib.open(1, str(folder / "none").encode())[0]) == "a file of the bundle cannot be read"
    for change in (lambda d: d[:-4], lambda d: d[:12] + b"0" + d[13:]):
        (folder / "other").write_bytes(change(files["m.safetensors"]))
        assert said(lib.open(1, str(folder / "other").encode())[0]) == "the weights are not those of this program"
    status, model = lib.open(2, weights)
    assert status == 0 and said(0) == "no error" and said(12345) == "unknown error"
    x = [np.zeros((100, 4), np.float32), np.zeros((100, 3), np.float32)]
    for b in (0, 1, 3, 102, -2, 2**62):
        assert said(lib("workspace_size")(lib.dims({"B": b}))) == "the sizes do not fit the program"
        assert said(lib.run(model, lib.dims({"B": b}), x)) == "the sizes do not fit the program"
    assert said(lib("workspace_size")(None)) == "an argument is null or out of range"
    dims = lib.dims({"B": 8})
    assert lib.run(model, dims, x) == 0
    assert said(lib.run(None, dims, x)) == "an argument is null or out of range"
    if lib("workspace_size")(dims):
        assert said(lib.run(model, dims, x, short=70)) == "the workspace is too small"
    null = ctypes.c_void_p()
    assert said(lib("run")(model, dims, null, null, null, ctypes.c_size_t(0))) == "an argument is null or out of range"
    lib("close")(model)


@needs_gcc
def test_a_forked_child_runs_alone(tmp_path: Path) -> None:
    programs, case, _ = build(dense, [fx.f32["B", 4]], {"B": 3000})
    folder = write(tmp_path / "b", c_bundle(programs, "m", case))
    (folder / "fork.c").write_text(
        """
#include "m.h"
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static m_dims dims = {3000};
static float x[12000], y[9000], n[3000];
int main(void)
{
    m_model *model;
    if (m_open(NULL, 3, &model)) return 1;
    void *workspace = malloc(m_workspace_size(&dims) + 1);
    for (int i = 0; i < 50; i++)
        if (m_run(model, &dims, x, n, y, workspace, m_workspace_size(&dims))) return 2;
    const pid_t child = fork();
    for (int i = 0; i < 50; i++)
        if (m_run(model, &dims, x, n, y, workspace, m_workspace_size(&dims))) _exit(3);
    m_close(model);
    free(workspace);
    int status = 0;
    if (child && (waitpid(child, &status, 0) != child || status)) return 4;
    return 0;
}
"""
    )
    gcc(folder, "-O1", "-o", "fork", "fork.c", "m.c", "m_code.o", "-lpthread")
    done = subprocess.run(["./fork"], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@needs_gcc
def test_two_bundles_in_one_program(tmp_path: Path) -> None:
    """Names of one do not meet those of the other, in one executable."""
    folder = tmp_path / "b"
    for name, f in (("one", dense), ("two", lambda x: dense(x * 2))):
        programs, case, _ = build(f, [fx.f32["B", 4]], {"B": 3})
        write(folder, c_bundle(programs, name, case))
    (folder / "main.c").write_text(
        '#include "one.h"\n#include "two.h"\n#include <stdio.h>\n'
        "int main(void) { one_model *a; two_model *b; int s = one_open(NULL, 2, &a) | two_open(NULL, 2, &b);\n"
        "one_close(a); two_close(b); return s; }\n"
    )
    gcc(folder, "-o", "t", "main.c", "one.c", "one_code.o", "two.c", "two_code.o", "-lpthread")
    assert subprocess.run(["./t"], cwd=folder, check=False).returncode == 0


@needs_gcc
def test_names_of_strangers(tmp_path: Path) -> None:
    programs, case, _ = build(dense, [fx.f32["B", 4]], {"B": 3})
    awkward = ['*/ int main(){}"', "float"]
    specs = []
    for p in programs:
        outputs = [{**t, "name": n} for t, n in zip(p.spec["outputs"], awkward)]
        inputs = [{**p.spec["inputs"][0], "name": "a.b\n\\"}]
        errors = {**p.spec["errors"], "9": ["FX0608", 'said "no"??/\n\\ %s é']}
        specs.append({**p.spec, "name": "*/ #error x", "inputs": inputs, "outputs": outputs, "errors": errors})
    made = [Program(s, p.code, p.constants) for s, p in zip(specs, programs)]
    folder = write(tmp_path / "b", c_bundle(made, "9 lives!", case))
    assert (folder / "x9_lives.h").exists()
    run_test(folder, "x9_lives")
    cxx = shutil.which("g++")
    if cxx is not None:
        line = [cxx, "-fsyntax-only", "-Wall", "-Werror", "-x", "c++", "x9_lives.h"]
        assert subprocess.run(line, cwd=folder, check=False).returncode == 0, "the header is C++ too"


def test_names_and_texts() -> None:
    assert prefix("model") == "model" and prefix("test") == "test_" and prefix("9 x") == "x9_x"
    assert identifier("int") == "int_" and identifier("a.b:0") == "a_b_0" and identifier("é") == "x"
    assert identifier("_a") == "a" and identifier("") == "x" and identifier("3d") == "x3d"
    assert identifiers(["a.b", "a b", "a_b", "a_b_2"]) == ["a_b", "a_b_2", "a_b_3", "a_b_2_2"]
    assert string('a"\\\n?') == '"a\\042\\134\\012\\077"'
    assert "*/" not in comment("x*/y/**/") and "\n" not in comment("a\nb")


def test_sizes_in_c(tmp_path: Path) -> None:
    """Every operator, against the runtime's own evaluation, overflow included."""
    texts = ["N*784+3", "((N+7)//8)*M", "max(N,4)-min(M,N)", "(N-M)%7", "-N//3", "N*N*N*M", "(M-N)//(N-5)", "N%(M-2)"]
    w = SizeWriter({"N": "n", "M": "m"})
    values = [w.value(t) for t in texts]
    from fluxir.bundle.texts import filled

    body = "\n".join([*w.lines, *[f"out[{i}] = {v};" for i, v in enumerate(values)]])
    (tmp_path / "s.c").write_text(
        f"#include <stdint.h>\n{filled('sizes.c', {})}int f(int64_t n, int64_t m, int64_t *out)\n{{\nint bad = 0;\n{body}\nreturn bad;\n}}\n"
    )
    if GCC is None:
        pytest.skip("no C compiler")
    gcc(tmp_path, "-shared", "-fPIC", "-o", "s.so", "s.c")
    f = ctypes.CDLL(str(tmp_path / "s.so")).f
    f.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    out = (ctypes.c_int64 * len(texts))()
    rng = np.random.default_rng(0)
    for n, m in [(5, 2), (2**40, 3), (3, 2**62), *rng.integers(0, 30, (50, 2)).tolist()]:
        bad = f(n, m, out)
        try:
            want = [sizes.evaluate(t, {"N": n, "M": m}) for t in texts]
        except FluxError:
            assert bad
            continue
        if bad:
            assert any(abs(x) >= 2**63 for x in want) or n * n * n >= 2**63
        else:
            assert list(out) == want


# ---- refused ------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_bundle() -> None:
    programs, case, _ = build(dense, [fx.f32["B", 4]], {"B": 3}, ["cpu:x86-64-v1"])
    (p,) = programs
    for change in (
        {"target": {**p.spec["target"], "kind": "nvptx", "name": "sm_80"}},
        {"target": {**p.spec["target"], "triple": "riscv64-unknown-linux-gnu"}, "x": 1},
        {"outputs": [{"name": "y", "dtype": "f32", "shape": ["Q"]}, p.spec["outputs"][1]]},
        {"extents": {"names": ["K"], "shapes": []}},
    ):
        specs = [p.spec, {**p.spec, **change}] if "x" in change else [{**p.spec, **change}]
        with pytest.raises(FluxError) as e:
            c_bundle([Program(s, p.code, p.constants) for s in specs], "m", case)
        assert e.value.code == "FX0816"
    with pytest.raises(FluxError) as e:
        c_bundle([Program({**p.spec, "target": {**p.spec["target"], "features": ["avx99"]}}, p.code, ())], "m", case)
    assert e.value.code == "FX0509"
    with pytest.raises(FluxError) as e:
        interface_of([p.spec, {**p.spec, "outputs": []}], "m")
    assert e.value.code == "FX0816"


# ---- GPUs -----------------------------------------------------------------------------------------------------------------------


GPU_PROGRAMS = {n: PROGRAMS[n] for n in ("dense", "branches", "types", "step", "recursive", "fixed")}
SHIM = """
import ctypes, sys
from fluxir.runtime.vgpu.cuda_api import install
driver = install(sys.argv[1])
library = ctypes.CDLL("./t.so")
status = library.main(1, (ctypes.c_char_p * 1)(b"test"))
print("leaks:", driver.leaks())
sys.exit(status)
"""


@needs_gcc
@pytest.mark.parametrize("name", list(GPU_PROGRAMS))
def test_a_launcher_runs_on_the_virtual_driver(name: str, tmp_path: Path) -> None:
    f, types, dims, options = GPU_PROGRAMS[name]
    programs, case, _ = build(f, types, dims, ["sm_80", "sm_75", "sm_90"], **options)
    files = cuda_bundle(programs, name, case)
    assert files == cuda_bundle(programs, name, case)
    folder = write(tmp_path / "b", files)
    manifest = json.loads(files["manifest.json"])
    assert sorted(manifest["targets"]) == ["sm_75", "sm_80", "sm_90"]
    gcc(folder, "-O1", "-fPIC", "-shared", "-o", "t.so", f"test_{name}.c", f"{name}.c", "-ldl", "-lm")
    device = {"dense": "sm_89", "branches": "sm_75"}.get(name, "sm_80")
    chosen = {"sm_89": "sm_80"}.get(device, device)
    line = [sys.executable, "-c", SHIM, device]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.split()
    assert lines[0] == chosen and "ok" in lines and done.stdout.rstrip().endswith("leaks: []"), done.stdout


@needs_gcc
def test_a_launcher_says_what_is_missing(tmp_path: Path) -> None:
    """No driver; no code for the device; no file; other weights."""
    programs, case, _ = build(dense, [fx.f32["B", 4]], {"B": 3}, ["sm_90a"])
    files = cuda_bundle(programs, "m", case)
    folder = write(tmp_path / "b", files)
    gcc(folder, "-O1", "-fPIC", "-shared", "-o", "t.so", "test_m.c", "m.c", "-ldl", "-lm")

    def ran(script: str) -> str:
        line = [sys.executable, "-c", script, "sm_90"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1, done.stdout
        return done.stderr

    script = "import ctypes, sys; sys.exit(ctypes.CDLL('./t.so').main(1, (ctypes.c_char_p * 1)(b'test')))"
    assert "libcuda.so.1 cannot be loaded" in ran(script)
    assert "there is no code for it" in ran(SHIM.replace("sys.argv[1]", "'sm_80'"))
    (folder / "m.safetensors").write_bytes(files["m.safetensors"] + b"x")
    assert "the weights are not those of this program" in ran(SHIM)
    (folder / "m.safetensors").unlink()
    assert "m.safetensors cannot be read" in ran(SHIM)
    (folder / "m_sm_90a.ptx").write_bytes(b".version 8.0\n.target sm_90a\n.address_size 64\nnonsense\n")
    assert "cuModuleLoadDataEx" in ran(SHIM)


# ---- the command ------------------------------------------------------------------------------------------------------------------


MODEL = """
import fluxir as fx

@fx.model(facts="B >= 1")
def scale(x: fx.f32["B", 4], k: fx.f32) -> fx.f32["B", 4]:
    return fx.tanh(x * k)
"""


def run(capsys: Any, *arguments_: str) -> Any:
    status = main([*arguments_, "--json"])
    data = json.loads(capsys.readouterr().out)
    return data if status == 0 else (data["error"]["code"], status)


def test_the_command(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    options = ["-i", "k=2", "--test-dim", "B=5", "--name", "scale"]
    test = ["--test"] if GCC is not None else []
    data = run(capsys, "bundle", "model.py", "--c", "-o", "out", *options, *test)
    assert sorted(data["files"]) == sorted(p.name for p in Path("out").iterdir())
    assert "scale_code.o" in data["files"] and (not test or data["test"].rstrip().endswith("ok"))
    assert Path("out/test_scale.bin").stat().st_size == 4 * (5 * 4 + 1 + 5 * 4)
    before = {p.name: p.read_bytes() for p in Path("out").iterdir()}
    run(capsys, "bundle", "model.py", "--c", "-o", "out", *options)
    assert before == {p.name: p.read_bytes() for p in Path("out").iterdir()}
    data = run(capsys, "bundle", "model.py", "--cuda", "--target", "sm_90", "--target", "sm_80", "-o", "gpu", *options)
    assert {"scale_sm_80.ptx", "scale_sm_90.ptx", "manifest.json"} <= set(data["files"])
    run(capsys, "compile", "model.py", "-o", "model.fxb")
    data = run(capsys, "bundle", "model.fxb", "--c", "-o", "again", "--weights", "file", *options)
    assert data["targets"] and (Path("again") / "scale.h").read_text() == Path("out/scale.h").read_text()
    assert run(capsys, "bundle", "model.py", "-o", "out")[0] == "FX0906"
    assert run(capsys, "bundle", "model.py", "--cuda", "--test", "-o", "out")[0] == "FX0906"
    assert run(capsys, "bundle", "model.py", "--c", "--target", "sm_80", "-o", "out") == ("FX0816", 3)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(capsys, "bundle", "model.py", "--c", "-o", "out", "--test", *options)[0] == "FX0815"


@needs_gcc
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
def test_cmake_builds_it(tmp_path: Path) -> None:
    programs, case, _ = build(dense, [fx.f32["B", 4]], {"B": 3})
    folder = write(tmp_path / "b", c_bundle(programs, "m", case))
    for kind in ("OFF", "ON"):
        for line in (
            ["cmake", "-B", kind, f"-DBUILD_SHARED_LIBS={kind}", "."],
            ["cmake", "--build", kind],
            ["ctest", "--test-dir", kind, "--output-on-failure"],
        ):
            done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def test_half_floats_in_the_test_program(tmp_path: Path) -> None:
    """Its own conversion of 16-bit floats, against numpy's."""
    if GCC is None:
        pytest.skip("no C compiler")
    from fluxir.bundle.texts import filled

    start = "#include <math.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
    start += "enum { TENSORS = 1 };\nstruct array { const char *name, *dtype; size_t bytes; double tolerance; };\n"
    start += "static struct array arrays[1];\nstatic char *data[1];\n"
    end = "double f(const char *d, const void *x, size_t i) { return value(d, x, i); }\n"
    end += "double g(const char *d, const void *x, const void *y, size_t n)\n"
    end += "{ struct array a = {d, d, n, 0}; (void)read_data; return difference(&a, x, y); }\n"
    (tmp_path / "v.c").write_text(start + filled("compare.c", {}) + end)
    gcc(tmp_path, "-shared", "-fPIC", "-o", "v.so", "v.c", "-lm")
    dll = ctypes.CDLL(str(tmp_path / "v.so"))
    dll.f.restype = dll.g.restype = ctypes.c_double
    dll.f.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]
    dll.g.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    bits = np.arange(1 << 16, dtype=np.uint16)
    for name, dtype in ((b"f16", np.dtype(np.float16)), (b"bf16", np.dtype(ml_dtypes.bfloat16))):
        want = bits.view(dtype).astype(np.float64)
        got = np.array([dll.f(name, bits.ctypes.data, i) for i in range(0, 1 << 16, 7)])
        np.testing.assert_array_equal(got, want[::7])
    x = np.array([1, 2, np.nan, np.inf], np.float32)
    y = np.array([1, 2.5, np.nan, np.inf], np.float32)
    assert dll.g(b"f32", x.ctypes.data, y.ctypes.data, 16) == 0.5 / 2.5
    assert dll.g(b"f32", y[2:].ctypes.data, x[:2].ctypes.data, 8) == np.inf
    a, b = np.array([5, 5], np.int64), np.array([5, 6], np.int64)
    assert (
        dll.g(b"i64", a.ctypes.data, b.ctypes.data, 16) == 1 / 6
        and dll.g(b"i64", a.ctypes.data, a.ctypes.data, 16) == 0
    )
