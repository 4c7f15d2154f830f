"""What a bundle's entry points look like in C: tensors, sizes, error numbers, and the header that declares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.bundle.names import C_TYPES, ITEM_BYTES, comment, identifiers, prefix, string
from fluxir.bundle.sizes import SizeWriter
from fluxir.errors import error
from fluxir.runtime import sizes
from fluxir.runtime.arguments import show_type

__all__ = ["OWN_ERRORS", "Interface", "Tensor", "interface_of", "shape_parameter", "size_functions"]

OWN_ERRORS = (
    ("ARGUMENT", "an argument is null or out of range"),
    ("DIMS", "the sizes do not fit the program"),
    ("WORKSPACE", "the workspace is too small"),
    ("DEVICE", "this machine lacks what the code needs"),
    ("FILE", "a file of the bundle cannot be read"),
    ("WEIGHTS", "the weights are not those of this program"),
    ("MEMORY", "the system refused memory or threads"),
    ("DRIVER", "the CUDA driver reported an error"),
)
"""Errors of the wrapper, numbered -1, -2 ...; those of the program are positive."""


@dataclass(frozen=True)
class Tensor:
    """An argument or result. `name` as the model says it, `c` as the header does."""

    name: str
    c: str
    dtype: str
    shape: list[int | str]

    @property
    def type(self) -> str:
        return C_TYPES[self.dtype]

    @property
    def item(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def shown(self) -> str:
        return show_type({"dtype": self.dtype, "shape": self.shape})


@dataclass(frozen=True)
class Interface:
    """`prefix` begins every name of the bundle. `dims`: (symbol, field) of the sizes that the caller chooses; `symbols`: all
    that size expressions may name, in the order of the array `s` in C. `donated`: result to argument, whose memory it takes."""

    prefix: str
    program: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    donated: dict[int, int]
    dims: list[tuple[str, str]]
    solve: list[dict[str, Any]]
    facts: dict[str, Any]
    failures: list[tuple[str, str]]
    """What the positive numbers mean, from 1."""

    @property
    def symbols(self) -> list[str]:
        return [step["symbol"] for step in self.solve]

    @property
    def known(self) -> dict[str, str]:
        """The C expression of each symbol."""
        return {name: f"s[{i}]" for i, name in enumerate(self.symbols)}

    @property
    def results(self) -> list[Tensor]:
        """The outputs that have memory of their own."""
        return [t for j, t in enumerate(self.outputs) if j not in self.donated]

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.inputs, *self.results]

    def dims_parameter(self, more: bool = True) -> str:
        """The parameter `dims` with a comma, where there are sizes to choose; `more`: other parameters follow."""
        if not self.dims:
            return "" if more else "void"
        return f"const {self.prefix}_dims *dims" + (", " if more else "")

    def dims_argument(self, more: bool = True) -> str:
        return ("dims" + (", " if more else "")) if self.dims else ""

    def macro(self, name: str) -> str:
        return f"{self.prefix.upper()}_{name}"


def interface_of(
    specs: Sequence[Mapping[str, Any]], name: str, more: Sequence[tuple[str, str]] = ()
) -> tuple[Interface, list[list[int]]]:
    """The interface of programs that differ in their target alone, and for each the number in `failures` of each of its
    error numbers. `more`: failures beside those in the specs. FX0816 where a result's size is known only when the program
    has run."""
    first = specs[0]
    if any("extents" in spec for spec in specs):
        raise error(
            "FX0816",
            f"{first['name']} has results whose sizes are known only when it has run",
            help="a bundle needs results whose sizes follow from those of the arguments",
        )
    for spec in specs[1:]:
        if any(spec[k] != first[k] for k in ("inputs", "outputs", "donated")):
            raise error("FX0816", "the programs of a bundle must have the same arguments and results")
    known = {step["symbol"] for step in first["solve"]}
    for t in (*first["inputs"], *first["outputs"]):
        unknown = {s for d in t["shape"] for s in sizes.names(d)} - known
        if unknown:
            raise error(
                "FX0816",
                f"{first['name']}: the size {', '.join(sorted(unknown))} of {t['name']} is known only when it has run",
                help="a bundle needs results whose sizes follow from those of the arguments",
            )
        if t["dtype"] not in C_TYPES:
            raise error("FX0816", f"{t['name']}: {show_type(t)} has no type in C")
    failures: list[tuple[str, str]] = []
    numbers = []
    for spec in specs:
        row = [0] * (1 + max((int(k) for k in spec["errors"]), default=0))
        for k, (code, message) in sorted(spec["errors"].items(), key=lambda e: int(e[0])):
            if (code, message) not in failures:
                failures.append((code, message))
            row[int(k)] = 1 + failures.index((code, message))
        numbers.append(row)
    failures += [f for f in dict.fromkeys(more) if f not in failures]
    tensors = [*first["inputs"], *first["outputs"]]
    names = identifiers([t["name"] for t in tensors])
    made = [Tensor(t["name"], c, t["dtype"], list(t["shape"])) for t, c in zip(tensors, names)]
    count = len(first["inputs"])
    free = [step["symbol"] for step in first["solve"] if "input" in step]
    return Interface(
        prefix=prefix(name),
        program=str(first["name"]),
        inputs=made[:count],
        outputs=made[count:],
        donated={int(j): int(i) for j, i in first.get("donated", ())},
        dims=list(zip(free, identifiers(free))),
        solve=[dict(step) for step in first["solve"]],
        facts=dict(first["facts"]),
        failures=failures,
    ), numbers


# ---- sizes ------------------------------------------------------------------------------------------------------------------


def size_functions(face: Interface) -> str:
    """`sizes_of`, which checks what the caller chose, and the public functions that tell shapes and bytes."""
    p, count = face.prefix, max(1, len(face.symbols))
    dims = "dims" if face.dims else "unused"
    lines = [
        f"#define SYMBOLS {count}",
        "",
        "/* Fill in all sizes of a call. The result is 0 or an error. */",
        f"static int sizes_of(const {f'{p}_dims' if face.dims else 'void'} *{dims}, int64_t *s)",
        "{",
        "    int bad = 0;",
    ]
    if face.dims:
        lines.append(f"    if (!dims) return {face.macro('ERROR_ARGUMENT')};")
    else:
        lines += ["    (void)unused;", "    (void)bad;", "    s[0] = 0;"]
    w = SizeWriter(face.known)
    fields = dict(face.dims)
    for i, step in enumerate(face.solve):
        value = f"dims->{fields[step['symbol']]}" if "input" in step else w.value(step["value"])
        w.lines.append(f"s[{i}] = {value};")
    conditions = [f"s[{i}] < 0" for i in range(len(face.symbols))]
    for name, (lo, hi) in face.facts["bounds"].items():
        if name in face.known:
            conditions += [f"{face.known[name]} < {w.value(lo)}"] if lo > 0 else []
            conditions += [f"{face.known[name]} > {w.value(hi)}"] if hi is not None else []
    for name, most in face.facts.get("ceilings", {}).items():
        if {name} | sizes.names(most) <= set(face.known):
            conditions.append(f"{face.known[name]} > {w.value(most)}")
    for name, k in face.facts["multiples"].items():
        if name in face.known:
            conditions.append(f"{face.known[name]} % {w.value(k)} != 0")
    for a, b in face.facts["equations"]:
        if sizes.names(a) | sizes.names(b) <= set(face.known):
            conditions.append(f"{w.value(a)} != {w.value(b)}")
    for t in face.tensors:
        conditions += [f"{w.value(d)} < 0" for d in t.shape if isinstance(d, str) and d not in face.known]
        conditions.append(f"{w.product(t.shape, t.item)} > MOST_BYTES")
    conditions = [c for c in dict.fromkeys(conditions) if not c.startswith("INT64_C")]
    lines += ["    " + line for line in w.lines]
    lines += [f"    if ({c}) return {face.macro('ERROR_DIMS')};" for c in conditions]
    lines += [f"    return bad ? {face.macro('ERROR_DIMS')} : 0;", "}", ""]
    for t in face.tensors:
        values = SizeWriter(face.known)
        stores = [f"shape[{k}] = {values.value(d)};" for k, d in enumerate(t.shape)] or ["(void)shape;"]
        lines += _asking(
            face, f"int {p}_{t.c}_shape({face.dims_parameter()}{shape_parameter(t)})", values, [*stores, "return 0;"]
        )
        values = SizeWriter(face.known)
        nbytes = values.product(t.shape, t.item)
        lines += _asking(
            face, f"int64_t {p}_{t.c}_bytes({face.dims_parameter(more=False)})", values, [f"return {nbytes};"]
        )
    return "\n".join(lines)


def shape_parameter(t: Tensor) -> str:
    return f"int64_t shape[{max(1, len(t.shape))}]"


def _asking(face: Interface, signature: str, values: SizeWriter, end: list[str]) -> list[str]:
    """A function that computes some sizes of a call."""
    start = [
        "int bad = 0;",
        "int64_t s[SYMBOLS];",
        f"const int status = sizes_of({'dims' if face.dims else 'NULL'}, s);",
        "if (status) return status;",
        "(void)bad;",
    ]
    return [signature, "{", *["    " + line for line in (*start, *values.lines, *end)], "}", ""]


def error_enum(face: Interface) -> str:
    rows = [f"    {face.macro('OK')} = 0,"]
    for i, (name, text) in enumerate(OWN_ERRORS):
        rows.append(f"    {face.macro('ERROR_' + name)} = {-1 - i}, /* {text} */")
    return "enum {\n" + "\n".join(rows) + "\n};"


def error_cases(face: Interface) -> str:
    """The cases of `strerror`."""
    rows = ['    case 0: return "no error";']
    rows += [f"    case {-1 - i}: return {string(text)};" for i, (_, text) in enumerate(OWN_ERRORS)]
    rows += [f"    case {i + 1}: return {string(f'{code}: {text}')};" for i, (code, text) in enumerate(face.failures)]
    return "\n".join(rows)


def dims_struct(face: Interface) -> str:
    """The struct of the sizes that a caller chooses; empty where there are none."""
    if not face.dims:
        return ""
    rows = []
    for symbol, field in face.dims:
        lo, hi = face.facts["bounds"].get(symbol, (0, None))
        k = face.facts["multiples"].get(symbol, 1)
        known = [
            f"at least {lo}" if lo else "",
            f"at most {hi}" if hi is not None else "",
            f"a multiple of {k}" if k > 1 else "",
        ]
        note = ", ".join(x for x in known if x)
        rows.append(f"    int64_t {field};" + (f" /* {comment(note)} */" if note else ""))
    more = [f"{a} == {b}" for a, b in face.facts["equations"]]
    note = f" Also: {comment('; '.join(more))}." if more else ""
    return (
        f"/* The sizes that a call may choose.{note} */\n"
        f"typedef struct {face.prefix}_dims {{\n" + "\n".join(rows) + f"\n}} {face.prefix}_dims;\n"
    )
