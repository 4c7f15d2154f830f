"""Owns every setting: its name, type, default and meaning, declared once as a field of `Config`.

The field ``num_threads`` is at the same time the Python keyword ``num_threads=``, the command line flag
``--num-threads`` and the variable ``FLUXIR_NUM_THREADS``. Order of precedence: `override`, then the process-wide
values set by `configure` (the command line), then the environment, then the default.

Invariants: this is the only file that reads ``os.environ``; a `Config` holds only validated values and never changes;
an unknown or malformed setting is an error, never ignored. This is a leaf: it imports only ``errors``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .errors import FluxError, error

__all__ = [
    "SETTINGS",
    "Config",
    "Setting",
    "configure",
    "cores",
    "environment",
    "get",
    "override",
    "preserved",
    "reload",
    "wants_color",
]

DEVICE = r"cpu|cuda(:\d{1,4})?|vgpu(:sm_\d{2,3}[af]?)?"
"""What names a device may have, as a regular expression."""
_PREFIX = "FLUXIR_"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_WORDS = {"1": True, "on": True, "true": True, "yes": True, "0": False, "off": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as documentation, flag builder and validator see it.

    ``parse`` turns a value of any origin (Python object or text) into the checked value, raising ValueError with a
    reason. ``kind`` names the accepted values; ``in_key`` says whether the value changes compiled code, and so
    belongs to cache keys.
    """

    name: str
    kind: str
    default: object
    doc: str
    parse: Callable[[object], object]
    choices: tuple[str, ...] = ()
    in_key: bool = False

    @property
    def flag(self) -> str:
        """The command line option, such as ``--num-threads``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, such as ``FLUXIR_NUM_THREADS``."""
        return _PREFIX + self.name.upper()


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _WORDS:
        raise ValueError("write on or off")
    return _WORDS[word]


