"""A convolutional network that reads handwritten digits: the model of `fluxir demo`.

Input: `x` f32[B,8,8], images with values from 0 (paper) to 1 (ink). Result: f32[B,10], one score (logit) per digit.
The weights are those in `digits.safetensors` beside this file, whose metadata say what made them.
"""

from __future__ import annotations

from pathlib import Path

import fluxir as fx

weights = fx.load_safetensors(Path(__file__).resolve().with_name("digits.safetensors"))


@fx.model(facts="B >= 1")
def digits(x: fx.f32["B", 8, 8]) -> fx.f32["B", 10]:
    h = fx.expand_dims(x, axis=1)
    h = fx.nn.relu(fx.conv(h, weights["conv1.weight"], weights["conv1.bias"], padding=1))
    h = fx.nn.relu(fx.conv(h, weights["conv2.weight"], weights["conv2.bias"], padding=1))
    h = fx.nn.max_pool(h, 2).reshape(x.shape[0], 24 * 4 * 4)
    h = fx.nn.relu(h @ weights["dense1.weight"] + weights["dense1.bias"])
    return h @ weights["dense2.weight"] + weights["dense2.bias"]
