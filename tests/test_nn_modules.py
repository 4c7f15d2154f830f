"""Modules as trees: fields, changing copies, printing, statistics, keys, containers, shapes, other people's layouts, errors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import fluxir as fx

nn = fx.nn
KEY = fx.random.key(3)
RNG = np.random.default_rng(9)


def draw(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def dense(i: int, o: int, *rest: Any) -> Any:
    return nn.Dense(i, o, *rest, key=fx.random.fold_in(KEY, 10 * i + o))


def code_of(fn: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(fx.FluxError) as caught:
        fn(*args, **kwargs)
    return caught.value.code


class Affine(nn.Module):
    w: Any
    b: Any
    power: int = nn.static(default=1)

    def __call__(self, x: Any) -> Any:
        return (x @ self.w + self.b) ** self.power


class Residual(nn.Module):
    """A user's module with functions, a list, a dict and None among its fields."""

    layers: list[Any]
    heads: dict[str, Any]
    activation: Any
    nothing: Any

    def __init__(self, size: int, *, key: Any) -> None:
        self.layers = [nn.Dense(size, size, key=fx.random.fold_in(key, i)) for i in range(2)] + [nn.swish]
        self.heads = {"b": nn.Dense(size, 2, key=key), "a": nn.BatchNorm(size)}
        self.activation = fx.tanh
        self.nothing = None

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        for f in self.layers:
            x = x + f(x)
        return self.heads["b"](self.activation(self.heads["a"](x, train=train)))


# ---- modules -----------------------------------------------------------------------------------------------------------


def test_a_module_is_a_dataclass_and_a_tree() -> None:
    m = Affine(draw(3, 2), np.zeros(2, np.float32), power=2)
    leaves, structure = fx.tree.flatten(m)
    assert [x.shape for x in leaves] == [(3, 2), (2,)] and structure.paths() == [("w",), ("b",)]
    back = fx.tree.unflatten(structure, leaves)
    assert isinstance(back, Affine) and back.power == 2 and back.w is m.w
    assert fx.tree.flatten(m.replace(power=3))[1] != structure, "static fields belong to the structure"
    x = draw(4, 3)
    np.testing.assert_allclose(fx.jit(lambda m, x: m(x))(m, x), m(x), rtol=1e-6)


def test_gradients_have_the_structure_of_the_model() -> None:
    m, x = Residual(4, key=KEY), draw(5, 4)

    def loss(m: Any) -> Any:
        y, new = nn.apply(m, x, train=True)
        return fx.mean(y * y), new

    g, new = fx.grad(loss, has_aux=True)(m)
    assert isinstance(g, Residual) and g.activation is fx.tanh and g.layers[2] is nn.swish and g.nothing is None
    assert fx.tree.flatten(g)[1] == fx.tree.flatten(m)[1] == fx.tree.flatten(new)[1]
    assert not np.any(g.heads["a"].mean) and np.any(g.heads["a"].scale) and np.any(g.layers[0].weight)
    assert np.any(new.heads["a"].mean) and not np.any(m.heads["a"].mean), "the old model is as it was"


def test_a_step_compiles_once_for_a_structure() -> None:
    traced = []

    @fx.jit
    def step(m: Any, x: Any, y: Any) -> Any:
        traced.append(1)

        def loss(m: Any) -> Any:
            out, new = nn.apply(m, x, train=True)
            return nn.mse(out, y), new

        (value, new), g = fx.value_and_grad(loss, has_aux=True)(m)
        return value, fx.tree.map(lambda p, d: p - 0.1 * d, new, g)

    m, x, y = Residual(4, key=KEY), draw(8, 4), draw(8, 2)
    values = []
    for _ in range(20):
        value, m = step(m, x, y)
        values.append(float(value))
    assert len(traced) == 1 and values[-1] < 0.7 * values[0]
    assert m.activation is fx.tanh and np.all(m.heads["a"].var != 1)
    m.replace(activation=nn.relu)
    step(m.replace(activation=nn.relu), x, y)
    assert len(traced) == 2, "another function is another structure"


def test_functions_in_any_tree_are_structure() -> None:
    f = {"f": fx.tanh, "w": np.ones(3)}
    assert fx.tree.leaves(f)[0] is f["w"] and len(fx.tree.leaves(f)) == 1
    assert fx.tree.map(lambda x: x * 2, f)["f"] is fx.tanh
    assert fx.tree.flatten(f)[1] != fx.tree.flatten({"f": fx.exp, "w": 1})[1]
    half = functools.partial(fx.multiply, 0.5)
    assert fx.jit(lambda t, x: t["f"](x) * t["w"])({"f": half, "w": np.ones(3)}, np.ones(3)).tolist() == [0.5] * 3
    assert "tanh" in str(fx.tree.flatten(f)[1])
    with pytest.raises(fx.FluxError, match="the function 'tanh' and the function 'exp'"):
        fx.tree.map(lambda a, b: a, f, {"f": fx.exp, "w": 1})

    class Counter:
        def bump(self, x: Any) -> Any:
            return x + 1

    c = Counter()
    assert fx.tree.flatten([c.bump])[1] == fx.tree.flatten([c.bump])[1] != fx.tree.flatten([Counter().bump])[1]
    assert hash(fx.tree.flatten([c.bump])[1]) == hash(fx.tree.flatten([c.bump])[1])