def _size(value: object) -> int:
    """Bytes, as an integer or as text with a unit: ``500M`` (10**6), ``2GiB`` (2**30)."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", str(value).strip().lower())
        if found is None or found[2] not in _UNITS:
            raise ValueError("write a number of bytes such as 500000000, 500M or 2GiB")
        number = int(float(found[1]) * _UNITS[found[2]])
    if not 0 <= number < 2**63:
        raise ValueError("it must lie between 0 and 2**63 bytes")
    return number


def _integer(low: int, high: int) -> Callable[[object], object]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,18}", str(value).strip()):
            raise ValueError("write a whole number")
        number = int(str(value))
        if not low <= number <= high:
            raise ValueError(f"it must lie between {low} and {high}")
        return number

    return parse


def _workers(value: object) -> object:
    return value if value == "auto" else _integer(0, 64)(value)


def _seconds(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError("write a number of seconds") from None
    if not 0 <= number < 1e9:
        raise ValueError("it must lie between 0 and 1e9 seconds")
    return number


def _choice(*choices: str) -> Callable[[object], object]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"choose one of: {', '.join(choices)}")
        return str(value)

    return parse


def _path(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError("write a path")
    text = os.fspath(value)
    if not isinstance(text, str) or "\0" in text:
        raise ValueError("write a path as text without NUL characters")
    return os.path.abspath(os.path.expanduser(text))


def _tuned(value: object) -> str | None:
    return "cache" if value == "cache" else _path(value)


def _text(pattern: str, hint: str) -> Callable[[object], object]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(hint)
        return value

    return parse


def _setting(
    default: Any,
    kind: str,
    parse: Callable[[object], object],
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    in_key: bool = False,
) -> Any:
    facts = {"kind": kind, "parse": parse, "doc": doc, "choices": choices, "in_key": in_key}
    return field(default=default, metadata=facts)


def _one_of(default: str, choices: tuple[str, ...], doc: str, *, in_key: bool = False) -> Any:
    return _setting(default, "|".join(choices), _choice(*choices), doc, choices=choices, in_key=in_key)


@dataclass(frozen=True, slots=True)
class Config:
    """The values of all settings at one moment. Build changed copies with `replace`; read the current one with
    `get`."""

    target: str = _setting(
        "cpu", "target name", _text(r"[\w.:+,=-]{1,200}", "write a target such as cpu, cpu:x86-64-v3 or sm_90"),
        "What to compile for; `fluxir targets` lists the names.",
    )  # fmt: skip
    device: str = _setting(
        "cpu", "cpu|cuda|cuda:N|vgpu|vgpu:sm_NN",
        _text(DEVICE, "choose cpu, cuda, cuda:N, vgpu or vgpu:sm_80"),
        "Where compiled programs run. A device that is not there is an error; nothing falls back to another one.",
    )  # fmt: skip
    opt_level: int = _setting(
        2, "0..3", _integer(0, 3),
        "How hard LLVM optimises CPU code: 0 without vectorising loops, 1 without joining scalars to vectors, 2, 3 most.",
        in_key=True,
    )  # fmt: skip
    accuracy: str = _one_of(
        "standard", ("standard", "fast"),
        "standard rounds every operation by itself; fast lets CPU code round x * y + z once.",
        in_key=True,
    )  # fmt: skip
    sanitizer: bool = _setting(
        True, "on|off", _switch, "Whether the virtual GPU checks every access of every thread, or only runs kernels."
    )
    num_threads: int = _setting(
        0, "0..1024", _integer(0, 1024),
        "Threads a compiled program may use; 0 means every core this process may use. Results do not depend on it.",
    )  # fmt: skip
    compile_workers: str | int = _setting(
        "auto", "auto or 0..64", _workers,
        "Processes that translate kernels to machine code beside this one; 0: this process does. The code is the same.",
    )  # fmt: skip
    verify: str = _one_of(
        "changed", ("off", "changed", "numeric"),
        "Checks after each pass: none, the type rules of what changed, or also that the answer stays the same.",
    )  # fmt: skip
    dump_dir: str | None = _setting(
        None,
        "path or empty",
        _path,
        "Directory to write the IR after every pass, the kernels and index.json to. Empty: no dumps.",
    )
    cache: bool = _setting(
        True, "on|off", _switch, "Whether compiled programs are looked up in and stored to the compile cache."
    )
    cache_dir: str | None = _setting(
        None,
        "path or empty",
        _path,
        "Directory of the compile cache. Empty: the platform's own cache directory for this user.",
    )
    tuned: str | None = _setting(
        None,
        "cache, path or empty",
        _tuned,
        "File of schedules that `fluxir tune` found, to be used in place of the heuristic ones; `cache`: the one in the cache"
        " directory. Empty: none.",
    )
    cache_size: int = _setting(
        2 * 2**30,
        "bytes, such as 500M or 2GiB",
        _size,
        "Size the compile cache is kept under, by removing what was not used for longest.",
    )
    color: str = _one_of(
        "auto", ("auto", "always", "never"), "Colour in messages; auto means on a terminal unless NO_COLOR is set."
    )
    progress: str = _one_of(
        "auto", ("auto", "always", "never"), "Progress lines on stderr during long work; auto means on a terminal."
    )
    max_file_size: int = _setting(
        4 * 2**30,
        "bytes, such as 500M or 2GiB",
        _size,
        "Largest model, artifact or array file that is read; a larger one is an error.",
    )
    sandbox: bool = _setting(
        True,
        "on|off",
        _switch,
        "Whether the command line reads and compiles .onnx and .fx files in a child process with limits.",
    )
    max_memory: int = _setting(
        0,
        "bytes, such as 500M or 2GiB",
        _size,
        "Memory that reading and compiling a .onnx or .fx file on the command line may take; 0: three quarters of the machine's.",
    )
    max_seconds: float = _setting(
        600.0,
        "seconds",
        _seconds,
        "Time that reading and compiling a .onnx or .fx file on the command line may take; 0: any.",
    )
    ptxas: str | None = _setting(
        None,
        "path or empty",
        _path,
        "The ptxas program that checks PTX. Empty: look in PATH and in NVIDIA's Python wheels.",
    )
    gpu_graphs: bool = _setting(
        True,
        "on|off",
        _switch,
        "Whether programs on a GPU whose launches are always the same are replayed as CUDA graphs.",
    )
    gpu_sync: bool = _setting(
        False,
        "on|off",
        _switch,
        "Wait after every kernel on a GPU, so that an error names the kernel that failed. Slow.",
    )
    debug: bool = _setting(False, "on|off", _switch, "Show the Python traceback of fluxir itself with every error.")

    def replace(self, **values: object) -> Config:
        """A copy with ``values`` changed. Raises FX0901 for an unknown name, FX0902 for a value that is not allowed."""
        return dataclasses.replace(self, **{name: _checked(name, value, name) for name, value in values.items()})  # type: ignore[arg-type]

    def key(self) -> tuple[tuple[str, object], ...]:
        """The settings that change compiled code, as (name, value) pairs in declaration order: a part of every cache
        key."""
        return tuple((name, getattr(self, name)) for name, setting in SETTINGS.items() if setting.in_key)

    def threads(self) -> int:
        """``num_threads`` with 0 resolved to the number of cores that this process may use, see `cores`."""
        return self.num_threads or _cores()

    def workers(self) -> int:
        """``compile_workers`` with auto resolved: a process for each core up to 8, and none where there is one core."""
        if isinstance(self.compile_workers, int):
            return self.compile_workers
        return 0 if _cores() == 1 else min(_cores(), 8)


def _cores() -> int:
    """The number of cores this process may run on, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


