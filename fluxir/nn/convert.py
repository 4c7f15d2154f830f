"""Weights from elsewhere: PyTorch state dicts and Flux arrays, into a model of the same layers.

What differs, and is turned on the way:

| | PyTorch | Flux | here |
|---|---|---|---|
| Dense weight | [out, in] | [out, in] | [in, out] |
| Conv weight | [out, in / g, k...] | [k..., in / g, out], mirrored | [out, in / g, k...] |
| ConvTranspose weight | [in, out / g, k...] | [k..., out / g, in], mirrored | [in, out / g, k...] |
| Bilinear weight | [out, in1, in2] | [out, in1, in2] | [out, in1, in2] |
| Embedding weight | [count, size] | [size, count] | [count, size] |
| recurrent weights | [gates * h, in], two biases | [gates * h, in], one bias | [in, gates * h], one bias |
| LSTM gates | i f g o | i f g o | i f g o |
| GRU gates | r z n; a bias of the state | r z n, reset before the product (GRUv3: after) | r z n, with one |
| norms | weight, bias, running_mean, running_var | scale, bias, mean, var | scale, bias, mean, var |
| attention | query, key, value as one in_proj_weight | - | four Dense |
| data | [N, C, space...] | [space..., C, N] | [N, C, space...] |

Flux mirrors its kernels: it convolves where PyTorch and we correlate. `flux_layout` turns data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.nn.attention import MultiHeadAttention
from fluxir.nn.containers import Chain, PairwiseFusion, Parallel
from fluxir.nn.conv import Conv, ConvTranspose
from fluxir.nn.dense import Bilinear, Dense, Embedding, EmbeddingBag
from fluxir.nn.module import Module
from fluxir.nn.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from fluxir.nn.recurrent import GRUCell, _Cell, _Sequence

Array = np.ndarray[Any, Any]


class _Source:
    """A state dict being used up: every entry must be taken once. FX1007."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = {k: np.asarray(v) for k, v in entries.items()}
        self.used: set[str] = set()

    def take(self, name: str) -> Array:
        if name not in self.entries:
            near = [k for k in self.entries if k.rsplit(".", 1)[0] == name.rsplit(".", 1)[0]]
            raise fx.error("FX1007", f"there is no entry {name!r}",
                           help="near it are " + ", ".join(near) if near else None)  # fmt: skip
        self.used.add(name)
        return self.entries[name]

    def has(self, name: str) -> bool:
        return name in self.entries

    def finish(self) -> None:
        # How many batches were seen is not part of our statistics.
        left = [k for k in self.entries if k not in self.used and not k.endswith("num_batches_tracked")]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise fx.error("FX1007", f"the model has no place for {', '.join(left[:3])}{more}")


def _fit(where: str, new: Array, old: Any) -> Array:
    if tuple(new.shape) != tuple(fx.shape(old)):
        raise fx.error("FX1007", f"{where}: the model has {list(fx.shape(old))}, given is {list(new.shape)}")
    return np.ascontiguousarray(new).astype(np.asarray(old).dtype)


def _set(layer: Module, where: str, **values: Array | None) -> Module:
    out: dict[str, Any] = {}
    for name, value in values.items():
        old = getattr(layer, name)
        if (old is None) != (value is None):
            raise fx.error(
                "FX1007", f"{where}: the model has {'no ' if old is None else 'a '}{name}, the other way round there"
            )
        out[name] = None if value is None else _fit(f"{where}.{name}", value, old)
    return layer.replace(**out)


def load_torch(
    model: Any, entries: Mapping[str, Any], prefix: str = "", names: Callable[[str], str] | None = None
) -> Any:
    """The model with the weights of a PyTorch state dict (a dict of arrays by name).

    Layers are named as in the model: by position in an unnamed Chain ("0.weight", as nn.Sequential; functions count), by
    name in a named one, by field in a module of your own. `names` turns our name of a layer into theirs. FX1007 for an entry
    that is missing, left over or of another shape; `num_batches_tracked` is left out.
    """
    source = _Source(entries)
    out = _torch(model, prefix, source, names or (lambda n: n))
    source.finish()
    return out


def _path(prefix: str, name: Any) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _torch(x: Any, path: str, source: _Source, names: Callable[[str], str]) -> Any:
    if isinstance(x, Module):
        at = names(path)
        dot = f"{at}." if at else ""

        def get(name: str) -> Array:
            return source.take(dot + name)

        def maybe(old: Any, name: str) -> Array | None:
            return get(name) if old is not None or source.has(dot + name) else None

        if isinstance(x, Dense):
            return _set(x, at, weight=get("weight").T, bias=maybe(x.bias, "bias"))
        if isinstance(x, Conv | ConvTranspose | Bilinear):
            return _set(x, at, weight=get("weight"), bias=maybe(x.bias, "bias"))
        if isinstance(x, Embedding | EmbeddingBag):
            return _set(x, at, weight=get("weight"))
        if isinstance(x, BatchNorm | InstanceNorm):
            return _set(x, at, scale=maybe(x.scale, "weight"), bias=maybe(x.bias, "bias"),
                        mean=maybe(x.mean, "running_mean"), var=maybe(x.var, "running_var"))  # fmt: skip
        if isinstance(x, LayerNorm | GroupNorm):
            return _set(x, at, scale=maybe(x.scale, "weight"), bias=maybe(x.bias, "bias"))
        if isinstance(x, RMSNorm):
            return _set(x, at, scale=maybe(x.scale, "weight"))
        if isinstance(x, _Sequence):
            step = 2 if x.bidirectional else 1
            ends = [f"_l{i // step}{'_reverse' if i % step else ''}" for i in range(len(x.cells))]
            return x.replace(cells=tuple(_cell(c, at, get, e) for c, e in zip(x.cells, ends, strict=True)))
        if isinstance(x, _Cell):
            return _cell(x, at, get, "")
        if isinstance(x, MultiHeadAttention):
            return _attention(x, at, get, source.has(dot + "in_proj_weight"))
        if isinstance(x, Chain | Parallel | PairwiseFusion):
            labels = x.layer_names() or range(len(x))
            layers = tuple(_torch(v, _path(path, n), source, names) for n, v in zip(labels, x, strict=True))
            return x.replace(layers=layers)
        fields = [f for f, spec in x.__dataclass_fields__.items() if not spec.metadata.get("static")]
        return x.replace(**{f: _torch(getattr(x, f), _path(path, f), source, names) for f in fields})
    if isinstance(x, list | tuple):
        return type(x)([_torch(v, _path(path, i), source, names) for i, v in enumerate(x)])
    if isinstance(x, dict):
        return {k: _torch(v, _path(path, k), source, names) for k, v in x.items()}
    if x is None or fx.tree.is_function(x):
        return x
    at = names(path)
    return _fit(at, source.take(at), x)


