"""The command line as a process: output, exit statuses, errors, crashes, signals, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import fluxir.cli
from fluxir import config
from fluxir.cli import main
from fluxir.cli.group import VERBS, root
from fluxir.errors import CODES
from fluxir.runtime.cache import Cache

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with a cache of its own; settings of one run do not leak into the next."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXIR_CACHE_DIR", str(tmp_path / "cache"))
    config.reload()
    yield tmp_path
    monkeypatch.undo()
    config.reload()


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fluxir.cli", *arguments]


def verbs() -> list[tuple[str, click.Command]]:
    """Every verb and verb of a group, by its words."""
    found: list[tuple[str, click.Command]] = []
    context = click.Context(root, info_name="fluxir")
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {inner}", command.commands[inner]) for inner in command.commands]
        else:
            found.append((name, command))
    return found


# -- conventions of all verbs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "command"), verbs(), ids=[words for words, _ in verbs()])
def test_every_verb_has_help_and_json(words: str, command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown and "--help" in shown and command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.endswith("."), f"{words} {parameter.opts}"


def test_the_table_of_verbs_is_the_modules() -> None:
    directory = Path(fluxir.cli.__file__).parent
    helpers = set(
        "__init__ __main__ array_files arrays common files models crash demo_train group profiles reference sandbox versions".split()
    )
    assert {path.stem for path in directory.glob("*.py")} - helpers == set(VERBS)
    for name, text in VERBS.items():
        assert text.endswith(".") and len(text) < 80, name


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        status = main(arguments)
        shown = capsys.readouterr()
        assert status == (0 if arguments else 2)
        assert all(verb in shown.out + shown.err for verb in VERBS)


def test_version_loads_nothing_heavy() -> None:
    code = (
        "import sys; from fluxir.cli import main; status = main(['--version']); "
        "print([n for n in ('numpy', 'llvmlite', 'lark', 'ml_dtypes') if n in sys.modules], status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert re.fullmatch(r"fluxir \S+\n\[\] 0\n", done.stdout), done


def test_the_module_runs_as_a_process() -> None:
    done = subprocess.run(
        command_line("version", "--json"), capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 0 and done.stderr == ""
    assert {"fluxir", "python", "numpy", "llvmlite"} <= set(json.loads(done.stdout))


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["exlain"], "FX0909", 2),
        (["explain", "FX9999"], "FX0903", 2),
        (["explain", "--nope"], "FX0906", 2),
        (["explain", "FX0101", "extra"], "FX0906", 2),
        (["completion", "tcsh"], "FX0906", 2),
        (["targets", "sm_1"], "FX0501", 2),
        (["cache", "explain", "feed"], "FX0807", 2),
        (["cache", "nope"], "FX0906", 2),
        (["cache", "prune", "--unused", "3 moons"], "FX0906", 2),
        (["cache", "prune", "--cache-size", "lots"], "FX0902", 2),
        (["doctor", "--device", "cuda"], "FX0701", 6),
        (["doctor", "--ptxas", "/no/such/file"], "FX0511", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_failures_have_a_code_a_status_and_a_json_form(
    arguments: list[str], code: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error[{code}]: ") and "Traceback" not in shown.err
    assert main([*arguments, "--json"]) == status
    shown = capsys.readouterr()
    start = shown.out.rindex('{\n  "error"')
    assert json.loads(shown.out[start:])["error"]["code"] == code
    assert shown.err.startswith(f"error[{code}]: ")


def test_a_wrong_variable_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        command_line("cache", "path"), capture_output=True, text=True, env=environment(FLUXIR_CACHE_SIZ="1"), timeout=60
    )
    assert done.returncode == 2 and "did you mean FLUXIR_CACHE_SIZE" in done.stderr


def test_an_unsafe_cache_directory_is_an_io_failure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "cache").mkdir()
    (place / "cache").chmod(0o777)
    assert main(["cache", "ls"]) == 74
    assert "error[FX0805]" in capsys.readouterr().err
    assert main(["doctor"]) == 74
    shown = capsys.readouterr()
    assert re.search(r"^cache +bad ", shown.out, re.MULTILINE) and "error[FX0805]" in shown.err


def break_version(monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    """Make the verb `version` raise `problem`."""
    import fluxir.cli.version as module

    def broken() -> dict[str, str]:
        raise problem

    monkeypatch.setattr(module, "versions", broken)


def test_a_defect_writes_a_reproducer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_version(monkeypatch, ZeroDivisionError("by zero\nmore"))
    assert main(["version", "--json"]) == 70
    shown = capsys.readouterr()
    assert shown.err.startswith("error[FX0999]: ZeroDivisionError: by zero\n") and "Traceback" not in shown.err
    (file,) = place.glob("fluxir-crash-*.txt")
    assert str(file) in shown.err and file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert "fluxir version --json" in text and "ZeroDivisionError: by zero" in text and "num_threads = 0" in text
    assert json.loads(shown.out)["error"]["exit_code"] == 70
    assert main(["--debug", "version"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_in_a_place_that_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_version(monkeypatch, RuntimeError("boom"))
    gone = place / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert main(["version"]) == 70
    assert len(list(place.glob("fluxir-crash-*.txt"))) == 1


@pytest.mark.parametrize(
    ("problem", "code", "status"),
    [
        (MemoryError(), "FX0609", 5),
        (PermissionError(13, "Permission denied", "/etc/x"), "FX0803", 74),
        (EOFError("end"), "FX0999", 70),
        (click.ClickException("Bad thing."), "FX0906", 2),
    ],
)
def test_exceptions_of_python_become_ours(
    problem: BaseException, code: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_version(monkeypatch, problem)
    assert main(["version"]) == status
    assert f"error[{code}]" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    break_version(monkeypatch, KeyboardInterrupt())
    assert main(["version"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_real_interrupt_ends_the_process_quietly() -> None:
    code = "import time, fluxir.cli.version as v; v.versions = lambda: (print('on', flush=True), time.sleep(30)); "
    code += "import sys; from fluxir.cli import main; sys.exit(main(['version']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also where the suite runs in the background
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.strip() == "interrupted"


def test_a_reader_that_goes_away_is_no_error() -> None:
    # The child writes only after our end is closed: what a kernel makes of a write in flight is its own affair.
    code = "import sys; from fluxir.cli import main; import fluxir.cli.version as v\n"
    code += "v.versions = lambda: {'line': sys.stdin.readline()}\nsys.exit(main(['version']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 141 and err == ""


# -- the verbs ---------------------------------------------------------------------------------------------------------


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    texts = set()
    for spelling in ("FX0203", "fx0203", "203", "0203", "error[FX0203]:"):
        assert main(["explain", spelling]) == 0
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert text.startswith("FX0203: matmul inner dimensions differ") and CODES["FX0203"].text in text
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CODES)
    assert main(["explain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(CODES)


def test_cache_verbs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(place / "cache")
    assert main(["cache", "ls"]) == 0
    assert capsys.readouterr().out.startswith("0 entries")
    cache = Cache(place / "cache", 1 << 20)
    cache.put("a", {"k.o": b"1" * 2000}, {"name": "fwd", "key_parts": {"target": "cpu"}})
    cache.put("b", {"k.ptx": b"2"}, {"name": "fwd", "key_parts": {"target": "sm_80"}})
    assert main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert "fwd sm_80" in shown and cache.digest("a")[:12] in shown and "2 entries" in shown
    assert main(["cache", "ls", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["entries"]) == 2 and data["bytes"] == cache.size()
    assert main(["cache", "explain", cache.digest("a")[:8]]) == 0
    shown = capsys.readouterr().out
    assert "intact" in shown and "differs in target" in shown and "file k.o" in shown
    assert main(["cache", "verify"]) == 0
    capsys.readouterr()
    path = place / "cache" / "objects-1" / f"{cache.digest('a')}.fxc"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["cache", "verify"]) == 74
    assert cache.digest("a")[:12] in capsys.readouterr().err
    assert main(["cache", "prune", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert main(["cache", "prune", "--cache-size", "0"]) == 0


def test_cache_dir_as_a_flag(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "path", "--cache-dir", "other"]) == 0
    assert capsys.readouterr().out.strip() == str(place / "other")


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^sm_90a +compute capability 9.0 only, PTX 8.0", shown, re.MULTILINE)
    assert main(["targets", "--json"]) == 0
    assert {"cpu", "sm_80"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert main(["targets", "sm_80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shared_per_block"] == 163 * 1024


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    found = {finding["what"]: finding for finding in data["findings"]}
    assert data["ok"] and {"python", "llvmlite", "cpu", "threads", "cache", "ptxas", "pycuda", "settings"} <= set(found)
    assert "LLVM" in found["llvmlite"]["detail"] and found["ptxas"]["state"] == "ok"
    assert main(["doctor"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["--color", "always", "doctor"]) == 0
    assert "\x1b[32mok" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_FLUXIR_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("fluxir exp", "1", {"explain"}),
        ("fluxir targets sm_90", "2", {"sm_90", "sm_90a"}),
        ("fluxir explain FX020", "2", {f"FX020{n}" for n in range(1, 10)}),
        ("fluxir --color ", "2", {"auto", "always", "never"}),
        ("fluxir cache v", "2", {"verify"}),
    ],
)
def test_completion_answers(words: str, index: str, expected: set[str]) -> None:
    done = subprocess.run(
        command_line(),
        capture_output=True,
        text=True,
        env=environment(_FLUXIR_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=index),
        timeout=60,
    )
    assert {line.split(",", 1)[1] for line in done.stdout.splitlines()} == expected
