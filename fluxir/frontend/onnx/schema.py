"""The parts of an ONNX model as dataclasses, and the tables that say which protobuf field is which.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, IR version 13). Only what
a compiler reads is here: documentation strings, training information and device hints are skipped as they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxir.frontend.onnx.wire import Field, Message

__all__ = [
    "ATTRIBUTE", "MODEL", "TENSOR", "Attribute", "Dimension", "Function", "Graph", "Model", "Node", "OpsetId", "Pair",
    "SparseTensor", "Tensor", "TensorShape", "TensorTypeInfo", "TypeInfo", "ValueInfo",
    "domain_of", "versions",
]  # fmt: skip


@dataclass(slots=True)
class Pair:
    """A key and a text."""

    key: str = ""
    value: str = ""


def domain_of(name: str) -> str:
    """A domain by its one name: "" and "ai.onnx" are the same."""
    return "" if name == "ai.onnx" else name


@dataclass(slots=True)
class OpsetId:
    """A domain and the version of its operators that the model is written in."""

    domain: str = ""
    version: int = 0


def versions(opsets: Sequence[OpsetId]) -> dict[str, int]:
    """The version of each domain."""
    return {domain_of(o.domain): o.version for o in opsets}


@dataclass(slots=True)
class Tensor:
    """A constant: `data_type` is an ONNX element type, the elements are in `raw` or in the list of their type."""

    name: str = ""
    dims: Sequence[int] = ()
    data_type: int = 0
    raw: memoryview | None = None
    floats: Sequence[float] = ()
    int32s: Sequence[int] = ()
    strings: Sequence[memoryview] = ()
    int64s: Sequence[int] = ()
    doubles: Sequence[float] = ()
    uint64s: Sequence[int] = ()
    external: Sequence[Pair] = ()
    location: int = 0  # 1: the elements are in another file


@dataclass(slots=True)
class SparseTensor:
    """Elements that are not 0 and where they are, of a tensor of shape `dims`."""

    values: Tensor = field(default_factory=Tensor)
    indices: Tensor = field(default_factory=Tensor)
    dims: Sequence[int] = ()


@dataclass(slots=True)
class Dimension:
    """A size: a number, a name, or neither."""

    value: int | None = None
    param: str = ""


@dataclass(slots=True)
class TensorShape:
    """The sizes of a tensor."""

    dims: Sequence[Dimension] = ()


@dataclass(slots=True)
class TensorTypeInfo:
    """Element type and shape (None: even the rank is open)."""

    elem: int = 0
    shape: TensorShape | None = None


@dataclass(slots=True)
class TypeInfo:
    """A type: of a tensor, or of a sequence or optional of some type. `other` is set for maps, sparse and opaque types."""

    tensor: TensorTypeInfo | None = None
    sequence: TypeInfo | None = None
    optional: TypeInfo | None = None
    elem: TypeInfo | None = None
    other: Any = None


@dataclass(slots=True)
class ValueInfo:
    """A name with its type."""

    name: str = ""
    type: TypeInfo | None = None


@dataclass(slots=True)
class Attribute:
    """A named constant of a node. `kind` is ONNX's AttributeType; `ref` names an attribute of the function around it."""

    name: str = ""
    ref: str = ""
    kind: int = 0
    f: float = 0.0
    i: int = 0
    s: memoryview | bytes = b""
    t: Tensor | None = None
    g: Graph | None = None
    sparse: SparseTensor | None = None
    type: TypeInfo | None = None
    floats: Sequence[float] = ()
    ints: Sequence[int] = ()
    strings: Sequence[memoryview] = ()
    tensors: Sequence[Tensor] = ()
    graphs: Sequence[Graph] = ()


@dataclass(slots=True)
class Node:
    """One operation. A name "" among inputs or outputs is one that is left out."""

    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    name: str = ""
    op: str = ""
    domain: str = ""
    overload: str = ""
    attributes: Sequence[Attribute] = ()

    @property
    def wanted(self) -> int:
        """How many outputs are wanted: those up to the last that has a name."""
        return max((i + 1 for i, n in enumerate(self.outputs) if n), default=0)

    @property
    def graphs(self) -> list[Graph]:
        """The graphs in the attributes."""
        return [g for a in self.attributes for g in ([a.g] if a.g is not None else []) + list(a.graphs)]


@dataclass(slots=True)
class Graph:
    """Nodes in an order in which they can run, with constants, inputs and outputs."""

    name: str = ""
    nodes: Sequence[Node] = ()
    initializers: Sequence[Tensor] = ()
    sparse: Sequence[SparseTensor] = ()
    inputs: Sequence[ValueInfo] = ()
    outputs: Sequence[ValueInfo] = ()
    values: Sequence[ValueInfo] = ()


