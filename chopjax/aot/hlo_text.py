"""The text of a compiled module, as instructions."""

import dataclasses
import math
import re
from collections.abc import Mapping

# Bytes of one element.
WIDTHS: Mapping[str, float] = {
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "token": 0,
}

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[^\s(]+) \(.*\{\s*")
_INSTRUCTION = re.compile(r"\s+(?P<root>ROOT )?%(?P<name>[^\s=]+) = (?P<rest>.*)")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's element type and dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Bytes of the array, without the padding of its tiles."""
        return WIDTHS[self.dtype] * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = type opcode(operands), attributes`, each as it is written.

    Attributes:
        name: its name, which is unique in its computation.
        type: type of its result; begins with a bracket if that is a tuple.
        opcode: the operation.
        inside: what stands between the brackets: operands, or the value of a constant.
        attributes: what follows them.
        root: whether its result is the computation's.
    """

    name: str
    type: str
    opcode: str
    inside: str
    attributes: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([^\s,()]+)", self.inside)

    @property
    def shapes(self) -> list[Shape]:
        """Shapes of the arrays in the result."""
        return shapes(self.type)

    def attribute(self, pattern: str) -> str | None:
        """What the first group of a regular expression finds in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def constant(self) -> int | None:
        """The value of a scalar integer constant."""
        if self.opcode == "constant" and re.fullmatch(r"-?\d+", self.inside.strip()):
            return int(self.inside)
        return None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations by name, and the name of the one that is run."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads what `jax.stages.Compiled.as_text` gives.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := _COMPUTATION.fullmatch(line):
            current = computations.setdefault(found["name"], {})
            entry = found["name"] if found["entry"] else entry
        elif current is not None and (found := _INSTRUCTION.fullmatch(line)):
            instruction = _instruction(found["name"], found["rest"], bool(found["root"]))
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text holds no entry computation: it is not that of a compiled module")
    return Module(computations, entry)


def shapes(text: str) -> list[Shape]:
    """Shapes of all arrays that a type names, in order."""
    found = ((name, dims) for name, dims in _ARRAY.findall(text) if name in WIDTHS)
    return [Shape(name, tuple(int(size) for size in dims.split(",") if size)) for name, dims in found]


def split(text: str) -> list[str]:
    """The elements of a tuple's type, such as `((a, b), c)`, as they are written; of another type, itself."""
    if not text.startswith("("):
        return [text]
    found, depth, begun = [], 0, 1
    for place in re.finditer(r"[\[({})\],]", text):
        depth += {",": 0}.get(place[0], 1 if place[0] in "[({" else -1)
        if (place[0] == "," and depth == 1) or depth == 0:
            found.append(text[begun : place.start()].strip())
            begun = place.end()
    return [element for element in found if element]


def _instruction(name: str, rest: str, root: bool) -> Instruction | None:
    of_type = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    opening = rest.find("(", of_type)
    if of_type < 0 or opening < 0:
        return None
    closing = _closing(rest, opening)
    opcode, inside = rest[of_type:opening].strip(), rest[opening + 1 : closing - 1]
    return Instruction(name, rest[:of_type], opcode, inside, rest[closing:], root)


def _closing(text: str, opening: int) -> int:
    """One beyond the bracket that closes the one at `opening`."""
    depth = 0
    for found in re.finditer(r"[\[({})\]]", text[opening:]):
        depth += 1 if found[0] in "[({" else -1
        if depth == 0:
            return opening + found.end()
    return len(text)
