"""Compiles the kernels of `tests/vgpu` to the PTX files that the tests run: nothing of ours writes those.

    python tests/vgpu/make.py [--triton-python PYTHON] [--only NAME ...]

needs nvcc (13.0 with its headers wrote what is committed) and, for the Triton kernels, a Python with Triton (3.9.0; no torch, no
GPU). `ptx/*.ptx` come from `kernels/*.cu` (by nvcc), `triton/*.ptx` from `kernels/triton_kernels.py`; `bugs/*.bug.ptx` and
`bugs/*.clean.ptx` from `bugs/*.cu` with and without `-DBUG`. The texts are trimmed: of comments, blank lines and debug sections;
in `bugs` the `.loc` lines stay, without those of headers. `triton/launch.json` keeps what Triton says of a launch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
JUMP_TABLES = ("-Xcicc", "-jump-table-density=1")
CUDA = {  # fixture: source, architecture, further options
    "elementwise": ("elementwise", "80", ()),
    "collective": ("collective", "80", ()),
    "language": ("language", "80", JUMP_TABLES),
    "language_debug": ("language", "80", ("-G", "-DWITHOUT_MATH")),  # unoptimised: every variable in local memory
    "atomics": ("atomics", "80", ()),
    "atomics_90": ("atomics", "90", ()),
    "tensor": ("tensor", "80", ()),
    "async": ("async", "80", ()),
    "async_90": ("async", "90", ()),
    "hopper": ("hopper", "90a", ()),
}


def trim(ptx: str, keep_lines: bool = False) -> str:
    """The text without comments, blank lines and debug sections; `keep_lines` keeps `.loc` and `.file` of the source itself."""
    ptx = re.sub(r"\n\s*\.section\s.*?\n\s*\}", "", ptx, flags=re.DOTALL)
    ptx = re.sub(r"(\.target \w+), debug", r"\1", ptx)
    lines = []
    for line in ptx.split("\n"):
        line = re.sub(r"//.*", "", line).strip()
        if re.match(r"\.(?:loc|file)\s", line):
            if not keep_lines or not re.match(r"\.(?:loc\s+1\s+[1-9]|file\s+1\s)", line):
                continue
            line = re.sub(
                r"(\.file\s+1\s+).*/",
                r'\1"',
                re.sub(r",\s*(?:function_name|inlined_at).*|(?<=\")(?:,\s*\d+)+$", "", line),
            )
            if lines and lines[-1].startswith(".loc ") and re.match(r"\.loc\s", line):
                lines.pop()
        if line:
            lines.append(re.sub(r"[ \t]+", " ", line))
    return "\n".join(lines) + "\n"


def nvcc(source: Path, arch: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.ptx")
        subprocess.run(["nvcc", "-ptx", f"-arch=sm_{arch}", *options, str(source), "-o", str(out)], check=True)
        return out.read_text()


def assemble(path: Path) -> None:
    """ptxas takes what we keep, trimmed as it is."""
    text = path.read_text()
    arch = re.search(r"\.target (\w+)", text)
    assert arch
    subprocess.run(["ptxas", f"-arch={arch[1]}", str(path), "-o", os.devnull], check=True, stderr=subprocess.DEVNULL)


def make_triton() -> None:
    """Run by the Python that has Triton."""
    import triton  # type: ignore[import-not-found]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found]

    sys.path.insert(0, str(HERE / "kernels"))
    from triton_kernels import VARIANTS  # type: ignore[import-not-found]

    launches: dict[str, object] = {}
    for v in VARIANTS:
        names = v.kernel.arg_names
        types = iter(v.signature.split())
        signature = {a: "constexpr" if a in v.constants else next(types) for a in names}
        attributes = {(i,): [["tt.divisibility", 16]] for i in v.divisible}
        for arch in v.targets:
            source = triton.compiler.ASTSource(
                fn=v.kernel, signature=signature, constexprs=v.constants, attrs=attributes
            )
            options = {"num_warps": v.warps, "num_stages": v.stages, "ptx_version": 90}
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            name = v.name if arch == v.targets[0] else f"{v.name}_{arch}"
            (HERE / "triton" / f"{name}.ptx").write_text(trim(made.asm["ptx"]))
            launches[name] = {
                "kernel": made.metadata.name,
                "threads": 32 * made.metadata.num_warps,
                "shared": made.metadata.shared,
                "scratch": [made.metadata.global_scratch_size, made.metadata.profile_scratch_size],
                "target": arch,
                "triton": triton.__version__,
            }
    text = ",\n".join(f"  {json.dumps(name)}: {json.dumps(launch)}" for name, launch in sorted(launches.items()))
    (HERE / "triton" / "launch.json").write_text(f"{{\n{text}\n}}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the fixtures of tests/vgpu.")
    parser.add_argument(
        "--triton-python", help="a Python with Triton installed; without it those fixtures stay as they are"
    )
    parser.add_argument("--only", nargs="*", help="names of sources")
    parser.add_argument("--inside-triton", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside_triton:
        return make_triton()
    for folder in ("ptx", "triton", "bugs"):
        (HERE / folder).mkdir(exist_ok=True)
    made = []
    for name, (source, arch, flags) in CUDA.items():
        if not options.only or source in options.only:
            made.append(HERE / "ptx" / f"{name}.ptx")
            made[-1].write_text(trim(nvcc(HERE / "kernels" / f"{source}.cu", arch, *flags)))
    for source_path in sorted((HERE / "bugs").glob("*.cu")):
        if not options.only or source_path.stem in options.only:
            arch = "90a" if source_path.stem.endswith("_90") else "80"
            for twin, flags in (("bug", ("-DBUG",)), ("clean", ())):
                made.append(source_path.with_suffix(f".{twin}.ptx"))
                made[-1].write_text(trim(nvcc(source_path, arch, "-lineinfo", *flags), keep_lines=True))
    if options.triton_python and (not options.only or "triton" in options.only):
        ptxas = subprocess.run(["which", "ptxas"], check=True, capture_output=True, text=True).stdout.strip()
        environment = {**os.environ, "TRITON_PTXAS_PATH": ptxas, "TRITON_DEFAULT_FP_FUSION": "1"}
        subprocess.run([options.triton_python, __file__, "--inside-triton"], check=True, env=environment)
        made.extend((HERE / "triton").glob("*.ptx"))
    for path in made:
        assemble(path)
        print(f"{path.relative_to(HERE)}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
