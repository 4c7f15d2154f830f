"""Reading a graph: nodes in order, each by the function of its operator, values by name.

Invariants: what is known when compiling is computed at once (with numpy, by the same functions: `suspended` ends the
trace for them) as long as it is small, so that shape arithmetic leaves nothing in the program; nodes that no output needs
are not looked at; every error carries the node it happened in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fluxir.errors import FluxError, Location, error
from fluxir.frontend.onnx import elements, registry, schema
from fluxir.frontend.onnx.registry import Handler, Subgraph
from fluxir.frontend.onnx.values import Narrow, Quantised, Sizes, concrete, rewrapped, tensor, unwrapped
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import TooLarge, placed, suspended

__all__ = ["Context", "Importer", "Scope", "captured", "needed"]

# What is known and has more elements than this becomes part of the program, which folds it when compiling; so does what is
# made of it, and what would be known beyond a total. A file must not fill the memory before a program of it is made.
FOLD = 1 << 16
FOLDED = 1 << 18
KNOWN = 1 << 24
MAX_NODES = 250_000  # with those of functions where these are called: as many as IR text may have
MAX_CALLS = 60  # of functions in each other
UNROLLED_NODES = 20_000  # that loops may repeat while a graph is read
CONSUMERS = ("MatMul", "Gemm", "Conv")  # operators that are computed on integers where both operands are quantised
IGNORED = ("consumed_inputs",)  # said before opset 6 which inputs may be overwritten
# What functions of operators raise where a node gives them what the operator cannot take.
MISTAKES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, StopIteration)


@dataclass(slots=True)
class Scope:
    """Where names are looked up: the values of a graph, then those of the graph around it; the opsets in force, and the
    attributes of the function that is being read."""

    values: dict[str, Any]
    opsets: Mapping[str, int]
    outer: Scope | None = None
    attributes: Mapping[str, schema.Attribute] = field(default_factory=dict)
    depth: int = 0
    lazy: set[str] = field(default_factory=set)  # dequantised values that only products read

    def get(self, name: str) -> Any:
        s: Scope | None = self
        while s is not None:
            if name in s.values:
                return s.values[name]
            s = s.outer
        raise error("FX1207", f"there is no value {name!r} where it is used")


@dataclass(frozen=True, slots=True)
class Context:
    """The node that a function of an operator is called for."""

    importer: Importer
    node: schema.Node
    opset: int
    scope: Scope

    @property
    def outputs(self) -> int:
        """How many outputs are wanted: those up to the last that has a name."""
        return self.node.wanted

    def wants(self, i: int) -> bool:
        """Whether the i-th output has a name."""
        return i < len(self.node.outputs) and bool(self.node.outputs[i])


class Importer:
    """Reads graphs of one model. `constants` gives the value of a constant of the file; it is asked once for each."""

    def __init__(self, model: schema.Model, file: str, constants: Any) -> None:
        self.model, self.file, self.constants = model, file, constants
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self.calls: list[tuple[str, str, str]] = []
        self.known = KNOWN  # elements that may still become known
        count = Expanded(self.functions, file).nodes(model.graph.nodes if model.graph is not None else ())
        # Nodes that may still be read. Those in bodies of loops are read up to four times.
        self.left = 4 * count + UNROLLED_NODES

    # ---- graphs --------------------------------------------------------------------------------------------------------------

    def graph(self, graph: schema.Graph, scope: Scope, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of a graph for values of its inputs, which come before its constants of the same name."""
        if scope.depth > 40:
            raise error("FX1202", f"{self.file}: graphs nest more than 40 deep")
        wanted = needed(graph.nodes, [o.name for o in graph.outputs])
        for t in graph.initializers:  # weights that are arguments are there already
            if t.name not in scope.values:
                scope.values[t.name] = self.constants(t)
        for s in graph.sparse:
            scope.values.setdefault(s.values.name, dense(s))
        for info, value in zip(graph.inputs, inputs, strict=False):
            if value is not None or info.name not in scope.values:
                scope.values[info.name] = value
        scope.lazy = lazily(graph.nodes, [o.name for o in graph.outputs])
        self.nodes(graph.nodes, scope, wanted)
        return tuple(scope.get(o.name) for o in graph.outputs)

    def nodes(self, nodes: Sequence[schema.Node], scope: Scope, wanted: Sequence[bool]) -> None:
        for number, node in enumerate(nodes):
            if wanted[number]:
                with self.at(node, number):
                    self.node(node, scope)

    @contextlib.contextmanager
    def at(self, node: schema.Node, number: int) -> Iterator[None]:
        """What happens in the `with` block happens in this node."""
        place = Location(self.file, number + 1, 0, f"{node.op} {node.name}".strip())
        try:
            with placed(place):
                yield
        except FluxError as e:
            if not any(n.startswith("in node") for n in e.notes):
                e.loc = e.loc or place
                e.notes.append(f"in node {number + 1} of {self.file}: {node.op} {node.name!r}")
            raise
        except RecursionError:
            raise error("FX1202", f"{self.file} nests too deep", loc=place) from None
        except MemoryError:
            raise error("FX1202", f"{node.op} {node.name!r} needs more memory than there is", loc=place) from None
        except MISTAKES as e:
            raise error(
                "FX1204",
                f"the inputs and attributes of {node.op} {node.name!r} do not go together: {e}",
                loc=place,
                notes=[f"in node {number + 1} of {self.file}: {node.op} {node.name!r}"],
            ) from e

    # ---- nodes ---------------------------------------------------------------------------------------------------------------

    def node(self, node: schema.Node, scope: Scope) -> None:
        """Give the outputs of a node their values."""
        self.left -= 1
        if self.left < 0:
            raise error("FX1202", f"loops of {self.file} repeat more than {UNROLLED_NODES} nodes while it is read")
        inputs = [scope.get(n) if n else None for n in node.inputs]
        domain = schema.domain_of(node.domain)
        function = self.functions.get((node.domain, node.op, node.overload))
        if function is not None:
            outputs = self.call(function, node, inputs, scope)
        else:
            opset = scope.opsets.get(domain, 0)
            handler = registry.find(domain, node.op, opset)
            if handler is None:
                raise unsupported(domain, node.op, opset)
            cx = Context(self, node, opset, scope)
            outputs = self.apply(handler, cx, inputs, self.attributes(node, handler, scope))
        if len(outputs) < node.wanted:
            raise error("FX1207", f"{node.op} has {len(outputs)} outputs here, {node.wanted} are named")
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                scope.values[name] = value

    def apply(self, handler: Handler, cx: Context, inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
        """The outputs of an operator."""
        while inputs and inputs[-1] is None:
            inputs.pop()
        for i, x in enumerate(inputs):
            if handler.parameter(i) is None:
                raise error("FX1204", f"{handler.name} takes {len(handler.parameters)} inputs, there are {len(inputs)}")
            if x is None and not handler.parameter(i).optional:  # type: ignore[union-attr]
                raise error("FX1204", f"{handler.name} needs its input {handler.parameters[i].name!r}")
        if missing := [p.name for p in handler.parameters[len(inputs) :] if not p.optional]:
            raise error("FX1204", f"{handler.name} needs its input {missing[0]!r}")
        kinds = [handler.parameter(i).kind for i in range(len(inputs))]  # type: ignore[union-attr]
        data = [x for x, kind in zip(inputs, kinds, strict=True) if kind == "tensor"]
        narrow = next((x.element for x in data if isinstance(x, Narrow)), None) if handler.moves else None
        if narrow is not None:
            inputs = [x.data if isinstance(x, Narrow) else x for x in inputs]

        if any(isinstance(x, Quantised) for x in inputs):
            from fluxir.frontend.onnx.ops.integer import applied

            on_integers = applied(handler.name, inputs, attributes) if handler.name in CONSUMERS else None
            if on_integers is not None:
                return (on_integers,)
            inputs = [x.floats() if isinstance(x, Quantised) else x for x in inputs]
        known = all(map(concrete, inputs)) and handler.pure and sum(map(_elements, inputs)) <= FOLD
        sizes = not known and any(isinstance(x, Sizes) for x in data) and all(_fixed(x) for x in data)
        if sizes and (found := self._sizes(handler, cx, inputs, kinds, attributes)) is not None:
            return found
        first = [cx] if handler.context else []
        if known:
            with contextlib.suppress(TooLarge), suspended(min(FOLDED, self.known)):
                return self.counted(_results(handler.fn(*first, *inputs, **attributes), narrow))
        args = [
            x if kind != "tensor" or x is None or handler.moves and concrete(x) else tensor(x)
            for x, kind in zip(inputs, kinds, strict=True)
        ]
        return _results(handler.fn(*first, *args, **attributes), narrow)

    def counted(self, known: tuple[Any, ...]) -> tuple[Any, ...]:
        """Results that are known, taken off the total."""
        self.known -= sum(map(_elements, known))
        return known

    def _sizes(
        self, handler: Handler, cx: Context, inputs: list[Any], kinds: list[str], attributes: dict[str, Any]
    ) -> tuple[Any, ...] | None:
        """The outputs where inputs are symbolic sizes and all else is known; None where they cannot be told like that."""
        from fluxir.frontend.onnx.sizes import RULES

        rule = handler.fn if handler.moves else RULES.get(handler.name)
        if rule is None:
            return None
        dtype = next(x.dtype for x in inputs if isinstance(x, Sizes))
        args = [unwrapped(x) if kind == "tensor" else x for x, kind in zip(inputs, kinds, strict=True)]
        try:
            with suspended(FOLDED):
                out = rule(*([cx] if handler.context and handler.moves else []), *args, **attributes)
        except TooLarge:
            return None
        except FluxError as e:
            if e.code in ("FX0301", "FX0302"):  # it depends on how large the sizes are
                return None
            raise
        if out is None:
            return None
        return _results(rewrapped(out, dtype), None)

    def call(self, f: schema.Function, node: schema.Node, inputs: list[Any], scope: Scope) -> tuple[Any, ...]:
        """A function of the model, read in place."""
        key = (f.domain, f.name, f.overload)
        if key in self.calls or len(self.calls) > MAX_CALLS:
            raise error("FX1207", f"the function {f.name!r} of {self.file} calls itself")
        opsets = {**scope.opsets, **schema.versions(f.opsets)}
        given = {a.name: a for a in f.defaults}
        for a in node.attributes:
            if (resolved := self.resolved(a, scope)) is not None:
                given[a.name] = resolved
        inner = Scope(dict.fromkeys(f.inputs), opsets, None, given, scope.depth + 1)
        inner.values.update(zip(f.inputs, inputs, strict=False))
        self.calls.append(key)
        try:
            self.nodes(f.nodes, inner, needed(f.nodes, f.outputs))
        finally:
            self.calls.pop()
        return tuple(inner.get(name) for name in f.outputs)

    # ---- attributes ----------------------------------------------------------------------------------------------------------

    def resolved(self, a: schema.Attribute, scope: Scope) -> schema.Attribute | None:
        """The attribute itself, or the one of the function around that it refers to; None where that was not given."""
        return scope.attributes.get(a.ref) if a.ref else a

    def attributes(self, node: schema.Node, handler: Handler, scope: Scope) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for given in node.attributes:
            declared = handler.attributes.get(given.name)
            if declared is None and given.name in IGNORED:
                continue
            if declared is None:
                raise error(
                    "FX1204",
                    f"{node.op} has the attribute {given.name!r}, which it does not have in this opset",
                    help=f"it takes {', '.join(handler.attributes) or 'none'}",
                )
            a = self.resolved(given, scope)
            if a is not None:
                out[given.name] = self.attribute(a, declared, scope)
        if missing := [a.name for a in handler.attributes.values() if a.required and a.name not in out]:
            raise error("FX1204", f"{node.op} needs the attribute {missing[0]!r}")
        return out

    def attribute(self, a: schema.Attribute, declared: registry.Attr, scope: Scope) -> Any:
        if a.kind not in (declared.kind, 0):
            raise error("FX1204", f"the attribute {a.name!r} is of kind {a.kind}, not {declared.kind}")
        match declared.kind:
            case 1:
                return float(a.f)
            case 2:
                return a.i
            case 3:
                return bytes(a.s).decode("utf-8", "replace")
            case 4:
                if a.t is None:
                    raise error("FX1204", f"the attribute {a.name!r} holds no tensor")
                return self.constants(a.t)
            case 5:
                if a.g is None:
                    raise error("FX1204", f"the attribute {a.name!r} holds no graph")
                return self.subgraph(a.g, scope)
            case 6:
                return tuple(a.floats)
            case 7:
                return tuple(a.ints)
            case 8:
                return tuple(bytes(s).decode("utf-8", "replace") for s in a.strings)
            case 11:
                if a.sparse is None:
                    raise error("FX1204", f"the attribute {a.name!r} holds no sparse tensor")
                return dense(a.sparse)
        return a.type

    def subgraph(self, graph: schema.Graph, scope: Scope) -> Subgraph:
        """A graph of a node as a function of its inputs; it sees the values around the node."""

        def run(*inputs: Any) -> tuple[Any, ...]:
            return self.graph(graph, Scope({}, scope.opsets, scope, scope.attributes, scope.depth + 1), inputs)

        run.graph = graph  # type: ignore[attr-defined]
        return run


def _elements(x: Any) -> int:
    if isinstance(x, tuple):
        return sum(map(_elements, x))
    if isinstance(x, Narrow):
        x = x.data
    return x.size if isinstance(x, np.ndarray) else 1


def _fixed(x: Any) -> bool:
    return isinstance(x, Sizes) or concrete(x)


def _results(out: Any, narrow: elements.Element | None) -> tuple[Any, ...]:
    if not isinstance(out, Results):
        out = (out,)
    if narrow is not None:
        return tuple(Narrow(x, narrow) if isinstance(x, Tensor | np.ndarray) else x for x in out)
    return tuple(np.asarray(x) if isinstance(x, np.generic | int | float) else x for x in out)


class Results(tuple[Any, ...]):
    """Several outputs of one operator. (A plain tuple is a sequence.)"""


class Expanded:
    """Counts nodes with those of functions where these are called, without reading them: a few functions that call each other
    twice stand for as many nodes as anybody likes. FX1202 beyond `MAX_NODES`, FX1207 where functions call in a circle."""

    def __init__(self, functions: Mapping[tuple[str, str, str], schema.Function], file: str) -> None:
        self.functions, self.file = functions, file
        self.counted: dict[tuple[str, str, str], int | None] = {}

    def nodes(self, nodes: Sequence[schema.Node], depth: int = 0) -> int:
        total = 0
        for node in nodes:
            total += 1 + sum(self.nodes(g.nodes, depth + 1) for g in node.graphs)
            key = (node.domain, node.op, node.overload)
            if key in self.functions:
                total += self.function(key, depth)
            if total > MAX_NODES:
                raise error("FX1202", f"{self.file} stands for more than {MAX_NODES} nodes")
        return total

    def function(self, key: tuple[str, str, str], depth: int) -> int:
        if key not in self.counted:
            self.counted[key] = None
            if depth > MAX_CALLS:
                raise error("FX1202", f"calls of functions nest more than {MAX_CALLS} deep in {self.file}")
            self.counted[key] = self.nodes(self.functions[key].nodes, depth + 1)
        count = self.counted[key]
        if count is None:
            raise error("FX1207", f"the function {key[1]!r} of {self.file} calls itself")
        return count


# ---- the shape of graphs -------------------------------------------------------------------------------------------


def captured(node: schema.Node) -> set[str]:
    """Names that a node's graphs take from around them (and names of their own, which do no harm)."""
    out: set[str] = set()
    todo = node.graphs
    while todo:
        graph = todo.pop()
        out.update(o.name for o in graph.outputs)
        for n in graph.nodes:
            out.update(n.inputs)
            todo += n.graphs
    return out


def lazily(nodes: Sequence[schema.Node], outputs: Sequence[str]) -> set[str]:
    """The outputs of DequantizeLinear that only products read: they are kept as integers until it is known what with."""
    found = {n.outputs[0] for n in nodes if n.op == "DequantizeLinear" and n.outputs}
    if found:
        found.difference_update(outputs)
        for n in nodes:
            if n.op not in CONSUMERS:
                found.difference_update(n.inputs)
            else:
                found.difference_update(n.inputs[2:])
            if n.graphs:
                found -= captured(n)
    return found


def needed(nodes: Sequence[schema.Node], outputs: Sequence[str]) -> list[bool]:
    """For each node whether an output depends on it."""
    names = set(outputs)
    out = [False] * len(nodes)
    for i in reversed(range(len(nodes))):
        node = nodes[i]
        if not names.isdisjoint(node.outputs):
            out[i] = True
            names.update(node.inputs)
            if node.graphs:
                names |= captured(node)
    names.discard("")
    return out


def dense(s: schema.SparseTensor) -> Any:
    """A sparse constant with its zeros."""
    out, e = elements.dense(s)
    return Narrow(out, e) if e.narrow else out


def unsupported(domain: str, name: str, opset: int) -> FluxError:
    """FX1203 with what is known of the operator."""
    shown = f"{domain or 'ai.onnx'}.{name}"
    first = registry.since_of(domain, name)
    if first is not None:
        return error("FX1203", f"{shown} is known from opset {first} on, the model says opset {opset}",
                     help="convert the model to a newer opset: onnx.version_converter")  # fmt: skip
    return error("FX1203", f"the operator {shown} is not supported", help=why_not(domain, name))


def why_not(domain: str, name: str) -> str:
    """What to do about an operator that is not supported."""
    if domain == "" and name == "ImageDecoder":
        return "decode images before the model is called"
    if domain not in registry.DOMAINS:
        return "the model does not define it as a function: export it with standard operators"
    return "export the model with standard operators; `fluxir check` lists all that are missing"