@dataclass(slots=True)
class Function:
    """An operator defined by a body of nodes."""

    name: str = ""
    domain: str = ""
    overload: str = ""
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    attributes: Sequence[str] = ()
    defaults: Sequence[Attribute] = ()
    nodes: Sequence[Node] = ()
    opsets: Sequence[OpsetId] = ()


@dataclass(slots=True)
class Model:
    """A whole file."""

    ir_version: int = 0
    opsets: Sequence[OpsetId] = ()
    producer: str = ""
    producer_version: str = ""
    graph: Graph | None = None
    metadata: Sequence[Pair] = ()
    functions: Sequence[Function] = ()


def _many(name: str, kind: Any) -> Field:
    return Field(name, kind, repeated=True)


_PAIR = Message(Pair, {1: Field("key", "text"), 2: Field("value", "text")})
_OPSET = Message(OpsetId, {1: Field("domain", "text"), 2: Field("version", "int")})
TENSOR = Message(
    Tensor,
    {
        1: _many("dims", "int"), 2: Field("data_type", "int"), 4: _many("floats", "float"), 5: _many("int32s", "int"),
        6: _many("strings", "bytes"), 7: _many("int64s", "int"), 8: Field("name", "text"), 9: Field("raw", "bytes"),
        10: _many("doubles", "double"), 11: _many("uint64s", "int"), 13: _many("external", lambda: _PAIR),
        14: Field("location", "int"),
    },
)  # fmt: skip
_SPARSE = Message(
    SparseTensor, {1: Field("values", lambda: TENSOR), 2: Field("indices", lambda: TENSOR), 3: _many("dims", "int")}
)
_DIMENSION = Message(Dimension, {1: Field("value", "int"), 2: Field("param", "text")})
_SHAPE = Message(TensorShape, {1: _many("dims", lambda: _DIMENSION)})
_TENSOR_TYPE = Message(TensorTypeInfo, {1: Field("elem", "int"), 2: Field("shape", lambda: _SHAPE)})
_OTHER = Message(lambda: True)
_ELEMENT = Message(lambda elem=None: elem, {1: Field("elem", lambda: _TYPE)})
_TYPE: Message = Message(
    TypeInfo,
    {
        1: Field("tensor", lambda: _TENSOR_TYPE), 4: Field("sequence", lambda: _ELEMENT), 5: Field("other", lambda: _OTHER),
        7: Field("other", lambda: _OTHER), 8: Field("other", lambda: _OTHER), 9: Field("optional", lambda: _ELEMENT),
    },
)  # fmt: skip
_VALUE = Message(ValueInfo, {1: Field("name", "text"), 2: Field("type", lambda: _TYPE)})
ATTRIBUTE = Message(
    Attribute,
    {
        1: Field("name", "text"), 2: Field("f", "float"), 3: Field("i", "int"), 4: Field("s", "bytes"),
        5: Field("t", lambda: TENSOR), 6: Field("g", lambda: _GRAPH), 7: _many("floats", "float"), 8: _many("ints", "int"),
        9: _many("strings", "bytes"), 10: _many("tensors", lambda: TENSOR), 11: _many("graphs", lambda: _GRAPH),
        14: Field("type", lambda: _TYPE), 20: Field("kind", "int"), 21: Field("ref", "text"),
        22: Field("sparse", lambda: _SPARSE),
    },
)  # fmt: skip
_NODE = Message(
    Node,
    {
        1: _many("inputs", "text"), 2: _many("outputs", "text"), 3: Field("name", "text"), 4: Field("op", "text"),
        5: _many("attributes", lambda: ATTRIBUTE), 7: Field("domain", "text"), 8: Field("overload", "text"),
    },
)  # fmt: skip
_GRAPH: Message = Message(
    Graph,
    {
        1: _many("nodes", lambda: _NODE), 2: Field("name", "text"), 5: _many("initializers", lambda: TENSOR),
        11: _many("inputs", lambda: _VALUE), 12: _many("outputs", lambda: _VALUE), 13: _many("values", lambda: _VALUE),
        15: _many("sparse", lambda: _SPARSE),
    },
)  # fmt: skip
_FUNCTION = Message(
    Function,
    {
        1: Field("name", "text"), 4: _many("inputs", "text"), 5: _many("outputs", "text"), 6: _many("attributes", "text"),
        7: _many("nodes", lambda: _NODE), 9: _many("opsets", lambda: _OPSET), 10: Field("domain", "text"),
        11: _many("defaults", lambda: ATTRIBUTE), 13: Field("overload", "text"),
    },
)  # fmt: skip
MODEL = Message(
    Model,
    {
        1: Field("ir_version", "int"), 2: Field("producer", "text"), 3: Field("producer_version", "text"),
        7: Field("graph", lambda: _GRAPH), 8: _many("opsets", lambda: _OPSET), 14: _many("metadata", lambda: _PAIR),
        25: _many("functions", lambda: _FUNCTION),
    },
)  # fmt: skip
