"""Layers, activations and losses as PyTorch has them, in f64, with gradients: the fixture `nn.npz` for tests/test_nn_oracle.py.

`python -m tests.oracle.nn` writes it and needs PyTorch; the tests need only the file. Of a layer it holds the parameters by
PyTorch's names, the inputs, the result, a cotangent of it, and the gradients of inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).resolve().parent / "nn.npz"


@dataclass(frozen=True)
class Layer:
    """`torch(t)` makes PyTorch's module, `ours(nn, key)` our model; `inputs` are shapes, or (shape, limit) for integers."""

    name: str
    inputs: tuple[Any, ...]
    torch: Callable[[Any], Any]
    ours: Callable[[Any, Any], Any]
    train: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # how PyTorch's module is called
    ours_options: dict[str, Any] = field(default_factory=dict)
    pick: Callable[[Any], Any] = lambda out: out  # what of PyTorch's result is compared


def flat_state(out: Any) -> Any:
    """PyTorch's (y, h) or (y, (h, c)) as one array: the result, then the states, each flat."""
    import torch

    y, s = out
    return torch.cat([y.reshape(-1), *[a.reshape(-1) for a in (s if isinstance(s, tuple) else (s,))]])


CAUSAL = np.triu(np.ones((5, 5), bool), 1)
PADDED = np.array([[False] * 6, [False] * 4 + [True] * 2])


def sequential(t: Any) -> Any:
    n = t.nn
    return n.Sequential(
        n.Conv2d(2, 4, 3, padding=1), n.BatchNorm2d(4), n.ReLU(), n.MaxPool2d(2), n.Flatten(), n.Linear(36, 5)
    )


