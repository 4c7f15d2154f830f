"""A recursive network learns to evaluate logic: `python examples/expression_trees.py`.

An expression such as ((true and false) xor true) is a tree, and the network has its shape: a vector for each leaf, and one layer
for each operator, applied to the vectors of the two operands (Socher et al., "Parsing natural scenes and natural language with
recursive neural networks", 2011). `meaning` is a recursive function of the compiled program; every tree of a batch is walked as
deep as it is, forward and backward. It is trained on trees of depth 1 to 4 and asked about deeper ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it runs in a checkout without installing FluxIR

import numpy as np

import fluxir as fx
from fluxir.data import DataLoader

SIZE, BATCH = 16, 32
OPERATORS = (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b, lambda a, b: 1 - (a & b))
KIND, LEFT, RIGHT = 0, 1, 2  # the rows of a tree: 0 and 1 are leaves, 2 + i is operator i; the numbers of the operands
ROOT = 0


def parameters(key):
    """Vectors of the two leaves, a layer for each operator, and the answer."""
    k = fx.random.split(key, 3)
    return {
        "leaf": fx.random.normal(k[0], (2, SIZE)),
        "weight": fx.random.normal(k[1], (len(OPERATORS), 2 * SIZE, SIZE)) / np.float32(np.sqrt(2 * SIZE)),
        "bias": np.zeros((len(OPERATORS), SIZE), np.float32),
        "answer": fx.random.normal(k[2], (SIZE, 2)) / np.float32(np.sqrt(SIZE)),
    }


@fx.function
def meaning(p, tree, node):
    """The vector [SIZE] of a node of a tree i64[3, N]."""
    kind = tree[KIND, node]
    if kind < 2:
        return p["leaf"][kind]
    operands = fx.concat([meaning(p, tree, tree[LEFT, node]), meaning(p, tree, tree[RIGHT, node])])
    return fx.tanh(operands @ p["weight"][kind - 2] + p["bias"][kind - 2])


def logits(p, trees):
    """trees i64[B, 3, N] -> [B, 2]."""
    return fx.map(lambda tree: meaning(p, tree, fx.asarray(ROOT)) @ p["answer"], trees)


def loss(p, trees, values):
    """The mean cross-entropy of the values of the expressions."""
    return fx.nn.logit_crossentropy(logits(p, trees), values)


def right(p, trees, values):
    """The share of expressions whose value the network finds."""
    return fx.mean(fx.astype(fx.argmax(logits(p, trees), axis=-1) == values, "f32"))


def expression(rng, depth, nodes):
    """A random tree of exactly this depth at its left edge, i64[3, nodes], and its value."""
    rows = []

    def grow(depth, must):
        i = len(rows)
        rows.append([int(rng.integers(2)), 0, 0])
        if depth == 0 or not must and rng.random() < 0.2:
            return i, rows[i][KIND]
        operator = int(rng.integers(len(OPERATORS)))
        (left, a), (right, b) = grow(depth - 1, must), grow(depth - 1, False)
        rows[i] = [2 + operator, left, right]
        return i, OPERATORS[operator](a, b)

    _, value = grow(depth, True)
    return np.array(rows + [[0, 0, 0]] * (nodes - len(rows)), np.int64).T, value


def expressions(seed, count, depths):
    """`count` trees and their values."""
    rng = np.random.default_rng(seed)
    nodes = 2 ** (max(depths) + 1) - 1
    made = [expression(rng, int(rng.choice(depths)), nodes) for _ in range(count)]
    return np.stack([t for t, _ in made]), np.array([v for _, v in made])


def train(epochs=15, count=2000, **options):
    """The finished run."""
    data = DataLoader(expressions(0, count, range(1, 5)), BATCH, shuffle=0)
    return fx.train.fit(parameters(fx.random.key(0)), loss, data, fx.optim.Adam(3e-3), epochs=epochs, **options)


def main():
    run = train()
    for row in run.history[::3]:
        print(f"epoch {row['epoch']:2}: loss {row['loss']:.4f}")
    for depth in (2, 4, 6, 8):
        data = DataLoader(expressions(depth, 300, [depth]), 100)
        print(f"depth {depth}: {fx.train.evaluate(right, run.model, data):.1%} right")


if __name__ == "__main__":
    main()