def test_branches_may_give_a_model() -> None:
    a, b = nn.Chain(dense(2, 2), fx.tanh), nn.Chain(nn.Dense(2, 2, key=fx.random.key(77)), fx.tanh)
    x = draw(1, 2)
    pick = fx.jit(lambda p, a, b, x: fx.cond(p, lambda: a, lambda: b)(x))
    np.testing.assert_allclose(pick(np.bool_(True), a, b, x), a(x), rtol=1e-6)
    np.testing.assert_allclose(pick(np.bool_(False), a, b, x), b(x), rtol=1e-6)
    other = nn.Chain(dense(2, 2), fx.exp)
    assert code_of(pick, np.bool_(True), a, other, x) == "FX0322"


def test_modules_do_not_change() -> None:
    m = dense(3, 2)
    assert code_of(setattr, m, "bias", None) == "FX1006" and code_of(delattr, m, "bias") == "FX1006"
    assert code_of(m.replace, weigth=1) == "FX1006"
    other = m.replace(bias=np.ones(2, np.float32))
    assert m.bias is not other.bias and m.weight is other.weight

    class Half(nn.Module):
        a: Any
        b: Any

        def __init__(self) -> None:
            self.a = 1

    class Stray(nn.Module):
        def __init__(self) -> None:
            self.a = 1

    class Listed(nn.Module):
        sizes: Any = nn.static()

    assert code_of(Half) == "FX1006" and code_of(Stray) == "FX1006"
    assert code_of(Listed, [1, 2]) == "FX1003" and code_of(Listed((1,)).replace, sizes=[1]) == "FX1003"


def test_subclasses_inherit_fields_and_constructor() -> None:
    class Quiet(nn.Dense):
        def about(self) -> str:
            return "quiet"

    class Longer(Affine):
        c: Any = 0.0

    q = Quiet(3, 2, key=KEY)
    assert repr(q).startswith("Quiet(quiet)") and q(draw(1, 3)).shape == (1, 2)
    assert list(Longer.__dataclass_fields__) == ["w", "b", "power", "c"]
    assert Longer(1, 2, c=3).c == 3


def test_printing() -> None:
    m = nn.Chain(
        conv=nn.Conv(3, 8, (3, 3), nn.relu, stride=2, padding="same", key=KEY),
        norm=nn.BatchNorm(8),
        pool=nn.GlobalMeanPool(),
        head=nn.SkipConnection(dense(8, 8), None),
    )
    assert repr(m).splitlines() == [
        "Chain(",
        "  conv=Conv(3 => 8, 3x3, stride=(2, 2), padding=same, relu),  # 224 parameters, 896 B",
        "  norm=BatchNorm(8),                                          # 16 parameters, 16 of state, 128 B",
        "  pool=GlobalMeanPool(keepdims=False),",
        "  head=SkipConnection(connection=add,",
        "    layer=Dense(8 => 8),                                      # 72 parameters, 288 B",
        "  ),                                                          # 72 parameters, 288 B",
        ")                                                             # in all 312 parameters, 16 of state, 1.3 KiB",
    ]
    assert repr(dense(2, 3)) == "Dense(2 => 3)  # 9 parameters, 36 B"
    assert nn.count(m) == (312, 16, 1312) and nn.count(nn.cast(m, "f16"))[2] == 656
    assert "layers.0=Dense(4 => 4)" not in repr(Residual(4, key=KEY)) and "heads.b=Dense(4 => 2)" in repr(
        Residual(4, key=KEY)
    )
    shown = []
    fx.jit(lambda m: (shown.append(repr(m)), 0.0)[1])(m)
    assert "312 parameters" in shown[0], "printing works while tracing"


def test_trainable_and_cast() -> None:
    m = nn.Chain(dense(2, 2), nn.BatchNorm(2), nn.Embedding(3, 2, key=KEY))
    flags = nn.trainable(m)
    assert flags[1].scale is True and flags[1].mean is False and flags[0].weight is True
    assert fx.tree.flatten(flags)[1] == fx.tree.flatten(m)[1]
    assert [x.dtype for x in fx.tree.leaves(nn.cast(m, "f64"))] == [np.float64] * 7
    assert nn.trainable({"n": np.arange(3), "w": np.ones(2)}) == {"n": False, "w": True}


# ---- statistics and keys -----------------------------------------------------------------------------------------------


def test_statistics_need_someone_who_takes_them() -> None:
    m, x = nn.Chain(dense(3, 3), nn.BatchNorm(3)), draw(6, 3)
    assert code_of(m, x, train=True) == "FX1005"
    assert m(x).shape == (6, 3)
    with nn.State(m) as outer, nn.State(nn.BatchNorm(3)):
        m(x, train=True)  # the outer one holds the layer
    assert np.any(outer.model[1].mean) and outer.model[0] is not None
    with nn.State(m) as untouched:
        m(x)
    assert untouched.model is m