LAYERS = [
    Layer("dense", ((3, 4),), lambda t: t.nn.Linear(4, 3), lambda nn, k: nn.Dense(4, 3, key=k)),
    Layer("dense_3d", ((2, 3, 4),), lambda t: t.nn.Linear(4, 3, bias=False), lambda nn, k: nn.Dense(4, 3, key=k, bias=False)),
    Layer("bilinear", ((3, 4), (3, 2)), lambda t: t.nn.Bilinear(4, 2, 3), lambda nn, k: nn.Bilinear((4, 2), 3, key=k)),
    Layer("embedding", (((2, 3), 5),), lambda t: t.nn.Embedding(5, 3), lambda nn, k: nn.Embedding(5, 3, key=k)),
    *[
        Layer(f"bag_{m}", (((4, 3), 7),), lambda t, m=m: t.nn.EmbeddingBag(7, 2, mode=m), lambda nn, k, m=m: nn.EmbeddingBag(7, 2, m, key=k))
        for m in ("mean", "sum", "max")
    ],
    Layer("conv1", ((2, 3, 9),), lambda t: t.nn.Conv1d(3, 4, 3, stride=2, padding=1), lambda nn, k: nn.Conv(3, 4, (3,), key=k, stride=2, padding=1)),
    Layer("conv2", ((2, 4, 7, 6),), lambda t: t.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2),
          lambda nn, k: nn.Conv(4, 6, (3, 2), key=k, stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2)),
    Layer("conv2_same", ((2, 2, 5, 4),), lambda t: t.nn.Conv2d(2, 3, (3, 2), padding="same", bias=False), lambda nn, k: nn.Conv(2, 3, (3, 2), key=k, padding="same", bias=False)),
    Layer("conv3", ((1, 2, 4, 5, 4),), lambda t: t.nn.Conv3d(2, 3, (2, 3, 2), padding=(1, 1, 0)), lambda nn, k: nn.Conv(2, 3, (2, 3, 2), key=k, padding=(1, 1, 0))),
    Layer("depthwise", ((2, 3, 6, 5),), lambda t: t.nn.Conv2d(3, 6, 3, groups=3), lambda nn, k: nn.DepthwiseConv(3, (3, 3), multiplier=2, key=k)),
    Layer("transpose1", ((2, 3, 5),), lambda t: t.nn.ConvTranspose1d(3, 2, 4, stride=3, padding=1), lambda nn, k: nn.ConvTranspose(3, 2, (4,), key=k, stride=3, padding=1)),
    Layer("transpose2", ((2, 4, 3, 4),), lambda t: t.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=2),
          lambda nn, k: nn.ConvTranspose(4, 6, (3, 3), key=k, stride=2, padding=1, output_padding=1, dilation=2, groups=2)),
    Layer("transpose3", ((1, 2, 2, 3, 2),), lambda t: t.nn.ConvTranspose3d(2, 2, 2, stride=2), lambda nn, k: nn.ConvTranspose(2, 2, (2, 2, 2), key=k, stride=2)),
    Layer("maxpool1", ((2, 2, 9),), lambda t: t.nn.MaxPool1d(3, stride=2, padding=1), lambda nn, k: nn.MaxPool(3, stride=2, padding=1)),
    Layer("maxpool2", ((2, 2, 7, 6),), lambda t: t.nn.MaxPool2d((2, 3), dilation=(2, 1)), lambda nn, k: nn.MaxPool((2, 3), dilation=(2, 1))),
    Layer("maxpool3", ((1, 2, 4, 4, 4),), lambda t: t.nn.MaxPool3d(2), lambda nn, k: nn.MaxPool(2)),
    Layer("meanpool1", ((2, 2, 8),), lambda t: t.nn.AvgPool1d(3, stride=2, padding=1), lambda nn, k: nn.MeanPool(3, stride=2, padding=1)),
    Layer("meanpool2", ((2, 2, 7, 6),), lambda t: t.nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), lambda nn, k: nn.MeanPool(3, stride=2, padding=1, count_include_pad=False)),
    Layer("meanpool3", ((1, 2, 4, 4, 4),), lambda t: t.nn.AvgPool3d(2), lambda nn, k: nn.MeanPool(2)),
    Layer("adaptive_max", ((2, 2, 7, 6),), lambda t: t.nn.AdaptiveMaxPool2d((3, 4)), lambda nn, k: nn.AdaptiveMaxPool((3, 4))),
    Layer("adaptive_mean", ((2, 2, 7, 6),), lambda t: t.nn.AdaptiveAvgPool2d((3, 4)), lambda nn, k: nn.AdaptiveMeanPool((3, 4))),
    Layer("adaptive_mean_even", ((2, 2, 6, 8),), lambda t: t.nn.AdaptiveAvgPool2d((3, 4)), lambda nn, k: nn.AdaptiveMeanPool((3, 4))),
    Layer("adaptive_max3", ((1, 2, 4, 5, 6),), lambda t: t.nn.AdaptiveMaxPool3d(2), lambda nn, k: nn.AdaptiveMaxPool(2)),
    Layer("nearest", ((2, 2, 3, 4),), lambda t: t.nn.Upsample(scale_factor=2), lambda nn, k: nn.Upsample(2)),
    Layer("nearest_size", ((2, 2, 5),), lambda t: t.nn.Upsample(size=8), lambda nn, k: nn.Upsample(size=8)),
    Layer("linear", ((2, 2, 5),), lambda t: t.nn.Upsample(scale_factor=3, mode="linear"), lambda nn, k: nn.Upsample(3, "linear")),
    Layer("bilinear_up", ((2, 2, 3, 4),), lambda t: t.nn.Upsample(scale_factor=2, mode="bilinear"), lambda nn, k: nn.Upsample(2, "bilinear")),
    Layer("bilinear_corners", ((2, 2, 3, 4),), lambda t: t.nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True), lambda nn, k: nn.Upsample(mode="bilinear", size=(5, 7), align_corners=True)),
    Layer("bilinear_down", ((2, 2, 7, 6),), lambda t: t.nn.Upsample(size=(4, 5), mode="bilinear"), lambda nn, k: nn.Upsample(mode="bilinear", size=(4, 5))),
    Layer("trilinear", ((1, 2, 2, 3, 2),), lambda t: t.nn.Upsample(scale_factor=2, mode="trilinear"), lambda nn, k: nn.Upsample(2, "trilinear")),
    Layer("shuffle", ((2, 8, 2, 3),), lambda t: t.nn.PixelShuffle(2), lambda nn, k: nn.PixelShuffle(2)),
    *[
        Layer(f"{name.lower()}_{layers}{'b' if both else ''}{kind}", ((2, 4, 3),),
              lambda t, name=name, layers=layers, both=both, kind=kind: getattr(t.nn, name)(3, 4, layers, batch_first=True, bidirectional=both, **({"nonlinearity": kind} if kind else {})),
              lambda nn, k, name=name, layers=layers, both=both, kind=kind: getattr(nn, name)(3, 4, layers=layers, bidirectional=both, key=k, **({"activation": getattr(nn, kind)} if kind else {})),
              ours_options={"return_state": True}, pick=flat_state)
        for name, layers, both, kind in [("RNN", 1, False, ""), ("RNN", 2, True, "relu"), ("LSTM", 1, False, ""), ("LSTM", 2, True, ""), ("GRU", 1, False, ""), ("GRU", 2, True, "")]
    ],
    Layer("mha", ((2, 5, 6),) * 3, lambda t: t.nn.MultiheadAttention(6, 2, batch_first=True), lambda nn, k: nn.MultiHeadAttention(6, 2, bias=True, key=k), pick=lambda o: o[0]),
    Layer("mha_causal", ((2, 5, 6),) * 3, lambda t: t.nn.MultiheadAttention(6, 3, batch_first=True, bias=False), lambda nn, k: nn.MultiHeadAttention(6, 3, key=k),
          options={"attn_mask": CAUSAL}, ours_options={"causal": True}, pick=lambda o: o[0]),
    Layer("mha_cross", ((2, 5, 6), (2, 6, 4), (2, 6, 3)), lambda t: t.nn.MultiheadAttention(6, 2, batch_first=True, kdim=4, vdim=3), lambda nn, k: nn.MultiHeadAttention((6, 4, 3), 2, bias=True, key=k),
          options={"key_padding_mask": PADDED}, ours_options={"mask": ~PADDED[:, None, None, :]}, pick=lambda o: o[0]),
    Layer("batchnorm1_train", ((5, 3),), lambda t: t.nn.BatchNorm1d(3), lambda nn, k: nn.BatchNorm(3), train=True),
    Layer("batchnorm2_train", ((2, 3, 4, 2),), lambda t: t.nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), lambda nn, k: nn.BatchNorm(3, momentum=0.3, eps=1e-3), train=True),
    Layer("batchnorm2", ((2, 3, 4, 2),), lambda t: t.nn.BatchNorm2d(3), lambda nn, k: nn.BatchNorm(3)),
    Layer("batchnorm_untracked", ((4, 3),), lambda t: t.nn.BatchNorm1d(3, affine=False, track_running_stats=False), lambda nn, k: nn.BatchNorm(3, affine=False, track=False)),
    Layer("layernorm", ((2, 3, 4),), lambda t: t.nn.LayerNorm((3, 4)), lambda nn, k: nn.LayerNorm(3, 4)),
    Layer("rmsnorm", ((2, 3, 4),), lambda t: t.nn.RMSNorm(4, eps=1e-6), lambda nn, k: nn.RMSNorm(4)),
    Layer("instancenorm", ((2, 3, 5),), lambda t: t.nn.InstanceNorm1d(3, affine=True), lambda nn, k: nn.InstanceNorm(3, affine=True)),
    Layer("instancenorm_train", ((2, 3, 4, 2),), lambda t: t.nn.InstanceNorm2d(3, track_running_stats=True), lambda nn, k: nn.InstanceNorm(3, track=True), train=True),
    Layer("groupnorm", ((2, 6, 4),), lambda t: t.nn.GroupNorm(3, 6), lambda nn, k: nn.GroupNorm(3, 6)),
    Layer("sequential_train", ((3, 2, 6, 6),), sequential, lambda nn, k: nn.Chain(nn.Conv(2, 4, (3, 3), padding=1, key=k), nn.BatchNorm(4), nn.relu, nn.MaxPool(2), nn.Flatten(), nn.Dense(36, 5, key=k)), train=True),
]  # fmt: skip


