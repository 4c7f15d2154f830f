"""Owns `report.html`: one self-contained page that shows what a compilation did, readable offline and for ever.

Invariants: the page refers to nothing outside itself (its content security policy forbids it too), every text from the
caller is escaped, and the same data gives the same bytes. The data is plain text and numbers, `ReportData`, so that this
file knows nothing of the compiler and a report can be made from JSON.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import html
import math
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import NotRequired, TypedDict

from .errors import error

__all__ = [
    "CurveReport",
    "KernelReport",
    "PassReport",
    "ProfileReport",
    "ReportData",
    "SourceReport",
    "SummaryItem",
    "TableReport",
    "render_report",
    "write_report",
]


class SummaryItem(TypedDict):
    """One number of the summary: `{"label": "accuracy", "value": "98.9 %", "detail": "889 of 899 test images"}`."""

    label: str
    value: str
    detail: NotRequired[str]


class PassReport(TypedDict):
    """One pass that ran: its time in milliseconds, the number of ops before and after, and the IR text of both."""

    name: str
    ms: float
    ops_before: int
    ops_after: int
    changed: bool
    before: str
    after: str
    rules: NotRequired[dict[str, int]]
    """How often each rewrite rule fired."""


class KernelReport(TypedDict):
    """One kernel of one target: its schedule and loop IR as text, and its code (`code_kind`: "assembly" or "PTX")."""

    name: str
    target: str
    schedule: str
    code: str
    code_kind: str
    loops: NotRequired[str]
    lines: NotRequired[list[str]]
    """The model's lines it computes, as `file:line`; a file that is among `sources` is linked."""
    facts: NotRequired[dict[str, str]]
    """Further short facts, such as `{"flops": "1.2 M", "grid": "(B, 1, 1)"}`."""


class SourceReport(TypedDict):
    """One source file of the model: `path` is spelt as in `KernelReport.lines`."""

    path: str
    text: str


class CurveReport(TypedDict):
    """A curve: a finite value for each x = 1, 2, ..., and what the axes mean."""

    title: str
    x: str
    y: str
    values: list[float]


