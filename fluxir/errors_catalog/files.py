"""Owns the codes FX08xx: files, artifacts and the compile cache."""

from __future__ import annotations

from ._entry import declare

declare(
    "FX0801",
    "artifact is damaged",
    "io",
    """
    The file is cut short, or its digest does not match its contents, so nothing in it is believed. Compile it again, or
    copy it again in binary mode.
    """,
)

declare(
    "FX0802",
    "artifact version is not understood",
    "io",
    """
    The artifact was written by a version of fluxir whose format this one does not read. Compile the model again with this
    version, or run it with the one named in the message.
    """,
)

declare(
    "FX0803",
    "file cannot be read",
    "io",
    """
    The system refused to open or read the file; its reason is shown. Check the path, and that it is a regular file with
    read permission.
    """,
    "check the path and its permissions",
)

declare(
    "FX0804",
    "file cannot be written",
    "io",
    """
    The system refused to create or write the file; its reason is shown. Check that the directory exists, has write
    permission and space left. Files are written under a temporary name and renamed, so no half file is left behind.
    """,
    "check that the directory exists, may be written to and has space left",
)

declare(
    "FX0805",
    "cache directory is not safe",
    "io",
    """
    Compiled code is loaded from the cache, so whoever can write there can run code as you. The directory must therefore
    be your own, no symbolic link, and not writable for others.

        chmod 700 ~/.cache/fluxir                       or name another one: FLUXIR_CACHE_DIR=/path

    With `sudo` the directory belongs to another user than the process: FLUXIR_CACHE=off works there.
    """,
)

declare(
    "FX0806",
    "cache directory cannot be used",
    "io",
    """
    The directory cannot be created, read or written (no permission, a read-only or full file system, a file in its
    place). Name another one with FLUXIR_CACHE_DIR, or switch the cache off with FLUXIR_CACHE=off.
    """,
)

declare(
    "FX0807",
    "no such cache entry",
    "usage",
    """
    Entries are named by the first digits of their digest, as `fluxir cache ls` prints them; the digits must single out
    one entry.
    """,
)

declare(
    "FX0808",
    "unknown file type",
    "user",
    """
    The kind of a file follows from its name: `.py` is a Python model (and is run), `.fx` is IR text (and is only read),
    `.fxb` is a compiled artifact, `.npy` an array, `.safetensors` weights.
    """,
)

declare(
    "FX0809",
    "weights file is wrong",
    "io",
    """
    The safetensors file is malformed (its header, offsets or dtypes contradict each other), or lacks a tensor that was
    asked for, or has it in another shape. The message names the tensor. Nothing outside the declared offsets is read.
    """,
)

declare(
    "FX0811",
    "cache entries were damaged",
    "io",
    """
    `fluxir cache verify` found entries whose digest does not match, and removed them. They will be compiled again when
    needed. If it happens repeatedly, suspect the disk.
    """,
)

declare(
    "FX0813",
    "lowered IR from a file that is not trusted",
    "user",
    """
    A `.fx` file of tensor functions may come from anybody: every access to memory is made by the compiler. A dump of a
    later stage holds `host` and `kernel` functions, which state their loads and stores themselves; compiled, they can
    read and write anything the process can. `fluxir show`, `verify` and `opt` read such a file; `compile` and `run`
    need `--trust`, and `fx.load_model` needs `trust=True`.
    """,
)

declare(
    "FX0812",
    "array file is wrong",
    "user",
    """
    The file is no `.npy` file, holds Python objects (which are never loaded: they can run code), or is cut short. Write
    arrays with `np.save`.
    """,
    "write arrays with numpy.save",
)

declare(
    "FX0815",
    "bundle cannot be built here",
    "io",
    """
    `fluxir bundle --test` compiles the C library that it has made with `cc` or `gcc` and runs its test. There is no such
    compiler, or it refuses the source, and says why. The bundle itself is written either way.
    """,
    "install gcc, or build the bundle where there is a C compiler",
)

declare(
    "FX0816",
    "program cannot be a bundle",
    "unsupported",
    """
    A bundle is called with arrays whose sizes the caller knows beforehand, from C, on one kind of machine. A result whose
    size is known only when the program has run, an element type without a C type, targets of different kinds of machines,
    or more weights than an object file can hold do not go into one.
    """,
)
