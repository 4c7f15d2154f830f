"""How receipt.png was made: known text by Pillow's own font, for examples/ocr.py and its test."""

from __future__ import annotations

from pathlib import Path

LINES = ["FluxIR Coffee House", "Espresso 2.80", "Cheese cake 4.50", "Total 7.30", "Thank you for your visit"]


def main() -> None:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (420, 300), 245)
    draw = ImageDraw.Draw(image)
    for n, text in enumerate(LINES):
        draw.text((28, 22 + 52 * n), text, fill=20, font=ImageFont.load_default(26))
    image.save(Path(__file__).parent / "receipt.png", optimize=True)


if __name__ == "__main__":
    main()
