"""Owns the codes FX12xx: models of other systems."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX1201",
    "the file is no ONNX model",
    "io",
    """
    An ONNX file is a protobuf message `ModelProto`. This one does not decode as that: it is cut short, was copied in text
    mode, is a Git LFS pointer, or is something else altogether; or a constant in it does not have as many elements as
    its shape says. Get the file again, or export the model again.
    """,
    "get the file again in binary mode, or export the model again",
)

declare(
    "FX1202",
    "the ONNX model is beyond a limit",
    "limit",
    """
    A model from a stranger must not exhaust the machine, so what it may ask for is limited: how deep its parts nest, how
    many there are, how large constants may be. Real models stay far below. The limits are in docs/security.md.
    """,
)

declare(
    "FX1203",
    "an ONNX operator is not supported",
    "unsupported",
    """
    The model uses an operator, or a version or variant of one, that this importer does not know. `fluxir check MODEL.onnx`
    lists all of them at once with what to do. Often an export with a newer opset, or with the model's own functions
    inlined, uses other operators.
    """,
    "`fluxir check` lists all operators that are missing",
)

declare(
    "FX1204",
    "an ONNX node is not valid",
    "user",
    """
    A node has inputs or attributes that its operator does not take, or lacks some that it needs, or they contradict each
    other. `onnx.checker.check_model` (package onnx) may say more about the model.
    """,
)

declare(
    "FX1205",
    "a value must be known when the model is compiled",
    "unsupported",
    """
    Shapes, axes and the like decide what code is made, so they must be constants or computed from the sizes of the inputs.
    Here one is computed from the *elements* of an input. Make it a constant: simplify the model when exporting it, or fix
    sizes:

        fluxir compile model.onnx --dim batch=8
    """,
    "make it a constant, or fix the sizes it comes from: --dim NAME=N",
)

declare(
    "FX1206",
    "data outside of the ONNX file is refused",
    "io",
    """
    Weights may lie in other files. Those must be regular files beneath the folder of the model, named by a relative path
    without `..`, not reached through a symbolic link, and hold as many bytes as the model says.
    """,
)

declare(
    "FX1207",
    "the graph of the ONNX model is not valid",
    "user",
    """
    A node uses a value that nothing before it computes, a name is defined twice, or a function calls itself.
    `onnx.checker.check_model` (package onnx) may say more about the model.
    """,
)

declare(
    "FX1208",
    "an ONNX type has no counterpart",
    "unsupported",
    """
    Programs compute with booleans, integers of 8 to 64 bits and floats of 16 to 64 bits. Narrower numbers (int4, float8)
    are stored and converted; texts are handled only where they are known when compiling; maps and complex numbers are
    not.
    """,
)

declare(
    "FX1209",
    "a package that the importer needs is not installed",
    "unsupported",
    """
    PyTorch modules are read through `torch.export`, so `fx.from_torch` needs PyTorch; the programs that it makes do not.

        pip install 'fluxir[torch]'
    """,
    "pip install 'fluxir[torch]'",
)
