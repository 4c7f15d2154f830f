"""Writes tests/fixtures/trained.npz: what onnxruntime answers on the inputs of bench/zoo.py, some hundred elements of each.

python tools/trained_fixture.py            (needs onnxruntime and `make models`)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.models import samples, session  # noqa: E402
from bench.zoo import find, installed  # noqa: E402

KEPT = 400


def main() -> None:
    out: dict[str, np.ndarray] = {}
    for trained in installed():
        file = find(trained.file)
        assert file is not None
        theirs = session(file, 1)
        for size, given in enumerate(samples(trained)):
            for n, y in enumerate(theirs.run(None, given)):
                flat = np.asarray(y).reshape(-1)
                key = f"{trained.name}/{size}/{n}"
                out[key] = flat[np.linspace(0, flat.size - 1, min(KEPT, flat.size)).astype(int)]
                out[key + "/largest"] = np.abs(flat).max()
    np.savez_compressed(ROOT / "tests" / "fixtures" / "trained.npz", **out)
    print(f"{len(out) // 2} results")


if __name__ == "__main__":
    main()
