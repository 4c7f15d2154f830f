"""Owns the codes FX09xx: the command line, settings, limits, and errors nobody expected."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0901",
    "unknown setting",
    "usage",
    """
    No setting has this name. A variable whose name starts with FLUXIR_ must be a setting, so that a slip of the pen does
    not go unnoticed. `fluxir doctor` lists the settings in force and the message suggests the nearest name.
    """,
)

declare(
    "FX0902",
    "value not allowed for a setting",
    "usage",
    """
    A keyword, a flag or a FLUXIR_ variable has a value outside what the setting takes. The message shows what it takes.

        FLUXIR_NUM_THREADS=many                         a whole number from 0 to 1024
    """,
)

declare(
    "FX0903",
    "unknown error code",
    "usage",
    """
    Error codes are FX and four digits. `fluxir explain` without a code lists all.
    """,
)

declare(
    "FX0904",
    "options contradict each other",
    "usage",
    """
    Two options of the command line cannot both hold. Leave one out; `fluxir VERB --help` says what each does.
    """,
)

declare(
    "FX0905",
    "bad input or output assignment",
    "usage",
    """
    Inputs are given as `name=@file.npy`, `name=random`, `name=zeros`, `name=ones` or `name=NUMBER`, outputs as
    `name=@file.npy` or `name=-` to print.

        fluxir run digits.fxb --input x=@images.npy --output y=@out.npy
    """,
)

declare(
    "FX0906",
    "option or argument is wrong",
    "usage",
    """
    An option or argument is unknown, missing, or has a value of the wrong form. `fluxir VERB --help` shows the usage.
    """,
)

declare(
    "FX0908",
    "file is larger than the limit",
    "limit",
    """
    The file exceeds the setting max_file_size, which protects from filling the memory by mistake.

        FLUXIR_MAX_FILE_SIZE=16GiB fluxir run big.fxb
    """,
)

declare(
    "FX0909",
    "unknown command",
    "usage",
    """
    No verb has this name. `fluxir --help` lists the verbs, and `fluxir VERB --help` the options of one.
    """,
)

declare(
    "FX0911",
    "optional dependency is missing",
    "usage",
    """
    What was asked for needs a package that the base install leaves out. The message gives the command that installs it.
    """,
)

declare(
    "FX0912",
    "a limit for reading a model was reached",
    "limit",
    """
    The command line reads and compiles a model in a process of its own that may take only so much memory and time, since a
    file from a stranger may ask for any amount. The settings are max_memory (three quarters of the machine's), max_seconds
    (600) and max_file_size (of what it reads and writes).

        fluxir compile big.onnx --max-seconds 3600 --max-memory 64GiB
        fluxir compile mine.onnx --no-sandbox
    """,
)

declare(
    "FX0913",
    "the process that reads a model died",
    "internal",
    """
    The process that reads and compiles a model ended in a way that it cannot report: a crash of LLVM or of a library,
    as it happens when memory runs out, or because a file was made shorter while it was mapped. Where the limit of
    memory may be the reason, raise --max-memory; else please report it with the model, if you can share it.
    """,
)

declare(
    "FX0999",
    "unexpected internal error",
    "internal",
    """
    An exception that fluxir did not foresee. This is a defect. A reproducer file was written, whose path is in the
    message: it holds the command, the versions and the traceback, and nothing of your data. Please report it.

    `--debug` shows the traceback at once.
    """,
)
