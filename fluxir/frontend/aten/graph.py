"""Reading an exported PyTorch program (`torch.export`): parameters, inputs with symbolic sizes, nodes in order.

Composite operators that have a function here (attention, normalisations, recurrent layers, ...) are kept whole when torch
decomposes its program, so that our own kernels see them. Sizes that torch has as symbols become ours, and the ranges torch
knows of them become facts.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fluxir.errors import FluxError, Location, error
from fluxir.frontend import library as fx
from fluxir.frontend.aten.registry import ATEN, Context
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import placed
from fluxir.ir import dims
from fluxir.ir.dims import Dim
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import TensorType

__all__ = ["Program", "export", "known_operators"]

_DTYPES = {
    "torch.float32": "f32", "torch.float64": "f64", "torch.float16": "f16", "torch.bfloat16": "bf16", "torch.int64": "i64",
    "torch.int32": "i32", "torch.int16": "i16", "torch.int8": "i8", "torch.uint8": "u8", "torch.uint16": "u16",
    "torch.uint32": "u32", "torch.uint64": "u64", "torch.bool": "bool",
}  # fmt: skip


def dtype_of(d: Any) -> DType:
    """Our element type for one of torch's; FX1208 where there is none."""
    name = _DTYPES.get(str(d))
    if name is None:
        raise error("FX1208", f"{d} has no counterpart among the element types here")
    return DTYPES[name]


def known_operators() -> list[str]:
    """The ATen operators that are supported, `name.overload`."""
    _declare_all()
    return sorted(ATEN)


def _declare_all() -> None:
    from fluxir.frontend.aten import nn, ops  # noqa: F401  (declare the operators)


