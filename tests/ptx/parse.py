"""PTX text to what machine.cpp executes: instructions, the places of their registers, and which constants there are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from tests.ptx.machine import LANES, Instruction, operations

SIZES = {"pred": 1, "b8": 1, "b16": 2, "b32": 4, "b64": 8, "f32": 4, "f64": 8}
SPECIAL = {"%tid.x": 0, "%ctaid.x": 1, "%ctaid.y": 2, "%ctaid.z": 3}  # registers at the beginning of a warp's file
GRID = {"%nctaid.x": 0, "%nctaid.y": 1, "%nctaid.z": 2, "%ntid.x": 3}
ZERO = {"%tid.y", "%tid.z"}
DIRECTIVES = (".pragma", ".loc", ".file", ".section")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


@dataclass
class Kernel:
    """A kernel's code. `constants` are (slot, bytes, bits); `parameters` (slot, bytes of the register, which, type)."""

    name: str
    code: list[Instruction] = field(default_factory=list)
    operands: list[int] = field(default_factory=list)
    constants: list[tuple[int, int, int]] = field(default_factory=list)
    parameters: list[tuple[int, int, int, str]] = field(default_factory=list)
    of_launch: list[tuple[int, int]] = field(default_factory=list)  # slot, which of the grid's sizes and of the threads
    file_bytes: int = 4 * LANES * len(SPECIAL)
    smallest: int = 16  # bytes that an instruction reads or writes at once
    places: dict[int, str] = field(default_factory=dict)  # PTX line -> line of the source


def parse(text: str) -> Kernel:
    """The one kernel of a PTX text; NotImplementedError names an instruction that is not known."""
    return _Parser(text).kernel