OUTSIDE = {
    "scan": lambda m, x: fx.scan(lambda c, x: (c, m(x, train=True)), 0, x),
    "vmap": lambda m, x: fx.vmap(lambda x: m(x, train=True))(x),
    "grad": lambda m, x: fx.grad(lambda x: fx.sum(m(x, train=True)))(x),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_statistics_do_not_leave_a_loop_or_transform(name: str) -> None:
    m, x = nn.BatchNorm(2), draw(4, 3, 2)

    def run(x: Any) -> Any:
        with nn.State(m) as s:
            OUTSIDE[name](m, x)
        return s.model.mean

    assert code_of(run, x if name != "grad" else x[0]) == "FX1005"
    assert code_of(fx.jit(run), x if name != "grad" else x[0]) == "FX0311"


def test_statistics_of_several_calls_in_one_step_add_up() -> None:
    norm, a, b = nn.BatchNorm(2, momentum=0.5), draw(8, 2), draw(8, 2)
    with nn.State(norm) as s:
        norm(a, train=True)
        norm(b, train=True)
    np.testing.assert_allclose(s.model.mean, 0.25 * a.mean(0) + 0.5 * b.mean(0), rtol=1e-5)
    again = nn.apply(nn.apply(norm, a, train=True)[1], b, train=True)[1]
    np.testing.assert_allclose(s.model.mean, again.mean, rtol=1e-6)


def test_statistics_in_a_loop_that_carries_the_model() -> None:
    m, xs = nn.Chain(nn.BatchNorm(2), fx.tanh), draw(5, 8, 2)

    def body(m: Any, x: Any) -> Any:
        y, m = nn.apply(m, x, train=True)
        return m, fx.sum(y)

    end, _ = fx.jit(lambda m, xs: fx.scan(body, m, xs))(m, xs)
    want = m
    for x in xs:
        want = nn.apply(want, x, train=True)[1]
    np.testing.assert_allclose(end[0].mean, want[0].mean, rtol=1e-5)
    np.testing.assert_allclose(end[0].var, want[0].var, rtol=1e-5)


def test_evaluation_uses_running_statistics() -> None:
    norm, x = nn.BatchNorm(3, momentum=1.0), draw(64, 3) * 2 + 1
    _, norm = nn.apply(norm, x, train=True)
    y = norm(x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(0, ddof=1), 1, rtol=1e-4)


def test_dropout() -> None:
    d, x = nn.Dropout(0.25), np.ones((200, 200), np.float32)
    assert d(x) is x and nn.Dropout(0.0)(x, train=True) is x
    assert code_of(d, x, train=True) == "FX1004"
    y = d(x, train=True, key=KEY)
    assert abs(np.mean(y == 0) - 0.25) < 0.01 and set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(y, fx.jit(lambda x, k: d(x, train=True, key=k))(x, KEY))
    rows = nn.Dropout(0.5, axes=(0, 1))(np.ones((20, 10, 7), np.float32), train=True, key=KEY)
    assert np.all(rows == rows[:, :, :1]) and 60 < np.sum(rows[:, :, 0] == 0) < 140
    a = nn.AlphaDropout(0.3)(draw(400, 400), train=True, key=KEY)
    assert abs(a.mean()) < 0.02 and abs(a.var() - 1) < 0.02


def test_layers_of_a_container_draw_different_numbers() -> None:
    x = np.ones((4, 64), np.float32)
    two = nn.Parallel(None, nn.Dropout(0.5), nn.Dropout(0.5))
    a, b = two(x, train=True, key=KEY)
    assert np.any(a != b)
    stack = nn.Chain(nn.Dropout(0.5), nn.Chain(nn.Dropout(0.5), nn.rrelu))
    y = stack(x, train=True, key=KEY)
    assert abs(np.mean(y == 0) - 0.75) < 0.1
    np.testing.assert_array_equal(y, stack(x, train=True, key=KEY))
    assert code_of(nn.Chain(nn.rrelu), x, train=True) == "FX1004"


def test_rrelu_draws_a_slope_for_each_element() -> None:
    y = nn.rrelu(-np.ones(1000, np.float32), train=True, key=KEY)
    assert np.all((-1 / 3 < y) & (y <= -1 / 8)) and len(np.unique(y)) > 900


# ---- containers --------------------------------------------------------------------------------------------------------


def test_chain_is_a_sequence() -> None:
    f, g, h = dense(2, 3), fx.tanh, dense(3, 1)
    c, n = nn.Chain(f, g, h), nn.Chain(first=f, middle=g, last=h)
    x = draw(4, 2)
    np.testing.assert_array_equal(c(x), h(g(f(x))))
    np.testing.assert_array_equal(c[:2](x), g(f(x)))
    assert len(c) == 3 and c[-1] is h and list(c) == [f, g, h] and n["last"] is h and n[1:]["middle"] is g
    assert nn.Chain()(x) is x and code_of(nn.Chain, f, last=h) == "FX1003" and code_of(nn.Chain, 3) == "FX1003"
    with pytest.raises(KeyError):
        n["none"]
    with pytest.raises(KeyError):
        c["first"]


def test_other_containers() -> None:
    f, g, x, z = dense(3, 2), dense(3, 2), draw(4, 3), draw(4, 3)
    np.testing.assert_allclose(nn.Parallel(fx.multiply, f, g)(x), f(x) * g(x), rtol=1e-6)
    np.testing.assert_allclose(nn.Parallel(fx.multiply, f, g)(x, z), f(x) * g(z), rtol=1e-6)
    np.testing.assert_allclose(nn.Parallel(fx.add, a=f, b=g)((x, z)), f(x) + g(z), rtol=1e-6)
    assert code_of(nn.Parallel(None, f, g), x, x, x) == "FX1002"
    s = nn.SkipConnection(dense(3, 3), lambda y, x: fx.concat([y, x], axis=1))
    assert s(x).shape == (4, 6) and np.array_equal(s(x)[:, 3:], x)
    np.testing.assert_allclose(nn.Maxout(f, g, nn.Chain(f, fx.negative))(x), np.maximum(np.abs(f(x)), np.maximum(g(x), f(x))) * 0 + np.maximum(np.maximum(f(x), g(x)), -f(x)))  # fmt: skip
    p = nn.PairwiseFusion(fx.add, f, dense(2, 2))
    a, b = p(x, draw(4, 2) * 0)
    np.testing.assert_allclose(b, dense(2, 2)(a), rtol=1e-6)
    assert nn.Flatten()(draw(2, 3, 4)).shape == (2, 12) and nn.Flatten(2)(draw(2, 3, 4, 5)).shape == (2, 3, 20)
    assert code_of(nn.Maxout) == "FX1003"


def test_recurrence_and_states() -> None:
    x = draw(2, 6, 3)
    lstm = nn.LSTM(3, 4, layers=2, key=KEY)
    whole, last = lstm(x, return_state=True)
    first, state = lstm(x[:, :2], return_state=True)
    second, end = lstm(x[:, 2:], state, return_state=True)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(fx.tree.leaves(end), fx.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lstm(x[0]), whole[0], rtol=1e-5, atol=1e-6)  # without a batch axis
    cell = nn.GRUCell(3, 4, key=KEY)
    h, ys = cell.initial((2,)), []
    for t in range(6):
        y, h = cell(x[:, t], h)
        ys.append(y)
    np.testing.assert_allclose(nn.Recurrence(cell)(x), np.stack(ys, 1), rtol=1e-5, atol=1e-6)
    count = nn.Recurrence(lambda x, s: (s + x, s + x))
    np.testing.assert_allclose(count(x, np.zeros((2, 3), np.float32)), np.cumsum(x, 1), rtol=1e-5, atol=1e-5)
    assert code_of(count, x) == "FX1002" and code_of(lstm, x, state[:1]) == "FX1002"
    assert code_of(nn.LSTM(3, 4, layers=2, dropout=0.5, key=KEY), x, train=True) == "FX1004"
    assert nn.RNNCell(3, 4, key=KEY)(x[:, 0])[0].shape == (2, 4)


def test_attention_weights_and_masks() -> None:
    m, x = nn.MultiHeadAttention(8, 2, key=KEY), draw(2, 5, 8)
    y, w = m(x, causal=True, return_weights=True)
    assert w.shape == (2, 2, 5, 5) and not np.any(np.triu(w, 1))
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(y, m(x, causal=True), rtol=1e-4, atol=1e-5)
    lower = np.tril(np.ones((5, 5), bool))
    np.testing.assert_allclose(m(x, mask=lower), y, rtol=1e-4, atol=1e-5)
    added = np.where(lower, 0, -1e9).astype(np.float32)
    np.testing.assert_allclose(m(x, mask=added, return_weights=True)[0], y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(m(x, bias=added), y, rtol=1e-4, atol=1e-5)
    both = m(x, mask=lower, causal=True, return_weights=True)[0]
    np.testing.assert_allclose(both, y, rtol=1e-4, atol=1e-5)
    cross = nn.MultiHeadAttention((8, 4, 6), 2, inner=12, inner_value=4, outputs=3, key=KEY)
    assert cross(x, draw(2, 7, 4), draw(2, 7, 6)).shape == (2, 5, 3)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_bias_goes_through_the_fused_op(kind: str, causal: bool) -> None:
    """Without returned weights a bias is part of the op's mask; with them the scores are written out. Both agree."""
    m = nn.MultiHeadAttention((6, 4, 5), 2, inner=8, inner_value=4, outputs=3, key=KEY, dtype="f64")
    q, k, v = (draw(2, s, d).astype(np.float64) for s, d in ((5, 6), (7, 4), (7, 5)))
    bias = np.sin(np.arange(70.0)).reshape(2, 5, 7)
    mask = {"none": None, "bool": np.arange(35).reshape(5, 7) % 3 > 0, "float": np.cos(np.arange(7.0))}[kind]
    if kind == "bool":
        mask[2] = False  # a query that may attend to nothing gives the output's bias alone

    def loss(both: Any, weights: bool) -> Any:
        y = both[0](q, k, v, bias=both[1], mask=mask, causal=causal, return_weights=weights)
        return fx.sum((y[0] if weights else y) ** 2)

    fused = fx.value_and_grad(lambda both: loss(both, False))((m, bias))
    plain = fx.value_and_grad(lambda both: loss(both, True))((m, bias))
    for a, b in zip(fx.tree.leaves(fused), fx.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    text = fx.jit(lambda b: m(q, k, v, bias=b, mask=mask, causal=causal)).lower(fx.f64[2, 5, 7]).as_text("traced")
    assert "attention(" in text


@pytest.mark.parametrize(
    "layer",
    [
        nn.AdaptiveMeanPool(1), nn.AdaptiveMaxPool(1), nn.Upsample(size=5), nn.Upsample(2, "bilinear"),
        nn.Upsample(size=(9, 4), mode="bilinear"), nn.Upsample(size=5, mode="bilinear", align_corners=True),
    ],
    ids=str,
)  # fmt: skip
def test_resizing_takes_symbolic_sizes(layer: Any) -> None:
    compiled = fx.jit(lambda x: layer(x)).lower(fx.f32["B", 2, "H", "W"]).compile()
    for h, w in ((3, 7), (8, 5), (1, 9)):
        x = draw(2, 2, h, w)
        np.testing.assert_allclose(compiled(x), layer(x), rtol=1e-5, atol=1e-6)


def test_resizing_names_the_axis_of_unknown_size() -> None:
    for layer in (nn.AdaptiveMeanPool(3), nn.AdaptiveMaxPool(3), nn.Upsample(1.5)):
        with pytest.raises(fx.errors.UserError, match=r"axis 3 of \[B, 2, 6, W\]"):
            nn.outputsize(layer, ("B", 2, 6, "W"))


def test_embedding_bags() -> None:
    bag = nn.EmbeddingBag(5, 3, "mean", key=KEY)
    i, there = np.array([[0, 1, 2], [4, 4, 4]]), np.array([[True, True, False], [False] * 3])
    w = np.asarray(bag.weight)
    np.testing.assert_allclose(bag(i, mask=there), [w[:2].mean(0), np.zeros(3)], rtol=1e-6)
    most = nn.EmbeddingBag(5, 3, "max", key=KEY)
    np.testing.assert_allclose(most(i, mask=there), [w[:2].max(0), np.zeros(3)], rtol=1e-6)
    np.testing.assert_allclose(
        nn.EmbeddingBag(5, 3, "sum", key=KEY)(i, np.ones((2, 3), np.float32)), w[i].sum(1), rtol=1e-5
    )
    table = nn.Embedding(5, 3, key=KEY)
    np.testing.assert_allclose(table.attend(w[:1]), w[:1] @ np.asarray(table.weight).T, rtol=1e-5)


def test_padding_same() -> None:
    for stride, window in ((1, 3), (2, 3), (3, 2), (2, 5)):
        c = nn.ConvTranspose(2, 3, (window,), stride=stride, padding="same", key=KEY)
        assert c(draw(1, 2, 6)).shape == (1, 3, 6 * stride)
    assert nn.Conv(2, 3, (3, 3), padding=((1, 0), (2, 1)), key=KEY)(draw(1, 2, 5, 5)).shape == (1, 3, 4, 6)
    assert nn.MaxPool(3, stride=1, padding="same")(draw(1, 2, 6)).shape == (1, 2, 6)


def test_weight_norm_changes_nothing_at_first() -> None:
    for layer, x in ((dense(4, 3), draw(2, 4)), (nn.Conv(2, 3, (3,), key=KEY), draw(2, 2, 6))):
        wrapped = nn.WeightNorm(layer)
        np.testing.assert_allclose(wrapped(x), layer(x), rtol=1e-5, atol=1e-6)
        doubled = wrapped.replace(magnitude=2 * wrapped.magnitude)
        np.testing.assert_allclose(doubled(x), 2 * np.asarray(layer(x)), rtol=1e-5, atol=1e-6)


class Halting(nn.Module):
    """A user's module with control flow that depends on values (Graves 2016)."""

    cell: Any
    halt: Any

    @fx.function
    def __call__(self, x: Any) -> Any:
        total, n = fx.zeros((), dtype=x.dtype), 0
        while total < 1 and n < 10:
            x = fx.tanh(self.cell(x)) + x
            total = total + fx.sigmoid(self.halt(x))[0]
            n += 1
        return x * total


def test_modules_with_staged_control_flow() -> None:
    m, x = nn.cast(Halting(dense(3, 3), dense(3, 1)), "f64"), RNG.normal(size=3)
    np.testing.assert_allclose(fx.jit(lambda m, x: m(x))(m, x), m(x), rtol=1e-12)
    g = fx.jit(fx.grad(lambda m, x: fx.sum(m(x))))(m, x)
    bias = np.asarray(m.cell.bias)
    for k in range(3):
        step = np.eye(3)[k] * 1e-6
        up, down = (fx.sum(m.replace(cell=m.cell.replace(bias=bias + s))(x)) for s in (step, -step))
        np.testing.assert_allclose(g.cell.bias[k], (up - down) / 2e-6, rtol=1e-6)


def test_models_are_functions_for_the_transforms() -> None:
    m, x = nn.Chain(dense(3, 4, fx.tanh), dense(4, 2)), draw(5, 3)
    np.testing.assert_allclose(fx.jit(m)(x), m(x), rtol=1e-5, atol=1e-6)
    whole = fx.grad(lambda m: fx.sum(m(x)))(m)
    saved = fx.grad(lambda m: fx.sum(fx.checkpoint(lambda m, x: m(x))(m, x)))(m)
    for a, b in zip(fx.tree.leaves(whole), fx.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_model_is_an_argument_of_an_artifact(tmp_path: Any) -> None:
    m, x = nn.Chain(dense(3, 4, fx.tanh), dense(4, 2)), draw(5, 3)
    compiled = fx.jit(lambda m, x: m(x)).lower(m, fx.f32["B", 3]).compile()
    np.testing.assert_allclose(compiled(m, x), m(x), rtol=1e-5, atol=1e-6)
    compiled.save(tmp_path / "m.fxb")
    y = fx.load(tmp_path / "m.fxb")(*fx.tree.leaves(m), x)
    np.testing.assert_array_equal(y, compiled(m, x))


def test_layers_under_a_loop_over_examples() -> None:
    m, x = nn.Chain(dense(3, 4, nn.relu), nn.LayerNorm(4)), draw(5, 3)
    np.testing.assert_allclose(fx.map(m, x), m(x), rtol=1e-5, atol=1e-6)


# ---- initialisers ------------------------------------------------------------------------------------------------------


def test_initialisers_have_the_variance_they_promise() -> None:
    i, shape = nn.init, (400, 300)
    want = {
        i.glorot_uniform: 2 / 700, i.glorot_normal: 2 / 700, i.kaiming_uniform: 2 / 400, i.kaiming_normal: 2 / 400,
        i.lecun_uniform: 1 / 400, i.lecun_normal: 1 / 400, functools.partial(i.normal, std=0.3): 0.09,
        functools.partial(i.uniform, low=-1, high=1): 1 / 3, functools.partial(i.kaiming_normal, gain=1.0): 1 / 400,
    }  # fmt: skip
    for f, variance in want.items():
        w = f(KEY, shape)
        assert w.shape == shape and w.dtype == np.float32 and abs(w.mean()) < 4 * np.sqrt(variance / w.size)
        assert abs(w.var() / variance - 1) < 0.02
        assert np.array_equal(w, f(KEY, shape)) and not np.array_equal(w, f(fx.random.key(1), shape))
        assert f(KEY, (2, 3), dtype="f64").dtype == np.float64
    assert i.fans_of((8, 3, 5, 5)) == (75, 200) and i.fans_of((4, 6)) == (4, 6)
    t = i.truncated_normal(KEY, (10000,), std=2.0, low=-1.0, high=3.0, mean=1.0)
    assert t.min() >= -1 and t.max() <= 3 and abs(t.mean() - 1) < 0.05
    assert np.all(i.constant(KEY, (2,), value=3.0) == 3) and not i.zeros(KEY, (2,)).any() and i.ones(KEY, (2,)).all()


def test_structured_initialisers() -> None:
    i = nn.init
    for shape in ((6, 4), (4, 6), (4, 2, 3)):
        w = i.orthogonal(KEY, shape, dtype="f64", gain=2.0).reshape(shape[0], -1) / 2
        product = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)
    s = i.sparse(KEY, (50, 7), sparsity=0.8)
    assert np.all((s == 0).sum(0) == 40)
    x = draw(1, 3, 5, 5)
    same = nn.Conv(3, 3, (3, 3), padding="same", bias=False, init=i.identity, key=KEY)
    np.testing.assert_allclose(same(x), x, rtol=1e-6)
    np.testing.assert_array_equal(i.identity(KEY, (2, 3)), np.eye(2, 3))
    assert code_of(i.orthogonal, KEY, (3,)) == "FX1003" and code_of(i.sparse, KEY, (3,)) == "FX1003"
    made = fx.jit(lambda k: nn.Dense(3, 2, key=k))(KEY)  # a model may be made by a compiled program
    np.testing.assert_allclose(made.weight, nn.Dense(3, 2, key=KEY).weight, rtol=1e-6)


# ---- tools -------------------------------------------------------------------------------------------------------------


def test_outputsize_computes_nothing() -> None:
    huge = nn.Chain(nn.Conv(3, 8, (3, 3), stride=2, key=KEY), nn.Flatten(), lambda x: x[:, :5])
    assert nn.outputsize(huge, (1, 3, 20001, 20001)) == (1, 5)
    assert nn.outputsize(nn.Chain(nn.BatchNorm(3), nn.Dropout(0.5)), ("B", 3), train=True) == ("B", 3)
    two = nn.Parallel(None, dense(4, 2), nn.Flatten())
    assert nn.outputsize(two, ("B", 4)) == (("B", 2), ("B", 4))
    assert nn.outputsize(nn.GRU(3, 4, key=KEY), ("B", "T", 3)) == ("B", "T", 4)
    assert nn.outputsize(nn.Embedding(5, 3, key=KEY), ("B",), dtype="i64") == ("B", 3)
    assert code_of(nn.outputsize, dense(4, 2), (3, 5)) == "FX1002"


def test_destructure() -> None:
    m = nn.Chain(dense(3, 4, fx.tanh), nn.BatchNorm(4), dense(4, 2))
    flat, rebuild = nn.destructure(m)
    assert flat.shape == (3 * 4 + 4 + 8 + 10,)
    x = draw(5, 3)
    np.testing.assert_array_equal(rebuild(flat)(x), m(x))
    g = fx.grad(lambda v: fx.sum(rebuild(v)(x) ** 2))(flat)
    want, _ = nn.destructure(fx.grad(lambda m: fx.sum(m(x) ** 2))(m))
    np.testing.assert_allclose(g, want, rtol=1e-5, atol=1e-6)
    assert code_of(rebuild, flat[1:]) == "FX1007" and code_of(nn.destructure, nn.Flatten()) == "FX1007"


def test_loading_refuses_what_does_not_fit() -> None:
    m = nn.Chain(dense(3, 4), fx.tanh, nn.BatchNorm(4))
    good = {"0.weight": draw(4, 3), "0.bias": draw(4), "2.weight": draw(4), "2.bias": draw(4), "2.running_mean": draw(4),
            "2.running_var": draw(4), "2.num_batches_tracked": np.array(3)}  # fmt: skip
    out = nn.load_torch(m, good)
    np.testing.assert_array_equal(out[0].weight, good["0.weight"].T)
    assert code_of(nn.load_torch, m, {k: v for k, v in good.items() if k != "0.bias"}) == "FX1007"
    assert code_of(nn.load_torch, m, good | {"3.weight": draw(1)}) == "FX1007"
    assert code_of(nn.load_torch, m, good | {"0.weight": draw(3, 4)}) == "FX1007"
    assert (
        code_of(nn.load_torch, nn.Dense(3, 4, bias=False, key=KEY), {"weight": draw(4, 3), "bias": draw(4)}) == "FX1007"
    )
    named = nn.load_torch(m, {"net." + k: v for k, v in good.items()}, prefix="net")
    np.testing.assert_array_equal(named[2].var, good["2.running_var"])
    layers = {"0": "linear", "2": "bn"}
    other = {layers[k[0]] + k[1:]: v for k, v in good.items()}
    np.testing.assert_array_equal(nn.load_torch(m, other, names=lambda n: layers.get(n, n))[0].bias, good["0.bias"])
    mine = nn.load_torch(Affine(draw(2, 2), draw(2)), {"w": np.eye(2), "b": np.ones(2)})
    assert mine.w.dtype == np.float32 and mine.b.tolist() == [1, 1]


def test_flux_convolutions_are_mirrored() -> None:
    """Flux's Conv: y[p, o] = sum over k, c of w[K - 1 - k, c, o] x[p + k, c], in the order [space, channels, batch]."""
    w, b, x = draw(3, 2, 4), draw(4), draw(6, 2, 5)
    want = np.zeros((4, 4, 5))
    for p in range(4):
        for k in range(3):
            want[p] += np.einsum("co,cn->on", w[2 - k], x[p + k])
    want += b[None, :, None]
    conv = nn.load_flux(nn.Conv(2, 4, (3,), key=KEY), weight=w, bias=b)
    np.testing.assert_allclose(nn.flux_layout(conv(nn.flux_layout(x))), want, rtol=1e-4, atol=1e-5)
    w2, x2 = draw(3, 2, 2, 4), draw(5, 6, 2, 1)  # [W, H, in, out], [W, H, C, N]
    want2 = np.zeros((3, 5, 4, 1))
    for p in range(3):
        for q in range(5):
            for i in range(3):
                for j in range(2):
                    want2[p, q] += np.einsum("co,cn->on", w2[2 - i, 1 - j], x2[p + i, q + j])
    conv2 = nn.load_flux(nn.Conv(2, 4, (2, 3), bias=False, key=KEY), weight=w2)
    np.testing.assert_allclose(nn.flux_layout(conv2(nn.flux_layout(x2))), want2, rtol=1e-4, atol=1e-5)


def test_flux_layers() -> None:
    d = nn.load_flux(dense(3, 2), weight=draw(2, 3), bias=draw(2))
    assert d.weight.shape == (3, 2)
    n = nn.load_flux(nn.BatchNorm(2), gamma=draw(2), beta=draw(2), mu=draw(2), sigma2=np.ones(2))
    assert n.var.tolist() == [1, 1]
    e = nn.load_flux(nn.Embedding(5, 3, key=KEY), weight=draw(3, 5))
    assert e.weight.shape == (5, 3)
    r = nn.load_flux(nn.LSTMCell(3, 4, key=KEY), Wi=draw(16, 3), Wh=draw(16, 4), b=draw(16))
    assert r.weight.shape == (3, 16) and r.recurrent.shape == (4, 16)
    wi, wh, candidate, b, x, h = draw(12, 3), draw(8, 4), draw(4, 4), draw(12), draw(3), draw(4)
    gru = nn.load_flux(nn.GRUCell(3, 4, key=KEY), Wi=wi, Wh=wh, Wh_candidate=candidate, b=b)
    i, s = wi @ x + b, wh @ h
    r, z = 1 / (1 + np.exp(-i[:4] - s[:4])), 1 / (1 + np.exp(-i[4:8] - s[4:]))
    want = (1 - z) * np.tanh(i[8:] + r * (candidate @ h)) + z * h
    np.testing.assert_allclose(gru(x, h)[0], want, rtol=1e-5, atol=1e-6)
    assert code_of(nn.load_flux, nn.GRUCell(3, 4, key=KEY), Wi=wi, Wh=wh, b=b) == "FX1007"
    assert code_of(nn.load_flux, dense(3, 2), kernel=draw(2, 3)) == "FX1007"


# ---- losses and errors -------------------------------------------------------------------------------------------------

LOSSES = [
    "mae", "mse", "msle", "huber", "poisson", "crossentropy", "logit_crossentropy", "binary_crossentropy",
    "logit_binary_crossentropy", "focal", "binary_focal", "kl_divergence", "hinge", "squared_hinge", "dice", "tversky",
    "siamese_contrastive",
]  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_never_broadcasts(name: str) -> None:
    f = getattr(nn, name)
    for a, b in (((4, 1), (4,)), ((4, 3), (1, 3)), ((4, 3), ())):
        with pytest.raises(fx.FluxError) as caught:
            f(np.full(a, 0.5, np.float32), np.full(b, 0.5, np.float32))
        assert caught.value.code == "FX1001"
        assert str(list(a)) in caught.value.message and str(list(b)) in caught.value.message
    with pytest.raises(fx.FluxError) as caught:
        fx.jit(f).lower(fx.f32["N", 3], fx.f32["M", 3])
    assert caught.value.code == "FX1001" and "[N, 3]" in caught.value.message and "[M, 3]" in caught.value.message
    p, y = np.full((4, 3), 0.5, np.float32), np.full((4, 3), 0.25, np.float32)
    each = f(p, y, agg=None)
    np.testing.assert_allclose(f(p, y), np.mean(each), rtol=1e-6)
    np.testing.assert_allclose(f(p, y, agg=fx.sum), np.sum(each), rtol=1e-6)
    np.testing.assert_allclose(fx.jit(f, signature=(fx.f32["N", 3], fx.f32["N", 3]))(p, y), np.mean(each), rtol=1e-5)


def test_losses_at_the_edge() -> None:
    certain, y = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]])
    for f in (nn.crossentropy, nn.kl_divergence, nn.binary_crossentropy, nn.focal, nn.binary_focal, nn.poisson):
        value, g = fx.value_and_grad(lambda p, f=f: f(p, y))(certain)
        assert np.isfinite(value) and np.all(np.isfinite(g)), f.__name__
    assert nn.mse(np.ones(3, np.float32), np.ones(3, bool)) == 0
    assert nn.logit_crossentropy(
        np.zeros((2, 3, 4), np.float32), np.zeros((2, 4), np.int64), axis=1, agg=None
    ).shape == (2, 4)
    assert code_of(nn.logit_crossentropy, np.zeros((2, 3)), np.zeros(3, np.int64)) == "FX1001"
    np.testing.assert_allclose(nn.label_smoothing(np.eye(2), 0.2), [[0.9, 0.1], [0.1, 0.9]])
    np.testing.assert_allclose(nn.binary_label_smoothing(np.array([0, 1]), 0.2), [0.1, 0.9])
    assert np.isfinite(nn.logit_binary_crossentropy(np.array([1e4, -1e4]), np.array([0.0, 1.0])))


