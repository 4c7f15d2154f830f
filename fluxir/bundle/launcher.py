"""Host functions of a GPU program as C: each step of the manifest (`fluxir/codegen/manifest.py`) becomes a statement.

What `fluxir/runtime/frame.py` does step by step, written down. A tensor is a `struct memory`, a number a C scalar of its dtype.
Sizes are computed at the head of a function, since they cannot change in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluxir.bundle.interface import Interface, Tensor
from fluxir.bundle.names import C_TYPES, ITEM_BYTES, string
from fluxir.bundle.sizes import SizeWriter
from fluxir.errors import error

__all__ = ["asserts", "launcher", "most_axes"]

Spec = Mapping[str, Any]
TOO_DEEP = ("FX0109", "calls are nested more than 4000 deep")
_INTS = ("i8", "i16", "i32", "i64")


def asserts(host: Spec) -> list[tuple[str, str]]:
    """The errors that a program's host functions may end with."""
    found = [TOO_DEEP]

    def walk(steps: Sequence[Spec]) -> None:
        for step in steps:
            if step["op"] == "assert":
                found.append(_failure(step))
            for region in step.get("regions", ()):
                walk(region["steps"])

    for function in host["functions"].values():
        walk(function["steps"])
    return list(dict.fromkeys(found))


def _failure(step: Spec) -> tuple[str, str]:
    where = f" ({step['source']})" if step["source"] else ""
    return "FX0608", f"assertion failed: {step['message']}{where}"


def most_axes(host: Spec, tensors: Sequence[Tensor]) -> int:
    """The largest rank of a tensor of the program, at least 1."""
    ranks = [len(t.shape) for t in tensors]

    def walk(steps: Sequence[Spec]) -> None:
        for step in steps:
            ranks.append(len(step.get("shape", ())))
            for region in step.get("regions", ()):
                walk(region["steps"])

    for function in host["functions"].values():
        walk(function["steps"])
    return max([1, *ranks])


def launcher(spec: Spec, k: int, face: Interface) -> str:
    """The C text of a program's host functions and of `run_K`, which calls the entry."""
    host = spec["host"]
    names = {name: f"host_{k}_{i}" for i, name in enumerate(host["functions"])}
    signatures = {n: _signature(names[n], f) for n, f in host["functions"].items()}
    out = [f"{s};" for s in signatures.values()] + [""]
    for name, function in host["functions"].items():
        out += [signatures[name], "{", *_Function(spec, face, function, names).lines(), "}", ""]
    entry = host["functions"][host["entry"]]
    tensors = [*face.inputs, *face.outputs]
    w = SizeWriter(face.known)
    arrays = [_memory(f"arrays[{i}]", t.item, [w.value(d) for d in t.shape]) for i, t in enumerate(tensors)]
    given = [f"s[{face.symbols.index(s)}]" for s in entry["symbols"]] or ["0"]
    arena = [_memory("arena", 1, ["INT64_MAX"])] if len(entry["args"]) > len(arrays) else []
    out += [
        f"static int run_{k}(struct call *call, const int64_t *s, const uint64_t *arrays, uint64_t arena)",
        "{",
        "    int bad = 0;",
        f"    const int64_t own[] = {{{', '.join(given)}}};",
        *[f"    {line}" for line in w.lines],
        "    (void)s, (void)arrays, (void)arena;",
        f"    if (bad) return {face.macro('ERROR_DIMS')};",
        f"    return {names[host['entry']]}({', '.join(['call', '0', 'own', *arrays, *arena])});",
        "}",
    ]
    return "\n".join(out) + "\n"


def _signature(name: str, function: Spec) -> str:
    args = "".join(f", struct memory v{n}" for n in function["args"])
    return f"static int {name}(struct call *call, int depth, const int64_t *s{args})"


def _memory(at: str, item: int, shape: Sequence[str]) -> str:
    return f"(struct memory){{{at}, {item}, {len(shape)}, {{{', '.join(shape) or '0'}}}}}"