def export(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> Any:
    """The exported program of a module, with the operators kept whole that have functions here."""
    import torch

    _declare_all()
    program = torch.export.export(module, tuple(args), dict(kwargs), dynamic_shapes=dynamic_shapes)
    table = torch.export.default_decompositions()
    for name in ATEN:
        op, overload = name.split(".")
        packet = getattr(torch.ops.aten, op, None)
        if packet is not None and overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    return program.run_decompositions(table)


def array_of(t: Any) -> np.ndarray[Any, Any]:
    """A torch tensor as a numpy array (sharing its memory where that can be)."""
    import torch

    t = t.detach().cpu().contiguous()
    if t.dtype == torch.bfloat16:
        return t.view(torch.int16).numpy().view(DTYPES["bf16"].numpy)  # type: ignore[no-any-return]
    return t.numpy()  # type: ignore[no-any-return]


class Program:
    """An exported program as a function of (parameters and buffers by name, *inputs), both as tensors or arrays.

    `weights` has the arrays, `inputs` the types of the inputs in order, `facts` what torch knows of their sizes.
    """

    def __init__(self, program: Any) -> None:
        self.program, self.graph = program, program.graph
        signature = program.graph_signature
        self.symbols: dict[str, Dim] = {}
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.places: dict[str, tuple[str, Any]] = {}  # placeholder -> ("weight", name) or ("input", number)
        self.inputs: list[TensorType] = []
        self.names: list[str] = []
        self.mutated = [s for s in signature.output_specs if s.kind.name not in ("USER_OUTPUT", "LOSS_OUTPUT")]
        placeholders = {n.name: n for n in self.graph.nodes if n.op == "placeholder"}
        for spec in signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind.name == "USER_INPUT":
                self._input(node)
            elif spec.target in program.state_dict or spec.target in program.constants:
                source = program.state_dict.get(spec.target)
                self.weights[spec.target] = array_of(program.constants[spec.target] if source is None else source)
                self.places[node.name] = "weight", spec.target
            else:
                raise error("FX1203", f"the module has the input {node.name!r} of kind {spec.kind.name}")
        self.facts = self._ranges()

    def _input(self, node: Any) -> None:
        value = node.meta.get("val")
        if not hasattr(value, "shape"):
            self.places[node.name] = "fixed", value
            return
        self.places[node.name] = "input", len(self.inputs)
        self.names.append(node.name)
        self.inputs.append(TensorType.of(dtype_of(value.dtype), tuple(self.size(d) for d in value.shape)))

    def size(self, d: Any) -> Any:
        """A size of torch as one of ours: an integer, or an expression over symbols."""
        if isinstance(d, int):
            return d
        return self._expression(d.node.expr) if hasattr(d, "node") else self._expression(d)

    def _expression(self, e: Any) -> Any:
        kind = type(e).__name__
        if getattr(e, "is_Integer", False):
            return int(e)
        if getattr(e, "is_Symbol", False):
            return self.symbols.setdefault(str(e), dims.symbol(str(e)))
        parts = [self._expression(a) for a in e.args]
        match kind:
            case "Add":
                return sum(parts[1:], parts[0])
            case "Mul":
                return dims.product(parts)
            case "Pow" if isinstance(parts[1], int) and parts[1] >= 0:
                return dims.product([parts[0]] * parts[1])
            case "FloorDiv" | "CleanDiv" | "IntTrueDiv":
                return dims.floordiv(parts[0], parts[1])
            case "CeilDiv":
                return dims.ceildiv(parts[0], parts[1])
            case "Mod" | "PythonMod":
                return dims.mod(parts[0], parts[1])
            case "Max":
                return _fold(dims.maximum, parts)
            case "Min":
                return _fold(dims.minimum, parts)
            case "ToFloat":
                return parts[0]
        raise error("FX1205", f"the size {e} of the exported program has no form here")

    def _ranges(self) -> str:
        facts = []
        for symbol, r in self.program.range_constraints.items():
            name = str(symbol)
            if name not in self.symbols:
                continue
            low, high = r.lower, r.upper
            facts.append(f"{name} >= {max(int(low), 0)}")
            if getattr(high, "is_Integer", False) and int(high) < 1 << 40:
                facts.append(f"{name} <= {int(high)}")
        return ", ".join(facts)

    # ---- the call --------------------------------------------------------------------------------------------------------------

    def __call__(self, weights: Mapping[str, Any], *inputs: Any) -> Any:
        """The outputs, a tree as the module gives it."""
        env: dict[str, Any] = {}
        for number, node in enumerate(self.graph.nodes):
            if node.op == "placeholder":
                kind, what = self.places[node.name]
                env[node.name] = weights[what] if kind == "weight" else inputs[what] if kind == "input" else what
            elif node.op == "output":
                return self._outputs(self._value(node.args[0], env))
            elif node.op == "get_attr":
                env[node.name] = array_of(getattr(self.program.graph_module, node.target))
            else:
                env[node.name] = self._node(node, number, env)
        raise AssertionError("a graph ends with its outputs")

    def _outputs(self, values: Any) -> Any:
        import torch.utils._pytree as pytree

        out = list(values)[len(self.mutated) :]
        return _plain(pytree.tree_unflatten(out, self.program.call_spec.out_spec))

    def _value(self, x: Any, env: Mapping[str, Any]) -> Any:
        """An argument of a node: values for nodes, everything else as it is."""
        if isinstance(x, list | tuple):
            return [self._value(v, env) for v in x]
        if type(x).__name__ == "Node":
            return env[x.name]
        return x

    def _node(self, node: Any, number: int, env: Mapping[str, Any]) -> Any:
        args = self._value(node.args, env)
        kwargs = {k: self._value(v, env) for k, v in node.kwargs.items()}
        place = Location("torch.export", number + 1, 0, node.name)
        try:
            with placed(place):
                if getattr(node.target, "namespace", "") != "aten":
                    return self._python(node, args)
                name = f"{node.target._schema.name.split('::')[1]}.{node.target._overloadname or 'default'}"
                found = ATEN.get(name)
                if found is None:
                    raise error("FX1203", f"the operator aten.{name} is not supported")
                fn, context = found
                return fn(*([self._context(node)] if context else []), *args, **kwargs)
        except FluxError as e:
            e.loc = e.loc or place
            where = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()[-2:]]
            e.notes.append(f"in {node.format_node()}"[:300])
            e.notes.extend(where)
            raise

    def _python(self, node: Any, args: Sequence[Any]) -> Any:
        """An operator of Python: picking a result, arithmetic on sizes, and checks that torch has put in."""
        target = node.target
        name = getattr(target, "__name__", str(target))
        if target is operator.getitem:
            return args[0][args[1]]
        if name in ("_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range_for_size"):
            return None
        value = node.meta.get("val")
        if value is not None and type(value).__name__ in ("SymInt", "int"):
            return self.size(value)
        if type(value).__name__ in ("SymBool", "bool", "SymFloat", "float"):
            return target(*args)
        raise error("FX1203", f"the Python operator {name} is not supported")

    def _context(self, node: Any) -> Context:
        value = node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        dtypes = [dtype_of(v.dtype) if hasattr(v, "dtype") else None for v in values]
        shapes = [tuple(self.size(d) for d in v.shape) if hasattr(v, "shape") else None for v in values]
        return Context(node.name, dtypes, shapes)


def _fold(f: Any, parts: Sequence[Any]) -> Any:
    out = parts[0]
    for p in parts[1:]:
        out = f(out, p)
    return out


def _plain(out: Any) -> Any:
    """The outputs as trees that ours knows: lists, tuples and dicts, whatever torch's classes were."""
    if isinstance(out, Mapping):
        return {str(k): _plain(v) for k, v in out.items() if v is not None}
    if isinstance(out, tuple):
        return tuple(_plain(v) for v in out)
    if isinstance(out, list):
        return [_plain(v) for v in out]
    if isinstance(out, Tensor | np.ndarray):
        return out
    if hasattr(out, "items"):  # a ModelOutput and its like
        return {str(k): _plain(v) for k, v in out.items() if v is not None}
    return fx.asarray(out)
