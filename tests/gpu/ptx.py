"""PTX, as NVRTC makes it of our kernels, as C++ for the emulator, instruction by instruction: the compiler's front end is in the proof.

What stays outside is ptxas, which turns PTX into machine code, and the chip. Loads and stores check their alignment. It knows what these
kernels use, and stops at an instruction that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable

TYPES = {
    **{f"{kind}{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64) for kind in "s"},
    **{f"{kind}{bits}": f"uint{bits}_t" for bits in (8, 16, 32, 64) for kind in "ub"},
    "f32": "float",
    "f64": "double",
    "pred": "bool",
}
REGISTERS = {"p": "bool", "rs": "uint16_t", "r": "uint32_t", "rd": "uint64_t", "f": "float", "fd": "double"}
SPECIAL = {"%tid.x": "threadIdx.x", "%ctaid.x": "blockIdx.x", "%ctaid.y": "blockIdx.y"}
WIDER = {"s16": "int32_t", "u16": "uint32_t", "s32": "int64_t", "u32": "uint64_t", "s64": "__int128", "u64": "unsigned __int128"}
ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNORDERED = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
"""Comparisons that hold for NaN too, as the negation of these."""
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%", "and": "&", "or": "|", "xor": "^"}
Operation = Callable[["Instruction"], str]
OPERATIONS: dict[str, Operation] = {}


class Kernel:
    """One entry of a PTX module."""

    def __init__(self, name: str, parameters: int, body: str) -> None:
        self.name, self.parameters = name, parameters
        self.shared = re.findall(r"\.shared \.align \d+ \.b8 (\w+)\[\d+\];", body)
        assert len(self.shared) <= 1, f"{name}: the emulator has one shared array a kernel"
        body = re.sub(r"//[^\n]*", "", body)
        # nested blocks, of two kinds: half of a 64-bit register is thrown away, a shared address is made a generic one
        body = re.sub(r"\{ *\.reg \.b64 %tmp;", "", body).replace("%tmp", "%rd999999")
        body = re.sub(
            r"\{ \.reg \.b32 tmp; mov\.b64 (\{[^}]*\}), (%rd\d+); \}",
            lambda m: f"mov.b64 {m[1].replace('tmp', '_')}, {m[2]};",
            body,
        )
        self.body = re.sub(r"\{([^{}]*)\}", lambda m: "{" + " ".join(m[1].split()) + "}" if "," in m[1] else m[0], body)

    def translated(self) -> str:
        """A C++ function of the addresses of the kernel's parameters."""
        lines = [self.line(text.strip()) for text in re.split(r";|\n", re.sub(r"(\$L\w+):", r"\n\1:\n", self.body))]
        names = sorted(set(re.findall(r"%((?:rd|rs|r|fd|f|p)\d+)\b", self.body)))
        registers = " ".join(f"{REGISTERS[re.sub(r'[0-9]', '', name)]} {name}{{}};" for name in names)
        arguments = ", ".join(f"const void *param_{i}" for i in range(self.parameters))
        return f"static void ptx_{self.name}({arguments}) {{\n{registers}\n" + "\n".join(filter(None, lines)) + "\n}"

    def line(self, text: str) -> str:
        """One instruction or label; nothing for a declaration."""
        if not text or text in "{}" or text.startswith("."):
            return ""
        if text.endswith(":"):
            return text[1:] + " ;"  # labels begin with $
        found = re.match(r"(@!?%p\d+)?\s*([\w.:]+)\s*(.*)", text, re.DOTALL)
        assert found, text
        guard, operation, rest = found.groups()
        operands = [operand.strip() for operand in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)]
        statement = Instruction(self, operation, operands).translated()
        return f"if ({'!' if '!' in guard else ''}{guard.lstrip('@!%')}) {{ {statement} }}" if guard else statement

    def value(self, operand: str, kind: str) -> str:
        """An operand, read as a type of PTX."""
        ctype = TYPES[kind]
        if operand in SPECIAL:
            return f"({ctype}){SPECIAL[operand]}"
        if operand.startswith("%"):
            name, real = operand[1:], is_real(REGISTERS[re.sub(r"[0-9]", "", operand[1:])])
            if real != (kind in ("f32", "f64")):
                return f"as<{ctype}>({name})"
            return name if real or kind == "pred" else f"({ctype}){name}"
        if operand[:2] in ("0f", "0F"):
            return f"as<{ctype}>(as<float>(0x{operand[2:]}u))"
        if operand[:2] in ("0d", "0D"):
            return f"as<{ctype}>(as<double>(0x{operand[2:]}ull))"
        if operand in self.shared:
            return f"({ctype})(uint64_t)self->block->shared"
        if found := re.fullmatch(rf"{self.name}_param_(\d+)", operand):
            return f"({ctype})(uint64_t)param_{found[1]}"
        if kind in ("f32", "f64"):
            return f"as<{ctype}>({TYPES['b' + kind[1:]]}({operand}))"
        return f"({ctype}){operand}{'ll' if '64' in kind else ''}"