class _Function:
    """One host function. `kinds`: of each value its dtype, or "memory"."""

    def __init__(self, spec: Spec, face: Interface, function: Spec, names: Mapping[str, str]) -> None:
        self.spec, self.face, self.function, self.names = spec, face, function, names
        self.kernels = {x["kernel"]: (i, x) for i, x in enumerate(spec["kernels"])}
        self.sizes = SizeWriter({s: f"s[{i}]" for i, s in enumerate(function["symbols"])})
        self.kinds: dict[int, str] = dict.fromkeys(function["args"], "memory")
        self.body: list[str] = []
        self.indent = 1

    def lines(self) -> list[str]:
        self.steps(self.function["steps"])
        used = "".join(f"(void)v{n}, " for n in self.function["args"])
        head = [
            "int bad = 0, status = 0;",
            f"{used}(void)depth, (void)s, (void)call;",
            f"if (depth >= MOST_CALLS) return {self.number(TOO_DEEP)};",
            *self.sizes.lines,
            f"if (bad) return {self.face.macro('ERROR_DIMS')};",
        ]
        return ["    " + line for line in head] + self.body + ["    return status;"]

    def number(self, failure: tuple[str, str]) -> int:
        return 1 + self.face.failures.index(failure)

    # ---- writing
    def do(self, text: str) -> None:
        self.body.append("    " * self.indent + text)

    def attempt(self, call: str) -> None:
        """A call whose status is passed on where it is not 0."""
        self.do(f"status = {call};")
        self.do("if (status) return status;")

    def steps(self, steps: Sequence[Spec]) -> None:
        for step in steps:
            getattr(self, "do_" + step["op"])(step)

    def scalar(self, dtype: str) -> str:
        """The C type of a number on the host."""
        if dtype in ("f16", "bf16"):
            raise error("FX0816", f"a C launcher cannot compute with numbers of {dtype} on the host",
                        help="convert them to f32 in the model")  # fmt: skip
        return C_TYPES[dtype]

    def type_of(self, value: int) -> str:
        kind = self.kinds[value]
        return "struct memory" if kind == "memory" else self.scalar(kind)

    def let(self, step: Spec, text: str, kind: str = "memory") -> None:
        self.kinds[step["result"]] = kind
        self.do(f"{self.type_of(step['result'])} v{step['result']} = {text};")
        self.do(f"(void)v{step['result']};")

    def put(self, step: Spec, at: str) -> None:
        self.let(step, _memory(at, ITEM_BYTES[step["dtype"]], [self.sizes.value(d) for d in step["shape"]]))

    def indices(self, numbers: Sequence[int]) -> str:
        return f"{len(numbers)}, (const int64_t[]){{{', '.join(f'(int64_t)v{n}' for n in numbers) or '0'}}}"

    # ---- memory
    def do_view(self, step: Spec) -> None:
        self.put(step, f"v{step['arena']}.at + (uint64_t){self.sizes.value(step['offset'])}")

    def do_alloc(self, step: Spec) -> None:
        self.put(step, "0")
        v = f"v{step['result']}"
        self.attempt(f"allocate(call, bytes_of(&{v}), {int(bool(step['zero']))}, &{v}.at)")

    def do_reinterpret(self, step: Spec) -> None:
        self.put(step, f"v{step['memory']}.at")

    def do_subview(self, step: Spec) -> None:
        self.put(step, f"part_of(&v{step['memory']}, {self.indices(step['indices'])})")

    def do_constant(self, step: Spec) -> None:
        self.put(step, f"call->model->constants[{step['index']}]")

    def do_copy(self, step: Spec) -> None:
        to, source = step["args"]
        self.attempt(f"copy(call, &v{to}, &v{source})")

    def do_load(self, step: Spec) -> None:
        memory, *indices = step["args"]
        self.let(step, "0", step["dtype"])
        v = f"v{step['result']}"
        self.attempt(f"look(call, part_of(&v{memory}, {self.indices(indices)}), &{v}, sizeof {v})")

    # ---- kernels and calls
    def do_launch(self, step: Spec) -> None:
        index, kernel = self.kernels[step["kernel"]]
        given = iter(step["args"])
        self.do("{")
        self.indent += 1
        pointers = []
        for i, a in enumerate(kernel["args"]):
            if a["kind"] == "size":
                self.do(f"int64_t p{i} = {self.sizes.value(a['name'])};")
            elif a["kind"] == "memory":
                self.do(f"uint64_t p{i} = v{next(given)}.at;")
            else:
                self.do(f"{self.scalar(a['dtype'])} p{i} = v{next(given)};")
            pointers.append(f"&p{i}")
        grid = ", ".join(self.sizes.value(n) for n in kernel["grid"])
        self.do(f"void *parameters[] = {{{', '.join([*pointers, 'NULL'])}}};")
        self.attempt(f"launch(call, {index}, {grid}, parameters)")
        self.indent -= 1
        self.do("}")

    def do_call(self, step: Spec) -> None:
        function = self.spec["host"]["functions"][step["function"]]
        self.do("{")
        self.indent += 1
        sized = step.get("sized", {})
        for n, name in enumerate(sized):
            self.do(f"int64_t c{n} = 0;")
            self.attempt(f"look(call, v{sized[name]}.at, &c{n}, sizeof c{n})")
        values = []
        for symbol in function["symbols"]:
            if symbol in sized:
                values.append(f"c{list(sized).index(symbol)}")
            else:
                values.append(self.sizes.value(step["dims"].get(symbol, symbol)))
        self.do(f"const int64_t sizes[] = {{{', '.join(values) or '0'}}};")
        args = [f"v{n}" for n in step["args"]]
        if len(args) < len(function["args"]):
            w = SizeWriter({s: f"sizes[{i}]" for i, s in enumerate(function["symbols"])})
            nbytes = w.value(function["arena"])
            for line in w.lines:
                self.do(line)
            self.do(f"if (bad) return {self.face.macro('ERROR_DIMS')};")
            self.do(f"struct memory arena = {_memory('0', 1, [nbytes])};")
            self.attempt(f"allocate(call, {nbytes}, 0, &arena.at)")
            args.append("arena")
        self.attempt(f"{self.names[step['function']]}({', '.join(['call', 'depth + 1', 'sizes', *args])})")
        self.indent -= 1
        self.do("}")

    # ---- control flow
    def declare(self, numbers: Sequence[int], like: Sequence[int], values: bool) -> None:
        """Variables of the types of others, with their values or 0."""
        for n, other in zip(numbers, like, strict=True):
            self.kinds[n] = self.kinds[other]
            zero = "{0}" if self.kinds[n] == "memory" else "0"
            self.do(f"{self.type_of(n)} v{n} = {f'v{other}' if values else zero};")
            self.do(f"(void)v{n};")

    def assign(self, numbers: Sequence[int], values: Sequence[int], prefix: str = "v") -> None:
        for n, value in zip(numbers, values, strict=True):
            self.do(f"{prefix}{n} = v{value};")

    def block(self, write: Callable[[], None]) -> list[str]:
        """The statements that `write` makes, one level further in."""
        saved, self.body = self.body, []
        self.indent += 1
        write()
        self.indent -= 1
        out, self.body = self.body, saved
        return out

    def do_if(self, step: Spec) -> None:
        def side(region: Spec) -> list[str]:
            def write() -> None:
                self.declare(region["args"], step["args"], values=True)
                self.steps(region["steps"])
                for n, value in zip(step["results"], region["outs"], strict=True):
                    self.kinds[n] = self.kinds[value]
                self.assign(step["results"], region["outs"])

            return self.block(write)

        sides = [side(region) for region in step["regions"]]
        for n in step["results"]:
            self.do(f"{self.type_of(n)} v{n} = {'{0}' if self.kinds[n] == 'memory' else '0'};")
            self.do(f"(void)v{n};")
        self.do(f"if (v{step['condition']}) {{")
        self.body += sides[0]
        self.do("} else {")
        self.body += sides[1]
        self.do("}")

    def do_for(self, step: Spec) -> None:
        region = step["regions"][0]
        index, *carry = region["args"]
        self.declare(step["results"], step["args"], values=True)
        self.kinds[index] = "i64"

        def write() -> None:
            self.declare(carry, step["results"], values=True)
            self.steps(region["steps"])
            self.assign(step["results"], region["outs"])

        lo, hi, by = (f"(int64_t)v{step[x]}" for x in ("lo", "hi", "step"))
        i = f"v{index}"
        self.do(f"for (int64_t {i} = {lo}; {by} > 0 ? {i} < {hi} : {i} > {hi}; {i} += {by}) {{")
        self.body += self.block(write)
        self.do("}")

    def do_while(self, step: Spec) -> None:
        condition, body = step["regions"]
        count = len(step["results"])
        fixed = step["args"][count:]
        self.declare(step["results"], step["args"][:count], values=True)
        carried = [*step["results"], *fixed]

        def write() -> None:
            self.declare(condition["args"], carried, values=True)
            self.steps(condition["steps"])
            self.do(f"if (!v{condition['outs'][0]}) break;")
            self.declare(body["args"], carried, values=True)
            self.steps(body["steps"])
            self.assign(step["results"], body["outs"][:count])

        self.do("for (;;) {")
        self.body += self.block(write)
        self.do("}")

    def do_assert(self, step: Spec) -> None:
        self.do(f"if (!v{step['condition']}) return {self.number(_failure(step))};")

    # ---- scalars
    def do_scalar(self, step: Spec) -> None:
        name, dtype = step["name"], step["dtype"]
        args = [f"v{n}" for n in step.get("args", ())]
        if name == "const":
            text = _literal(step["value"], dtype)
        elif name == "dim":
            text = self.sizes.value(step["value"])
        elif name == "cast":
            text = f"{args[0]} != 0" if dtype == "bool" else f"({self.scalar(dtype)}){args[0]}"
        elif name == "select":
            text = f"{args[0]} ? {args[1]} : {args[2]}"
        else:
            kind = self.kinds[step["args"][0]]
            text = _operation(name, kind, args)
            if dtype not in ("bool", "f64"):
                text = f"({self.scalar(dtype)})({text})"
        self.let(step, text, dtype)


