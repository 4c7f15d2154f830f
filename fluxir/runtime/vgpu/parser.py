"""PTX text -> `ptx.Module`. Takes what LLVM, nvcc and Triton write, of any ISA version up to 9.x.

The parser knows the grammar and no instruction: which names and modifiers exist is said in `isa`. Debug sections are
skipped, `.loc` and `.file` become the location of each instruction. FX0711 names the line of what does not parse.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from fluxir.errors import Location, error

from .ptx import (
    Address,
    Function,
    Group,
    Immediate,
    Instruction,
    Label,
    Module,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
    type_bytes,
)

__all__ = ["parse"]

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r]+|//[^\n]*)
  | (?P<newline>\n)
  | (?P<comment>/\*.*?\*/)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<number>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|
      \d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\d+U?)
  | (?P<word>[.%$_A-Za-z][\w$]*(?:(?:\.|::)[\w$]+)*)
  | (?P<sign>[{}()\[\],;:<>=@!|+\-*/~&^?])
    """,
    re.VERBOSE | re.DOTALL,
)

_SPACES = frozenset((".global", ".const", ".shared", ".local", ".param", ".reg", ".sreg", ".tex"))
MOST_REGISTERS = 1_000_000  # of a function
MOST_BYTES = 1 << 40  # of a variable
_KIND = re.compile(
    r"(?:b8|b16|b32|b64|b128|[us](?:8|16|32|64)|f16|f16x2|bf16|bf16x2|f32|f32x2|f64|pred|texref|samplerref|surfref)$"
)
_LINKAGE = frozenset((".visible", ".extern", ".weak", ".common"))
_SPECIAL = re.compile(
    r"%(?:(?:n?tid|n?ctaid|(?:n?clusterid|cluster_n?ctaid))\.[xyz]|laneid|n?warpid|n?smid|gridid|clock(?:_hi|64)?|pm\d+(?:_64)?|"
    r"lanemask_(?:eq|le|lt|ge|gt)|globaltimer(?:_lo|_hi)?|total_smem_size|dynamic_smem_size|aggr_smem_size|envreg\d+|"
    r"cluster_(?:n?ctarank)|is_explicit_cluster|current_graph_exec|reserved_smem_offset_\w+)$"
)
_LIMITS = frozenset(
    (".maxntid", ".reqntid", ".minnctapersm", ".maxnctapersm", ".maxnreg", ".reqnctapercluster", ".maxclusterrank")
)
_DEPTH = 64  # of braces in operands and initial values
_FLAGS = frozenset((".explicitcluster", ".noreturn", ".abi_preserve", ".abi_preserve_control", ".blocksareclusters"))


