"""Write the fixtures with PyTorch: `python -m tests.oracle.make` (needs the extra `oracle`)."""

from __future__ import annotations

import numpy as np

from tests.oracle.cases import FIXTURES, derive
from tests.oracle.functions import FUNCTIONS
from tests.oracle.models import MODELS


def main() -> None:
    total = 0
    for name, cases in (("functions", FUNCTIONS), ("models", MODELS)):
        arrays = {key: a for c in cases for key, a in derive(c).items()}
        path = FIXTURES / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        total += path.stat().st_size
        print(f"{path.name}: {len(cases)} cases, {len(arrays)} arrays, {path.stat().st_size} bytes")
    if total > 300_000:
        raise SystemExit(f"{total} bytes of fixtures: keep them below 300 kB")


if __name__ == "__main__":
    main()