GRID = np.linspace(-4.03, 4.01, 40)  # holds no kink

ACTIVATIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "celu": (lambda f, x: f.celu(x, 0.5), lambda nn, x: nn.celu(x, 0.5)),
    "elu": (lambda f, x: f.elu(x, 0.7), lambda nn, x: nn.elu(x, 0.7)),
    "gelu_tanh": (lambda f, x: f.gelu(x, approximate="tanh"), lambda nn, x: nn.gelu_tanh(x)),
    "gelu_erf": (lambda f, x: f.gelu(x), lambda nn, x: nn.gelu_erf(x)),
    "gelu_sigmoid": (lambda f, x: x * (1.702 * x).sigmoid(), lambda nn, x: nn.gelu_sigmoid(x)),
    "glu": (lambda f, x: f.glu(x), lambda nn, x: nn.glu(x)),
    "hardsigmoid": (lambda f, x: (x + 3).clamp(0, 6) / 6, lambda nn, x: nn.hardsigmoid(x)),
    "hardswish": (lambda f, x: x * (x + 3).clamp(0, 6) / 6, lambda nn, x: nn.hardswish(x)),
    "hardtanh": (lambda f, x: f.hardtanh(x), lambda nn, x: nn.hardtanh(x)),
    "hardshrink": (lambda f, x: f.hardshrink(x), lambda nn, x: nn.hardshrink(x)),
    "leakyrelu": (lambda f, x: f.leaky_relu(x, 0.2), lambda nn, x: nn.leakyrelu(x, 0.2)),
    "lisht": (lambda f, x: x * x.tanh(), lambda nn, x: nn.lisht(x)),
    "logcosh": (lambda f, x: x.cosh().log(), lambda nn, x: nn.logcosh(x)),
    "logsigmoid": (lambda f, x: f.logsigmoid(x), lambda nn, x: nn.logsigmoid(x)),
    "mish": (lambda f, x: f.mish(x), lambda nn, x: nn.mish(x)),
    "relu": (lambda f, x: f.relu(x), lambda nn, x: nn.relu(x)),
    "relu6": (lambda f, x: f.relu6(2 * x), lambda nn, x: nn.relu6(2 * x)),
    "rrelu": (lambda f, x: f.rrelu(x), lambda nn, x: nn.rrelu(x)),
    "selu": (lambda f, x: f.selu(x), lambda nn, x: nn.selu(x)),
    "sigmoid": (lambda f, x: x.sigmoid(), lambda nn, x: nn.sigmoid(x)),
    "sigmoid_fast": (lambda f, x: x.sigmoid(), lambda nn, x: nn.sigmoid_fast(x)),
    "softplus": (lambda f, x: f.softplus(x), lambda nn, x: nn.softplus(x)),
    "softshrink": (lambda f, x: f.softshrink(x), lambda nn, x: nn.softshrink(x)),
    "softsign": (lambda f, x: f.softsign(x), lambda nn, x: nn.softsign(x)),
    "swish": (lambda f, x: f.silu(x), lambda nn, x: nn.swish(x)),
    "tanh": (lambda f, x: x.tanh(), lambda nn, x: nn.tanh(x)),
    "tanh_fast": (lambda f, x: x.tanh(), lambda nn, x: nn.tanh_fast(x)),
    "tanhshrink": (lambda f, x: f.tanhshrink(x), lambda nn, x: nn.tanhshrink(x)),
    "trelu": (lambda f, x: f.threshold(x, 1.0, 0.0), lambda nn, x: nn.trelu(x)),
}