def is_real(ctype: str) -> bool:
    """Whether a C++ type is a float."""
    return ctype in ("float", "double")


class Instruction:
    """One instruction, its operands not yet read."""

    def __init__(self, kernel: Kernel, operation: str, operands: list[str]) -> None:
        self.kernel, self.operation, self.operands = kernel, operation, operands
        self.parts = operation.split(".")
        self.kind = self.parts[-1]

    def translated(self) -> str:
        """The C++ statement."""
        operation = OPERATIONS.get(self.operation) or OPERATIONS.get(self.parts[0])
        if operation is None:
            raise NotImplementedError(f"PTX instruction {self.operation} {', '.join(self.operands)}")
        return operation(self)

    def value(self, index: int, kind: str = "") -> str:
        """An operand, read as the instruction's type or another."""
        return self.kernel.value(self.operands[index], kind or self.kind)

    def store(self, expression: str, kind: str = "", to: str = "") -> str:
        """The first operand takes an expression of a type; narrower integers widen by that type's sign."""
        kind, name = kind or self.kind, (to or self.operands[0])[1:]
        ctype = REGISTERS[re.sub(r"[0-9]", "", name)]
        if is_real(ctype) != (kind in ("f32", "f64")):
            return f"{name} = as<{ctype}>({TYPES[kind]}({expression}));"
        return f"{name} = ({ctype})({TYPES[kind]})({expression});"

    def address(self, index: int) -> str:
        """``[%rd1+16]``."""
        base, _, offset = self.operands[index].strip("[]").partition("+")
        return f"({self.kernel.value(base, 'u64')} + {offset or 0})"

    def pair(self, index: int) -> list[str]:
        """``{%r1, %r2}``."""
        return [name.strip() for name in self.operands[index].strip("{}").split(",")]


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Register a translation for instructions by their first part, or their whole name."""

    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def call(function: str, operands: int, *, template: bool = True) -> Operation:
    """A function of the prelude with so many operands of the instruction's type."""

    def translate(i: Instruction) -> str:
        values = ", ".join(i.value(n + 1) for n in range(operands))
        return i.store(f"{function}{f'<{TYPES[i.kind]}>' if template else ''}({values})")

    return translate


OPERATIONS |= {
    "ret": lambda i: "return;",
    "bra": lambda i: f"goto {i.operands[0][1:]};",
    "bar.sync": lambda i: "__syncthreads();",
    "cvta": lambda i: i.store(i.value(1, "u64"), "u64"),
    "selp": lambda i: i.store(f"{i.value(3, 'pred')} ? {i.value(1)} : {i.value(2)}"),
    "mad": lambda i: i.store(f"{i.value(1)} * {i.value(2)} + {i.value(3)}"),
    "sqrt": lambda i: i.store(f"__builtin_sqrt{'f' if i.kind == 'f32' else ''}({i.value(1)})"),
    "rcp": lambda i: i.store(f"({TYPES[i.kind]})1 / {i.value(1)}"),
    "neg": lambda i: i.store(f"-{i.value(1)}"),
    "abs": call("abs_ptx", 1),
    "not": lambda i: i.store(f"{'!' if i.kind == 'pred' else '~'}{i.value(1)}"),
    "shl": lambda i: i.store(f"shl_ptx<{TYPES[i.kind]}>({i.value(1)}, {i.value(2, 'u32')})"),
    "shr": lambda i: i.store(f"shr_ptx<{TYPES[i.kind]}>({i.value(1)}, {i.value(2, 'u32')})"),
    "popc": lambda i: i.store(f"__builtin_popcount({i.value(1)})", "u32"),
    "bfi": lambda i: i.store(f"bfi_ptx<{TYPES[i.kind]}>({i.value(1)}, {i.value(2)}, {i.value(3, 'u32')}, {i.value(4, 'u32')})"),
    "shf.l.wrap.b32": lambda i: i.store(f"(uint32_t)(((uint64_t){i.value(2)} << 32 | {i.value(1)}) << ({i.value(3)} & 31) >> 32)"),
    "shf.r.wrap.b32": lambda i: i.store(f"(uint32_t)(((uint64_t){i.value(2)} << 32 | {i.value(1)}) >> ({i.value(3)} & 31))"),
    "prmt.b32": call("prmt_ptx", 3, template=False),
    "bfind.shiftamt.u32": call("bfind_shift", 1, template=False),
    "brev": call("brev_ptx", 1, template=False),
    "vote": lambda i: i.store(f"__ballot_sync(~0u, {i.value(1, 'pred')})", "b32"),
    "activemask": lambda i: i.store("~0u", "b32"),
}


@operation("ld")
def load(i: Instruction) -> str:
    ctype = TYPES[i.kind]
    if not i.operands[0].startswith("{"):
        return i.store(f"*aligned<{ctype}>({i.address(1)})")
    names = i.pair(0)
    loads = " ".join(i.store(f"(({ctype} *)at)[{n}]", to=name) for n, name in enumerate(names))
    return f"{{ uint64_t at = {i.address(1)}; check_alignment(at, sizeof({ctype}) * {len(names)}); {loads} }}"


