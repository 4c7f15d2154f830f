"""Writes `fluxir/data/digits.npz` from the copy of the UCI optical digits that scikit-learn ships.

Run it with an environment that has scikit-learn (the `oracle` extra): `python examples/make_digits_data.py`. The
result is committed, so nobody needs to run this; it is here so that everybody can see where the file comes from. Running
it again writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parent.parent / "fluxir" / "data" / "digits.npz"


def main() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    if images.shape != (1797, 8, 8) or not np.array_equal(images, digits.images) or images.max() != 16:
        raise SystemExit("scikit-learn's digits are not the 1,797 images of 8x8 pixels from 0 to 16 that are expected")
    np.savez_compressed(TARGET, images=images, labels=labels)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, {np.bincount(labels)} images per digit")


if __name__ == "__main__":
    main()