def parse(text: str) -> Module:
    """The module that a PTX text describes. FX0711 where it is not PTX."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: list[str] = []
        self.words: list[str] = []
        self.lines: list[int] = []
        self.starts: list[int] = []
        self._scan()
        self.at = 0
        self.depth = 0  # of braces and parentheses
        # LLVM writes `.file` behind the code that names its number.
        named = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)
        self.files: dict[int, str] = {int(number): name for number, name in named}
        self.location: Location | None = None

    @contextmanager
    def nested(self) -> Iterator[None]:
        """What stands inside braces or parentheses."""
        self.depth += 1
        if self.depth > _DEPTH:
            self.fail("operands are nested too deeply")
        yield
        self.depth -= 1

    # ---- tokens
    def _scan(self) -> None:
        line, at, text = 1, 0, self.text.rstrip("\0")
        match = _TOKEN.match
        while at < len(text):
            found = match(text, at)
            if found is None:
                raise error(
                    "FX0711",
                    f"line {line}: {text[at : at + 20].splitlines()[0]!r} is not PTX",
                    loc=Location("<ptx>", line),
                )
            kind = found.lastgroup or ""
            if kind == "newline":
                line += 1
            elif kind == "comment":
                line += found.group().count("\n")
            elif kind != "space":
                word = found.group()
                space = word[: word.find(".", 1)] if word[0] == "." else ""
                for part in (space, word[len(space) :]) if space in _SPACES else (word,):  # `.reg.b16 x;`
                    self.kinds.append(kind)
                    self.words.append(part)
                    self.lines.append(line)
                    self.starts.append(at)
            at = found.end()
        self.kinds.append("end")
        self.words.append("")
        self.lines.append(line)
        self.starts.append(len(text))

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        line = self.lines[self.at if at is None else at]
        raise error("FX0711", f"line {line}: {message}", loc=Location("<ptx>", line))

    @property
    def word(self) -> str:
        return self.words[self.at]

    def next(self) -> str:
        self.at += 1
        return self.words[self.at - 1]

    def take(self, word: str) -> bool:
        if self.words[self.at] == word and self.kinds[self.at] != "string":
            self.at += 1
            return True
        return False

    def expect(self, word: str) -> None:
        if not self.take(word):
            self.fail(f"`{word}` expected, `{self.word or 'the end'}` found")

    def name(self) -> str:
        if self.kinds[self.at] != "word":
            self.fail(f"a name expected, `{self.word or 'the end'}` found")
        return self.next()

    def integer(self) -> int:
        sign = -1 if self.take("-") else 1
        if self.kinds[self.at] != "number":
            self.fail(f"a number expected, `{self.word}` found")
        word = self.next().rstrip("U")
        try:
            return sign * int(word, 8 if re.fullmatch(r"0[0-7]+", word) else 0)
        except ValueError:
            self.fail(f"`{word}` is no integer", self.at - 1)

    def string(self) -> str:
        if self.kinds[self.at] != "string":
            self.fail("a string expected")
        return self.next()[1:-1]

    def skip_to(self, end: str) -> None:
        while not self.take(end):
            if self.kinds[self.at] == "end":
                self.fail(f"the text ends before `{end}`")
            self.at += 1

    # ---- module
    def module(self) -> Module:
        version, target, address_size = (0, 0), "", 64
        functions: dict[str, Function] = {}
        variables: dict[str, Variable] = {}
        while self.kinds[self.at] != "end":
            word = self.word
            if word == ".version":
                self.at += 1
                major, _, minor = self.next().partition(".")
                if not (major + (minor or "0")).isdigit():
                    self.fail("a version expected", self.at - 1)
                version = (int(major), int(minor or 0))
            elif word == ".target":
                self.at += 1
                target = self.name()
                while self.take(","):
                    self.name()
            elif word == ".address_size":
                self.at += 1
                address_size = self.integer()
            elif word in (".file", ".loc"):
                self._debug()
            elif word == ".section":
                self.skip_to("{")
                self.skip_to("}")
            elif word in (".pragma", ".alias"):
                self.skip_to(";")
            else:
                self._declaration(functions, variables)
        if not version[0] and not functions:
            self.fail("this is not PTX: it holds neither `.version` nor a function", 0)
        if address_size != 64:
            self.fail("only .address_size 64 is taken", 0)
        return Module(version, target, address_size, functions, variables, self.files, self.text)

    def _declaration(self, functions: dict[str, Function], variables: dict[str, Variable]) -> None:
        external = False
        while self.word in _LINKAGE:
            external |= self.next() == ".extern"
        if self.word in (".entry", ".func"):
            function = self._function(self.next() == ".entry")
            if function.body is not None or function.name not in functions:
                functions[function.name] = function
        elif self.word in _SPACES:
            for v in self._variables(external):
                if not (v.external and v.name in variables):
                    variables[v.name] = v
        else:
            self.fail(f"a declaration expected, `{self.word}` found")

    def _debug(self) -> None:
        """`.file N "name" [, time, size]` and `.loc file line column [, function_name label [+ n], inlined_at f l c]`."""
        line = self.lines[self.at]
        if self.next() == ".file":
            number = self.integer()
            self.files[number] = self.string()
            while self.take(","):
                self.integer()
            return
        file, row, _column = self.integer(), self.integer(), self.integer()
        self.location = Location(self.files.get(file, f"file {file}"), row) if row else None
        while self.kinds[self.at] != "end" and self.lines[self.at] == line:
            self.at += 1

    # ---- variables
    def _variables(self, external: bool = False) -> Iterator[Variable]:
        space = self.next().lstrip(".")
        align, kind, pointer = 0, "", False
        while self.word.startswith("."):
            word = self.next()
            if word == ".align":
                align = self.integer()
            elif word == ".ptr":
                pointer = True
            elif (
                word in _SPACES
                or word.startswith((".v2", ".v4", ".v8"))
                or word in (".managed", ".attribute", ".unified")
            ):
                if word.startswith(".v"):
                    align = max(align, int(word[2:]) * 4)
                if word == ".attribute":
                    self.skip_to(")")
            else:
                kind = word[1:]
        if not kind:
            self.fail("a type expected")
        for _ in iter(int, 1):
            yield self._variable(space, kind, align, external, pointer)
            if not self.take(","):
                break
        self.expect(";")

    def _variable(self, space: str, kind: str, align: int, external: bool, pointer: bool) -> Variable:
        line, name = self.lines[self.at], self.name()
        count, is_array = 1, False
        while self.take("["):
            count, is_array = (0 if self.word == "]" else self.integer()) * count, True
            self.expect("]")
        initial: bytes = b""
        pointers: list[tuple[int, Symbol]] = []
        if self.take("="):
            initial, pointers = self._initial(kind)
            if is_array and not count:
                count = len(initial) // self._size(kind, line)
        size = self._size(kind, line)
        if not 0 <= size * count <= MOST_BYTES or align < 0 or align & (align - 1):
            self.fail(f"`{name}` cannot have this size or alignment")
        return Variable(
            space, name, kind, count, align or size, line, initial, tuple(pointers), external, is_array, pointer
        )

    def _size(self, kind: str, line: int) -> int:
        """Bytes of a type."""
        if not _KIND.match(kind):
            raise error("FX0711", f"line {line}: `.{kind}` is no type", loc=Location("<ptx>", line))
        return type_bytes(kind)

    def _initial(self, kind: str) -> tuple[bytes, list[tuple[int, Symbol]]]:
        """The bytes that an initialiser stands for. Addresses in it are left zero and listed."""
        data, size = bytearray(), self._size(kind, self.lines[self.at])
        pointers: list[tuple[int, Symbol]] = []

        def one() -> None:
            if self.take("{"):
                with self.nested():
                    while not self.take("}"):
                        one()
                        self.take(",")
                return
            if self.kinds[self.at] == "number" and self.words[self.at + 1] == "(":
                mask = self.integer()  # 0xFF00(symbol): one byte of an address; the first one stands for all
                self.expect("(")
                one_symbol()
                self.expect(")")
                if mask != 0xFF:
                    pointers.pop()
                data.extend(bytes(size))
                return
            if self.take("("):
                value = one_symbol()
                self.expect(")")
            elif self.kinds[self.at] == "word":
                value = one_symbol()
            else:
                number = self._number()
                value = number.value
                if kind[0] == "f" and number.bits != 8 * size:
                    real = struct.unpack("<d", struct.pack("<Q", value))[0] if number.bits else float(value)
                    value = int.from_bytes(struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], real), "little")
            data.extend((value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

        def one_symbol() -> int:
            if self.take("generic"):
                self.expect("(")
                with self.nested():
                    value = one_symbol()
                self.expect(")")
                return value
            name, offset = self.name(), 0
            while self.word in "+-" and self.word:
                offset += -self.integer() if self.next() == "-" else self.integer()
            pointers.append((len(data), Symbol(name, offset)))
            return 0

        one()
        return bytes(data), pointers

    def _number(self) -> Immediate:
        negative = self.take("-")
        word = self.word
        if self.kinds[self.at] != "number":
            self.fail(f"a number expected, `{word}` found")
        if word[:2] in ("0f", "0F"):
            self.at += 1
            return Immediate(int(word[2:], 16) ^ (1 << 31 if negative else 0), 32)
        if word[:2] in ("0d", "0D"):
            self.at += 1
            return Immediate(int(word[2:], 16) ^ (1 << 63 if negative else 0), 64)
        if not word.lower().startswith("0x") and re.search(r"[.eE]", word):
            self.at += 1
            return Immediate(struct.unpack("<Q", struct.pack("<d", -float(word) if negative else float(word)))[0], -64)
        value = self.integer()
        return Immediate(-value if negative else value)

    # ---- functions
    def _function(self, is_entry: bool) -> Function:
        line = self.lines[self.at]
        results: tuple[Variable, ...] = ()
        if self.word == "(":
            results = self._parameters()
        name = self.name()
        parameters = self._parameters() if self.word == "(" else ()
        limits: dict[str, tuple[int, ...]] = {}
        while self.word in _LIMITS or self.word in _FLAGS or self.word == ".pragma":
            word = self.next()
            if word == ".pragma":
                self.skip_to(";")
            elif word in _FLAGS:
                limits[word[1:]] = ()
                if self.kinds[self.at] == "number":
                    self.integer()
            else:
                values = [self.integer()]
                while self.take(","):
                    values.append(self.integer())
                limits[word[1:]] = tuple(values)
        if self.take(";"):
            return Function(name, is_entry, parameters, results, {}, (), None, limits, line)
        self.expect("{")
        body = _Body(self)
        body.read()
        return Function(
            name,
            is_entry,
            parameters,
            results,
            body.registers,
            tuple(body.variables),
            tuple(body.items),
            limits,
            line,
            body.tables,
            body.prototypes,
        )

    def _parameters(self) -> tuple[Variable, ...]:
        self.expect("(")
        found: list[Variable] = []
        while not self.take(")"):
            space = self.next().lstrip(".")
            align, kind, pointer = 0, "", False
            while self.word.startswith("."):
                word = self.next()
                if word == ".align":
                    n = self.integer()  # behind `.ptr` it is what the parameter points to that is aligned so
                    align = align if pointer else n
                elif word == ".ptr":
                    pointer = True
                elif word not in _SPACES:
                    kind = word[1:]
            found.append(self._variable(space, kind, align, False, pointer))
            self.take(",")
        return tuple(found)


class _Body:
    """The statements of one function. Names of nested scopes are made unique."""

    def __init__(self, parser: _Parser) -> None:
        self.p = parser
        self.registers: dict[str, str] = {}
        self.variables: list[Variable] = []
        self.items: list[Instruction | Label] = []
        self.tables: dict[str, tuple[str, ...]] = {}
        self.prototypes: dict[str, tuple[tuple[Variable, ...], tuple[Variable, ...]]] = {}
        self.scopes: list[dict[str, str]] = [{}]
        self.ranges: dict[str, str] = {}
        self.unique = 0
        self.used: int | None = None  # what a pragma says of the next load

    def read(self) -> None:
        p = self.p
        p.location = None
        while True:
            word = p.word
            if p.take("}"):
                self.scopes.pop()
                if not self.scopes:
                    return
            elif p.take("{"):
                self.scopes.append({})
                self._labels()
            elif word in (".loc", ".file"):
                p._debug()
            elif word == ".reg":
                self._registers()
            elif word in _SPACES:
                for v in p._variables():
                    self.variables.append(Variable(**{**vars(v), "name": self._declare(v.name)}))
            elif word in (".pragma",):
                p.next()
                if mask := re.fullmatch(r'"used_bytes_mask (\w+)"', p.word):
                    self.used = int(mask[1], 0)
                p.skip_to(";")
            elif p.kinds[p.at] == "word" and p.words[p.at + 1] == ":":
                name = p.next()
                p.next()
                if p.word in (".branchtargets", ".calltargets"):
                    p.next()
                    names = [p.name()]
                    while p.take(","):
                        names.append(p.name())
                    p.expect(";")
                    self.tables[name] = tuple(names)
                elif p.take(".callprototype"):
                    results = p._parameters() if p.word == "(" else ()
                    p.name()
                    self.prototypes[name] = (results, p._parameters())
                    p.skip_to(";")
                else:
                    self.items.append(Label(self._resolve(name), p.lines[p.at - 1]))
            elif p.take(";"):
                pass
            elif p.kinds[p.at] == "end":
                p.fail("the text ends inside a function")
            else:
                self._instruction()

    def _labels(self) -> None:
        """Declare the labels of the scope that begins here: branches name them before they stand."""
        p, at, depth = self.p, self.p.at, 1
        while depth and p.kinds[at] != "end":
            depth += {"{": 1, "}": -1}.get(p.words[at], 0)
            if depth == 1 and p.words[at + 1] == ":" and p.kinds[at] == "word":
                self._declare(p.words[at])
            at += 1

    def _declare(self, name: str) -> str:
        """The unique name for `name` in the innermost scope."""
        scope = self.scopes[-1]
        if len(self.scopes) == 1:
            return name
        self.unique += 1
        scope[name] = f"{name}${self.unique}"
        return scope[name]

    def _resolve(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def _registers(self) -> None:
        p = self.p
        p.next()
        kind = ""
        while p.word.startswith("."):
            kind = p.next()[1:]
        p._size(kind, p.lines[p.at])
        while True:
            name = p.name()
            if p.take("<"):
                count = p.integer()
                if count + len(self.registers) > MOST_REGISTERS:
                    p.fail(f"more than {MOST_REGISTERS} registers")
                p.expect(">")
                for i in range(count):
                    self.registers[self._declare(f"{name}{i}")] = kind
            else:
                self.registers[self._declare(name)] = kind
            if not p.take(","):
                break
        p.expect(";")

    def _instruction(self) -> None:
        p = self.p
        line, start, guard = p.lines[p.at], p.starts[p.at], None
        if p.take("@"):
            negated = p.take("!")
            register = Register(self._resolve(p.name()))
            guard = Negated(register) if negated else register
        head = p.name().replace("::", "\0")
        name, *modifiers = (x.replace("\0", "::") for x in head.split("."))
        while p.word.startswith(".") and p.kinds[p.at] == "word":  # `ld .global`: modifiers apart from the name
            modifiers += p.next()[1:].split(".")
        operands: list[Operand] = []
        while not p.take(";"):
            operands.append(self._operand())
            if not p.take(",") and p.word != ";":
                p.fail(f"`,` or `;` expected, `{p.word or 'the end'}` found")
        text = " ".join(p.text[start : p.starts[p.at - 1] + 1].split())
        self.items.append(
            Instruction(name, tuple(modifiers), tuple(operands), guard, line, text, p.location, self.used)
        )
        self.used = None

    def _operand(self) -> Operand:
        p = self.p
        if p.take("["):
            return self._address()
        if p.take("{"):
            return Vector(self._list("}"))
        if p.take("("):
            return Group(self._list(")"))
        if p.take("!"):
            inner = self._named(p.name())
            if not isinstance(inner, Register):
                p.fail("`!` takes a predicate register")
            return Negated(inner)
        if p.kinds[p.at] == "number" or p.word == "-":
            return p._number()
        found = self._named(p.name())
        if p.take("|"):
            return Pair(found, self._named(p.name()))
        if isinstance(found, Symbol) and p.word and p.word in "+-":
            return Symbol(found.name, self._offset())
        return found

    def _list(self, end: str) -> tuple[Operand, ...]:
        items = []
        with self.p.nested():
            while not self.p.take(end):
                items.append(self._operand())
                self.p.take(",")
        return tuple(items)

    def _named(self, name: str) -> Register | Special | Symbol | Sink | Immediate:
        if name == "_":
            return Sink()
        name = self._resolve(name)
        if name in self.registers:
            return Register(name)
        if name[0] == "%":
            if _SPECIAL.match(name):
                return Special(name)
            if name.rpartition(".")[0] in self.registers:
                self.p.fail(f"parts of vector registers ({name}) are not taken")
            return Register(name)  # a parameter of the function that is a register; `link` checks it
        if name == "WARP_SZ":
            return Immediate(32)
        return Symbol(name)

    def _offset(self) -> int:
        p, total = self.p, 0
        while p.word and p.word in "+-":
            sign = -1 if p.next() == "-" else 1
            total += sign * p.integer()
        return total

    def _address(self) -> Address:
        p = self.p
        if p.kinds[p.at] == "number":
            address = Address(Immediate(p.integer()))
        else:
            base = self._named(p.name())
            if not isinstance(base, Register | Symbol):
                p.fail(f"`{base}` is no address")
            address = Address(base, self._offset())
        if p.take(","):
            p.expect("{")
            address = Address(address.base, address.offset, Vector(self._list("}")))
        p.expect("]")
        return address
