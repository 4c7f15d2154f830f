"""The documentation is true: examples run, outputs are those printed, generated pages are up to date, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = _module("run")


@pytest.mark.parametrize("path", [p for p in run.documents() if run.fences(p.read_text())], ids=lambda p: p.stem)
def test_examples_do_what_the_page_says(path: Path, tmp_path: Path) -> None:
    run.check(path, tmp_path)


def test_generated_pages_are_up_to_date() -> None:
    generate = _module("generate")
    stale = [n for n, text in generate.pages().items() if (generate.FOLDER / n).read_text() != text]
    assert not stale, f"run `make docs`: {', '.join(stale)} differ from the registry"


def test_links_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def test_every_page_is_reachable_from_the_index() -> None:
    docs = ROOT / "docs"
    seen, todo = set(), [docs / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        todo += [(page.parent / t).resolve() for t in re.findall(r"\]\(([^)#\s:]+)[^)]*\)", page.read_text())]
    lost = [str(p.relative_to(docs)) for p in sorted(docs.rglob("*.md")) if p not in seen]
    assert not lost, f"no page links to {', '.join(lost)}"


def test_a_wrong_output_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text output\n3\n```\n")
    with pytest.raises(run.ExampleFailed, match="output has changed"):
        run.check(page, tmp_path)


def test_a_missing_error_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python raises\n1 + 1\n```\n")
    with pytest.raises(run.ExampleFailed, match="no error"):
        run.check(page, tmp_path)
