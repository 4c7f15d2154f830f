"""`fx.nn`: layers, activations, losses and initialisers; models are trees that are called (`Module`).

The room uses what every user has, the package `fluxir` itself. One subject a file: `module` (trees that are callables),
`state` (running statistics), `show` (printing), `init`; layers in `dense conv pool upsample recurrent attention norm dropout
containers`; `activations`, `losses`, `ctc`; `tools` and `convert`. The functions on tensors that the compiler provides
(softmax, attention, pooling, ...) have their names here too.

Conventions: images are [batch, channels, space...], sequences [batch, time, features]. Random numbers, of initial weights
and of dropout, come from explicit keys. Training is said by `train=True`.
"""

from typing import Any

import fluxir as fx
from fluxir.nn import activations, init, losses
from fluxir.nn.activations import *  # noqa: F403
from fluxir.nn.attention import MultiHeadAttention
from fluxir.nn.containers import Chain, Flatten, Maxout, PairwiseFusion, Parallel, SkipConnection
from fluxir.nn.conv import Conv, ConvTranspose, DepthwiseConv
from fluxir.nn.convert import flux_layout, load_flux, load_torch
from fluxir.nn.ctc import ctc
from fluxir.nn.dense import Bilinear, Dense, Embedding, EmbeddingBag, Scale
from fluxir.nn.dropout import AlphaDropout, Dropout
from fluxir.nn.losses import *  # noqa: F403
from fluxir.nn.module import Module, call, cast, modules, state, static, trainable
from fluxir.nn.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, WeightNorm
from fluxir.nn.pool import AdaptiveMaxPool, AdaptiveMeanPool, GlobalMaxPool, GlobalMeanPool, MaxPool, MeanPool
from fluxir.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, Recurrence, RNNCell
from fluxir.nn.show import count
from fluxir.nn.state import State, apply
from fluxir.nn.tools import destructure, outputsize
from fluxir.nn.upsample import PixelShuffle, Upsample

_f: Any = fx.functional
attention = _f.attention
avg_pool = _f.avg_pool
batch_norm = _f.batch_norm
binary_cross_entropy_with_logits = _f.binary_cross_entropy_with_logits
conv = _f.conv
conv_transpose = _f.conv_transpose
cross_entropy = _f.cross_entropy
dropout = _f.dropout
embedding = _f.embedding
global_avg_pool = _f.global_avg_pool
group_norm = _f.group_norm
layer_norm = _f.layer_norm
linear = _f.linear
log_softmax = _f.log_softmax
logsumexp = _f.logsumexp
max_pool = _f.max_pool
min_pool = _f.min_pool
mse_loss = _f.mse_loss
one_hot = _f.one_hot
rms_norm = _f.rms_norm
scaled_dot_product_attention = _f.scaled_dot_product_attention
soft_cross_entropy = _f.soft_cross_entropy
softmax = _f.softmax
sum_pool = _f.sum_pool

__all__ = [
    "AdaptiveMaxPool", "AdaptiveMeanPool", "AlphaDropout", "BatchNorm", "Bilinear", "Chain", "Conv", "ConvTranspose",
    "Dense", "DepthwiseConv", "Dropout", "Embedding", "EmbeddingBag", "Flatten", "GRU", "GRUCell", "GlobalMaxPool",
    "GlobalMeanPool", "GroupNorm", "InstanceNorm", "LSTM", "LSTMCell", "LayerNorm", "MaxPool", "Maxout", "MeanPool",
    "Module", "MultiHeadAttention", "PairwiseFusion", "Parallel", "PixelShuffle", "RMSNorm", "RNN", "RNNCell",
    "Recurrence", "Scale", "SkipConnection", "State", "Upsample", "WeightNorm", "activations", "apply", "attention",
    "avg_pool", "batch_norm", "binary_cross_entropy_with_logits", "call", "cast", "conv", "conv_transpose", "count",
    "cross_entropy", "ctc", "destructure", "dropout", "embedding", "flux_layout", "global_avg_pool", "group_norm",
    "init", "layer_norm", "linear", "load_flux", "load_torch", "log_softmax", "logsumexp", "losses", "max_pool",
    "min_pool", "modules", "mse_loss", "one_hot", "outputsize", "rms_norm", "scaled_dot_product_attention",
    "soft_cross_entropy", "softmax", "state", "static", "sum_pool", "trainable",
    *activations.__all__, *losses.__all__,
]  # fmt: skip