def _literal(value: Any, dtype: str) -> str:
    if dtype in ("f32", "f64"):
        x = float(value)
        if x != x:
            return "NAN"
        if x in (float("inf"), float("-inf")):
            return "INFINITY" if x > 0 else "-INFINITY"
        return f"({x.hex()})"
    if dtype == "bool":
        return str(int(bool(value)))
    n = int(value)
    if dtype.startswith("u"):
        return f"UINT64_C({n})"
    return f"INT64_C({n})" if n >= 0 else f"(-INT64_C({-n - 1}) - 1)"


_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LOGIC = {"logical_and": "&&", "logical_or": "||"}
_WRAPPING = {"add": "+", "sub": "-", "mul": "*"}


def _operation(name: str, kind: str, args: Sequence[str]) -> str:
    """An operation on numbers of dtype `kind`, before it is brought back to the width of the result."""
    if name in _COMPARE:
        return f"{args[0]} {_COMPARE[name]} {args[1]}"
    if name in _LOGIC:
        return f"{args[0]} {_LOGIC[name]} {args[1]}"
    if name == "logical_not":
        return f"!{args[0]}"
    is_float, signed = kind in ("f32", "f64"), kind in _INTS
    if name in _WRAPPING:
        wide = [f"(uint64_t){a}" for a in args] if not is_float else list(args)
        return f"{wide[0]} {_WRAPPING[name]} {wide[1]}"
    if name == "neg":
        return f"-{args[0]}" if is_float else f"0 - (uint64_t){args[0]}"
    if name in ("minimum", "maximum"):
        if is_float:
            return f"float_{name}({args[0]}, {args[1]})"
        return f"{args[0]} {'<' if name == 'minimum' else '>'} {args[1]} ? {args[0]} : {args[1]}"
    if is_float:
        return f"{args[0]} / {args[1]}" if name == "div" else f"fmod({args[0]}, {args[1]})"
    return f"{'int' if signed else 'uint'}_{'div' if name == 'div' else 'mod'}({args[0]}, {args[1]})"


def kernel_table(spec: Spec, k: int) -> str:
    rows = "".join(
        f"    {{{string(x['name'])}, {{{', '.join(str(n) for n in x['block'])}}}}},\n" for x in spec["kernels"]
    )
    return f"static const struct kernel kernels_{k}[] = {{\n{rows or '    {NULL, {0, 0, 0}},' + chr(10)}}};\n"
