"""Bundles: a compiled program as a C library, without Python and without fluxir.

`c_bundle` makes one for CPUs, `cuda_bundle` one for NVIDIA GPUs: the texts and objects of a folder. Invariants: the same
programs give the same bytes; a bundle needs the C library and POSIX threads, for a GPU the CUDA driver's library, which it
loads itself; names of a model are escaped wherever they appear. See docs/artefacts.md and docs/design/artefacts.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from numpy.typing import NDArray

import fluxir.bundle.cuda as gpu
from fluxir.bundle import cpu, project
from fluxir.bundle.interface import Interface, interface_of
from fluxir.bundle.launcher import asserts
from fluxir.bundle.objects import bundle_object
from fluxir.bundle.project import Case
from fluxir.errors import error
from fluxir.runtime.weights import Weights

__all__ = ["Case", "Program", "c_bundle", "cuda_bundle"]

MOST_EMBEDDED = 1 << 30
"""Bytes of weights that an object file holds: code addresses them within 2 GiB."""


@dataclass(frozen=True)
class Program:
    """Machine code for one target, as `Compiled` and `Artifact` have it."""

    spec: Mapping[str, Any]
    code: bytes
    constants: Sequence[NDArray[Any]]

    @property
    def target(self) -> str:
        return str(self.spec["target"]["name"])


def c_bundle(programs: Sequence[Program], name: str, case: Case, embed: bool = True) -> dict[str, bytes]:
    """The files of a bundle for CPUs by name. `programs`: one for each target, of the same model; `embed`: whether the weights
    are part of the object file. FX0509, FX0816 where it cannot be made."""
    machines = {str(p.spec["target"].get("triple", "x86_64")).partition("-")[0] for p in programs}
    if len(machines) != 1 or any(p.spec["target"]["kind"] != "cpu" for p in programs):
        raise error("FX0816", "the targets of a C bundle must be CPUs of one kind", help="make a bundle for each kind")
    (machine,) = machines
    programs = sorted(programs, key=lambda p: (-len(p.spec["target"]["features"]), p.target))
    specs = [p.spec for p in programs]
    face, numbers = interface_of(specs, name)
    p, made = face.prefix, version("fluxir")
    weights = Weights()
    names = [weights.add_all(program.constants) for program in programs]
    file = weights.file()
    embed = embed or not file
    if embed and len(file) > MOST_EMBEDDED:
        raise error("FX0816", f"{len(file)} bytes of weights are too many for an object file", help="--weights file")
    at = weights.offsets(file)
    offsets = [[at[n] for n in row] for row in names]
    data_file = None if embed else f"{p}.safetensors"
    code = bundle_object(
        p, str(specs[0]["entry"]), [x.code for x in programs], machine, file if embed and file else None
    )
    files = {
        f"{p}.h": cpu.header(face, [x.target for x in programs], made, embed).encode(),
        f"{p}.c": cpu.source(face, specs, numbers, offsets, made, file, embed, machine).encode(),
        f"{p}_code.o": code,
        f"test_{p}.c": project.test_source(face, case, data_file).encode(),
        f"test_{p}.bin": project.test_data([*case.inputs, *case.outputs]),
        "CMakeLists.txt": project.cmake(face, made, [f"{p}_code.o"]).encode(),
    }
    if data_file is not None:
        files[data_file] = file
    files["README.md"] = _cpu_readme(face, programs, made, embed).encode()
    return files


def cuda_bundle(programs: Sequence[Program], name: str, case: Case) -> dict[str, bytes]:
    """The files of a bundle for NVIDIA GPUs by name. `programs`: one for each target, of the same model. FX0816 where
    it cannot be made."""
    if not programs or any(p.spec["target"]["kind"] != "nvptx" for p in programs):
        raise error("FX0816", "the targets of a CUDA bundle must be GPUs", help="name them: --target sm_80")
    # The newest first; of one generation the code that only that has.
    programs = sorted(programs, key=lambda p: (_capability(p.target), p.target), reverse=True)
    specs = [p.spec for p in programs]
    face, _ = interface_of(specs, name, [f for s in specs for f in asserts(s["host"])])
    p, made = face.prefix, version("fluxir")
    weights = Weights()
    names = [weights.add_all(program.constants) for program in programs]
    file = weights.file()
    at = weights.offsets(file)
    constants = [[(at[n], weights.arrays[n].nbytes) for n in row] for row in names]
    manifest = {"program": face.program, "fluxir": made, "targets": {x.target: dict(x.spec) for x in programs}}
    files = {
        f"{p}.h": gpu.header(face, [x.target for x in programs], made).encode(),
        f"{p}.c": gpu.source(face, specs, constants, made, file).encode(),
        **{gpu.ptx_name(face, x.target): x.code for x in programs},
        "manifest.json": (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode(),
        **({f"{p}.safetensors": file} if file else {}),
        f"test_{p}.c": project.test_source(face, case, None, "test_cuda.c").encode(),
        f"test_{p}.bin": project.test_data([*case.inputs, *case.outputs]),
        "CMakeLists.txt": project.cmake(face, made, [], " ${CMAKE_DL_LIBS} m").encode(),
    }
    files["README.md"] = _cuda_readme(face, programs, made, bool(file)).encode()
    return files


def _capability(target: str) -> int:
    return int(target.removeprefix("sm_").rstrip("af"))


def _dims(face: Interface) -> str:
    return "&dims, " if face.dims else ""


def _cuda_readme(face: Interface, programs: Sequence[Program], made: str, weights: bool) -> str:
    p = face.prefix
    files = {
        f"{p}.h": "the functions to call",
        f"{p}.c": "the launcher; C11",
        **{gpu.ptx_name(face, x.target): f"the kernels for {x.target} and newer GPUs" for x in programs},
        **({f"{p}.safetensors": "the weights"} if weights else {}),
        "manifest.json": "for readers: arguments, kernels and the launch list",
        f"test_{p}.c": "runs the program on the arrays of the next file and compares",
    }
    run = [
        f"status = {p}_run_host(model, {_dims(face)}{', '.join(t.c for t in face.tensors)});",
        f'if (status) printf("%s: %s\\n", {p}_strerror(status), {p}_message());',
    ]
    words = {
        "NEEDS": "It needs the C library and, when it runs,\n"
        "NVIDIA's driver (libcuda.so.1), which it loads itself. No CUDA toolkit.",
        "NOTES": f"`{p}_run` takes arrays on the device and a stream, `{p}_run_host` arrays of the host.",
    }
    return _readme(face, programs, made, files, f"{p}.c -ldl -lm", ('".", 0', run), words)


def _cpu_readme(face: Interface, programs: Sequence[Program], made: str, embedded: bool) -> str:
    p = face.prefix
    files = {
        f"{p}.h": "the functions to call",
        f"{p}.c": "what they do; C11",
        f"{p}_code.o": "the machine code" + (" and the weights" if embedded else ""),
        **({} if embedded else {f"{p}.safetensors": "the weights, which are mapped when a model is opened"}),
        f"test_{p}.c": "runs the program on the arrays of the next file and compares; `--time 1000` measures",
    }
    run = [
        f"int64_t bytes = {p}_workspace_size({'&dims' if face.dims else ''});",
        "void *workspace = malloc(bytes);",
        f"status = {p}_run(model, {_dims(face)}{''.join(t.c + ', ' for t in face.tensors)}workspace, bytes);",
        f"if (status) puts({p}_strerror(status));",
    ]
    words = {
        "NEEDS": "It needs the C library and POSIX threads on Linux, and nothing else.",
        "NOTES": "A model may be used by any number of threads at once, each with its own workspace. The best of the\n"
        "targets that the machine has is chosen in `open`, which fails where there is none.",
    }
    opened = "NULL, 2" if embedded else f'"{p}.safetensors", 2'
    return _readme(face, programs, made, files, f"{p}.c {p}_code.o -lpthread", (opened, run), words)


def _readme(
    face: Interface,
    programs: Sequence[Program],
    made: str,
    files: Mapping[str, str],
    sources: str,
    use: tuple[str, Sequence[str]],
    words: Mapping[str, str],
) -> str:
    """The README of a bundle. `files`: those of its own kind; `sources`: what is compiled and linked; `use`: what `open` takes
    before the model, and the lines between `open` and `close`."""
    p, (opened, run) = face.prefix, use
    more = {f"test_{p}.bin": "arguments and expected results", "CMakeLists.txt": "for CMake"}
    example = [f'#include "{p}.h"', "", f"{p}_model *model;", f"int status = {p}_open({opened}, &model);"]
    if face.dims:
        example.append(f"{p}_dims dims = {{{','.join(f' .{f} = 1' for _, f in face.dims)} }};")
    example += [*run, f"{p}_close(model);"]
    build = {
        "TARGETS": ", ".join(x.target for x in programs),
        "VERSION": made,
        "BUILD_TEST": f"cc -O2 -std=gnu11 -o test_{p} test_{p}.c {sources.removesuffix(' -lm')} -lm",
        "BUILD_SHARED": f"cc -O2 -std=gnu11 -fPIC -shared -fvisibility=hidden -o lib{p}.so {sources}",
        "EXAMPLE": "\n".join(f"    {line}".rstrip() for line in example),
    }
    return project.readme(face, build | dict(words), {**files, **more})
