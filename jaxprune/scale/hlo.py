"""The collectives of a compiled program, from the text of its HLO: kinds, how often, and bytes on the wire.

XLA's Python interface gives a module as text only. What is read is the result type of each collective, its groups of
devices, and how often the loops around it turn.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # others name their width: f32, bf16, s4, f8e4m3fn
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
_FAMILY = re.compile(r"all-|reduce-scatter|collective-|ragged-all-to-all")
_SHAPE = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|(?:branch|called)_computations|(?:true|false)_computation)=\{?((?:%[\w.-]+(?:, )?)+)"
)


Computations = dict[str, dict[str, str]]
Over = Literal["links", "network"]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All executions of one kind of collective in a step, as one device sees them."""

    kind: str
    count: int  # executions
    bytes: int  # that a device sends in all of them
    over: Over = "links"  # of the slice or node, or to other slices and nodes


def shares(kind: str, n: int, nodes: int = 1) -> tuple[float, float]:
    """What a device of a group of n sends of the whole array, over the links of its node and over the network.

    (n - 1) / n for a gather, a scatter and an exchange, twice that for a reduction that all of them get: what a ring sends,
    and no algorithm less. Of a group that lies on several nodes, in equal parts, each node's devices share what passes to
    the others.
    """
    inside = n / nodes
    if kind == "all-to-all":
        return (inside - 1) / n, (n - inside) / n
    twice = 2 if kind == "all-reduce" else 1
    return twice * (inside - 1) / inside, twice * (nodes - 1) / nodes / inside


def collectives(text: str, node: int | None = None) -> tuple[Collective, ...]:
    """Of a program, largest first, as `shares` counts; a permutation sends all of its array.

    `node`: how many devices one has, of which the next one's follow (None: all devices are linked, and the network is
    where the program itself says `send`, as a TPU's between slices).

    Raises:
      ValueError: the text is in a form that this does not know (a new version of XLA).
    """
    computations, entry = _computations(text)
    count: Counter[tuple[str, Over]] = Counter()
    sent: Counter[tuple[str, Over]] = Counter()

    def visit(name: str, times: int, seen: set[tuple[str, str]]) -> None:
        for instruction in computations[name].values():
            kind = _kind(instruction)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                instruction, kind = _scattered(instruction), "reduce-scatter"
            if kind is not None and not _is_repeated(kind, instruction, seen):
                for over, size in _sent(kind, instruction, node).items():
                    count[kind, over] += times
                    sent[kind, over] += times * size
            if " async-done(" in instruction:  # of what its start has called
                continue
            is_loop = " while(" in instruction
            turns = times * _trips(instruction, name, computations) if is_loop else times
            for called in _called(instruction):
                # What stands before a loop and in it is executed in both: the compiler takes first turns out of loops.
                visit(called, turns, set() if is_loop else seen)

    visit(entry, 1, set())
    return tuple(
        Collective(kind=kind, count=count[kind, over], bytes=size, over=over)
        for (kind, over), size in sent.most_common()
    )


def _computations(text: str) -> tuple[Computations, str]:
    """Instructions of each computation by name, and the name of the one where the program begins."""
    computations: Computations = {}
    entry = current = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            current = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            computations[current] = {}
            entry = current if line.startswith("ENTRY ") else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current][found[1]] = found[2]
    if not entry:
        raise ValueError(
            "the compiled program has no ENTRY computation: its text has a form that is not known here"
        )
    return computations, entry


def _kind(instruction: str) -> str | None:
    found = re.search(r"[\])}] ([a-z][a-z0-9-]*)\(", instruction)
    name = "" if found is None else found[1].removesuffix("-start")
    if name not in _KINDS and _FAMILY.match(name) and not name.endswith("-done"):
        raise ValueError(f"the compiled program has a collective that is not known here: {instruction[:300]}")
    return name if name in _KINDS else None


def _scattered(instruction: str) -> str:
    """A reduction that is scattered in the same fusion, as the TPU's compiler writes it, as the start of a scatter."""
    head, rest = instruction.split(" all-reduce(", 1)
    return f"({head}, {head}) reduce-scatter-start({rest}"


def _is_repeated(kind: str, instruction: str, seen: set[tuple[str, str]]) -> bool:
    """Whether another part of the same execution stands for it: the TPU's compiler splits one over several fusions."""
    found = re.search(r"async_collective_name=|chain_id=", instruction)
    channel = re.search(r"channel_id=(\d+)", instruction)
    if found is None or channel is None:
        return False
    key = kind, channel[1]
    known = key in seen
    seen.add(key)
    return known


def _called(instruction: str) -> Iterator[str]:
    for names in _CALLED.findall(instruction):
        yield from re.findall(r"%([\w.-]+)", names)


