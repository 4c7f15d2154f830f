"""The names and signatures of the Python Array API standard 2024.12, and the NumPy functions beyond it.

`STANDARD` is the standard's surface as signatures. A call that the standard allows must be a call of ours with the same
meaning: parameters of the same names and defaults, in the same order where they may be given by position. Answers are compared
with numpy in `test_frontend_functions`; here are the samples that file does not have.

Absent on purpose: complex numbers (`complex64`, `complex128`; `real`, `imag` and `conj` take real tensors), and of `linalg` what
needs a decomposition (cholesky, det, eigh, eigvalsh, inv, matrix_rank, pinv, qr, slogdet, solve, svd, svdvals). Of NumPy: what changes
its argument (`fill_diagonal`), what has a result of unknown size (`extract`, `delete`, `intersect1d`), strings, files and dates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend import tree
from fluxir.frontend.trace import trace
from fluxir.ir.interp import interpret
from fluxir.ir.verify import verify_module

STANDARD = """
__array_namespace_info__()
arange(start, /, stop=None, step=1, *, dtype=None, device=None)
asarray(obj, /, *, dtype=None, device=None, copy=None)
empty(shape, *, dtype=None, device=None)
empty_like(x, /, *, dtype=None, device=None)
eye(n_rows, n_cols=None, /, *, k=0, dtype=None, device=None)
from_dlpack(x, /, *, device=None, copy=None)
full(shape, fill_value, *, dtype=None, device=None)
full_like(x, /, fill_value, *, dtype=None, device=None)
linspace(start, stop, /, num, *, dtype=None, device=None, endpoint=True)
meshgrid(*arrays, indexing='xy')
ones(shape, *, dtype=None, device=None)
ones_like(x, /, *, dtype=None, device=None)
tril(x, /, *, k=0)
triu(x, /, *, k=0)
zeros(shape, *, dtype=None, device=None)
zeros_like(x, /, *, dtype=None, device=None)
astype(x, dtype, /, *, copy=True, device=None)
can_cast(from_, to, /)
finfo(type, /)
iinfo(type, /)
isdtype(dtype, kind)
result_type(*arrays_and_dtypes)
abs(x, /)
acos(x, /)
acosh(x, /)
add(x1, x2, /)
asin(x, /)
asinh(x, /)
atan(x, /)
atan2(x1, x2, /)
atanh(x, /)
bitwise_and(x1, x2, /)
bitwise_left_shift(x1, x2, /)
bitwise_invert(x, /)
bitwise_or(x1, x2, /)
bitwise_right_shift(x1, x2, /)
bitwise_xor(x1, x2, /)
ceil(x, /)
clip(x, /, min=None, max=None)
conj(x, /)
copysign(x1, x2, /)
cos(x, /)
cosh(x, /)
divide(x1, x2, /)
equal(x1, x2, /)
exp(x, /)
expm1(x, /)
floor(x, /)
floor_divide(x1, x2, /)
greater(x1, x2, /)
greater_equal(x1, x2, /)
hypot(x1, x2, /)
imag(x, /)
isfinite(x, /)
isinf(x, /)
isnan(x, /)
less(x1, x2, /)
less_equal(x1, x2, /)
log(x, /)
log1p(x, /)
log2(x, /)
log10(x, /)
logaddexp(x1, x2, /)
logical_and(x1, x2, /)
logical_not(x, /)
logical_or(x1, x2, /)
logical_xor(x1, x2, /)
maximum(x1, x2, /)
minimum(x1, x2, /)
multiply(x1, x2, /)
negative(x, /)
nextafter(x1, x2, /)
not_equal(x1, x2, /)
positive(x, /)
pow(x1, x2, /)
real(x, /)
reciprocal(x, /)
remainder(x1, x2, /)
round(x, /)
sign(x, /)
signbit(x, /)
sin(x, /)
sinh(x, /)
square(x, /)
sqrt(x, /)
subtract(x1, x2, /)
tan(x, /)
tanh(x, /)
trunc(x, /)
take(x, indices, /, *, axis=None)
take_along_axis(x, indices, /, *, axis=-1)
matmul(x1, x2, /)
matrix_transpose(x, /)
tensordot(x1, x2, /, *, axes=2)
vecdot(x1, x2, /, *, axis=-1)
broadcast_arrays(*arrays)
broadcast_to(x, /, shape)
concat(arrays, /, *, axis=0)
expand_dims(x, /, *, axis=0)
flip(x, /, *, axis=None)
moveaxis(x, source, destination, /)
permute_dims(x, /, axes)
repeat(x, repeats, /, *, axis=None)
reshape(x, /, shape, *, copy=None)
roll(x, /, shift, *, axis=None)
squeeze(x, /, axis)
stack(arrays, /, *, axis=0)
tile(x, repetitions, /)
unstack(x, /, *, axis=0)
argmax(x, /, *, axis=None, keepdims=False)
argmin(x, /, *, axis=None, keepdims=False)
count_nonzero(x, /, *, axis=None, keepdims=False)
nonzero(x, /)
searchsorted(x1, x2, /, *, side='left', sorter=None)
where(condition, x1, x2, /)
unique_all(x, /)
unique_counts(x, /)
unique_inverse(x, /)
unique_values(x, /)
argsort(x, /, *, axis=-1, descending=False, stable=True)
sort(x, /, *, axis=-1, descending=False, stable=True)
cumulative_prod(x, /, *, axis=None, dtype=None, include_initial=False)
cumulative_sum(x, /, *, axis=None, dtype=None, include_initial=False)
max(x, /, *, axis=None, keepdims=False)
mean(x, /, *, axis=None, keepdims=False)
min(x, /, *, axis=None, keepdims=False)
prod(x, /, *, axis=None, dtype=None, keepdims=False)
std(x, /, *, axis=None, correction=0.0, keepdims=False)
sum(x, /, *, axis=None, dtype=None, keepdims=False)
var(x, /, *, axis=None, correction=0.0, keepdims=False)
all(x, /, *, axis=None, keepdims=False)
any(x, /, *, axis=None, keepdims=False)
diff(x, /, *, axis=-1, n=1, prepend=None, append=None)
linalg.cross(x1, x2, /, *, axis=-1)
linalg.diagonal(x, /, *, offset=0)
linalg.matmul(x1, x2, /)
linalg.matrix_norm(x, /, *, keepdims=False, ord='fro')
linalg.matrix_power(x, n, /)
linalg.matrix_transpose(x, /)
linalg.outer(x1, x2, /)
linalg.tensordot(x1, x2, /, *, axes=2)
linalg.trace(x, /, *, offset=0, dtype=None)
linalg.vecdot(x1, x2, /, *, axis=-1)
linalg.vector_norm(x, /, *, axis=None, keepdims=False, ord=2)
cond(pred, true_fn, false_fn, /, *operands)
scan(f, init, xs=None, length=None, reverse=False, unroll=1)
while_loop(cond_fun, body_fun, init_val, /)
fori_loop(lower, upper, body_fun, init_val, /)
switch(index, branches, /, *operands)
map(f, xs)
""".split("\n")[1:-1]  # the last six are JAX's

CONSTANTS = {"e": np.e, "inf": np.inf, "nan": np.nan, "newaxis": None, "pi": np.pi}
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64"

NUMPY = """
absolute allclose amax amin append arccos arccosh arcsin arcsinh arctan arctan2 arctanh argwhere around array
array_equal array_split atleast_1d atleast_2d atleast_3d average bincount bitwise_count bitwise_not block
broadcast_shapes cbrt choose column_stack concatenate convolve copy corrcoef correlate cov cross cumprod cumsum deg2rad
degrees diag diag_indices diagflat diagonal digitize divmod dot dstack einsum exp2 fabs fix flatnonzero fliplr flipud
fmax fmin fmod fromfunction geomspace heaviside histogram hsplit hstack identity indices inner interp invert isclose
isin isneginf isposinf isscalar kron ldexp left_shift linspace logaddexp2 logspace matvec median mod modf nan_to_num
nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmin nanprod nanstd nansum nanvar ndim outer pad percentile
permute_dims piecewise polyval power ptp put_along_axis quantile rad2deg radians ravel ravel_multi_index right_shift
rint rot90 select shape sinc size split swapaxes trace transpose trapezoid tri tril_indices triu_indices true_divide
unravel_index vander vdot vecmat vsplit vstack
""".split()


def public(name: str) -> Any:
    out: Any = fx
    for part in name.split("."):
        out = getattr(out, part)
    return out


@pytest.mark.parametrize("line", STANDARD, ids=lambda line: line.split("(")[0])
def test_a_call_of_the_standard_is_a_call_of_ours(line: str) -> None:
    name, _, parameters = line.partition("(")
    space: dict[str, Any] = {}
    exec(f"def f({parameters}: pass", space)
    want, ours = inspect.signature(space["f"]).parameters, inspect.signature(public(name)).parameters
    places = [p for p in ours.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for i, p in enumerate(want.values()):
        if p.kind == p.VAR_POSITIONAL:
            assert any(q.kind == q.VAR_POSITIONAL for q in ours.values())
            continue
        if p.kind == p.KEYWORD_ONLY:
            q = ours[p.name]
            assert q.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        else:
            q = places[i]
            assert p.kind == p.POSITIONAL_ONLY or (q.name == p.name and q.kind == p.POSITIONAL_OR_KEYWORD)
        if p.default is not p.empty:
            assert q.default == p.default
    for q in ours.values():  # what the standard does not have is optional
        required = q.default is q.empty and q.kind not in (q.VAR_POSITIONAL, q.VAR_KEYWORD)
        assert not required or q.name in want or q in places[: len(want)]


def test_constants_types_and_information() -> None:
    for name, value in CONSTANTS.items():
        assert getattr(fx, name) is value or np.array_equal(getattr(fx, name), value, equal_nan=True)
    info = fx.__array_namespace_info__()
    assert sorted(info.dtypes()) == sorted(DTYPES.split())
    for name in DTYPES.split():
        assert getattr(fx, name) == info.dtypes()[name] and np.dtype(name) == getattr(fx, name).numpy
    assert set(info.dtypes(kind="integral")) == {n for n in DTYPES.split() if "int" in n}
    assert set(info.dtypes(kind=("bool", "real floating"))) == {"bool", "float32", "float64"}
    assert info.default_dtypes()["indexing"] == fx.int64 and info.default_device() in info.devices()
    assert info.capabilities()["boolean indexing"] is True
    assert fx.finfo(fx.float32).eps == np.finfo(np.float32).eps and fx.iinfo(fx.int16).max == 32767
    assert fx.can_cast(fx.int32, fx.int64) and not fx.can_cast(fx.int64, fx.int32)
    assert fx.result_type(fx.int8, fx.uint8) == fx.int16 and fx.isdtype(fx.int8, "signed integer")


def test_numpys_names_are_there_and_begin_alike() -> None:
    assert [n for n in NUMPY if not hasattr(fx, n)] == []
    for name in NUMPY:
        ours = inspect.signature(getattr(fx, name)).parameters
        assert all(p.kind != p.VAR_KEYWORD for p in ours.values()), name


def test_jaxs_argument_order() -> None:
    x = np.float32(3)
    assert fx.cond(np.True_, lambda a, b: a - b, lambda a, b: b, x, 1.0) == 2
    assert fx.scan(lambda c, v: (c + v, c), 0.0, np.ones(4, np.float32))[0] == 4
    assert fx.while_loop(lambda c: c < 10, lambda c: c * 2, 3) == 12
    assert fx.fori_loop(1, 4, lambda i, c: c * i, 1) == 6
    assert fx.switch(1, [lambda v: v, lambda v: v * 5], x) == 15
    np.testing.assert_array_equal(fx.map(lambda v: v + 1, np.arange(3)), [1, 2, 3])


A = np.random.default_rng(3).uniform(-2, 2, (4, 6)).astype(np.float32)
HOLES = np.where(A > 1, np.nan, A).astype(np.float32)
K = np.array([0, 2, 1, 2, 0, 1])
SAMPLES: dict[str, Callable[[Any], Any]] = {
    "nanvar": lambda m: (m.nanvar(HOLES), m.nanvar(HOLES, axis=1, ddof=1), m.nanvar(HOLES, axis=0, keepdims=True)),
    "nanstd": lambda m: (m.nanstd(HOLES), m.nanstd(HOLES, axis=0)),
    "nancumsum": lambda m: (m.nancumsum(HOLES), m.nancumsum(HOLES, axis=1)),
    "nancumprod": lambda m: m.nancumprod(HOLES, axis=0),
    "nanargmax": lambda m: (m.nanargmax(HOLES), m.nanargmax(HOLES, axis=1)),
    "nanargmin": lambda m: m.nanargmin(HOLES, axis=0),
    "choose": lambda m: (m.choose(K, [A[0], A[1], A[2]]), m.choose(K - 1, [A[0], A[1]], mode="wrap"), m.choose(K, [1, 2, 3])),
    "piecewise": lambda m: (
        m.piecewise(A, [A < 0, A > 1], [lambda v: -v, lambda v: v * v]),
        m.piecewise(A, [A < 0], [-1, lambda v: v + 1]),
    ),
    "unravel_index": lambda m: m.unravel_index(np.array([0, 7, 23]), (4, 6)),
    "ravel_multi_index": lambda m: m.ravel_multi_index((np.array([1, 3]), np.array([2, 5])), (4, 6)),
    "tril_indices": lambda m: (m.tril_indices(4), m.tril_indices(3, 1, 5)),
    "triu_indices": lambda m: (m.triu_indices(4), m.triu_indices(3, -1, 5)),
    "diag_indices": lambda m: m.diag_indices(3, 3),
    "convolve": lambda m: (
        [m.convolve(A[0], A[1, :n], mode) for n in (1, 2, 3, 6) for mode in ("full", "same", "valid")],
        m.convolve(A[0, :2], A[1]), m.convolve(K, K[:3]),
    ),
    "correlate": lambda m: [m.correlate(A[0], A[1, :n], mode) for n in (3, 6) for mode in ("full", "same", "valid")],
    "polyval": lambda m: (m.polyval(A[0], A[1]), m.polyval(A[0, :3], A), m.polyval(K, K)),
    "corrcoef": lambda m: (m.corrcoef(A), m.corrcoef(A, rowvar=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("way", ["eager", "traced"])
def test_samples_are_numpys(name: str, way: str) -> None:
    f = SAMPLES[name]
    with np.errstate(all="ignore"):
        want = tree.leaves(f(np))
    if way == "eager":
        got = tree.leaves(f(fx))
    else:
        t = trace(lambda: f(fx), [])
        verify_module(t.module)
        got = interpret(t.module, [])
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g), np.asarray(w)
        assert g.shape == w.shape and g.dtype.kind == w.dtype.kind
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("code", "f"),
    [
        ("FX0220", lambda x: fx.convolve(x, x)), ("FX0215", lambda x: fx.convolve(x[0], x[1], mode="half")),
        ("FX0221", lambda x: fx.piecewise(x, [x > 0], [1, 2, 3])),
    ],
)  # fmt: skip
def test_mistakes_are_explained(code: str, f: Callable[..., Any]) -> None:
    with pytest.raises(FluxError) as caught:
        trace(f, [A])
    assert caught.value.code == code and caught.value.loc is not None and caught.value.loc.file == __file__
