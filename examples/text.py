"""Text of any length: a recurrent network reads bytes and goes on writing them.

The prompt has a symbolic length `T`; how much is written, and by which random key, is an argument. The network is untrained: it
shows the shape of such a model, not prose.
"""

from __future__ import annotations

import fluxir as fx

SYMBOLS, WIDTH, LONGEST = 64, 12, 20


@fx.model(facts="T >= 1")
def write(prompt: fx.i64["T"], count: fx.i64, seed: fx.u32) -> {"text": fx.i64[LONGEST], "length": fx.i64}:
    embedding = fx.random.normal(fx.random.key(1), (SYMBOLS, WIDTH))
    step = fx.random.normal(fx.random.key(2), (WIDTH, WIDTH)) / WIDTH**0.5

    def read(state, symbol):
        return fx.tanh(state @ step + fx.take(embedding, symbol % SYMBOLS, axis=0))

    state = fx.zeros(WIDTH)
    for symbol in prompt:
        state = read(state, symbol)

    key = fx.random.key(seed)
    text, length = fx.zeros(LONGEST, dtype=fx.i64), 0
    while length < count and length < LONGEST:
        key, now = fx.random.split(key)
        symbol = fx.random.categorical(now, embedding @ state)
        if symbol == 0:  # the end of the text
            break
        text[length] = symbol
        length += 1
        state = read(state, symbol)
    return {"text": text, "length": length}
