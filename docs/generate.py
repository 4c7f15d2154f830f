"""Writes docs/reference/*.md from the registries: ops, passes, templates, targets, errors, settings. `make docs` runs it.

What a registry holds is documented where it is declared; these pages only show it. `generate.pages()` gives them as
text, so that a test can compare them with the files. Nothing in them may depend on the machine. Then the examples of all
pages are run and their outputs written anew.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "reference"
sys.path.insert(0, str(FOLDER.parent.parent))

HEADER = "<!-- Written by docs/generate.py from the registry. Do not edit: change the declaration and run `make docs`. -->\n\n"

CATEGORIES = {
    "elementwise": "Elementwise: numpy's broadcasting; the same op on tensors, vectors and scalars",
    "compare": "Comparison, logic, bits and choice",
    "shape": "Shape: where elements lie, not what they are",
    "reduce": "Reductions, cumulative ops and windows",
    "contract": "Contractions",
    "index": "Gathering, scattering and slices at run-time positions",
    "order": "Sorting and searching",
    "random": "Random bits",
    "control": "Control flow",
    "composite": "Composites: replaced by their expansion in the pass `expand`",
    "constant": "Constants",
    "vector": "Loop level: vectors",
    "loop": "Loop level: structure",
    "memory": "Loop level: memory",
    "gpu": "Loop level: GPU",
    "host": "Host level",
}


def first_line(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


def cell(text: Any) -> str:
    """Text that stands in one cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def ops_page() -> str:
    import fluxir.ops  # noqa: F401  (declares the ops)
    from fluxir.cli.ops import RULES, facts
    from fluxir.ir.opdef import REGISTRY

    out = [
        "# Ops\n",
        f"{len(REGISTRY)} ops. Each is declared once, in `fluxir/ops/`; `fluxir ops NAME` prints one of these entries. The rules an op can",
        f"have are {', '.join(f'`{r}`' for r in RULES)}; the lines of IR are its samples, which the tests run against the numpy meaning.",
    ]
    groups = {
        k: [d for d in REGISTRY.values() if d.category == k]
        for k in dict.fromkeys([*CATEGORIES, *sorted(d.category for d in REGISTRY.values())])
    }
    for category, members in groups.items():
        if not members:
            continue
        out.append(f"\n## {CATEGORIES.get(category, category.capitalize())}\n")
        for d in sorted(members, key=lambda d: d.name):
            f = facts(d)
            attrs = ", ".join(
                f"`{n}`: {a['kind']}" + (f" = {array_free(a['default'])}" if "default" in a else "")
                for n, a in f["attributes"].items()
            )
            traits = [t for t in ("commutes", "effects") if f[t]] + (
                [f"{f['regions']} region(s)"] if f["regions"] else []
            )
            out.append(f"### `{d.name}`\n\n{first_line(d.doc)}\n")
            facts_line = [f"Attributes: {attrs}." if attrs else "", f"Traits: {', '.join(traits)}." if traits else ""]
            facts_line.append(
                f"Level: {f['level']}. Rules: {', '.join(r for r, has in f['rules'].items() if has) or 'none'}."
            )
            out.append(" ".join(x for x in facts_line if x) + "\n")
            lines = list(itertools.islice((e for e in f["examples"] if len(e) < 150 and "\n" not in e), 2))
            if lines:
                out.append("```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(out)


def array_free(text: str) -> str:
    return text if len(text) < 40 else "..."


def passes_page() -> str:
    import fluxir.passes  # noqa: F401  (declares the passes)
    from fluxir import driver
    from fluxir.passes.manager import PASSES

    out = [
        "# Passes\n",
        f"The default pipeline is `{driver.SIMPLIFY}` (stage *simplified*), `{driver.FUSE}` (stage *fused*), lowering to loops, `{driver.LOOPS}`",
        "(stage *loops*). `--passes LIST` replaces the tensor-level part. Options are keyword arguments of the pass, written `fuse[max_ops=8]`.\n",
    ]
    for name, p in sorted(PASSES.items()):
        options = ", ".join(f"`{k}={v}`" for k, v in p.options.items())
        out.append(
            f"## `{name}`\n\n{p.doc}\n\nLevel: {p.level}. Works on: {p.scope}."
            + (f" Options and defaults: {options}." if options else "")
            + "\n"
        )
    return "\n".join(out)


def templates_page() -> str:
    import fluxir.schedule.lower  # noqa: F401  (registers the templates)
    from fluxir.schedule.templates import TEMPLATES

    out = [
        "# Kernel templates\n",
        "A group of fused ops is offered to the templates of its target in this order; the first that takes it makes the kernels. A template",
        "with anchors is asked only when the group holds one of them.\n",
        "| target | template | priority | anchors | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for t in sorted(TEMPLATES, key=lambda t: (t.target, -t.priority, t.name)):
        out.append(
            f"| {t.target} | `{t.name}` | {t.priority} | {cell(', '.join(t.anchors)) or 'any'} | {cell(t.doc)} |"
        )
    return "\n".join(out) + "\n"


def targets_page() -> str:
    from fluxir.target import CpuTarget, GpuTarget, all_targets

    listed = [t for t in all_targets() if not getattr(t, "native", False)]
    out = [
        "# Targets\n",
        "`cpu` (the default, also `cpu:native`) is this machine, with the features /proc/cpuinfo lists. The others are the same everywhere.",
        "`fluxir targets NAME` prints all facts of one.\n",
        "## CPU\n", "| name | vector bits | features |", "|---|---|---|",
    ]  # fmt: skip
    out += [f"| `{t.name}` | {t.vector_bits} | {', '.join(t.features)} |" for t in listed if isinstance(t, CpuTarget)]
    out += [
        "\n## GPU\n",
        "| name | PTX version | shared memory per block | threads per SM | features |",
        "|---|---|---|---|---|",
    ]
    out += [
        f"| `{t.name}` | {t.ptx_version} | {t.shared_per_block // 1024} KiB | {t.max_threads_per_sm} | {', '.join(t.features)} |"
        for t in listed if isinstance(t, GpuTarget)
    ]  # fmt: skip
    return "\n".join(out) + "\n"


def errors_page() -> str:
    from fluxir.errors import CODES, error

    out = [
        "# Errors\n",
        f"{len(CODES)} codes. `fluxir explain CODE` prints these texts. The exit status of the command line is that of the code.\n",
    ]
    for code, info in sorted(CODES.items()):
        status = type(error(code, "")).exit_code
        out.append(
            f"## {code}: {info.title}\n\nExit status {status} ({info.exit_class}).\n\n```text\n{info.text}\n```\n"
        )
    return "\n".join(out)


def settings_page() -> str:
    from fluxir.config import SETTINGS

    out = [
        "# Settings\n",
        "Each has one name as a Python keyword (`fluxir.config.override(num_threads=1)`), as a flag of the commands it matters to, and as a",
        "variable. What counts, first to last: `override`, the flag, the variable, the default. A setting marked *key* changes compiled code,",
        "so it is part of the cache key.\n",
        "| name | flag | variable | values | default | |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for s in SETTINGS.values():
        default = (
            "empty"
            if s.default is None
            else {True: "on", False: "off"}[s.default]
            if isinstance(s.default, bool)
            else s.default
        )
        doc = cell(s.doc) + (" *(key)*" if s.in_key else "")
        out.append(f"| `{s.name}` | `{s.flag}` | `{s.variable}` | {cell(s.kind)} | {default} | {doc} |")
    return "\n".join(out) + "\n"


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    made = {
        "ops.md": ops_page(), "passes.md": passes_page(), "templates.md": templates_page(), "targets.md": targets_page(),
        "errors.md": errors_page(), "settings.md": settings_page(),
    }  # fmt: skip
    return {name: HEADER + text.rstrip() + "\n" for name, text in made.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(FOLDER.parent.parent)}")
    import run  # docs/run.py, beside this file

    failed = []
    for path in run.documents():
        try:
            with tempfile.TemporaryDirectory() as folder:
                text = run.updated(path, Path(folder))
        except run.ExampleFailed as e:
            failed.append(str(e))
            continue
        if text != path.read_text():
            path.write_text(text)
            print(f"wrote {path.relative_to(FOLDER.parent.parent)}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