_RNG = np.random.default_rng(5)
P, Y = _RNG.uniform(0.1, 0.9, (4, 5)), _RNG.uniform(0.1, 0.9, (4, 5))
LOGITS = _RNG.normal(size=(4, 5)) * 3
ONE_HOT = np.eye(5)[[1, 0, 4, 4]]
SIGNS = np.where(_RNG.random((4, 5)) < 0.5, -1.0, 1.0)
CTC_LOGITS = _RNG.normal(size=(3, 7, 5))
CTC_LABELS = np.array([[1, 1, 2], [3, 4, 0], [2, 0, 0]])
CTC_IN, CTC_OUT = np.array([7, 6, 7]), np.array([3, 2, 0])

# name: (what is differentiated, PyTorch, ours)
LOSSES: dict[str, tuple[Any, Callable[[Any, Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "mae": (P, lambda t, f, p: f.l1_loss(p, t.tensor(Y)), lambda nn, p: nn.mae(p, Y)),
    "mse": (P, lambda t, f, p: f.mse_loss(p, t.tensor(Y)), lambda nn, p: nn.mse(p, Y)),
    "msle": (P, lambda t, f, p: ((1 + p).log() - (1 + t.tensor(Y)).log()).square().mean(), lambda nn, p: nn.msle(p, Y)),
    "huber": (4 * P, lambda t, f, p: f.huber_loss(p, t.tensor(Y), delta=0.7), lambda nn, p: nn.huber(p, Y, delta=0.7)),
    "poisson": (P, lambda t, f, p: f.poisson_nll_loss(p, t.tensor(Y), log_input=False, eps=0.0), lambda nn, p: nn.poisson(p, Y)),
    "crossentropy": (P, lambda t, f, p: -(t.tensor(ONE_HOT) * p.log()).sum(1).mean(), lambda nn, p: nn.crossentropy(p, ONE_HOT)),
    "logit_crossentropy": (LOGITS, lambda t, f, x: f.cross_entropy(x, t.tensor(Y)), lambda nn, x: nn.logit_crossentropy(x, Y)),
    "logit_crossentropy_labels": (LOGITS, lambda t, f, x: f.cross_entropy(x, t.tensor([1, 0, 4, 4])), lambda nn, x: nn.logit_crossentropy(x, np.array([1, 0, 4, 4]))),
    "logit_crossentropy_smooth": (LOGITS, lambda t, f, x: f.cross_entropy(x, t.tensor([1, 0, 4, 4]), label_smoothing=0.2), lambda nn, x: nn.logit_crossentropy(x, np.array([1, 0, 4, 4]), smoothing=0.2)),
    "binary_crossentropy": (P, lambda t, f, p: f.binary_cross_entropy(p, t.tensor(Y)), lambda nn, p: nn.binary_crossentropy(p, Y)),
    "logit_binary_crossentropy": (30 * LOGITS, lambda t, f, x: f.binary_cross_entropy_with_logits(x, t.tensor(Y)), lambda nn, x: nn.logit_binary_crossentropy(x, Y)),
    "focal": (P, lambda t, f, p: -((1 - p) ** 2 * t.tensor(ONE_HOT) * p.log()).sum(1).mean(), lambda nn, p: nn.focal(p, ONE_HOT)),
    "binary_focal": (P, lambda t, f, p: -(t.tensor(ONE_HOT) * (1 - p) ** 1.5 * p.log() + (1 - t.tensor(ONE_HOT)) * p**1.5 * (1 - p).log()).mean(), lambda nn, p: nn.binary_focal(p, ONE_HOT, gamma=1.5)),
    "kl_divergence": (P, lambda t, f, p: f.kl_div(p.log(), t.tensor(Y), reduction="batchmean"), lambda nn, p: nn.kl_divergence(p, Y)),
    "hinge": (LOGITS, lambda t, f, p: (1 - p * t.tensor(SIGNS)).clamp(min=0).mean(), lambda nn, p: nn.hinge(p, SIGNS)),
    "squared_hinge": (LOGITS, lambda t, f, p: (1 - p * t.tensor(SIGNS)).clamp(min=0).square().mean(), lambda nn, p: nn.squared_hinge(p, SIGNS)),
    "dice": (P, lambda t, f, p: (1 - (2 * (p * t.tensor(Y)).sum(1) + 1) / ((p * p).sum(1) + t.tensor(Y).square().sum(1) + 1)).mean(), lambda nn, p: nn.dice(p, Y)),
    "tversky": (P, lambda t, f, p: (1 - ((p * t.tensor(Y)).sum(1) + 1) / ((p * t.tensor(Y)).sum(1) + 0.6 * ((1 - p) * t.tensor(Y)).sum(1) + 0.4 * (p * (1 - t.tensor(Y))).sum(1) + 1)).mean(), lambda nn, p: nn.tversky(p, Y, beta=0.6)),
    "siamese_contrastive": (2 * P, lambda t, f, d: ((1 - t.tensor(ONE_HOT)) * d * d + t.tensor(ONE_HOT) * (1.2 - d).clamp(min=0).square()).mean(), lambda nn, d: nn.siamese_contrastive(d, ONE_HOT, margin=1.2)),
    "ctc": (CTC_LOGITS, lambda t, f, x: f.ctc_loss(x.log_softmax(-1).transpose(0, 1), t.tensor(CTC_LABELS), t.tensor(CTC_IN), t.tensor(CTC_OUT), reduction="none").mean(),
            lambda nn, x: nn.ctc(x, CTC_LABELS, CTC_IN, CTC_OUT)),
}  # fmt: skip


def short(x: Any) -> Any:
    """Numbers of few digits, which take little room in the file."""
    return np.round(np.asarray(x) * 2**16) / 2**16


def _layer(case: Layer, torch: Any) -> dict[str, Any]:
    torch.manual_seed(sum(map(ord, case.name)))
    rng = np.random.default_rng(len(case.name))
    module = case.torch(torch).double()
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            if p.dtype == torch.float64:
                p.copy_(
                    torch.tensor(
                        short(rng.uniform(0.5, 1.5, p.shape) if "var" in name else rng.uniform(-1, 1, p.shape))
                    )
                )
    module.train(case.train)
    out = {f"param/{k}": v.numpy().copy() for k, v in module.state_dict().items() if v.ndim}
    inputs = []
    for spec in case.inputs:
        if isinstance(spec[0], tuple):
            inputs.append(torch.tensor(rng.integers(0, spec[1], spec[0])))
        else:
            inputs.append(torch.tensor(short(rng.normal(size=spec)), requires_grad=True))
    y = case.pick(module(*inputs, **{k: torch.tensor(v) for k, v in case.options.items()}))
    ct = torch.tensor(short(rng.normal(size=y.shape)))
    (y * ct).sum().backward()
    out |= {f"in/{i}": x.detach().numpy() for i, x in enumerate(inputs)} | {"out": y.detach().numpy(), "ct": ct.numpy()}
    out |= {f"gin/{i}": x.grad.numpy() for i, x in enumerate(inputs) if x.grad is not None}
    out |= {f"gparam/{k}": p.grad.numpy() for k, p in module.named_parameters()}
    if case.train:
        out |= {f"after/{k}": v.numpy() for k, v in module.named_buffers() if v.ndim}
    return {f"{case.name}/{k}": v for k, v in out.items()}


def main() -> None:
    import torch

    f = torch.nn.functional
    arrays: dict[str, Any] = {}
    for case in LAYERS:
        arrays |= _layer(case, torch)
    for name, (theirs, _) in ACTIVATIONS.items():
        x = torch.tensor(GRID, requires_grad=True)
        y = theirs(f, x)
        y.sum().backward()
        arrays |= {f"activation/{name}/out": y.detach().numpy(), f"activation/{name}/grad": x.grad.numpy()}
    for name, (at, loss, _) in LOSSES.items():
        x = torch.tensor(at, requires_grad=True)
        y = loss(torch, f, x)
        y.backward()
        arrays |= {f"loss/{name}/out": y.detach().numpy(), f"loss/{name}/grad": x.grad.numpy()}
    np.savez_compressed(FIXTURE, **arrays)
    print(f"{FIXTURE.name}: {len(arrays)} arrays, {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
