"""The verb ``demo``: the main job on real data, start to end.

A convolutional network is trained to read scanned digits, and reads those of other writers natively on the CPU, checked
against the numpy interpreter; its PTX for two GPU generations is written and checked beside dumps of every stage and a
report page. A number that is printed was measured in this run.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click

from ..errors import error
from .common import Output, bytes_text, table, verb
from .demo_train import EPOCHS, example, train

__all__ = ["command"]

GPUS = ("sm_80", "sm_90")
VIRTUAL_BATCH = 4  # images that the virtual GPU reads
TOLERANCE = 1e-4  # of the largest logit: f32 sums in another order


@verb(
    "demo",
    settings=("num_threads",),
    help="Train a real model, compile it, run it on real images, and write its PTX and a report.",
)
@click.option(
    "-o",
    "--out",
    default="fluxir-demo",
    type=click.Path(file_okay=False),
    show_default=True,
    help="Folder for weights, dumps, PTX and report.",
)
@click.option(
    "--epochs",
    default=EPOCHS,
    type=click.IntRange(1, 10_000),
    show_default=True,
    help="How often training goes through its half of the digits.",
)
@click.option("--pretrained", is_flag=True, help="Train nothing: take the weights that come with FluxIR.")
def command(output: Output, out: str, epochs: int, pretrained: bool) -> int:
    result, text = run(Path(out), output, None if pretrained else epochs)
    output.result(result, text)
    return 0


def run(folder: Path, output: Output, epochs: int | None = EPOCHS) -> tuple[dict[str, Any], str]:
    """Do it all; returns the figures as JSON-ready data and as text. Without ``epochs`` the weights are those that come
    with FluxIR. FX0403 where the CPU's answer is not the interpreter's."""
    import numpy as np

    from .. import data
    from ..driver import SIMPLIFY, compile_module, run_passes
    from ..ir.interp import interpret
    from .models import load_entry

    model, training = (example("digits.py"), None) if epochs is None else train(folder, epochs, output)
    output.progress("tracing the model")
    digits = data.load_digits()
    images, labels = data.scale_digits(digits["test_images"]), digits["test_labels"]
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    lowered = load_entry(str(model), None)
    traced_ms = (time.perf_counter() - started) * 1e3

    output.progress("compiling for the CPU")
    started = time.perf_counter()
    compiled = lowered.compile("cpu", cache=False)
    program = compiled.program
    cold_ms = (time.perf_counter() - started) * 1e3
    compile_module(lowered.module, "cpu")  # into the cache
    started = time.perf_counter()
    cached = compile_module(lowered.module, "cpu")
    _ = cached.program
    cached_ms = (time.perf_counter() - started) * 1e3 if cached.build is None else None

    output.progress("checking against the interpreter")
    part = images[:64]
    (want,) = interpret(lowered.module, [part])
    got = program(part)
    worst = float(np.abs(got - want).max() / np.abs(want).max())
    if not worst <= TOLERANCE:
        raise error(
            "FX0403",
            f"the CPU's answer differs from the interpreter's by {worst:.2e} of the largest logit",
            help="this is a defect of fluxir: please report it",
        )
    logits = program(images)
    correct = int((logits.argmax(axis=1) == labels).sum())

    output.progress("measuring")
    latency = {n: _median_us(program, images[:n].copy()) for n in (1, 256)}
    simplified, _records = run_passes(lowered.module, SIMPLIFY)
    before = sum(op.name not in ("const", "reshape") for op in simplified.entry.ops)
    after = sum(op.name == "fused" for op in lowered.stage("fused", "cpu").entry.ops)
    cost = {n: lowered.cost("cpu", B=n) for n in (1, 256)}

    output.progress("writing every stage")
    dumped = lowered.compile("cpu", dump_dir=folder / "cpu")
    compiled.save(folder / "digits.fxb")
    gpus = [_gpu(lowered, name, folder, output) for name in GPUS]
    virtual = _virtual(lowered, images[:VIRTUAL_BATCH], want[:VIRTUAL_BATCH], output)
    result = {
        "model": str(model),
        "training": training,
        "images": len(images),
        "correct": correct,
        "accuracy": correct / len(images),
        "worst_difference": worst,
        "latency_us": latency,
        "kernels_before_fusion": before,
        "kernels": after,
        "launches": cost[256].kernels,
        "peak_memory": {n: c.peak_memory for n, c in cost.items()},
        "flops": {n: c.flops for n, c in cost.items()},
        "trace_ms": traced_ms,
        "compile_cold_ms": cold_ms,
        "compile_cached_ms": cached_ms,
        "gpu": gpus,
        "virtual_gpu": virtual,
        "folder": str(folder),
    }
    _write_report(folder / "report.html", model, lowered, dumped, result)
    return result, _text(result)


def _median_us(program: Any, x: Any) -> float:
    """Median time of a call in microseconds, over a fifth of a second at most."""
    program(x)
    times: list[float] = []
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end or len(times) < 5:
        t = time.perf_counter()
        program(x)
        times.append(time.perf_counter() - t)
    return statistics.median(times) * 1e6


def _gpu(lowered: Any, name: str, folder: Path, output: Output) -> dict[str, Any]:
    """Compile for a GPU, write PTX and manifest, and assemble where ptxas is at hand."""
    from ..codegen.checks import assemble
    from ..errors import FluxError

    output.progress(f"compiling for {name}")
    started = time.perf_counter()
    compiled = lowered.compile(name, dump_dir=folder / name)
    ms = (time.perf_counter() - started) * 1e3
    compiled.save(folder / f"digits-{name}.fxb")
    ptx = compiled.code.decode()
    (folder / f"digits-{name}.ptx").write_text(ptx)
    try:
        sass: list[dict[str, Any]] | None = [vars_of(s) for s in assemble(ptx, name)]
    except FluxError as e:
        if e.code != "FX0511":  # no ptxas on this machine: the checks that need none were made
            raise
        sass = None
    return {
        "target": name,
        "kernels": [k["name"] for k in compiled.spec["kernels"]],
        "compile_ms": ms,
        "ptx_bytes": len(ptx),
        "ptxas": sass,
    }


def _virtual(lowered: Any, images: Any, want: Any, output: Output) -> dict[str, Any]:
    """Run the PTX for the first GPU on the virtual one, with the sanitizer; FX0403 where its answer is not the interpreter's."""
    import numpy as np

    from .profiles import NOTE, profile_tables, ptxas_registers

    device = f"vgpu:{GPUS[0]}"
    output.progress(f"running on {device}")
    started = time.perf_counter()
    program = lowered.compile(device=device).program
    driver = program.driver
    driver.profiling = True
    got = program(images)
    worst = float(np.abs(got - want).max() / np.abs(want).max())
    if not worst <= TOLERANCE:
        raise error(
            "FX0403",
            f"the answer of {device} differs from the interpreter's by {worst:.2e} of the largest logit",
            help="this is a defect of fluxir: please report it",
        )
    rows = driver.profile(ptxas_registers(driver.ptx, GPUS[0]))
    return {
        "device": device,
        "images": len(images),
        "worst_difference": worst,
        "seconds": time.perf_counter() - started,
        "thread_instructions": sum(p.counters.thread_instructions for p in rows),
        "kernels": [p.as_json() for p in rows],
        "tables": [
            {
                "title": t.title,
                "head": list(t.head),
                "rows": [list(map(str, r)) for r in t.rows],
                "right": list(t.right),
            }
            for t in profile_tables(rows)
        ],
        "note": NOTE,
    }


