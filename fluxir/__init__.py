"""FluxIR: a small, readable ML compiler. This file owns the public names and nothing else.

Names are loaded when first used, so that `import fluxir` takes milliseconds: numpy, the compiler and the runtime arrive
with the first name that needs them.
"""

# ruff: noqa: F401, F403  (the block for type checkers re-exports)
from __future__ import annotations

import importlib

TYPE_CHECKING = False  # type checkers take it for True; `typing` itself costs 10 ms
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_FRONTEND = "fluxir.frontend."

# Which module owns which public names. `name=other` gives a module's `other` the public name `name`.
_NAMES: dict[str, str] = {
    "fluxir.ir.dtypes": """
        bool=bool_ i8 i16 i32 i64 u8 u16 u32 u64 f16 bf16 f32 f64 int8=i8 int16=i16 int32=i32 int64=i64 uint8=u8 uint16=u16
        uint32=u32 uint64=u64 float16=f16 bfloat16=bf16 float32=f32 float64=f64 DType
    """,
    "fluxir.ir.types": "TensorType",
    "fluxir.ir.dims": "ceildiv prove_equal prove_less=prove_lt",
    "fluxir.errors": "FluxError",
    _FRONTEND + "tensor": "Tensor",
    _FRONTEND + "trace": "assume error=user_error is_tracing",
    _FRONTEND + "tree": "register_tree",
    _FRONTEND + "loader": "model load_model",
    _FRONTEND + "nn": "conv conv_transpose",
    _FRONTEND + "api_creation": """
        arange array asarray astype bitcast can_cast copy dtype e empty empty_like eye finfo from_dlpack fromfunction
        full full_like geomspace identity iinfo indices inf isdtype linspace logspace meshgrid nan newaxis ones
        ones_like pi result_type stop_gradient tri tril triu zeros zeros_like
    """,
    _FRONTEND + "api_elementwise": """
        abs absolute acos acosh add allclose arccos arccosh arcsin arcsinh arctan arctan2 arctanh around array_equal
        asin asinh atan atan2 atanh bitwise_and bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor cbrt ceil clip clz conj copysign cos cosh deg2rad degrees digamma divide divmod equal
        erf erfc exp exp2 expm1 fabs fix floor floor_divide fmax fmin fmod greater greater_equal heaviside hypot imag
        invert isclose isfinite isinf isnan isneginf isposinf isscalar ldexp left_shift less less_equal lgamma log log10
        log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor maximum minimum mod modf multiply
        nan_to_num negative nextafter not_equal popcount positive pow power rad2deg radians real reciprocal remainder
        right_shift rint round rsqrt select sigmoid sign signbit sin sinc sinh sqrt square subtract tan tanh true_divide
        trunc where
    """,
    _FRONTEND + "api_indexing": """
        argsort argwhere bincount compress digitize dynamic_slice dynamic_update flatnonzero histogram interp isin nonzero
        one_hot put_along_axis searchsorted sort take take_along_axis top_k topk unique unique_all unique_counts
        unique_inverse unique_values
    """,
    _FRONTEND + "extent": "extent",
    _FRONTEND + "api_linalg": """
        cross diag diagflat diagonal dot inner kron matmul matrix_transpose matvec outer tensordot trace vander vdot
        vecdot vecmat
    """,
    _FRONTEND + "api_manipulation": """
        append array_split atleast_1d atleast_2d atleast_3d block broadcast_arrays broadcast_shapes broadcast_to
        column_stack concat concatenate dstack expand_dims flip fliplr flipud hsplit hstack moveaxis ndim pad
        permute_dims ravel repeat reshape roll rot90 shape size split squeeze stack swapaxes tile transpose unstack
        vsplit vstack
    """,
    _FRONTEND + "api_numpy": """
        choose convolve corrcoef correlate diag_indices nanargmax nanargmin nancumprod nancumsum nanstd nanvar piecewise
        polyval ravel_multi_index tril_indices triu_indices unravel_index
    """,
    _FRONTEND + "api_reduce": """
        all amax amin any argmax argmin average count_nonzero cov cummax cummin cumprod cumsum cumulative_prod
        cumulative_sum diff logsumexp max mean median min nanmax nanmean nanmin nanprod nansum percentile prod ptp
        quantile std sum trapezoid var
    """,
    _FRONTEND + "control": """
        cond fori_loop map scan switch while_loop
    """,
    _FRONTEND + "einsum": """
        einsum
    """,
    _FRONTEND + "staging": "function",
    _FRONTEND + "namespace": "__array_namespace_info__=info",
    "fluxir.driver": "load",
    "fluxir.embed": "jit",
    "fluxir.custom": "checkpoint custom_jvp custom_vjp",
    "fluxir.batching": "hessian jacfwd jacobian jacrev vmap",
    "fluxir.torch_models": "from_torch",
    "fluxir.gradcheck": "check_grads",
    "fluxir.kernels.kernel": "kernel",
    "fluxir.profiling": "profile",
    "fluxir.tuning": "tune",
    "fluxir.transform": "grad hvp jvp linearize value_and_grad vjp",
    "fluxir.runtime.cuda": "device_put",
    "fluxir.runtime.safetensors": "load_safetensors read_safetensors_header save_safetensors",
}

