"""A process that translates LLVM IR for another one: the other end of workers.py.

It is started with `python -I -S -c BOOT ARGUMENTS`, never through `__main__` of the program that uses us. It loads LLVM
once and forks its workers, which costs milliseconds each, where loading costs a tenth of a second. A worker reads tasks
from its pipe and writes an answer to each, in order. It ends when its pipe is closed, which is what the end of the other
process does, too. This file loads next to nothing besides LLVM.

Frame: four bytes of length of a JSON header, four of length of the bytes behind it, then both. A task's header holds the
lengths of its texts, the machine and the level; an answer's holds the seconds of its steps, or an error's code, message
and notes.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import tempfile
import threading
from typing import Any, NoReturn

from fluxir.codegen import backend
from fluxir.errors import FluxError

__all__ = ["BOOT", "FRAME", "frame", "main"]

BOOT = "import sys, json; sys.path += json.loads(sys.argv[1]); from fluxir.codegen.worker import main; main()"
FRAME = struct.Struct("<II")
_WARM = "define void @f(ptr %p) {\n  store i32 1, ptr %p\n  ret void\n}\n"


def frame(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return FRAME.pack(len(text), len(body)) + text + body


def main() -> None:
    """Fork a worker for each pair of descriptors, then say on standard output how each of them ended."""
    pairs: list[tuple[int, int]] = [tuple(p) for p in json.loads(sys.argv[2])]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which then closes our pipes
    machine = backend.Machine(*json.loads(sys.argv[3]))
    backend.translate(_WARM, "", machine, 2, {})  # loads and warms up what all workers share
    said = [tempfile.TemporaryFile() for _ in pairs]
    children = {}
    for i, (source, sink) in enumerate(pairs):
        child = os.fork()
        if child == 0:
            for j, ends in enumerate(pairs):
                for end in ends if j != i else ():
                    os.close(end)
            os.dup2(said[i].fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _serve(source, sink)
        children[child] = i
    for ends in pairs:
        for end in ends:
            os.close(end)
    while children:
        child, status = os.wait()
        i = children.pop(child)
        said[i].seek(0)
        words = said[i].read()[-4000:].decode("utf-8", "replace").strip()
        report = {"worker": i, "status": os.waitstatus_to_exitcode(status), "said": words}
        print(json.dumps(report), flush=True)


def _serve(source: int, sink: int) -> NoReturn:
    tasks: queue.SimpleQueue[tuple[Any, bytes]] = queue.SimpleQueue()
    # Tasks are read while LLVM works, so that the other process never waits to send one.
    threading.Thread(target=_receive, args=(source, tasks), daemon=True).start()
    with open(sink, "wb") as out:
        while True:
            header, body = tasks.get()
            times: dict[str, float] = {}
            try:
                texts = body[: header["main"]].decode(), body[header["main"] :].decode()
                data = backend.translate(*texts, backend.Machine(*header["machine"]), header["level"], times)
                answer = frame({"seconds": times}, data)
            except FluxError as e:
                answer = frame({"code": e.code, "message": e.message, "notes": e.notes}, b"")
            out.write(answer)
            out.flush()


def _receive(source: int, tasks: queue.SimpleQueue[tuple[Any, bytes]]) -> None:
    with open(source, "rb") as file:
        while len(start := file.read(FRAME.size)) == FRAME.size:
            header, body = FRAME.unpack(start)
            tasks.put((json.loads(file.read(header)), file.read(body)))
    os._exit(0)  # nobody waits for an answer any more