def vars_of(x: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(x)


def _text(r: dict[str, Any]) -> str:
    rows = [
        *_training_rows(r["training"]),
        ("accuracy", f"{100 * r['accuracy']:.2f} %", f"{r['correct']} of {r['images']} test images"),
        (
            "against the interpreter",
            f"{r['worst_difference']:.1e}",
            "largest difference, relative to the largest logit",
        ),
        *[
            (f"latency, batch {n}", f"{us:.0f} us", f"median; {us / n:.1f} us an image")
            for n, us in r["latency_us"].items()
        ],
        (
            "kernels",
            str(r["kernels"]),
            f"{r['kernels_before_fusion']} before fusion; {r['launches']} launches with those that pack weights",
        ),
        ("peak memory, batch 256", bytes_text(r["peak_memory"][256]), "planned, and what is allocated"),
        ("compile, cold", f"{r['compile_cold_ms']:.0f} ms", "all passes and LLVM"),
        (
            "compile, cached",
            "-" if r["compile_cached_ms"] is None else f"{r['compile_cached_ms']:.1f} ms",
            "the cache is off" if r["compile_cached_ms"] is None else "object code from the cache",
        ),
    ]
    for g in r["gpu"]:
        checked = "assembled by ptxas" if g["ptxas"] is not None else "checked; ptxas is not installed"
        rows.append((f"PTX for {g['target']}", f"{len(g['kernels'])} kernels", f"{checked}; {g['compile_ms']:.0f} ms"))
    v = r["virtual_gpu"]
    told = f"{v['thread_instructions'] / 1e6:.1f} M thread instructions, all accesses checked; {v['worst_difference']:.0e} off"
    rows.append((f"run on {v['device']}", f"{v['seconds']:.1f} s", f"{v['images']} images; {told}"))
    weights = "" if r["training"] is None else "the weights, "
    return table(rows) + f"\n\n{r['folder']}/ holds {weights}every stage, the PTX and report.html"


def _training_rows(t: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    if t is None:
        return []
    return [
        ("training", f"{t['seconds']:.1f} s", f"{t['epochs']} epochs, {t['steps']:,} steps; compilation included"),
        ("training loss", f"{t['loss'][-1]:.3f}", f"{t['loss'][0]:.3f} in the first epoch"),
    ]


def _write_report(path: Path, model: Path, lowered: Any, compiled: Any, r: dict[str, Any]) -> None:
    from ..dump import pass_reports
    from ..ir.printer import print_func
    from ..report import KernelReport, ReportData, write_report

    kernels: list[KernelReport] = []
    assembly = (path.parent / "cpu" / "module.s").read_text()
    for f in compiled.build.stages["loops"].funcs.values():
        if f.level == "kernel":
            kernels.append(
                {
                    "name": f.name,
                    "target": "cpu",
                    "schedule": str(f.attrs.get("schedule", "")),
                    "code": _section(assembly, f.name),
                    "code_kind": "assembly",
                    "loops": print_func(f, False),
                    "lines": _lines(f),
                }
            )
    for name in GPUS[:1]:
        ptx = (path.parent / f"digits-{name}.ptx").read_text()
        for f in lowered.stage("loops", name).funcs.values():
            if f.level == "kernel":
                kernels.append(
                    {
                        "name": f.name,
                        "target": name,
                        "schedule": str(f.attrs.get("schedule", "")),
                        "code": _entry(ptx, f.name),
                        "code_kind": "PTX",
                        "loops": print_func(f, False),
                        "lines": _lines(f),
                    }
                )
    from .versions import versions

    data: ReportData = {
        "title": "FluxIR: the digits model",
        "subtitle": "a convolutional network on the UCI optical digits",
        "summary": [
            {
                "label": "accuracy",
                "value": f"{100 * r['accuracy']:.2f} %",
                "detail": f"{r['correct']} of {r['images']} test images",
            },
            {"label": "latency, batch 1", "value": f"{r['latency_us'][1]:.0f} us", "detail": "median"},
            {"label": "latency, batch 256", "value": f"{r['latency_us'][256]:.0f} us", "detail": "median"},
            {"label": "kernels", "value": str(r["kernels"]), "detail": f"{r['kernels_before_fusion']} before fusion"},
            {"label": "peak memory", "value": bytes_text(r["peak_memory"][256]), "detail": "planned, batch 256"},
            {"label": "compile", "value": f"{r['compile_cold_ms']:.0f} ms", "detail": "cold"},
        ],
        "passes": pass_reports(compiled.build),
        "kernels": kernels,
        "profile": {
            "title": "Virtual GPU",
            "intro": f"The PTX for {GPUS[0]}, run on {r['virtual_gpu']['images']} images with every access checked; the answer "
            f"is the interpreter's to {r['virtual_gpu']['worst_difference']:.0e} of the largest logit.",
            "tables": r["virtual_gpu"]["tables"],
            "note": r["virtual_gpu"]["note"],
        },
        "sources": [{"path": str(model), "text": model.read_text()}],
        "facts": {k: str(v) for k, v in versions().items()},
    }
    if r["training"] is not None:
        data["summary"][:0] = [{"label": a, "value": b, "detail": c} for a, b, c in _training_rows(r["training"])]
        data["curve"] = {"title": "Training", "x": "epoch", "y": "loss", "values": r["training"]["loss"]}
    write_report(path, data)


def _lines(f: Any) -> list[str]:
    """The model's lines behind a kernel, as ``file:line``."""
    return sorted(
        {f"{op.loc.file}:{op.loc.line}" for op in f.walk() if op.loc}
        | ({f"{f.loc.file}:{f.loc.line}"} if f.loc else set())
    )


def _section(assembly: str, kernel: str) -> str:
    """The assembly of the functions that belong to a kernel."""
    out: list[str] = []
    keep = False
    for line in assembly.splitlines():
        if line and not line[0].isspace() and line.split(":")[0].strip('"').startswith("kernel."):
            label = line.split(":")[0].strip('"')
            keep = label == f"kernel.{kernel}" or label.startswith(f"kernel.{kernel}.range")
        elif line.startswith(("\t.size", ".Lfunc_end")):
            keep = False
        if keep:
            out.append(line)
    return "\n".join(out)


def _entry(ptx: str, kernel: str) -> str:
    """The text of one ``.entry``."""
    _, found, rest = ptx.partition(f".entry {kernel.replace('.', '_')}(")
    return f".entry {kernel}(" + rest.split("\n}\n")[0] + "\n}" if found else ""