def _trips(loop: str, within: str, computations: Computations) -> int:
    """How often a loop turns: as the compiler says, or from where its counter begins to the number it is compared with.

    The TPU's compiler takes turns out of loops, whose counters then do not begin with 0.
    """
    if found := re.search(r'known_trip_count[^}]*"n":"(\d+)"', loop):
        return int(found[1])
    found = re.search(r" while\(%?([\w.-]+)\), condition=%?([\w.-]+)", loop)
    condition = computations.get(found[2], {}) if found else {}
    compared = re.search(r" compare\(([^)]*)\), direction=LT", "\n".join(condition.values()))
    if found and compared:
        counter, bound = re.findall(r"%([\w.-]+)", compared[1])
        place = re.search(r" get-tuple-element\(.*index=(\d+)", condition.get(counter, ""))
        begin = _element(found[1], int(place[1]), computations[within]) if place else None
        end = _constant(bound, condition)
        if begin is not None and end is not None:
            return end - begin
    raise ValueError(
        "a loop of the compiled program does not say how often it turns: its text has a form that is not known here"
    )


def _element(name: str, place: int, instructions: dict[str, str]) -> int | None:
    """The number that an element of a tuple is, if it is a constant."""
    found = re.search(r" tuple\((.*?)\)", instructions.get(name, ""))
    names = re.findall(r"%([\w.-]+)", found[1]) if found else []
    return _constant(names[place], instructions) if place < len(names) else None


def _constant(name: str, instructions: dict[str, str]) -> int | None:
    instruction = instructions.get(name, "")
    if found := re.search(r" constant\((\d+)\)", instruction):
        return int(found[1])
    found = re.search(r" (?:copy|bitcast)\(%?([\w.-]+)\)", instruction)
    return _constant(found[1], instructions) if found else None


def _sent(kind: str, instruction: str, node: int | None) -> dict[Over, int]:
    """Bytes that one device sends in one execution."""
    head = instruction.split(f" {kind}", 1)[0]
    if "<=" in head:
        raise ValueError(f"a collective's array has a size that is not fixed: {instruction[:300]}")
    shapes = _SHAPE.findall(head)
    is_start = f" {kind}-start(" in instruction
    if kind == "send":
        return {"network": _size(*shapes[0])}
    if kind == "collective-permute":
        sizes = [_size(*shape) for shape in shapes if shape != ("u32", "")]  # those are its context
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.split("source_target_pairs=", 1)[1])
        leaves = node is not None and any(int(a) // node != int(b) // node for a, b in pairs)
        # The start names its operands and its results.
        return {"network" if leaves else "links": sum(sizes) // (2 if is_start else 1)}
    sizes = [_size(*shape) for shape in shapes]
    if is_start and kind == "all-gather":
        size = sum(sizes[len(sizes) // 2 :])  # operands first, then results
    elif is_start and (kind != "all-reduce" or head.startswith("((")):  # of a sum, not in all versions
        size = sum(sizes[: len(sizes) // 2])
    else:
        size = sum(sizes)
    group = _group(instruction)
    n = len(group)
    if kind == "reduce-scatter" and not is_start:
        size *= n  # the result is a part
    nodes = 1 if node is None else len({device // node for device in group})
    links, network = shares(kind, n, nodes)
    sent: dict[Over, int] = {"links": round(size * links), "network": round(size * network)}
    return {over: of for over, of in sent.items() if of} or {"links": 0}


def _size(kind: str, dimensions: str) -> int:
    found = re.match(r"[a-z]+(\d+)", kind)
    if kind not in _BITS and found is None:
        raise ValueError(f"the compiled program has an array of a type that is not known here: {kind}")
    bits = _BITS[kind] if found is None else int(found[1])
    return bits * math.prod(int(size) for size in dimensions.split(",") if size) // 8


def _group(instruction: str) -> list[int]:
    """Devices of the first group, in the three ways in which groups are written: those of a mesh along some of its axes (an
    axis may be cut, `'a':(2)4` is the middle of 2 x 4 x the rest), rows of a reshaped and transposed range, and lists."""
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
        instruction,
    ):
        axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])]
        named = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4])
        sizes, take = [], []
        for name, size in axes:
            before = 1
            for _, skipped, part in sorted(
                (of for of in named if of[0] == name), key=lambda of: int(of[1] or 1)
            ):
                gap, part = int(skipped or 1) // before, int(part or size)
                sizes += [gap, part]
                take += [0, slice(None)]
                before *= gap * part
            sizes.append(size // before)
            take.append(0)
        total = math.prod(size for _, size in axes)
        return _range(found[2] or str(total), found[3]).reshape(sizes)[tuple(take)].flatten().tolist()
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", instruction):
        return _range(found[3], found[4]).reshape(int(found[1]), int(found[2]))[0].tolist()
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction):
        return [int(device) for device in found[1].split(",")]
    raise ValueError(
        f"the groups of a collective are written in a form that is not known here: {instruction[:300]}"
    )


def _range(shape: str, order: str | None) -> np.ndarray:
    """Devices from 0 on in this shape, with its axes in this order."""
    sizes = [int(size) for size in shape.split(",")]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices if order is None else devices.transpose([int(axis) for axis in order.split(",")])


def memory(compiled: Any) -> dict[str, int]:
    """What a compiled program takes of a device's memory, in bytes: arguments, results that take none of theirs,
    temporaries, and its code."""
    stats = compiled.memory_analysis()
    return {
        "arguments": int(stats.argument_size_in_bytes),
        "results": int(stats.output_size_in_bytes - stats.alias_size_in_bytes),
        "temporaries": int(stats.temp_size_in_bytes),
        "code": int(stats.generated_code_size_in_bytes),
    }
