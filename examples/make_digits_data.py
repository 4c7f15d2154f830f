"""Writes `fluxir/data/digits.npz` from the copy of the UCI optical digits that scikit-learn ships.

Run it with an environment that has scikit-learn (the `oracle` extra): `python examples/make_digits_data.py`. The
result is committed, so nobody needs to run this; it is here so that everybody can see where the file comes from. Running
it again writes the same bytes: the archive's time stamps are fixed.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parent.parent / "fluxir" / "data" / "digits.npz"


def write_archive(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes `arrays` as a compressed `.npz` whose bytes depend on the arrays alone (`np.savez` stamps the time)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in sorted(arrays.items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1998, 7, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())


def main() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    if images.shape != (1797, 8, 8) or not np.array_equal(images, digits.images) or images.max() != 16:
        raise SystemExit("scikit-learn's digits are not the 1,797 images of 8x8 pixels from 0 to 16 that are expected")
    write_archive(TARGET, {"images": images, "labels": labels})
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, {np.bincount(labels)} images per digit")


if __name__ == "__main__":
    main()
