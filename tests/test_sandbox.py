"""The child process that reads model files: its limits, what is said when one is met, signals, and output as without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxir.cli import sandbox
from tests.onnx_build import chunk, graph, model, node, number, tensor, value

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
COMMAND = [sys.executable, "-m", "fluxir.cli"]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    # Where it fails as it never should, it writes a reproducer to its folder.
    folder = tempfile.gettempdir()
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, cwd=folder, **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sandbox") / "small.onnx"
    w = tensor(np.ones((4, 3), np.float32), "w")
    path.write_bytes(model(graph([node("MatMul", ["x", "w"], ["y"])], [value("x", ["n", 4])], [value("y")], [w])))
    return str(path)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that takes some seconds."""
    path = tmp_path_factory.mktemp("sandbox") / "long.onnx"
    count = 30000
    nodes = [node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    path.write_bytes(model(graph(nodes, [value("v0", [3])], [value(f"v{count}")])))
    return str(path)


def test_output_and_exit_status_are_as_without_it(small: str) -> None:
    for arguments in (
        ["show", small], ["check", small, "--json"], ["check", "nothing.onnx"], ["check", small, "--nothing"],
        ["run", small, "-i", "x=ones", "--dim", "n=2", "-o", "y=-"], ["run", small], ["verify", small],
    ):  # fmt: skip
        inside, outside = run(*arguments), run(*arguments, "--no-sandbox")
        assert (inside.returncode, inside.stdout, inside.stderr) == (outside.returncode, outside.stdout, outside.stderr)


def test_what_is_read_in_a_child() -> None:
    assert sandbox.wanted(["check", "m.onnx"]) and sandbox.wanted(["--color", "never", "show", "x/M.ONNX"])
    assert sandbox.wanted(["verify", "p.fx"])
    for line in (
        ["check", "m.py"],
        ["run", "m.fxb"],
        ["check", "m.onnx", "--no-sandbox"],
        ["version"],
        ["ops", "m.onnx"],
    ):
        assert not sandbox.wanted(line)


def test_the_limit_of_time(long: str) -> None:
    done = run("show", long, "--max-seconds", "0.2")
    assert done.returncode == 5 and done.stdout == ""
    assert "FX0912" in done.stderr and "0.2 seconds" in done.stderr and "--max-seconds" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_limit_of_memory(long: str, tmp_path: Path) -> None:
    """A sparse constant of one element, which takes 256 MB with its zeros: allowed, but not here."""
    parts = chunk(1, tensor(np.ones(1, np.float32), "w")) + chunk(2, tensor(np.zeros(1, np.int64)))
    body = graph([node("Add", ["x", "w"], ["y"])], [value("x", [1, 1])], [value("y")])
    body += chunk(15, parts + number(3, 8000) * 2)
    (path := tmp_path / "sparse.onnx").write_bytes(model(body))
    done = run("show", str(path), "--max-memory", "200M", "--json")
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "FX0912" and "--max-memory" in done.stderr
    done = run("show", long, "--max-memory", "1M")
    assert done.returncode == 5 and "less than the command itself takes" in done.stderr


def test_settings_name_limits_too(long: str, small: str) -> None:
    assert run("show", long, env={**os.environ, "FLUXIR_MAX_SECONDS": "0.2"}).returncode == 5
    off = {**os.environ, "FLUXIR_MAX_SECONDS": "1e-9", "FLUXIR_SANDBOX": "off"}
    assert run("show", small, env=off).returncode == 0


def test_a_program_runs_without_the_limits(small: str) -> None:
    """`run` compiles under the limits; what it computes then may take as long as it likes."""
    code = (
        "import sys, resource\nfrom fluxir.cli import main, sandbox, run\n"
        f"sys.argv = ['fluxir', 'run', {small!r}, '-i', 'x=ones', '--dim', 'n=1']\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\nmake = run.make_inputs\n"
        "limit = lambda: resource.getrlimit(resource.RLIMIT_DATA) != before\n"
        "load = run._load\n"
        "run._load = lambda *a: (print('while compiling', limit()), load(*a))[1]\n"
        "run.make_inputs = lambda *a: (print('while running', limit()), make(*a))[1]\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[:2] == ["while compiling True", "while running False"], done.stderr


@pytest.mark.parametrize(
    ("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_reach_the_child(long: str, sign: signal.Signals, status: int) -> None:
    """The child ends with its parent, so that nobody waits for what it would have written."""
    with subprocess.Popen(
        [*COMMAND, "show", long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it runs behind
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().split()) and process.poll() is None:
            time.sleep(0.01)
        while process.poll() is None and "SigCgt" in (text := Path(f"/proc/{child[0]}/status").read_text()):
            if int(text.split("VmRSS:")[1].split()[0]) > 60_000:  # it is at work
                break
            time.sleep(0.01)
        process.send_signal(sign)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status and out == ""
    assert ("interrupted" in err) == (sign == signal.SIGINT) and "Traceback" not in err


def test_a_child_that_dies_is_reported() -> None:
    """A crash of a library: the parent says so, since the child cannot."""
    code = (
        "import os, sys\nfrom fluxir.cli import main\nimport fluxir.cli as c\n"
        "c._main = lambda a: os.kill(os.getpid(), {sign})\nsys.argv = ['fluxir', 'check', 'm.onnx']\nsys.exit(main())"
    )
    for sign, status, said in ((11, 70, "SIGSEGV"), (9, 5, "want of memory"), (24, 5, "seconds")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(sign=sign)], capture_output=True, text=True, timeout=60, cwd="/tmp"
        )
        assert done.returncode == status and said in done.stderr, done.stderr
        for line in done.stderr.splitlines():
            if "a reproducer is in " in line:
                Path(line.split("a reproducer is in ")[1]).unlink()


def test_names_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Control characters in names: of operators and values, in tables, programs and messages."""
    evil = "\x1b[2J\x1b]0;owned\x07\u202e"
    body = graph([node(evil, ["x"], ["y"], evil)], [value("x", [evil, 2])], [value("y")])
    (path := tmp_path / "evil.onnx").write_bytes(model(body))
    good = graph([node("Neg", [evil], ["y" + evil])], [value(evil, [evil, 2])], [value("y" + evil)])
    (other := tmp_path / "good.onnx").write_bytes(model(good))
    text = 'module @"m\\u001b[2J"\nfunc @"f\\u001b[2J"(%x: f32) -> ("o\\u001b[2J": f32) {\n  return %x\n}\n'
    (program := tmp_path / "evil.fx").write_text(text)
    for arguments in (
        ["check", path],
        ["show", path],
        ["check", other],
        ["show", other],
        ["check", program],
        ["show", program],
    ):
        done = run(*map(str, arguments))
        assert not set(done.stdout + done.stderr) & {"\x1b", "\x07", "\u202e"}, arguments
        json_ = run(*map(str, arguments), "--json")
        json.loads(json_.stdout)
        assert "\x1b" not in json_.stdout
