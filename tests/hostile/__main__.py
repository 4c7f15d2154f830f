"""Read hostile files, each in a process of its own, and print what came out as lines of JSON.

The child notes every file that Python opens (`sys.addaudithook`), and afterwards what is mapped. Its time is that of the
processor, so that a busy machine makes nothing fail. Names on the command line choose files; without any all are read.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fluxir import config
from fluxir.errors import FluxError

SECONDS = 2
_PATIENCE = 60.0  # seconds on the clock, for a child that sleeps


def read(path: Path) -> None:
    """What the command line does with a file before it runs a program."""
    if path.suffix == ".safetensors":
        from fluxir.runtime.safetensors import load_safetensors

        load_safetensors(path)
    elif path.suffix == ".fxb":
        import fluxir as fx

        fx.load(str(path))
    else:
        from fluxir.cli.models import load_entry

        if path.suffix == ".onnx":
            import fluxir as fx

            fx.onnx.check(path)
        load_entry(str(path), None, trust=False).compile("cpu")


def child(path: Path, sink: int) -> None:
    """Read the file and say what happened."""
    opened: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.append(os.fsdecode(arguments[0]))

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said: dict[str, Any] = {"code": "", "message": ""}
    sys.addaudithook(note)
    try:
        read(path)
    except FluxError as e:
        said = {"code": e.code, "message": e.render()[:2000]}
    except BaseException as e:
        said = {"code": type(e).__name__, "message": repr(e)[:2000]}
    found = {name for name in opened if not harmless(name, path.parent)}
    mapped = [line.split(None, 5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()]
    said["opened"] = sorted({*found, *[m for m in mapped if "secret" in m]})
    os.write(sink, json.dumps(said).encode())
    os._exit(0)


def harmless(name: str, folder: Path) -> bool:
    """Whether a file may be opened: beneath the folder, of Python and its libraries, or of the system for everybody."""
    if not os.path.isabs(name):  # relative to the folder, as external data is opened; or to the working directory
        return ".." not in name.split("/")
    roots = (
        str(folder),
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[2]),
        "/proc/",
        "/dev/null",
        "/sys/",
        "/lib",
        "/usr/lib",
    )
    return os.path.normpath(name).startswith(roots)


def outcome(path: Path) -> dict[str, Any]:
    """What a child says of a file, with the seconds it took and the memory, in MiB."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        child(path, sink)
    os.close(sink)
    os.set_blocking(source, False)
    end = time.monotonic() + _PATIENCE
    while not (found := os.wait4(pid, os.WNOHANG))[0]:
        time.sleep(0.005)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
    try:
        text = os.read(source, 1 << 20)
    except BlockingIOError:
        text = b""
    os.close(source)
    status, used = os.waitstatus_to_exitcode(found[1]), found[2]
    said = json.loads(text) if text else {"code": f"status {status}", "message": "", "opened": []}
    return {**said, "seconds": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss >> 10}


def main() -> None:
    from tests.hostile import FILES, artifacts, onnx_graphs, onnx_parts, safetensors, text  # noqa: F401

    config.configure(compile_workers=0, cache=False)
    wanted = sys.argv[1:] or list(FILES)
    with tempfile.TemporaryDirectory(prefix="fluxir-hostile-") as temporary:
        warm = Path(temporary) / "warm.fx"  # loads what all files need, so that their time is their own
        warm.write_text("module @m\nfunc @f(%x: f32[B]) -> (f32[B]) {\n  %0 = exp(%x) : f32[B]\n  return %0\n}\n")
        read(warm)
        from fluxir.frontend.onnx import registry

        registry.find("", "Add", 21)
        (Path(temporary) / "secret").write_bytes(bytes(1024))  # what files would like to have read
        for name in wanted:
            folder = Path(temporary) / name
            folder.mkdir()
            print(json.dumps({"name": name, **outcome(FILES[name].write(folder))}), flush=True)


if __name__ == "__main__":
    main()