def cores() -> int:
    """How many cores this process may use, at least 1: those it may run on, or fewer where its control group has a quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(count, _quota(count)))


@functools.cache
def _quota(most: int) -> int:
    """Whole cores that the control groups of this process let it use at a time (Linux, both versions); `most` without a limit.
    Read once: every change of settings asks for it."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = [line.strip().split(":", 2) for line in file]
        for _, controllers, path in groups:
            names = controllers.split(",")
            if controllers and "cpu" not in names:
                continue
            root = "/sys/fs/cgroup" + (f"/{controllers}" if controllers else "")
            parts = [p for p in path.split("/") if p and p != ".."]
            for depth in range(len(parts) + 1):
                most = min(most, _group_quota("/".join([root, *parts[:depth]]), bool(controllers), most))
    return most


def _group_quota(folder: str, old: bool, most: int) -> int:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if old:
            words = [_word(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")]
        else:
            words = _word(f"{folder}/cpu.max").split()
        if words[0] not in ("max", "-1"):
            return max(1, int(words[0]) // int(words[1]))
    return most


def _word(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read(100).strip()


SETTINGS: dict[str, Setting] = {
    f.name: Setting(f.name, default=f.default, **f.metadata) for f in dataclasses.fields(Config)
}
"""Every setting by name, in declaration order."""

_process: Config | None = None
_override: ContextVar[Config | None] = ContextVar("fluxir_config", default=None)


def get() -> Config:
    """The settings in force here: those of the innermost `override` of this thread or task, else the process-wide
    ones."""
    return _override.get() or _process or reload()


@contextlib.contextmanager
def override(**values: object) -> Iterator[Config]:
    """Change settings inside a ``with`` block, for this thread or task only: ``with override(num_threads=1): ...``.

    Raises FX0901 for an unknown name and FX0902 for a value that is not allowed, before the block is entered.
    """
    token = _override.set(get().replace(**values))
    try:
        yield get()
    finally:
        _override.reset(token)


def configure(**values: object) -> Config:
    """Change settings for the whole process, as the command line does. Raises FX0901 and FX0902 as `override` does."""
    global _process
    _process = (_process or reload()).replace(**values)
    return _process


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Undo at the end of a ``with`` block what `configure` and `reload` did inside it, as one run of the command line in a
    process of somebody else must."""
    global _process
    before = _process
    try:
        yield
    finally:
        _process = before


def reload(variables: Mapping[str, str] | None = None) -> Config:
    """Read the process-wide settings again, from ``variables`` or else from the environment, and forget `configure`.

    Raises FX0901 for a ``FLUXIR_`` variable that is no setting (names under ``FLUXIR_TEST_`` are left to test
    suites), FX0902 for a value that is not allowed.
    """
    global _process
    variables = os.environ if variables is None else variables
    values: dict[str, Any] = {}
    for variable, value in variables.items():
        if variable.startswith(_PREFIX) and not variable.startswith(_PREFIX + "TEST_"):
            name = variable[len(_PREFIX) :].lower()
            values[name] = _checked(name, value, variable)
    _process = Config(**values)
    return _process


def environment() -> dict[str, str]:
    """The ``FLUXIR_`` variables that are set, for ``fluxir doctor``."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIX)}


def wants_color(is_terminal: bool) -> bool:
    """Whether to write colours to a stream that is or is not a terminal (https://no-color.org for NO_COLOR)."""
    choice = get().color
    if choice != "auto":
        return choice == "always"
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _checked(name: str, value: object, shown: str) -> object:
    setting = SETTINGS.get(name)
    if setting is None:
        raise _unknown(name, shown)
    try:
        return setting.parse(value)
    except ValueError as reason:
        raise error(
            "FX0902",
            f"{shown} cannot be {value!r}: {reason}",
            help=f"{setting.variable} and {setting.flag} take {setting.kind}. {setting.doc}",
        ) from None


def _unknown(name: str, shown: str) -> FluxError:
    import difflib

    near = difflib.get_close_matches(name, SETTINGS, 1)
    as_shown = (_PREFIX + near[0].upper() if shown.startswith(_PREFIX) else near[0]) if near else ""
    hint = f"did you mean {as_shown}? " if near else ""
    return error("FX0901", f"there is no setting {shown}", help=f"{hint}settings are: {', '.join(SETTINGS)}")
