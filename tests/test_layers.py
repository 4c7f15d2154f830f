"""Imports point one way, as the house plan draws them; lazy imports inside functions count like all others.

`ALLOWED` is the plan's section 4 as a table. A new room or top-level file is entered here first: a file the table does not
know fails the test. Two more rules of the plan are checked on the same syntax trees: only `config.py` reads the
environment, and `import fluxir` loads none of the heavy libraries.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "fluxir"

LEAVES = {"errors", "config", "target"}
COMPILER = {"frontend", "passes", "schedule", "codegen"}
EVERYTHING = (
    LEAVES
    | COMPILER
    | {
        "ir",
        "ops",
        "runtime",
        "driver",
        "dump",
        "embed",
        "transform",
        "batching",
        "gradcheck",
        "custom",
        "kernels",
        "linalg",
        "onnx",
        "torch_models",
        "report",
        "errors_catalog",
        "roofline",
        "routes",
        "bundle",
        "profiling",
        "profile_report",
        "tuning",
    }
)
LIBRARY = {"nn", "optim", "data", "train", "ode"}

ALLOWED: dict[str, set[str]] = {
    "errors_catalog": set(),
    "errors": {"errors_catalog"},
    "config": {"errors"},
    "target": {"errors"},
    "report": {"errors"},
    "profiling": LEAVES | COMPILER | {"ir", "runtime", "driver", "dump", "embed", "roofline", "profile_report"},
    "tuning": LEAVES | {"ir", "schedule", "codegen", "runtime", "driver", "embed", "profile_report"},
    "profile_report": {"ir", "dump", "report", "profiling"},
    "routes": LEAVES | {"frontend", "runtime"},
    "roofline": LEAVES | {"codegen", "runtime"},
    "bundle": LEAVES | {"codegen", "runtime"},
    "ir": LEAVES,
    "ops": LEAVES | {"ir"},
    **{room: LEAVES | {"ir", "ops"} for room in COMPILER},
    "runtime": LEAVES,
    "dump": LEAVES | {"ir", "driver"},
    "driver": EVERYTHING - {"errors_catalog", "embed", "report"},
    "custom": LEAVES | {"frontend", "transform"},
    "transform": LEAVES | {"ir", "ops", "frontend", "passes", "driver"},
    "batching": LEAVES | {"ir", "frontend", "passes", "transform"},
    "gradcheck": LEAVES | {"ir", "frontend", "transform"},
    "linalg": LEAVES | {"ir", "frontend", "custom"},
    "embed": EVERYTHING - {"errors_catalog", "dump", "report"},
    **{room: LEAVES | {"frontend", "driver", "embed"} for room in ("onnx", "torch_models")},
    "kernels": LEAVES | COMPILER | {"ir", "ops", "runtime", "driver"},
    # The library on top sees what every user sees: names of the package itself, no room of the compiler.
    **{room: {"fluxir"} | LIBRARY for room in LIBRARY},
    "fluxir": EVERYTHING | LIBRARY,  # fluxir/__init__.py: the public names
    "cli": EVERYTHING | LIBRARY | {"fluxir"},
    "__main__": {"cli"},
}
"""Which rooms each room may import besides itself. `fluxir` stands for the package's own `__init__.py`."""

HEAVY = ("llvmlite", "lark", "click", "pycuda", "multiprocessing")
"""Libraries that `import fluxir` must not load: whoever needs one imports it where it is used."""


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """`fluxir.ir.core` -> `ir`; `fluxir` itself -> `fluxir`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def module_of(path: Path) -> str:
    """The dotted name of a file below fluxir/; a package's `__init__.py` keeps that part, so that relative imports resolve."""
    return ".".join(("fluxir", *path.relative_to(ROOT).with_suffix("").parts))


def is_module(name: str) -> bool:
    place = ROOT.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or place.is_dir()


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of ours in the file `module`, wherever it stands, `import_module("...")` too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([node.module] if node.module else [])])
            # `from .. import ir` imports the module fluxir.ir; `from .. import jit` a name out of fluxir/__init__.py.
            names = [full if is_module(full := f"{base}.{alias.name}") else base for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                text = str(argument.value)
                dots = len(text) - len(text.lstrip("."))
                names = [".".join([*module.split(".")[:-dots], text[dots:]]) if dots else text]
        for name in names:
            if name == "fluxir" or name.startswith("fluxir."):
                yield node.lineno, name


def wrong_arrows(source: str, module: str) -> list[str]:
    """A line of text for every import in `source`, the file `module`, that `ALLOWED` does not draw."""
    trimmed = module.removesuffix(".__init__")
    room = room_of(trimmed)
    if room not in ALLOWED:
        return [f"{module}: the plan has no room {room!r}; enter it in ALLOWED of tests/test_layers.py"]
    return [
        f"{module}:{line}: {room} imports {name}"
        for line, name in imported(ast.parse(source), module)
        if room_of(name) != room and room_of(name) not in ALLOWED[room]
    ]


def test_every_import_is_an_arrow_of_the_plan() -> None:
    wrong = [line for path in sources() for line in wrong_arrows(path.read_text(), module_of(path))]
    assert not wrong, "imports the house plan does not draw:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fluxir.runtime.cpu", "from ..codegen import emit"),
        ("fluxir.runtime.cpu", "def f():\n    import fluxir.passes.fuse"),
        ("fluxir.runtime.cpu", "import importlib\nimportlib.import_module('fluxir.driver')"),
        ("fluxir.runtime.cpu", "from importlib import import_module\nimport_module('..ir', __package__)"),
        ("fluxir.runtime.vgpu.parser", "from ...ops import math"),
        ("fluxir.ir.core", "from .. import ops"),
        ("fluxir.ir.__init__", "from ..ops import math"),
        ("fluxir.passes.fuse", "from fluxir.schedule import select"),
        ("fluxir.frontend.trace", "if TYPE_CHECKING:\n    from ..driver import compile"),
        ("fluxir.config", "from . import target"),
        ("fluxir.nn.layers", "from ..ir import core"),
        ("fluxir.ops.math", "from .. import jit"),
        ("fluxir.attic.old", "import numpy"),
    ],
)
def test_the_check_finds_a_wrong_arrow(module: str, source: str) -> None:
    assert len(wrong_arrows(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fluxir.ops.math", "from ..ir import core\nfrom ..errors import error\nfrom . import rules\nimport numpy"),
        ("fluxir.ir.__init__", "from .core import Value\nfrom . import dims"),
        ("fluxir.driver", "from .passes import fuse\nfrom .runtime import cache\nfrom fluxir import config"),
        ("fluxir.nn.layers", "import fluxir as fx\nfrom fluxir import jit"),
        ("fluxir.cli.run", "from .. import runtime"),
    ],
)
def test_the_check_lets_a_right_arrow_pass(module: str, source: str) -> None:
    assert wrong_arrows(source, module) == []


def test_only_config_reads_the_environment() -> None:
    found = []
    for path in sources():
        if path == ROOT / "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
            takes = (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and any(a.name in ("environ", "getenv") for a in node.names)
            )
            if reads or takes:
                found.append(f"{path.relative_to(ROOT.parent)}:{node.lineno}")
    assert not found, f"settings live in fluxir/config.py; the environment is read in {', '.join(found)}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, fluxir; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.split() == []