_MODULES: dict[str, str] = {
    "fft": _FRONTEND + "fft",
    "data": "fluxir.data",
    "linalg": "fluxir.linalg",
    "functional": _FRONTEND + "nn",
    "gpu": _FRONTEND + "kernel.gpu",
    "nn": "fluxir.nn",
    "onnx": "fluxir.onnx",
    "optim": "fluxir.optim",
    "random": _FRONTEND + "random",
    "train": "fluxir.train",
    "tree": _FRONTEND + "tree",
}

_WHERE: dict[str, tuple[str, str]] = {}
for _module, _names in _NAMES.items():
    for _entry in _names.split():
        _public, _, _original = _entry.partition("=")
        _WHERE[_public] = (_module, _original or _public)

__all__ = ["__version__", *_WHERE, *_MODULES]

if TYPE_CHECKING:
    from fluxir import data as data
    from fluxir import linalg as linalg
    from fluxir import nn as nn
    from fluxir import onnx as onnx
    from fluxir import optim as optim
    from fluxir import train as train
    from fluxir.driver import load as load
    from fluxir.embed import jit as jit
    from fluxir.errors import FluxError as FluxError
    from fluxir.frontend import fft as fft
    from fluxir.frontend import nn as _functional
    from fluxir.frontend import random as random
    from fluxir.frontend import trace as _trace
    from fluxir.frontend import tree as tree
    from fluxir.frontend.api_creation import *
    from fluxir.frontend.api_elementwise import *
    from fluxir.frontend.api_indexing import *
    from fluxir.frontend.api_linalg import *
    from fluxir.frontend.api_manipulation import *
    from fluxir.frontend.api_numpy import *
    from fluxir.frontend.api_reduce import *
    from fluxir.frontend.control import *
    from fluxir.frontend.einsum import einsum as einsum
    from fluxir.frontend.extent import extent as extent
    from fluxir.frontend.kernel import gpu as gpu
    from fluxir.frontend.loader import load_model as load_model
    from fluxir.frontend.loader import model as model
    from fluxir.frontend.nn import conv as conv
    from fluxir.frontend.nn import conv_transpose as conv_transpose
    from fluxir.frontend.staging import function as function
    from fluxir.frontend.tensor import Tensor as Tensor
    from fluxir.frontend.trace import assume as assume
    from fluxir.frontend.trace import is_tracing as is_tracing
    from fluxir.frontend.tree import register_tree as register_tree
    from fluxir.ir.dims import ceildiv as ceildiv
    from fluxir.ir.dims import prove_equal as prove_equal
    from fluxir.ir.dims import prove_lt as prove_less
    from fluxir.ir.dtypes import DType as DType
    from fluxir.ir.dtypes import bf16 as bf16
    from fluxir.ir.dtypes import bool_ as bool
    from fluxir.ir.dtypes import f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
    from fluxir.ir.types import TensorType as TensorType
    from fluxir.kernels.kernel import kernel as kernel
    from fluxir.profiling import profile as profile
    from fluxir.runtime.cuda import device_put as device_put
    from fluxir.runtime.safetensors import load_safetensors as load_safetensors
    from fluxir.runtime.safetensors import read_safetensors_header as read_safetensors_header
    from fluxir.runtime.safetensors import save_safetensors as save_safetensors
    from fluxir.torch_models import from_torch as from_torch
    from fluxir.tuning import tune as tune

    error, functional = _trace.user_error, _functional


def __getattr__(name: str) -> Any:
    """Load a public name the first time it is asked for."""
    if name in _WHERE:
        module, original = _WHERE[name]
        value = getattr(importlib.import_module(module), original)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'fluxir' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
