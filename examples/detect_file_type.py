"""What kind of file is this? Google's Magika, a network of its PyPI package, looks at the first and last bytes.

    python examples/detect_file_type.py [FILE ...]      (default: files of this repository)

One compiled program takes any number of files at once. The package itself is not used, only its model and tables are
(`make models`, or `pip install magika`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import fluxir as fx

ROOT = Path(__file__).resolve().parent.parent
SOME = ["README.md", "pyproject.toml", "Makefile", "fluxir/driver.py", "fluxir/ir/grammar.lark", "docs/reference/ops.md",
        "examples/digits.safetensors", "tests/test_docs.py", "LICENSE"]  # fmt: skip


def folder(package: str) -> Path:
    """Where a package lies, whether installed or only downloaded."""
    for place in (ROOT / ".venv" / "models", *map(Path, sys.path)):
        if (place / package).is_dir():
            return place / package
    raise SystemExit(f"the package {package} is not there: make models, or pip install {package}")


class Detector:
    """Magika's model with its tables: features from bytes, and a label with its score from features."""

    def __init__(self) -> None:
        home = folder("magika")
        model = max((home / "models").glob("standard_*"))
        self.config = json.loads((model / "config.min.json").read_text())
        self.kinds = json.loads((home / "config" / "content_types_kb.min.json").read_text())
        self.labels = self.config["target_labels_space"]
        self.network = fx.onnx.load(model / "model.onnx")

    def features(self, data: bytes) -> np.ndarray:
        """The first and the last bytes beside white space, as numbers; 256 where there are none."""
        c = self.config
        block = min(c["block_size"], len(data))
        head = data[:block].lstrip()[: c["beg_size"]]
        tail = data[len(data) - block :].rstrip()[-c["end_size"] :]
        out = np.full(c["beg_size"] + c["end_size"], c["padding_token"], np.int32)
        out[: len(head)] = np.frombuffer(head, np.uint8)
        out[len(out) - len(tail) :] = np.frombuffer(tail, np.uint8)
        return out

    def kind(self, data: bytes, scores: np.ndarray) -> tuple[str, float]:
        """The label for the scores of a file, and its score. Where that is too low it is text or unknown bytes."""
        if not data:
            return "empty", 1.0
        if len(data) < self.config["min_file_size_for_dl"]:
            return ("txt" if is_text(data) else "unknown"), 1.0
        best = self.labels[int(scores.argmax())]
        score = float(scores.max())
        if score < self.config["thresholds"].get(best, self.config["medium_confidence_threshold"]):
            return ("txt" if self.kinds[best]["is_text"] else "unknown"), score
        return self.config["overwrite_map"].get(best, best), score

    def __call__(self, files: list[bytes]) -> list[tuple[str, float]]:
        scores = self.network(np.stack([self.features(data) for data in files]))
        return [self.kind(data, row) for data, row in zip(files, scores)]


def is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def main(names: list[str]) -> None:
    paths = [Path(n) for n in names] or [ROOT / n for n in SOME]
    detector = Detector()
    for path, (label, score) in zip(paths, detector([p.read_bytes() for p in paths])):
        about = detector.kinds.get(label, {}).get("description", "")
        print(f"{path.name:24} {label:12} {score:6.1%}  {about}")


if __name__ == "__main__":
    main(sys.argv[1:])
