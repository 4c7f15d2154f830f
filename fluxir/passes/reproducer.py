"""A failing pass leaves a reproducer: the program before it as text, and a test that runs the pass on it again.

The test is complete as it stands: it fails as the pass failed while the defect is there, and passes when it is gone,
so it can be moved into the test suite together with its `.fx` file.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

from fluxir.errors import FluxError
from fluxir.ir.core import Module
from fluxir.ir.dims import assuming
from fluxir.ir.parser import read_module
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_module
from fluxir.target import parse_target

TEST = '''"""Reproducer of a failed pass, written by fluxir: {what}"""

from __future__ import annotations

from pathlib import Path

import fluxir.ops  # declares the ops
import fluxir.passes  # declares the passes
from fluxir.passes.reproducer import import_passes, replay


def test_{name}() -> None:
{imports}    replay(Path(__file__).with_name({fx!r}), {step!r}, verify={verify!r}{target})
'''


def write_reproducer(
    module: Module,
    step: str,
    exc: BaseException,
    dump_dir: str | Path | None = None,
    *,
    verify: str = "changed",
    target: str | None = None,
) -> Path:
    """Write `reproduce_<pass>_<digest>.fx` and `test_reproduce_<pass>_<digest>.py`; returns the path of the test.

    `module` is the program before the pass `step` (its name with options), `exc` how it failed. Without `dump_dir`
    the files go to a fresh temporary directory.
    """
    from fluxir.passes.manager import PASSES

    folder = Path(dump_dir) if dump_dir else Path(tempfile.mkdtemp(prefix="fluxir-reproducer-"))
    folder.mkdir(parents=True, exist_ok=True)
    pass_name = step.partition("[")[0].strip()
    name = "reproduce_" + re.sub(r"\W+", "_", pass_name).strip("_") + "_" + module.digest[:8]
    what = (
        f"{step} raised {type(exc).__name__}: {getattr(exc, 'message', exc)}".splitlines()[0]
        .replace("\\", "/")
        .replace('"', "'")
    )
    text = print_module(module)
    (folder / f"{name}.fx").write_text("".join(f"# {line}\n" for line in (what,)) + text)
    imports = ""
    if pass_name in PASSES:
        home = PASSES[pass_name].run.__module__
        if not home.startswith("fluxir."):
            source = getattr(sys.modules.get(home), "__file__", None)
            imports = f"    import_passes({home!r}, {str(source) if source else None!r})\n"
    extra = f", target={target!r}" if target else ""
    test = folder / f"test_{name}.py"
    test.write_text(
        TEST.format(what=what, name=name, fx=f"{name}.fx", step=step, verify=verify, target=extra, imports=imports)
    )
    return test


def import_passes(module: str, source: str | None) -> None:
    """Import a module that registers passes, by its name or, where that is no longer importable, from its file."""
    if module in sys.modules:
        return
    try:
        importlib.import_module(module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(module, source) if source else None
        if spec is None or spec.loader is None:
            raise
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)


def replay(path: str | Path, steps: str, *, verify: str = "changed", target: str | None = None) -> Module:
    """Run passes on the program in `path`, letting every exception through as it is; returns the program after them."""
    from collections import Counter

    from fluxir.passes.manager import PassManager
    from fluxir.passes.numeric import compare

    module = read_module(path, locate=False)
    manager = PassManager(steps, target=parse_target(target) if target else None)
    for step in manager.steps:
        before = module
        with assuming(module.facts):
            module = manager.apply(step, module, Counter())
        if verify != "off":
            verify_module(module)
        if verify == "numeric" and module is not before:
            compare(before, module, str(step), reproduce=False)
    return module


__all__ = ["FluxError", "import_passes", "replay", "write_reproducer"]
