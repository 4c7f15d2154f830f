"""The parser's LALR tables as a file of the package, so that no process spends 0.1 s on building them.

`python -m fluxir.ir.tables` writes `grammar.tables` after a change of grammar.lark. The file is a line that names lark's
version and the grammar's digest, then compressed JSON: reading it runs no code, as lark's own pickled cache would. Tables
for another lark or another grammar are not used, and the parser is built from the grammar as before.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

GRAMMAR = Path(__file__).with_name("grammar.lark")
TABLES = Path(__file__).with_name("grammar.tables")


def stamp() -> bytes:
    """What the tables depend on: lark's version and the grammar."""
    import lark

    return f"lark {lark.__version__} grammar {hashlib.sha256(GRAMMAR.read_bytes()).hexdigest()}".encode()


def load_tables(lexer: Any, transformer: Any) -> Any | None:
    """The parser from the tables with `lexer` and `transformer`, which they do not hold; None where they do not fit."""
    import lark

    try:
        head, _, body = TABLES.read_bytes().partition(b"\n")
        if head != stamp():
            return None
        tables = json.loads(zlib.decompress(body), object_hook=_numbered)
        tables["data"]["options"]["lexer"] = tables["data"]["parser"]["lexer_conf"]["lexer_type"] = lexer
        made: Any = lark.Lark
        return made._load_from_dict(**tables, transformer=transformer)
    except (OSError, ValueError, KeyError, zlib.error):
        return None


def _numbered(entry: dict[str, Any]) -> dict[Any, Any]:
    """`entry` with the numbers for keys that JSON has turned to text."""
    return {int(k) if k.isdigit() else k: v for k, v in entry.items()}


def tables_bytes() -> bytes:
    """The contents that the file of tables should have."""
    from lark.grammar import Rule
    from lark.lexer import TerminalDef

    from fluxir.ir.syntax import from_grammar

    data, memo = from_grammar().memo_serialize([TerminalDef, Rule])
    text = json.dumps({"data": data, "memo": memo}, default=lambda code: None, separators=(",", ":"))
    return stamp() + b"\n" + zlib.compress(text.encode(), 9)


if __name__ == "__main__":
    TABLES.write_bytes(tables_bytes())

__all__ = ["GRAMMAR", "TABLES", "load_tables", "stamp", "tables_bytes"]
