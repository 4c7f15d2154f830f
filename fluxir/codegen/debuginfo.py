"""Where machine code comes from: LLVM debug metadata that becomes `.file` and `.loc` lines in PTX.

Lines and columns of the user's source alone: no types, no variables, and no debug sections (`DebugDirectivesOnly`, which is
what nvcc's -lineinfo does), so that code and speed stay the same. Each function has one scope for each place name that
occurs in it: a line of a function that was inlined keeps that function's file.
"""

from __future__ import annotations

import os

from fluxir.codegen.text import Unit
from fluxir.errors import Location

__all__ = ["DebugInfo"]


class DebugInfo:
    """The debug metadata of one LLVM module."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._files: dict[str, str] = {}
        self._unit = ""
        self._places: dict[tuple[str, Location], str] = {}
        self._scopes: dict[tuple[str, str], str] = {}

    def function(self, name: str, loc: Location) -> str:
        """The scope of a function that is defined at `loc`."""
        file = self._file(loc.file)
        if not self._unit:
            self._unit = self.unit.node(
                f'!DICompileUnit(language: DW_LANG_C, file: {file}, producer: "fluxir", isOptimized: true, '
                "runtimeVersion: 0, emissionKind: DebugDirectivesOnly)",
                distinct=True,
            )
            version = self.unit.meta('i32 2, !"Debug Info Version", i32 3')
            self.unit.named_metadata += [f"!llvm.dbg.cu = !{{{self._unit}}}", f"!llvm.module.flags = !{{{version}}}"]
        kind = self.unit.node("!DISubroutineType(types: null)")
        scope = self.unit.node(
            f'!DISubprogram(name: "{name}", scope: {file}, file: {file}, line: {loc.line}, type: {kind}, '
            f"scopeLine: {loc.line}, spFlags: DISPFlagDefinition | DISPFlagOptimized, unit: {self._unit})",
            distinct=True,
        )
        self._scopes[scope, loc.file] = scope
        return scope

    def place(self, scope: str, loc: Location) -> str:
        """`, !dbg !n` for an instruction at `loc` in the function whose scope is `scope`."""
        found = self._places.get((scope, loc))
        if found is None:
            within = self._scopes.get((scope, loc.file))
            if within is None:
                within = self.unit.node(
                    f"!DILexicalBlockFile(scope: {scope}, file: {self._file(loc.file)}, discriminator: 0)"
                )
                self._scopes[scope, loc.file] = within
            node = self.unit.node(
                f"!DILocation(line: {max(loc.line, 0)}, column: {min(max(loc.col, 0), 65535)}, scope: {within})"
            )
            found = self._places[scope, loc] = f", !dbg {node}"
        return found

    def _file(self, path: str) -> str:
        if path not in self._files:
            folder, name = os.path.split(path)
            self._files[path] = self.unit.node(f'!DIFile(filename: "{_quoted(name)}", directory: "{_quoted(folder)}")')
        return self._files[path]


def _quoted(text: str) -> str:
    """Text inside the quotes of LLVM IR."""
    plain = set(map(ord, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./ <>()+,=~"))
    return "".join(chr(c) if c in plain else f"\\{c:02X}" for c in text.encode("utf-8", "replace"))
