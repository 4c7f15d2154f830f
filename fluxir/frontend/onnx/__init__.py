"""ONNX models as programs: `fx.onnx.load` gives a function, `fx.onnx.check` says what will and will not work.

An ONNX file is read by `wire.py` (Protocol Buffers, lazily) into the dataclasses of `schema.py`; `graph.py` goes through
the nodes and calls, for each, the function of its operator (`ops/`, found through `registry.py`), which computes with the
public API. What is known when compiling (shape arithmetic above all) is computed on the way: `values.py` says what a name
can stand for, `sizes.py` computes with symbolic sizes.
"""

from fluxir.frontend.onnx.model import Model, entry_name, load, read, renamed

__all__ = ["Model", "entry_name", "load", "read", "renamed"]