@operation("st")
def save(i: Instruction) -> str:
    ctype = TYPES[i.kind]
    if not i.operands[1].startswith("{"):
        return f"*aligned<{ctype}>({i.address(0)}) = {i.value(1)};"
    names = i.pair(1)
    saves = " ".join(f"(({ctype} *)at)[{n}] = {i.kernel.value(name, i.kind)};" for n, name in enumerate(names))
    return f"{{ uint64_t at = {i.address(0)}; check_alignment(at, sizeof({ctype}) * {len(names)}); {saves} }}"


@operation("atom", "red")
def atomic(i: Instruction) -> str:
    assert "add" in i.parts, i.operation
    returns = i.parts[0] == "atom"
    add = f"__atomic_fetch_add(aligned<{TYPES[i.kind]}>({i.address(int(returns))}), {i.value(1 + returns)}, __ATOMIC_RELAXED)"
    return i.store(add) if returns else f"{add};"


@operation("mov")
def move(i: Instruction) -> str:
    if i.operands[1].startswith("{"):
        low, high = i.pair(1)
        return i.store(f"{i.kernel.value(low, 'u64')} & 0xffffffffull | {i.kernel.value(high, 'u64')} << 32", "b64")
    if i.operands[0].startswith("{"):
        halves = [(name, shift) for name, shift in zip(i.pair(0), (0, 32), strict=True) if name != "_"]
        return " ".join(i.store(f"(uint32_t)({i.value(1, 'b64')} >> {shift})", "b32", name) for name, shift in halves)
    return i.store(i.value(1))


@operation("shfl")
def shuffle(i: Instruction) -> str:
    to, _, valid = i.operands[0].partition("|")
    by = i.value(2, "u32")
    lane = {"bfly": f"lane_() ^ {by}", "idx": f"{by} & 31", "up": f"lane_() >= (int){by} ? lane_() - {by} : lane_()"}[i.parts[2]]
    also = f" {valid[1:]} = true;" if valid not in ("", "_") else ""
    return i.store(f"exchange({i.value(1, 'u32')}, {lane})", "b32", to) + also


@operation("setp")
def compare(i: Instruction) -> str:
    assert len(i.parts) == 3, i.operation
    how = i.parts[1]
    if how in UNORDERED:
        return i.store(f"!({i.value(1)} {UNORDERED[how]} {i.value(2)})", "pred")
    return i.store(f"{i.value(1)} {ORDERED[how]} {i.value(2)}", "pred")


@operation("cvt")
def convert(i: Instruction) -> str:
    """Float to integer truncates in both languages; integer to float rounds to nearest even in both."""
    to, source = i.parts[-2:]
    if is_real(TYPES[to]) and not is_real(TYPES[source]):
        assert "rn" in i.parts, i.operation
    if is_real(TYPES[source]) and not is_real(TYPES[to]):
        assert "rzi" in i.parts, i.operation
    return i.store(f"({TYPES[to]}){i.value(1, source)}", to)


@operation(*SIGNS)
def arithmetic(i: Instruction) -> str:
    assert i.kind[0] != "f" or "rn" in i.parts, f"{i.operation} may be fused with another"
    sign = SIGNS[i.parts[0]]
    if "wide" in i.parts:
        wide = i.kind[0] + "64"
        return i.store(f"({TYPES[wide]}){i.value(1)} {sign} ({TYPES[wide]}){i.value(2)}", wide)
    if "hi" in i.parts:
        return i.store(f"({TYPES[i.kind]})(({WIDER[i.kind]}){i.value(1)} {sign} {i.value(2)} >> {i.kind[1:]})")
    return i.store(f"{i.value(1)} {sign} {i.value(2)}")


@operation("max", "min")
def extreme(i: Instruction) -> str:
    if i.kind[0] == "f":
        assert i.parts[0] == "max", i.operation
        return i.store(f"max_ptx({i.value(1)}, {i.value(2)})")
    return i.store(f"{i.value(1)} {'>' if i.parts[0] == 'max' else '<'} {i.value(2)} ? {i.value(1)} : {i.value(2)}")


@operation("dp4a")
def dot_product(i: Instruction) -> str:
    unsigned = "true" if i.parts[1] == "u32" else "false"
    return i.store(f"dp4a_ptx<{unsigned}>({i.value(1, 'u32')}, {i.value(2, 'u32')}, {i.value(3, 'u32')})", "u32")


def translate(ptx: str) -> str:
    """A module as C++: a function ``ptx_NAME`` for each kernel. ``ptx.h`` has what they call."""
    entries = re.finditer(r"\.visible \.entry (\w+)\((.*?)\)\n(?:\.\w+ [^\n{]*\n)*\{\n(.*?)\n\}\n", ptx, re.DOTALL)
    return "\n".join(['#include "ptx.h"', *(Kernel(e[1], e[2].count(".param"), e[3]).translated() for e in entries)])
