"""Text in an image: where it is, and what it says, by the networks of PaddleOCR that the package rapidocr-onnxruntime ships.

    python examples/ocr.py [IMAGE]                  (default: a bundled receipt; images are read with Pillow)

Detection gives every pixel the probability of being text. Islands of such pixels are lines; each is cut out and read by the
second network, whose results are decoded by CTC. Both programs take images of any size. (`make models`, or `pip install
rapidocr-onnxruntime`; only the models of the package are used.)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fluxir as fx

ROOT = Path(__file__).resolve().parent.parent
TEXT, LINE = 0.3, 0.5  # probabilities: of a pixel, and on average of a line
GROW = 1.6  # the network marks the middle of lines: how much of area by circumference is added around
HEIGHT = 48  # of the lines that are read


@dataclass(frozen=True)
class Line:
    """A line of text with the box it is in and how sure the network is."""

    text: str
    score: float
    box: tuple[int, int, int, int]  # left, top, right, bottom


def folder(package: str) -> Path:
    """Where a package lies, whether installed or only downloaded."""
    for place in (ROOT / ".venv" / "models", *map(Path, sys.path)):
        if (place / package).is_dir():
            return place / package
    raise SystemExit(f"the package {package} is not there: make models, or pip install {package.replace('_', '-')}")


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [rows, columns] in another size, bilinearly."""
    for axis, n in ((0, height), (1, width)):
        size = image.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * size / n - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, size - 1)
        part = (at - low).reshape([-1, 1] if axis == 0 else [1, -1])
        image = np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part
    return image


def prepared(image: np.ndarray) -> np.ndarray:
    """Grey values 0 .. 255 as the networks want them: three channels, -1 .. 1."""
    return np.repeat((image / 127.5 - 1).astype(np.float32)[None, None], 3, axis=1)


def islands(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The boxes around connected parts of a mask: runs of each row are joined with those above that touch them."""
    boxes: list[list[int]] = []
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        now = []
        for start, end in zip(edges[::2], edges[1::2]):
            touching = {root(i) for a, b, i in above if a <= end and b >= start}
            i = min(touching, default=len(boxes))
            if i == len(boxes):
                boxes.append([start, y, end, y + 1])
                parent.append(i)
            for j in touching:
                parent[j] = i
                boxes[i] = [min(boxes[i][0], boxes[j][0]), min(boxes[i][1], boxes[j][1]),
                            max(boxes[i][2], boxes[j][2]), max(boxes[i][3], boxes[j][3])]  # fmt: skip
            boxes[i] = [min(boxes[i][0], start), boxes[i][1], max(boxes[i][2], end), y + 1]
            now.append((start, end, i))
        above = now
    return [(int(b[0]), int(b[1]), int(b[2]), int(b[3])) for i, b in enumerate(boxes) if parent[i] == i]


class Reader:
    """Both networks: `reader(image)` gives the lines of an image [rows, columns] of grey values, from top to bottom."""

    def __init__(self) -> None:
        models = folder("rapidocr_onnxruntime") / "models"
        self.detect = fx.onnx.load(models / "ch_PP-OCRv4_det_infer.onnx")
        self.recognise = fx.onnx.load(models / "ch_PP-OCRv4_rec_infer.onnx")
        self.characters = ["", *self.recognise.metadata["character"].splitlines(), " "]

    def boxes(self, image: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Where lines of text are."""
        rows, columns = image.shape
        scale = max(1.0, 736 / min(rows, columns))
        high, wide = (round(n * scale / 32) * 32 for n in (rows, columns))
        probability = self.detect(prepared(resized(image, high, wide)))[0, 0]
        found = []
        for left, top, right, bottom in islands(probability > TEXT):
            w, h = right - left, bottom - top
            if min(w, h) < 3 or probability[top:bottom, left:right].mean() < LINE:
                continue
            grow = w * h * GROW / (2 * (w + h))
            x, y = columns / wide, rows / high
            found.append((max(0, int((left - grow) * x)), max(0, int((top - grow) * y)),
                          min(columns, int((right + grow) * x) + 1), min(rows, int((bottom + grow) * y) + 1)))  # fmt: skip
        return sorted(found, key=lambda b: (b[1] // 8, b[0]))

    def read(self, line: np.ndarray) -> tuple[str, float]:
        """What a line says. Of neighbouring steps with the same character only the first counts, and none with no character."""
        width = max(HEIGHT, int(np.ceil(HEIGHT * line.shape[1] / line.shape[0])))
        steps = self.recognise(prepared(resized(line, HEIGHT, width)))[0]
        best = steps.argmax(1)
        kept = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
        text = "".join(self.characters[i] for i in best[kept])
        return text, float(steps.max(1)[kept].mean()) if kept.any() else 0.0

    def __call__(self, image: np.ndarray) -> list[Line]:
        out = []
        for box in self.boxes(image):
            left, top, right, bottom = box
            text, score = self.read(image[top:bottom, left:right])
            if text:
                out.append(Line(text, score, box))
        return out


def picture(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("L"), np.float64)


if __name__ == "__main__":
    for line in Reader()(picture(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "examples" / "receipt.png")):
        print(f"{line.score:6.1%}  {line.text:40} {line.box}")
