"""Files made to harm whoever reads them: ONNX models, IR text, safetensors files and artifacts.

Each is made by a small function whose text says what it attacks, and which error code answers it. `python -m tests.hostile`
reads all of them, each in a process of its own (see `__main__.py`); `tests/test_hostile_files.py` looks at what came out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hostile:
    """A file: its name, what it attacks, the code that refuses it, and the function that writes it into an empty folder (with
    what lies beside it) and returns its path."""

    name: str
    attacks: str
    code: str
    write: Callable[[Path], Path]


FILES: dict[str, Hostile] = {}


def hostile(code: str, suffix: str) -> Callable[[Callable[[], bytes | str]], None]:
    """Declare a file by a function that gives its contents."""

    def declare(make: Callable[[], bytes | str]) -> None:
        def write(folder: Path) -> Path:
            data = make()
            path = folder / f"file{suffix}"
            path.write_bytes(data.encode() if isinstance(data, str) else data)
            return path

        add(make.__name__, make.__doc__ or "", code, suffix, write)

    return declare


def add(name: str, attacks: str, code: str, suffix: str, write: Callable[[Path], Path]) -> None:
    name = f"{suffix[1:]}-{name}"
    assert name not in FILES and attacks.strip(), name
    FILES[name] = Hostile(name, " ".join(attacks.split()), code, write)
