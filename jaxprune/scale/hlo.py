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

_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}  # others end in their width: f32, s32, u8
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[\w.-]+(?:, )?)+)"
)


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All executions of one kind of collective in a step, as one device sees them."""

    kind: str
    count: int  # executions
    bytes: int  # that a device sends in all of them
    over: Literal["links", "network"] = "links"  # of the slice or node, or to other slices and nodes


def collectives(text: str) -> tuple[Collective, ...]:
    """Of a program, largest first.

    A device sends (n - 1) / n of the whole array for a gather, a scatter and an exchange among n devices, twice that for
    a reduction that all of them get, and all of it for a permutation: what a ring sends, and no algorithm less.

    Raises:
      ValueError: the text is in a form that this does not know (a new version of XLA).
    """
    computations, entry = _computations(text)
    count: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()

    def visit(name: str, times: int) -> None:
        for instruction in computations[name]:
            kind = _kind(instruction)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                instruction, kind = _scattered(instruction), "reduce-scatter"
            if kind is not None and not _is_repeated(kind, instruction, seen):
                count[kind] += times
                sent[kind] += times * _sent(kind, instruction)
            turns = times * _trips(instruction, computations) if " while(" in instruction else times
            for called in _called(instruction):
                visit(called, turns)

    visit(entry, 1)
    return tuple(
        Collective(kind=kind, count=count[kind], bytes=size, over="network" if kind == "send" else "links")
        for kind, size in sent.most_common()
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions of each computation, and the name of the one where the program begins."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            current = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            computations[current] = []
            entry = current if line.startswith("ENTRY ") else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(found[2])
    if not entry:
        raise ValueError(
            "the compiled program has no ENTRY computation: its text has a form that is not known here"
        )
    return computations, entry


def _kind(instruction: str) -> str | None:
    found = re.search(r"[\])}] ([a-z][a-z0-9-]*)\(", instruction)
    name = "" if found is None else found[1].removesuffix("-start")
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


def _trips(loop: str, computations: dict[str, list[str]]) -> int:
    """How often a loop turns: as the compiler says, or the one number that its condition compares with."""
    if found := re.search(r'known_trip_count[^}]*"n":"(\d+)"', loop):
        return int(found[1])
    found = re.search(r"condition=%?([\w.-]+)", loop)
    condition = "\n".join(computations[found[1]]) if found else ""
    bounds = set(re.findall(r"s32\[\][^ ]* constant\((\d+)\)", condition))
    if len(bounds) != 1 or "direction=LT" not in condition:
        raise ValueError(
            "a loop of the compiled program does not say how often it turns: its text has a form that is not known here"
        )
    return int(bounds.pop())


def _sent(kind: str, instruction: str) -> int:
    """Bytes that one device sends in one execution."""
    head = instruction.split(f" {kind}", 1)[0]
    sizes = [_size(*shape) for shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", head)]
    is_start = f" {kind}-start(" in instruction
    if kind in ("send", "collective-permute"):
        return sizes[0]
    if is_start and kind == "all-gather":
        size = sum(sizes[len(sizes) // 2 :])  # operands first, then results
    elif is_start and kind != "all-reduce":
        size = sum(sizes[: len(sizes) // 2])
    else:
        size = sum(sizes)
    n = _group(instruction)
    if kind == "reduce-scatter" and not is_start:
        size *= n  # the result is a part
    return round(size * (n - 1) / n * (2 if kind == "all-reduce" else 1))


def _size(kind: str, dimensions: str) -> int:
    bits = _BITS.get(kind) or int(re.sub(r"^[a-z]+", "", kind) or 0)
    return bits * math.prod(int(size) for size in dimensions.split(",") if size) // 8


def _group(instruction: str) -> int:
    """Devices of a group, in the three ways in which groups are written."""
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", instruction
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instruction):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction):
        return found[1].count(",") + 1
    raise ValueError(
        f"the groups of a collective are written in a form that is not known here: {instruction[:300]}"
    )


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
