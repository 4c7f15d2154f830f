"""`fx.optim`: optimisers, schedules, and what changes their state. `core` is the place to begin.

    opt = fx.optim.Adam(1e-3)
    state = opt.init(model)

    @fx.jit
    def step(model, state, x, y):
        value, grads = fx.value_and_grad(loss)(model, x, y)
        model, state = opt.update(model, grads, state)
        return model, state, value

Rules in a chain change the gradient one after the other; wrappers (`AccumGrad`, `MasterWeights`, `LossScale`) go around.
"""

from fluxir.optim.adam import AdaBelief, Adam, AdaMax, AdamW, AMSGrad, NAdam, OAdam, RAdam
from fluxir.optim.adaptive import AdaDelta, AdaGrad, RMSProp
from fluxir.optim.core import (
    Chain,
    Group,
    Member,
    Optimiser,
    OptState,
    adjust,
    freeze,
    option,
    parameters,
    replaced,
    setting,
    thaw,
)
from fluxir.optim.gradient import ClipGrad, ClipNorm, SignDecay, WeightDecay
from fluxir.optim.plain import Descent, Lion, Momentum, Nesterov, Rprop
from fluxir.optim.schedules import (
    constant,
    cosine,
    exponential,
    inverse,
    linear,
    one_cycle,
    piecewise,
    polynomial,
    step_decay,
    warm_up,
)
from fluxir.optim.wrappers import AccumGrad, LossScale, MasterWeights, Wrapper

__all__ = [
    "AMSGrad", "AccumGrad", "AdaBelief", "AdaDelta", "AdaGrad", "AdaMax", "Adam", "AdamW", "Chain", "ClipGrad", "ClipNorm",
    "Descent", "Group", "Lion", "LossScale", "MasterWeights", "Member", "Momentum", "NAdam", "Nesterov", "OAdam", "OptState",
    "Optimiser", "RAdam", "RMSProp", "Rprop", "SignDecay", "WeightDecay", "Wrapper", "adjust", "constant", "cosine",
    "exponential", "freeze", "inverse", "linear", "one_cycle", "option", "parameters", "piecewise", "polynomial", "replaced",
    "setting", "step_decay", "thaw", "warm_up",
]  # fmt: skip