def _cell(cell: Any, at: str, get: Callable[[str], Array], end: str) -> Any:
    values: dict[str, Any] = {"weight": get("weight_ih" + end).T, "recurrent": get("weight_hh" + end).T}
    if cell.bias is not None:
        b, s = get("bias_ih" + end), get("bias_hh" + end)
        if isinstance(cell, GRUCell):
            # Only the candidate's bias of the state stands inside the reset gate; the others add up.
            h = cell.hidden
            values["bias"] = np.concatenate([b[: 2 * h] + s[: 2 * h], b[2 * h :]])
            values["bias_state"] = s[2 * h :]
        else:
            values["bias"] = b + s
    return _set(cell, at + end, **values)


def _attention(x: MultiHeadAttention, at: str, get: Callable[[str], Array], joined: bool) -> Any:
    if joined:
        parts = np.split(get("in_proj_weight"), 3)
    else:
        parts = [get(f"{n}_proj_weight") for n in "qkv"]
    biases: list[Any] = [None] * 4
    if x.query.bias is not None:
        biases = [*np.split(get("in_proj_bias"), 3), get("out_proj.bias")]
    parts.append(get("out_proj.weight"))
    fields = ("query", "key", "value", "output")
    return x.replace(**{
        f: _set(getattr(x, f), _path(at, f), weight=w.T, bias=b) for f, w, b in zip(fields, parts, biases, strict=True)
    })  # fmt: skip


# ---- Flux ------------------------------------------------------------------------------------------------------------


def flux_layout(x: Any) -> Any:
    """Data of Flux [space..., C, N] in our order [N, C, space...], and back: the axes in the other order.

    Flux writes width before height, which the reversal keeps apart: Flux's [W, H, C, N] is our [N, C, H, W].
    """
    return fx.permute_dims(x, tuple(reversed(range(len(fx.shape(x))))))


def load_flux(layer: Module, **arrays: Any) -> Module:
    """One layer with arrays of Flux's fields: `load_flux(conv, weight=w, bias=b)`.

    Dense: weight, bias. Conv, ConvTranspose: weight, bias (mirrored and turned). Embedding: weight. BatchNorm, InstanceNorm,
    GroupNorm, LayerNorm: gamma or scale, beta or bias, mu, sigma2. RNNCell, LSTMCell: Wi, Wh, b. GRUCell from GRUv3Cell: Wi,
    Wh, b and Wh_candidate, which Flux calls Wh_h̃; its bias of the state is 0. What is not given stays. FX1007 for what does
    not fit.
    """
    given: dict[str, Array] = {k: np.asarray(v) for k, v in arrays.items()}
    name = type(layer).__name__
    axes = {"gamma": "scale", "beta": "bias", "mu": "mean", "sigma2": "var"}
    turned: dict[str, Array] = {}
    if isinstance(layer, GRUCell) and {"Wh", "Wh_candidate"} <= given.keys():
        given["Wh"] = np.concatenate([given["Wh"], given.pop("Wh_candidate")])
        if layer.bias_state is not None:
            turned["bias_state"] = np.zeros(layer.hidden)
    for key, a in given.items():
        if isinstance(layer, Dense) and key == "weight":
            turned[key] = a.T
        elif isinstance(layer, Conv | ConvTranspose) and key == "weight":
            # Reversing all axes gives [out, in, k...] with the spatial axes in our order; then the window is mirrored.
            w = a.transpose(tuple(reversed(range(a.ndim))))
            turned[key] = w[(slice(None), slice(None), *[slice(None, None, -1)] * (a.ndim - 2))]
        elif isinstance(layer, Embedding | EmbeddingBag) and key == "weight":
            turned[key] = a.T
        elif isinstance(layer, _Cell) and key in ("Wi", "Wh", "b"):
            turned[{"Wi": "weight", "Wh": "recurrent", "b": "bias"}[key]] = a.T
        elif key in axes and hasattr(layer, axes[key]):
            turned[axes[key]] = a
        elif hasattr(layer, key):
            turned[key] = a
        else:
            raise fx.error("FX1007", f"{name} has no place for {key!r}")
    return _set(layer, name, **turned)


__all__ = ["flux_layout", "load_flux", "load_torch"]
