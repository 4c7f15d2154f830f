"""Control flow, sequences and optionals.

A sequence is a tuple of values while the graph is read, so its length must be known then; a loop that builds one is
unrolled. Other loops become `scan` (a known number of steps) or `while`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.registry import Int, Ints, Known, Raw, Subgraph, Type, op
from fluxir.frontend.onnx.values import Narrow, Sizes, concrete, dims_of, is_known, known, scalar_of, tensor, unwrapped
from fluxir.frontend.tensor import Tensor
from fluxir.frontend.trace import suspended
from fluxir.ir import dims
from fluxir.ir.dims import Poly

UNROLLED = 4096  # steps of a loop that is read step by step
SHORT = 64  # steps of a loop that is read so where a loop of the program cannot say what it does


@op("If", pure=False)
def if_(cx: Context, condition: Raw, *, then_branch: Subgraph, else_branch: Subgraph) -> Any:
    if is_known(condition):
        return Results((then_branch if bool(known(condition, "the condition").reshape(-1)[0]) else else_branch)())
    try:
        return Results(
            fx.cond(
                fx.reshape(tensor(condition), ()),
                lambda: _tensors(then_branch(), "a branch of If"),
                lambda: _tensors(else_branch(), "a branch of If"),
            )
        )
    except FluxError as e:
        # Exporters leave branches for other inputs than these in a model: they need not even have fitting shapes.
        raise error(
            "FX1205",
            "which branch of If runs is computed from the inputs of the model, and both cannot be compiled for these shapes:"
            f" {e.message}",
            notes=e.notes,
        ) from e


def _tensors(values: Any, what: str) -> tuple[Any, ...]:
    """Results of a region: tensors all of them."""
    for v in values:
        if isinstance(v, tuple | Narrow) or v is None:
            raise error("FX1205", f"{what} gives a sequence or optional, and which one is not known when compiling")
    return tuple(fx.asarray(tensor(v)) for v in values)


# ---- loops ---------------------------------------------------------------------------------------------------------


@op("Loop", pure=False)
def loop(cx: Context, trips: Raw = None, condition: Raw = None, *carried: Raw, body: Subgraph) -> Any:
    graph = body.graph  # type: ignore[attr-defined]
    n = len(carried)
    scanned = len(graph.outputs) - 1 - n
    if scanned < 0 or len(graph.inputs) != n + 2:
        raise ValueError(
            f"the body takes {len(graph.inputs)} and gives {len(graph.outputs)} values for {n} carried ones"
        )
    count = None if trips is None else scalar_of(trips, "the trip count") if not isinstance(trips, Tensor) else trips
    always = _passes_on(graph)
    start = (
        True if condition is None else known(condition, "the condition").reshape(-1)[0] if is_known(condition) else None
    )
    sequences = any(isinstance(v, tuple) or v is None for v in carried)
    if start is not None and not bool(start):
        count, always = 0, True
    if isinstance(count, int | np.integer) and int(count) <= 0:
        with contextlib.suppress(FluxError):  # the body need not fit what no step ever sees
            return _unrolled(body, 0, start, carried, scanned)
    fixed = isinstance(count, int | np.integer) and 0 <= int(count) <= UNROLLED
    if sequences and (isinstance(count, Tensor) or start is None):
        raise error("FX1205", "how often a loop over sequences runs is computed from the inputs of the model")
    if sequences or (fixed and all(map(is_known, carried)) and int(count) <= SHORT and scanned == 0):  # type: ignore[arg-type]
        return _unrolled(body, int(count) if fixed else None, start, carried, scanned)  # type: ignore[arg-type]
    if always and isinstance(count, Tensor) and scanned and start is not None:
        steps = fx.maximum(fx.cast(fx.reshape(count, ()), "i64"), np.int64(0))
        count = fx.extent(steps)  # its rows are as many as the steps, which are known when the program runs
    if always and count is not None and not isinstance(count, Tensor):
        try:
            return _counted(body, count, carried, scanned)
        except FluxError as e:  # sizes that depend on the step, or that a step changes
            if e.code not in ("FX1205", "FX0230", "FX0213") or isinstance(count, Poly) or int(count) > SHORT:
                raise
            return _unrolled(body, int(count), start, carried, scanned)
    if scanned:
        return _unrolled_or_refused(body, count, start, carried, scanned, fixed)
    return _while(body, count, condition, carried)


def _passes_on(graph: Any) -> bool:
    """Whether the body hands its condition on as it came (or as a constant true)."""
    name = graph.outputs[0].name
    came = graph.inputs[1].name
    for _ in range(8):
        if name == came:
            return True
        node = next((m for m in graph.nodes if name in m.outputs), None)
        if node is None:
            from fluxir.frontend.onnx.elements import to_array

            found = next((t for t in graph.initializers if t.name == name), None)
            return found is not None and bool(to_array(found)[0].reshape(-1)[0])
        if node.op == "Constant" and node.attributes and node.attributes[0].t is not None:
            from fluxir.frontend.onnx.elements import to_array

            return bool(to_array(node.attributes[0].t)[0].reshape(-1)[0])
        if node.op not in ("Identity", "Cast"):
            return False
        name = node.inputs[0]
    return False


def _unrolled(body: Subgraph, count: int | None, start: Any, carried: Any, scanned: int) -> Results:
    """Step by step, while the graph is read: all that decides when it ends must be known."""
    state, rows = list(carried), []
    going = start
    step = 0
    while (count is None or step < count) and (going is None or bool(going)):
        if step >= UNROLLED:
            raise error("FX1202", f"a loop over sequences takes more than {UNROLLED} steps")
        out = body(np.asarray(step, np.int64), np.asarray(True), *state)
        if not is_known(out[0]):
            raise error("FX1205", "when a loop over sequences ends is computed from the inputs of the model")
        going = known(out[0], "the condition").reshape(-1)[0]
        state = list(out[1 : 1 + len(state)])
        rows.append(out[1 + len(carried) :])
        step += 1
    return Results((*state, *[_stacked([r[k] for r in rows], body, k + 1 + len(carried)) for k in range(scanned)]))


def _stacked(rows: list[Any], body: Subgraph, k: int) -> Any:
    if rows:
        parts = [tensor(r) for r in rows]
        if all(map(concrete, parts)):
            with suspended():
                return fx.stack(parts, axis=0)
        return fx.stack(parts, axis=0)
    from fluxir.frontend.onnx.elements import element

    info = body.graph.outputs[k].type  # type: ignore[attr-defined]
    if info is None or info.tensor is None or info.tensor.shape is None:
        raise error("FX1205", "a loop of no steps gives rows whose shape the model does not say")
    shape = [d.value for d in info.tensor.shape.dims]
    if any(d is None for d in shape):
        raise error("FX1205", "a loop of no steps gives rows of a symbolic shape")
    return np.zeros((0, *shape), element(info.tensor.elem, "a loop's rows").carrier.numpy)  # type: ignore[union-attr]


def _unrolled_or_refused(body: Subgraph, count: Any, start: Any, carried: Any, scanned: int, fixed: bool) -> Results:
    if fixed or count is None or start is not None:
        return _unrolled(body, int(count) if fixed else None, start, carried, scanned)
    raise error("FX1205", "how many rows a loop gives is computed from the inputs of the model")


def _counted(body: Subgraph, count: Any, carried: Any, scanned: int) -> Results:
    """A known number of steps (which may be a symbolic size): a scan."""
    n = len(carried)
    first = tuple(fx.asarray(tensor(v)) for v in carried)

    def step(state: Any, t: Any) -> Any:
        out = body(t, np.asarray(True), *state)[1:]
        out = _tensors(out, "a loop's body")
        return tuple(_like(o, s) for o, s in zip(out[:n], state, strict=True)), out[n:]

    length = count if isinstance(count, Poly) else int(count)
    last, rows = fx.scan(step, first, fx.arange(length))
    return Results((*last, *rows))


def _like(new: Any, old: Any) -> Any:
    """What a step carries on, in the shape that it began with where that is the same by other words."""
    if new.shape != old.shape and len(new.shape) == len(old.shape) and all(map(dims.prove_equal, new.shape, old.shape)):
        return fx.reshape(new, old.shape)
    return new


def _while(body: Subgraph, count: Any, condition: Any, carried: Any) -> Results:
    first = tuple(fx.asarray(tensor(v)) for v in carried)
    limit = (
        None
        if count is None
        else fx.cast(fx.reshape(fx.asarray(tensor(count) if isinstance(count, Sizes) else count), ()), "i64")
    )
    going = fx.asarray(True) if condition is None else fx.reshape(fx.asarray(tensor(condition)), ())

    def more(s: Any) -> Any:
        return s[1] if limit is None else fx.logical_and(s[1], fx.less(s[0], limit))

    def step(s: Any) -> Any:
        t, _, state = s
        out = _tensors(body(t, np.asarray(True), *state), "a loop's body")
        new = tuple(_like(o, old) for o, old in zip(out[1:], state, strict=True))
        return fx.add(t, np.int64(1)), fx.reshape(out[0], ()), new

    _, _, last = fx.while_loop(more, step, (fx.asarray(np.int64(0)), going, first))
    return Results(last)


@op("Scan", since=9, pure=False)
def scan(
    cx: Context, *values: Raw, body: Subgraph, num_scan_inputs: Int, scan_input_axes: Ints | None = None,
    scan_input_directions: Ints | None = None, scan_output_axes: Ints | None = None,
    scan_output_directions: Ints | None = None,
) -> Any:  # fmt: skip
    n = len(values) - num_scan_inputs
    state = tuple(fx.asarray(tensor(v)) for v in values[:n])
    sequences = [fx.asarray(tensor(v)) for v in values[n:]]
    for k, s in enumerate(sequences):
        axis = fx.axis_of(scan_input_axes[k] if scan_input_axes else 0, fx.rank(s))
        s = fx.moveaxis(s, axis, 0) if axis else s
        sequences[k] = fx.flip(s, axis=0) if scan_input_directions and scan_input_directions[k] else s

    def step(carry: Any, rows: Any) -> Any:
        out = _tensors(body(*carry, *rows), "the body of Scan")
        return tuple(_like(o, s) for o, s in zip(out[:n], carry, strict=True)), out[n:]

    last, rows = fx.scan(step, state, tuple(sequences))
    outs = []
    for k, r in enumerate(rows):
        r = fx.flip(r, axis=0) if scan_output_directions and scan_output_directions[k] else r
        axis = fx.axis_of(scan_output_axes[k], fx.rank(r)) if scan_output_axes else 0
        outs.append(fx.moveaxis(r, 0, axis) if axis else r)
    return Results((*last, *outs))


@op("Scan", since=8, pure=False)
def scan_8(
    cx: Context, lengths: Raw = None, *values: Raw, body: Subgraph, num_scan_inputs: Int, directions: Ints | None = None
) -> Any:
    """With a batch axis before the steps: each sequence by itself, as many steps as the tensors have."""
    if lengths is not None:
        raise error("FX1203", "Scan of opset 8 with sequence lengths", help="convert the model to opset 9 or newer")
    n = len(values) - num_scan_inputs
    tensors = [fx.asarray(tensor(v)) for v in values]
    batch = int(tensors[0].shape[0])
    if batch > UNROLLED:
        raise error("FX1202", f"Scan over {batch} sequences one by one; at most {UNROLLED} are")
    outs = []
    for b in range(batch):
        rows = [fx.item(t, b) for t in tensors]
        outs.append(scan(cx, *rows, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions))
    assert n >= 0
    return Results(fx.stack([o[k] for o in outs], axis=0) for k in range(len(outs[0])))


# ---- sequences -----------------------------------------------------------------------------------------------------


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype: Int = 1) -> Any:
    return ()


@op("SequenceConstruct", since=11)
def sequence_construct(*xs: Raw) -> Any:
    return tuple(_part(x) for x in xs)


def _part(x: Any) -> Any:
    """What may be in a sequence. Sequences of sequences would stand for more than a file is long."""
    if isinstance(x, tuple) or x is None:
        raise TypeError("a sequence holds tensors")
    return x


def _place(position: Any, n: int, extra: int = 0) -> int:
    i = int(scalar_of(position, "a place in a sequence"))
    if not -n <= i < n + extra:
        raise IndexError(f"the place {i} of a sequence of {n}")
    return i + n if i < 0 else i


@op("SequenceAt", since=11)
def sequence_at(s: Raw, position: Known) -> Any:
    return s[_place(position, len(s))]


@op("SequenceInsert", since=11)
def sequence_insert(s: Raw, x: Raw, position: Known = None) -> Any:
    at = len(s) if position is None else _place(position, len(s), 1)
    return (*s[:at], _part(x), *s[at:])


@op("SequenceErase", since=11)
def sequence_erase(s: Raw, position: Known = None) -> Any:
    at = len(s) - 1 if position is None else _place(position, len(s))
    return (*s[:at], *s[at + 1 :])


@op("SequenceLength", since=11)
def sequence_length(s: Raw) -> Any:
    return np.asarray(len(s), np.int64)


@op("ConcatFromSequence", since=11)
def concat_from_sequence(s: Raw, *, axis: Int, new_axis: Int = 0) -> Any:
    parts = [unwrapped(x) if isinstance(x, Sizes) and all(map(concrete, s)) else tensor(x) for x in s]
    n = fx.rank(parts[0])
    return fx.stack(parts, axis=axis % (n + 1)) if new_axis else fx.concat(parts, axis=fx.axis_of(axis, n))


def _parts(n: int) -> int:
    """A number of parts of a sequence; FX1202 for too many."""
    if n > UNROLLED:
        raise error("FX1202", f"a sequence of {n} parts; at most {UNROLLED} are made")
    return n


@op("SplitToSequence", since=11)
def split_to_sequence(x: Any, split: Known = None, *, axis: Int = 0, keepdims: Int = 1) -> Any:
    from fluxir.frontend.onnx.ops.movement import pieces

    a = fx.axis_of(axis, fx.rank(x))
    n = x.shape[a]
    if split is None:
        if not isinstance(n, int):
            raise error("FX1205", f"into how many parts a sequence is split depends on the size {n}")
        parts = pieces(x, a, (1,) * _parts(n), n)
        return tuple(parts) if keepdims else tuple(fx.squeeze(p, axis=a) for p in parts)
    sizes = dims_of(split, "the sizes of the parts")
    if not split.shape:  # one number: parts of that size, the last may be smaller
        if not isinstance(n, int):
            raise error("FX1205", f"into how many parts a sequence is split depends on the size {n}")
        each = int(sizes[0])
        _parts(n // max(each, 1))
        sizes = tuple(min(each, n - at) for at in range(0, n, each))
    return tuple(pieces(x, a, sizes, len(sizes)))


@op("SequenceMap", since=17, pure=False)
def sequence_map(cx: Context, s: Raw, *more: Raw, body: Subgraph) -> Any:
    rows = [body(x, *[m[i] if isinstance(m, tuple) else m for m in more]) for i, x in enumerate(s)]
    return Results(tuple(r[k] for r in rows) for k in range(len(body.graph.outputs)))  # type: ignore[attr-defined]


@op("Optional", since=15)
def optional(x: Raw = None, *, type: Type | None = None) -> Any:
    return x


@op("OptionalHasElement", since=15)
def optional_has_element(x: Raw = None) -> Any:
    return np.asarray(x is not None)


@op("OptionalGetElement", since=15)
def optional_get_element(x: Raw) -> Any:
    return x