class _Parser:
    def __init__(self, text: str) -> None:
        entry = re.search(r"\.entry\s+([\w$]+)\s*\(", text)
        assert entry, "no kernel"
        self.kernel = Kernel(entry[1])
        self.registers: dict[str, tuple[int, int]] = {}  # slot and bytes
        self.interned: dict[tuple[int, int], int] = {}
        self.widths: list[tuple[str, int]] = []  # of declared registers, by the beginning of their names
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[Instruction, str]] = []
        self.line = 0
        self.shared = re.findall(r"\.extern \.shared .*?([\w$]+)\[\]", text)
        body = text.index("{", entry.end())
        first = text.count("\n", 0, body) + 1
        for self.line, line in enumerate(text[body:].split("\n")[1:], first + 1):
            if line.startswith("}"):
                break
            self._line(line)
        for instruction, label in self.branches:
            instruction.offset = self.labels[label]

    def _line(self, line: str) -> None:
        code, _, comment = line.partition("//")
        code = code.strip()
        if code.startswith(".loc"):
            self.place = comment.split("@")[0].strip()
        elif declared := re.match(r"\.reg\s+\.(\w+)\s+(%\w+?)<", code):
            self.widths.append((declared[2], SIZES[declared[1]]))
        elif label := re.match(r"([$\w]+):", code):
            self.labels[label[1]] = len(self.kernel.code)
        elif not code.startswith(DIRECTIVES):
            if code.startswith("{"):  # registers of its own
                code = code[1:].removesuffix("}")
            for statement in filter(None, map(str.strip, code.split(";"))):
                if own := re.fullmatch(r"\.reg\s+\.(\w+)\s+(\w+)", statement):
                    self.registers[own[2]] = self._reserve(SIZES[own[1]]), SIZES[own[1]]
                else:
                    self._statement(statement)

    def _statement(self, statement: str) -> None:
        found = STATEMENT.fullmatch(statement)
        if found is None:
            self._refuse(statement)
        negated, guard, name, rest = found.groups()
        operands = OPERAND.findall(rest)
        self.kernel.places[self.line] = getattr(self, "place", "")
        self.guard = {"guard": self._slot(guard, 1) if guard else -1, "negated": bool(negated)}
        parts = name.split(".")
        if name.startswith("ld.param"):
            self._parameter(parts[-1], *operands)
        elif parts[0] in ("ld", "st"):
            self._memory(parts, operands)
        elif parts[0] == "atom":
            self._add(f"atom.{parts[-2]}.{parts[-1]}", *self._access(operands[1]), operands[:1] + operands[2:])
        elif parts[0] in ("ldmatrix", "stmatrix"):
            numbers, address = operands if parts[0] == "ldmatrix" else operands[::-1]
            tiles = ".".join(p for p in parts if p in ("x1", "x2", "x4", "trans"))
            self._add(f"{parts[0]}.{tiles}", *self._access(address), numbers.strip("{}").split(","))
        elif name.startswith("cp.async"):
            self._copy(name, operands)
        elif parts[:2] == ["wgmma", "mma_async"]:
            self._multiply(parts, operands)
        elif name == "wgmma.wait_group.sync.aligned":
            self._add(name, offset=int(operands[0]))
        elif parts[0] == "bra":
            self.branches.append((self._add("bra"), operands[0]))
        elif parts[0] == "mov" and "{" in rest:
            self._pack(parts[-1], *operands)
        else:
            if parts[0] == "mov" and parts[1] != "pred":
                name = f"mov.b{parts[1][1:]}"
            if name == "cvt.s64.s32" and self._width(operands[1]) == 8:
                name = "cvt.s64.s32 of 64"  # its lower half
            self._add(name, operands=[o for each in operands for o in re.split(r"[,|]", each.strip("{} "))])

    def _refuse(self, what: str) -> NoReturn:
        raise NotImplementedError(f"{self.kernel.name}, PTX line {self.line}: {what}")

    def _add(self, name: str, base: str | None = None, offset: int = 0, operands=(), **others: int) -> Instruction:
        """An instruction: first its address if it has one, then the others, each as wide as it must be."""
        known = operations().get(name)
        if known is None:
            self._refuse(name)
        op, widths = known
        texts = ([base] if base else []) + [o.strip() for o in operands]
        if widths and len(widths) != len(texts):
            self._refuse(f"{name} with {len(texts)} operands")
        width = others.pop("register", 4)
        slots = [self._slot(t, widths[i] if widths else 0 if t == base else width) for i, t in enumerate(texts)]
        first = len(self.kernel.operands)
        self.kernel.operands += slots
        flops = {"fma": 2, "mul": 1, "add": 1, "sub": 1}.get(name.split(".")[0], 0) if name.endswith("f32") else 0
        about = {"op": op, "first": first, "n": len(slots), "line": self.line, "offset": offset, "flops": flops}
        self.kernel.code.append(Instruction(**about, **self.guard, **others))
        return self.kernel.code[-1]

    def _slot(self, text: str, width: int) -> int:
        """Where a register or a constant is; width 0: of the register, or 4."""
        if text in SPECIAL:
            return 4 * LANES * SPECIAL[text]
        if text == "_":  # what nobody reads
            return self._reserve(8)
        if text in GRID:
            self.kernel.of_launch.append((self._reserve(4), GRID[text]))
            return self.kernel.of_launch[-1][0]
        if text in self.registers or (text.startswith("%") and text not in ZERO):
            if text not in self.registers:
                declared = next(size for name, size in self.widths if re.fullmatch(rf"{name}\d+", text))
                self.registers[text] = self._reserve(declared), declared
            slot, own = self.registers[text]
            if width not in (0, own):
                self._refuse(f"{text} of {own} bytes, not {width}")
            return slot
        if text in ZERO or text in self.shared:
            text = "0"
        if not re.match(r"-?\d", text):
            self._refuse(text)
        value = _number(text) & (1 << 8 * (width or 4)) - 1
        if (width, value) not in self.interned:
            self.interned[width, value] = self._reserve(width or 4)
            self.kernel.constants.append((self.interned[width, value], width or 4, value))
        return self.interned[width, value]

    def _width(self, register: str) -> int:
        self._slot(register, 0)
        return self.registers[register][1] if register in self.registers else 0

    def _reserve(self, width: int) -> int:
        begin = self.kernel.file_bytes
        self.kernel.file_bytes += -(-width * LANES // 64) * 64
        return begin

    def _parameter(self, kind: str, register: str, address: str) -> None:
        which = int(re.search(r"_param_(\d+)\]", address)[1])
        width = self._width(register)
        slot = self._reserve(width)
        self.kernel.parameters.append((slot, width, which, kind))
        self._add(f"mov.b{8 * width}", operands=[register, register])
        self.kernel.operands[-1] = slot

    def _access(self, address: str) -> tuple[str, int]:
        """The base and the offset in bytes; shared memory begins at 0."""
        base, _, offset = address.strip("[] ").partition("+")
        return base.strip(), int(offset or "0", 0)

    def _memory(self, parts: list[str], operands: list[str]) -> None:
        numbers, address = operands if parts[0] == "ld" else operands[::-1]
        numbers = [n.strip() for n in numbers.strip("{} ").split(",")]
        size, count = int(parts[-1][1:]) // 8, len(numbers)
        space = next(p for p in parts if p in ("global", "shared") or p.startswith("shared::"))
        name = f"{parts[0]}.{space.split(':')[0]}" + (".s" if parts[0] == "ld" and parts[-1][0] == "s" else "")
        width = next((w for w in map(self._width, numbers) if w), size)
        self.kernel.smallest = min(self.kernel.smallest, size)
        self._add(name, *self._access(address), numbers, size=size, count=count, width=width, register=width)

    def _copy(self, name: str, operands: list[str]) -> None:
        if name.endswith("_group"):
            self._add(name, offset=int(operands[0]) if operands and name.endswith("wait_group") else 0)
            return
        (to, offset), (source, source_offset) = map(self._access, operands[:2])
        size = int(operands[2], 0)
        self.kernel.smallest = min(self.kernel.smallest, 4)
        self._add("cp.async", None, offset, [to, source, *operands[3:]], size=size, width=source_offset, register=0)

    def _multiply(self, parts: list[str], operands: list[str]) -> None:
        """wgmma: D, A, B, whether D counts, signs, and for 16 bits which of the matrices in memory are transposed."""
        out, a = ([t.strip() for t in each.strip("{} ").split(",")] for each in operands[:2])
        signs, transposed = operands[4:6], operands[6:]
        if signs != ["1", "1"]:
            self._refuse(f"signs {signs}")
        flags = int("".join(reversed(transposed)) or "0", 2) << (len(transposed) == 1)
        columns = int(re.fullmatch(r"m64n(\d+)k\d+", parts[4])[1])
        name = f"wgmma.{parts[-1]}"
        self._add(name, None, flags, [*out, *a, *operands[2:4]], size=columns, count=len(a), register=0)

    def _pack(self, kind: str, to: str, source: str) -> None:
        """One register of several, or several of one: a move of bytes."""
        parts = [p.strip() for p in (to if "{" in to else source).strip("{} ").split(",")]
        whole = source if "{" in to else to
        size = SIZES[kind] // len(parts)
        self._add("unpack" if "{" in to else "pack", operands=[whole, *parts], size=size, width=SIZES[kind], register=0)


def _number(text: str) -> int:
    if text[:2] in ("0f", "0d"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)
