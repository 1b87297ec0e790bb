"""How often the loops of a compiled module run."""

import math

from chopjax.aot.hlo_text import Computation, Instruction, Module


def trips(module: Module, around: str, loop: Instruction) -> int | None:
    """Trips of a `while` instruction in the computation `around`; None if they cannot be read.

    They are what the compiler noted, or (bound - start) / step of `while (i < bound) i += step` where all three are
    constants; step 1 and start 0 where those are not.
    """
    if noted := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(noted)
    condition = module.computations.get(loop.attribute(r"condition=%([^\s,]+)") or "", {})
    body = module.computations.get(loop.attribute(r"body=%([^\s,]+)") or "", {})
    constants = [c for i in condition.values() if (c := i.constant) is not None]
    if not constants:
        return None
    bound, place = max(constants), None
    for comparison in (i for i in condition.values() if i.opcode == "compare"):
        left, right = comparison.operands[:2]
        place = _element(condition, left)
        bound = _constant(condition, right, bound)
    if place is None:
        return bound
    start = _start(module.computations[around], loop.operands[0], place)
    return math.ceil((bound - start) / _step(body, place))


def _element(computation: Computation, name: str) -> int | None:
    """Which element of the loop's state an instruction takes."""
    while (instruction := computation.get(name)) and instruction.opcode in ("copy", "bitcast"):
        name = instruction.operands[0]
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(instruction.attribute(r"index=(\d+)") or 0)


def _step(body: Computation, place: int) -> int:
    root = next((i for i in body.values() if i.root), None)
    if root is None or root.opcode != "tuple":
        return 1
    new = body.get(root.operands[place])
    if new is None or new.opcode != "add":
        return 1
    added = (_constant(body, name, 0) for name in new.operands)
    return next((step for step in added if step), 1)


def _start(around: Computation, state: str, place: int) -> int:
    made = around.get(state)
    return _constant(around, made.operands[place], 0) if made is not None and made.opcode == "tuple" else 0


def _constant(computation: Computation, name: str, otherwise: int) -> int:
    found = computation[name].constant if name in computation else None
    return otherwise if found is None else found
