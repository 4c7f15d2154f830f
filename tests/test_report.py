"""The report page: complete, self-contained, and safe to open whatever the compiled program was called."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fluxir.errors import FluxError
from fluxir.report import MAX_DIFF_LINES, ReportData, diff_table, render_report, write_report

BEFORE = """func @f(%x: f32[B,4]) -> (f32[B,4]) {
  %0 = mul(%x, %x) : f32[B,4]     @ model.py:1
  %1 = neg(%0) : f32[B,4]         @ model.py:1
  %2 = exp(%1) : f32[B,4]         @ model.py:2
  return %2
}"""
AFTER = """func @f(%x: f32[B,4]) -> (f32[B,4]) {
  %0 = mul(%x, %x) : f32[B,4]     @ model.py:1
  %1 = exp(%0) : f32[B,4]         @ model.py:2
  return %1
}"""


def example() -> ReportData:
    return {
        "title": "model",
        "subtitle": "model.py for cpu",
        "summary": [{"label": "accuracy", "value": "98.9 %", "detail": "of 899"}, {"label": "kernels", "value": "1"}],
        "passes": [
            {"name": "simplify", "ms": 1.5, "ops_before": 3, "ops_after": 2, "changed": True, "before": BEFORE,
             "after": AFTER, "rules": {"drop_square": 2}},
            {"name": "cse", "ms": 0.5, "ops_before": 2, "ops_after": 2, "changed": False, "before": AFTER, "after": AFTER},
        ],
        "kernels": [
            {"name": "k0_exp", "target": "sm_90", "schedule": "pointwise(vector=4)", "code": "ex2.approx.f32 %f1, %f2;",
             "code_kind": "PTX", "loops": "for %i in 0..4 {\n}", "lines": ["model.py:2", "elsewhere.py:7"],
             "facts": {"grid": "(B, 1, 1)"}},
        ],
        "profile": {"title": "On <vgpu>", "intro": "Run on <4> images.", "note": "No timings.", "tables": [
            {"title": "lower bound", "head": ["kernel", "GPU & more"], "rows": [["k0_exp", "1.5 us dram"]], "right": [1]}]},
        "sources": [{"path": "model.py", "text": "y = x * x\ny = exp(y)\n"}],
        "facts": {"LLVM": "22.1"},
    }  # fmt: skip


class Page(HTMLParser):
    """Collects the text and every element with its attributes; fails on elements that are not closed in order."""

    VOID = ("meta", "col", "br", "link", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_on_the_page() -> None:
    page = Page(render_report(example()))
    for part in ("98.9 %", "of 899", "simplify", "1.50 ms", "3 → 2", "drop_square × 2", "cse", "unchanged", "k0_exp",
                 "pointwise(vector=4)", "ex2.approx.f32", "for %i in 0..4", "(B, 1, 1)", "y = exp(y)", "22.1",
                 "Run on <4> images.", "GPU & more", "1.5 us dram", "No timings."):  # fmt: skip
        assert part in page.text, part


def test_links_lead_somewhere_and_join_kernel_and_source_line() -> None:
    page = Page(render_report(example()))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [attributes["href"] or "" for tag, attributes in page.elements if tag == "a"]
    assert len(names) == len(set(names))
    assert {"#kernel-0", "#s0-2"} <= set(links)
    assert all(link.startswith("#") and link[1:] in names for link in links)


def test_the_page_needs_nothing_from_outside_and_runs_only_its_own_script() -> None:
    text = render_report(example())
    page = Page(text)
    assert not re.search(r"(?i)https?:|url\(|@import|\bsrc=", text)
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "base", "form"}
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv")) or ""
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


EVIL = "</pre></td></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'><b id=x>&amp;$title\x1b[31m\u202e"


def test_no_text_can_become_markup() -> None:
    harmless = render_report(example())
    data = example()
    data["title"] = data["subtitle"] = EVIL
    data["summary"][0] = {"label": EVIL, "value": EVIL, "detail": EVIL}
    one = data["passes"][0]
    one["name"] = one["before"] = one["after"] = EVIL
    one["after"] += "x"
    one["rules"] = {EVIL: 1}
    data["passes"][1]["name"] = EVIL
    kernel = data["kernels"][0]
    kernel["name"] = kernel["target"] = kernel["schedule"] = kernel["code"] = kernel["code_kind"] = kernel["loops"] = (
        EVIL
    )
    kernel["lines"], kernel["facts"] = [EVIL, f"{EVIL}:1"], {EVIL: EVIL}
    data["sources"] = [{"path": EVIL, "text": EVIL}]
    data["facts"] = {EVIL: EVIL}
    text = render_report(data)
    page = Page(text)
    kinds = {tag for tag, _ in page.elements}
    assert kinds <= {tag for tag, _ in Page(harmless).elements} and "img" not in kinds
    assert text.count("<script") == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "\x1b" not in text and "\u202e" not in text
    assert "onerror=alert(1)" in page.text and "&amp;$title" in page.text


def marked(table: str, css: str) -> list[str]:
    """The plain text of the cells of this kind."""
    cells = re.findall(rf"<td class='t {css}'>(.*?)</td>", table)
    return [re.sub(r"<[^>]+>", "", cell).strip() for cell in cells]


def test_a_renumbered_line_is_not_a_changed_line() -> None:
    table = diff_table(BEFORE, AFTER)
    assert marked(table, "del") == ["%1 = neg(%0) : f32[B,4]  @ model.py:1"]
    assert marked(table, "add") == []
    assert "<mark><span class=v>%2</span></mark> = exp(" in table


def test_a_changed_word_is_marked_within_its_line() -> None:
    table = diff_table("%0 = add(%a, %b) : f32", "%0 = sub(%a, %b) : f32")
    assert table.count("<mark>") == 2 and "<mark>add</mark>" in table and "<mark>sub</mark>" in table


def test_long_unchanged_stretches_are_folded_and_complete() -> None:
    lines = [f"line number {i}" for i in range(100)]
    table = diff_table("\n".join(lines), "\n".join([*lines[:50], "new", *lines[50:]]))
    assert "47 unchanged lines" in table and table.count("<tbody hidden>") == 2
    plain = re.sub(r"<[^>]+>", "|", table)
    assert all(plain.count(f"|{line}|") == 2 for line in lines)


def test_texts_too_long_to_compare_say_so() -> None:
    assert "too many to compare" in diff_table("a\n" * MAX_DIFF_LINES, "b\n")


def test_empty_data_makes_a_page() -> None:
    empty: ReportData = {"title": "t", "subtitle": "", "summary": [], "passes": [], "kernels": [], "sources": []}
    assert "No pass ran." in Page(render_report(empty)).text


def test_writing_replaces_the_file_and_is_deterministic(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, example())
    assert path.read_bytes() == render_report(example()).encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FluxError) as caught:
        write_report(tmp_path / "absent" / "report.html", example())
    assert caught.value.code == "FX0804"