class TableReport(TypedDict):
    """A table: the cells of its head and rows, and which columns hold numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    right: NotRequired[list[int]]


class ProfileReport(TypedDict):
    """What runs of the kernels took, or counted on the virtual GPU: a sentence before the tables and one after."""

    title: str
    intro: str
    tables: list[TableReport]
    note: str


class ReportData(TypedDict):
    """Everything the page shows, in the order in which it shows it."""

    title: str
    subtitle: str
    summary: list[SummaryItem]
    curve: NotRequired[CurveReport]
    passes: list[PassReport]
    kernels: list[KernelReport]
    profile: NotRequired[ProfileReport]
    sources: list[SourceReport]
    facts: NotRequired[dict[str, str]]
    """Where this was made: versions, machine, settings."""


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Writes the page to `path`, replacing what was there at once. Raises FX0804 when it cannot be written."""
    target = os.fspath(path)
    temporary = f"{target}.{secrets.token_hex(6)}.tmp"
    text = render_report(data)
    try:
        try:
            with open(temporary, "x", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(text)
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    except OSError as reason:
        raise error("FX0804", f"{target} cannot be written: {reason.strerror or reason}") from None


def render_report(data: ReportData) -> str:
    """The page as text."""
    template = Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    script = template.template.partition("<script>")[2].partition("</script>")[0]
    return template.substitute(
        # The policy names the one script by its hash: nothing that slipped in with the data could run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=_escape(data["title"]),
        subtitle=_escape(data["subtitle"]),
        summary="\n".join(map(_card, data["summary"])),
        curve=_curve(data["curve"]) if "curve" in data else "",
        passes=_passes(data["passes"]),
        kernels=_kernels(data["kernels"], data["sources"]),
        profile=_profile(data["profile"]) if "profile" in data else "",
        profile_link=f'<a href="#profile">{_escape(data["profile"]["title"])}</a>' if "profile" in data else "",
        sources=_sources(data["sources"], data["kernels"]),
        facts=_facts(data.get("facts", {})),
    )


def _escape(text: object) -> str:
    """`text` as HTML, in an element or a quoted attribute; control characters, which HTML forbids, become visible."""
    shown = "".join(
        c if c in "\n\t" or c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )
    return html.escape(shown, quote=True)


# -- profile -----------------------------------------------------------------------------------------------------------


def _profile(data: ProfileReport) -> str:
    parts = [f'<section id="profile"><h2>{_escape(data["title"])}</h2>\n<p class="hint">{_escape(data["intro"])}</p>']
    for t in data["tables"]:
        right = set(t.get("right", ()))
        rows = [
            f"<tr>{''.join(_cell(tag, text, i in right) for i, text in enumerate(cells))}</tr>"
            for tag, cells in [("th", t["head"]), *(("td", r) for r in t["rows"])]
        ]
        parts.append(
            f'<h3>{_escape(t["title"])}</h3>\n<div class="scroll"><table class="counts">{"".join(rows)}</table></div>'
        )
    parts.append(f'<p class="hint">{_escape(data["note"])}</p></section>')
    return "\n".join(parts)


def _cell(tag: str, text: str, right: bool) -> str:
    side = ' class="r"' if right else ""
    return f"<{tag}{side}>{_escape(text)}</{tag}>"


# -- summary and facts -------------------------------------------------------------------------------------------------


def _card(item: SummaryItem) -> str:
    detail = f"<small>{_escape(item['detail'])}</small>" if item.get("detail") else ""
    return f"<div class=card><span>{_escape(item['label'])}</span><b>{_escape(item['value'])}</b>{detail}</div>"


def _facts(facts: dict[str, str]) -> str:
    return "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items())


# -- curve -------------------------------------------------------------------------------------------------------------


def _curve(curve: CurveReport) -> str:
    """A section with the curve as SVG, from 0 (or the least value below it) to the greatest value."""
    width, height, left, bottom = 720, 200, 48, 30
    values = [v for v in curve["values"] if math.isfinite(v)]
    if len(values) < 2:
        return ""
    low, high = min(0.0, *values), max(0.0, *values)
    span, last = high - low or 1.0, len(curve["values"])

    def place(x: float, v: float) -> str:
        return f"{left + (x - 1) / (last - 1) * (width - left - 8):.1f},{8 + (high - v) / span * (height - bottom - 8):.1f}"

    points = " ".join(place(n, v) for n, v in enumerate(curve["values"], 1) if math.isfinite(v))
    floor = height - bottom
    label = f"{curve['y']} by {curve['x']}, from {curve['values'][0]:.3g} to {curve['values'][-1]:.3g}"
    return (
        f'<section id="curve"><h2>{_escape(curve["title"])}</h2>'
        f'<svg class=curve viewBox="0 0 {width} {height}" role=img aria-label="{_escape(label)}">'
        f'<path d="M{left},8V{floor}H{width - 8}"></path><polyline points="{points}"></polyline>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left - 6}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{left}" y="{height - 10}">1</text>'
        f'<text x="{width - 8}" y="{height - 10}" text-anchor="end">{last}</text>'
        f'<text x="{(left + width) // 2}" y="{height - 10}" text-anchor="middle">{_escape(label)}</text>'
        "</svg></section>"
    )


# -- passes ------------------------------------------------------------------------------------------------------------


def _passes(passes: Sequence[PassReport]) -> str:
    slowest = max((one["ms"] for one in passes), default=0.0) or 1.0
    rows = []
    for number, one in enumerate(passes, 1):
        ops = (
            f"{one['ops_before']}"
            if one["ops_before"] == one["ops_after"]
            else f"{one['ops_before']} → {one['ops_after']}"
        )
        head = (
            f"<span class=number>{number:02}</span><span class=name>{_escape(one['name'])}</span>"
            f"<span class=ops>{ops}</span><span class=ms>{one['ms']:.2f} ms</span>"
            f'<span class=bar><i style="width:{100 * one["ms"] / slowest:.1f}%"></i></span>'
        )
        if not one["changed"]:
            rows.append(f"<div class='pass same'>{head}<span class=badge>unchanged</span></div>")
            continue
        fired = ", ".join(f"{name} × {count}" for name, count in sorted(one.get("rules", {}).items()))
        rules = f"<p class=hint>Rules fired: {_escape(fired)}</p>" if fired else ""
        rows.append(
            f"<details id=pass-{number}><summary class=pass>{head}<span class='badge on'>changed</span></summary>"
            f"{rules}{diff_table(one['before'], one['after'])}</details>"
        )
    return "\n".join(rows) or "<p class=hint>No pass ran.</p>"


MAX_DIFF_LINES = 6000
"""Longer texts are not compared: the dumps beside the report can be, with a tool made for it."""

_CONTEXT = 3  # unchanged lines shown on either side of a change
_COLUMNS = "<colgroup><col class=cn><col><col class=cn><col></colgroup>"
_VALUE = re.compile(r"%[\w.$-]+")
_TOKEN = re.compile(
    r"(?P<value>%[\w.$-]+)|(?P<place>@ ?[\w./<>-]+(?::\d+)*)|(?P<comment>//.*)|(?P<word>\w+)|(?P<rest>\s+|.)"
)


def diff_table(before: str, after: str) -> str:
    """The two texts side by side as an HTML table, changed stretches marked and long unchanged ones folded.

    Values are renumbered by nearly every pass, so lines are matched with the names of their values left out: a line that
    was only renumbered counts as unchanged, and what differs in it is marked faintly.
    """
    old, new = _lines(before), _lines(after)
    if len(old) + len(new) > MAX_DIFF_LINES:
        return f"<p class=hint>{len(old)} and {len(new)} lines: too many to compare here; see the dumps.</p>"
    matcher = difflib.SequenceMatcher(None, [_VALUE.sub("%", x) for x in old], [_VALUE.sub("%", x) for x in new], False)
    blocks = []
    opcodes = matcher.get_opcodes()
    for index, (tag, a0, a1, b0, b1) in enumerate(opcodes):
        if tag != "equal":
            rows = [_diff_row(old, new, a, b, tag) for a, b in _paired(range(a0, a1), range(b0, b1))]
            blocks.append(f"<tbody>{''.join(rows)}</tbody>")
            continue
        rows = [_diff_row(old, new, a, b, tag) for a, b in zip(range(a0, a1), range(b0, b1))]
        head = 0 if index == 0 else _CONTEXT
        tail = 0 if index == len(opcodes) - 1 else _CONTEXT
        hidden = rows[head : len(rows) - tail]
        if len(hidden) < 4:
            blocks.append(f"<tbody>{''.join(rows)}</tbody>")
            continue
        button = f"<tr class=fold><td colspan=4><button type=button>{len(hidden)} unchanged lines</button></td></tr>"
        blocks.append(f"<tbody>{''.join(rows[:head])}{button}</tbody><tbody hidden>{''.join(hidden)}</tbody>")
        if tail:
            blocks.append(f"<tbody>{''.join(rows[len(rows) - tail :])}</tbody>")
    return f"<div class=scroll><table class=diff>{_COLUMNS}{''.join(blocks)}</table></div>"


def _lines(text: str) -> list[str]:
    """The lines of an IR text, without the column that aligns the locations: two texts share the width of the page."""
    return [re.sub(r" {2,}(?=@ ?\S+$)", "  ", line) for line in text.splitlines()]


def _paired(left: range, right: range) -> Iterator[tuple[int | None, int | None]]:
    for offset in range(max(len(left), len(right))):
        yield (
            left[offset] if offset < len(left) else None,
            right[offset] if offset < len(right) else None,
        )


def _diff_row(old: list[str], new: list[str], a: int | None, b: int | None, tag: str) -> str:
    left = old[a] if a is not None else None
    right = new[b] if b is not None else None
    kinds = (
        ("", "") if tag == "equal" else ("del" if left is not None else "gap", "add" if right is not None else "gap")
    )
    if left is not None and right is not None and left != right:
        texts = _marked(left, right)
    else:
        texts = (_coloured_line(left or ""), _coloured_line(right or ""))
    cells = []
    for number, kind, text in zip((a, b), kinds, texts):
        shown = "" if number is None else str(number + 1)
        cells.append(f"<td class=n>{shown}</td><td class='t {kind}'>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _marked(left: str, right: str) -> tuple[str, str]:
    """Both lines as HTML with the tokens in which they differ marked."""
    olds, news = list(_tokens(left)), list(_tokens(right))
    matcher = difflib.SequenceMatcher(None, [text for _, text in olds], [text for _, text in news], False)
    texts = ["", ""]
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        for side, tokens in enumerate((olds[a0:a1], news[b0:b1])):
            piece = "".join(map(_coloured, tokens))
            texts[side] += f"<mark>{piece}</mark>" if piece and tag != "equal" else piece
    return texts[0], texts[1]


def _tokens(line: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(line):
        yield found.lastgroup or "rest", found.group()


def _coloured_line(line: str) -> str:
    return "".join(map(_coloured, _tokens(line)))


def _coloured(token: tuple[str, str]) -> str:
    kind, text = token
    css = {"value": "v", "place": "p", "comment": "p"}.get(kind)
    return f"<span class={css}>{_escape(text)}</span>" if css else _escape(text)


# -- kernels and sources -----------------------------------------------------------------------------------------------


def _kernels(kernels: Sequence[KernelReport], sources: Sequence[SourceReport]) -> str:
    anchors = {source["path"]: number for number, source in enumerate(sources)}
    parts = []
    for target in dict.fromkeys(kernel["target"] for kernel in kernels):
        chosen = [(number, kernel) for number, kernel in enumerate(kernels) if kernel["target"] == target]
        parts.append(f"<h3>{_escape(target)} <small>{len(chosen)} kernel{'s' * (len(chosen) != 1)}</small></h3>")
        parts += [_kernel(number, kernel, anchors) for number, kernel in chosen]
    return "\n".join(parts) or "<p class=hint>No kernels.</p>"


def _kernel(number: int, kernel: KernelReport, anchors: dict[str, int]) -> str:
    facts = "".join(
        f"<span class=badge>{_escape(name)} {_escape(value)}</span>" for name, value in kernel.get("facts", {}).items()
    )
    places = ", ".join(_place(line, anchors) for line in kernel.get("lines", ()))
    loops = _code("Loop IR", kernel["loops"], True) if kernel.get("loops") else ""
    return (
        f"<details id=kernel-{number} class=kernel><summary><span class=name>{_escape(kernel['name'])}</span>{facts}</summary>"
        f"{f'<p class=hint>Computes {places}</p>' if places else ''}"
        f"<pre class=schedule>{_escape(kernel['schedule'])}</pre>"
        f"{loops}{_code(kernel['code_kind'], kernel['code'], False)}</details>"
    )


def _code(kind: str, text: str, coloured: bool) -> str:
    count = len(text.splitlines())
    body = "\n".join(map(_coloured_line, text.splitlines())) if coloured else _escape(text)
    return (
        f"<details class=code><summary>{_escape(kind)} <small>{count} line{'s' * (count != 1)}</small>"
        f"<button type=button class=copy>copy</button></summary><pre>{body}</pre></details>"
    )


def _place(line: str, anchors: dict[str, int]) -> str:
    path, _, number = line.rpartition(":")
    if path in anchors and number.isdigit():
        return f"<a href=#s{anchors[path]}-{int(number)}>{_escape(line)}</a>"
    return _escape(line)


def _sources(sources: Sequence[SourceReport], kernels: Sequence[KernelReport]) -> str:
    uses: dict[str, list[int]] = {}
    for number, kernel in enumerate(kernels):
        for line in dict.fromkeys(kernel.get("lines", ())):
            uses.setdefault(line, []).append(number)
    parts = []
    for index, source in enumerate(sources):
        rows = []
        for number, text in enumerate(source["text"].splitlines(), 1):
            used = uses.get(f"{source['path']}:{number}", [])
            links = " ".join(
                f'<a class=badge href="#kernel-{k}">{_escape(kernels[k]["name"])} <i>{_escape(kernels[k]["target"])}</i></a>'
                for k in used
            )
            rows.append(
                f"<tr id=s{index}-{number}{' class=used' if used else ''}><td class=n>{number}</td>"
                f"<td class=t>{_escape(text)}</td><td class=k>{links}</td></tr>"
            )
        parts.append(
            f"<details open><summary><span class=name>{_escape(source['path'])}</span></summary>"
            f"<div class=scroll><table class=source>{''.join(rows)}</table></div></details>"
        )
    return "\n".join(parts) or "<p class=hint>The program did not come from a source file.</p>"