def test_ctc_by_enumeration() -> None:
    """The sum over all paths of four steps that spell the labels, one by one."""
    import itertools

    x, labels = RNG.normal(size=(1, 4, 3)), np.array([[1, 1]])
    p = np.exp(x[0]) / np.exp(x[0]).sum(1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        merged = [c for i, c in enumerate(path) if i == 0 or c != path[i - 1]]
        if [c for c in merged if c != 0] == [1, 1]:
            total += np.prod([p[t, c] for t, c in enumerate(path)])
    np.testing.assert_allclose(nn.ctc(x, labels), -np.log(total), rtol=1e-10)
    short = nn.ctc(x[:, :2], labels, agg=None)
    assert short[0] > 1e29, "two steps cannot spell it"
    g = fx.grad(lambda x: nn.ctc(x, labels))(x[:, :2])
    assert np.all(np.isfinite(g))
    f = fx.jit(
        lambda x: nn.ctc(x, np.array([[1, 2], [2, 0]]), label_lengths=np.array([2, 1])), signature=(fx.f64[2, "T", 3],)
    )
    y = RNG.normal(size=(2, 6, 3))
    np.testing.assert_allclose(f(y), nn.ctc(y, np.array([[1, 2], [2, 0]]), label_lengths=np.array([2, 1])), rtol=1e-9)
    assert code_of(nn.ctc, x, np.array([1, 1])) == "FX1001" and code_of(nn.ctc, x, np.array([[1], [1]])) == "FX1001"


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("FX1002", lambda: dense(3, 2)(draw(2, 4))), ("FX1002", lambda: nn.Conv(3, 2, (3,), key=KEY)(draw(1, 3, 5, 5))),
        ("FX1002", lambda: nn.Conv(3, 2, (3,), key=KEY)(draw(1, 2, 5))), ("FX1002", lambda: nn.BatchNorm(3)(draw(2, 4))),
        ("FX1002", lambda: nn.LSTM(3, 4, key=KEY)(draw(2, 5, 2))), ("FX1002", lambda: nn.LayerNorm(3)(draw(2, 4))),
        ("FX1002", lambda: nn.MaxPool(2)(draw(2, 4))), ("FX1002", lambda: nn.PixelShuffle(2)(draw(1, 3, 2, 2))),
        ("FX1002", lambda: nn.Upsample(2, "bilinear")(draw(1, 2, 3))), ("FX1002", lambda: nn.InstanceNorm(3)(draw(2, 3))),
        ("FX1002", lambda: nn.MultiHeadAttention(6, 2, key=KEY)(draw(2, 5, 5))), ("FX1003", lambda: nn.Conv(3, 2, 3, key=KEY)),
        ("FX1003", lambda: nn.Conv(3, 4, (3,), groups=2, key=KEY)), ("FX1003", lambda: nn.Dropout(1.0)),
        ("FX1003", lambda: nn.MultiHeadAttention(6, 4, key=KEY)), ("FX1003", lambda: nn.GroupNorm(2, 3)),
        ("FX1003", lambda: nn.Upsample(2, "cubic")), ("FX1003", lambda: nn.Upsample()),
        ("FX1003", lambda: nn.EmbeddingBag(3, 2, "median", key=KEY)), ("FX1003", lambda: nn.Conv(1, 1, (3, 3), stride=(1,), key=KEY)),
        ("FX1003", lambda: nn.Conv(1, 1, (3,), padding="full", key=KEY)), ("FX1003", lambda: nn.LSTM(3, 4, layers=0, key=KEY)),
        ("FX1003", lambda: nn.siamese_contrastive(np.ones(2), np.ones(2), margin=0)),
    ],
)  # fmt: skip
def test_wrong_use_is_named(code: str, make: Any) -> None:
    assert code_of(make) == code


def test_names_of_the_compiler_are_still_there() -> None:
    for name in fx.functional.__all__:
        assert getattr(nn, name) is getattr(fx.functional, name), name
        assert name in nn.__all__
    assert len(set(nn.__all__)) == len(nn.__all__)
