"""What a compiled program needs on each device: bytes, operations and messages."""

import collections
import dataclasses
import math
import re

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Bits of the types of HLO whose names do not end in their number of bits.
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
# What stands for memory that other instructions have written, or that arguments hold.
HELD_ELSEWHERE = ("parameter", "bitcast", "get-tuple-element", "tuple", "while", "constant")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"([a-z]+\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|condition)=%?([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Messages:
    """Messages of one kind that a device takes part in.

    Attributes:
      count: how many.
      nbytes: of their results.
    """

    count: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program needs on each device.

    Attributes:
      arguments: bytes of what it is given: the state and the batch.
      temporaries: bytes that it needs besides, at most at once.
      largest: bytes of the largest array among these.
      largest_name: its type and shape, and what it is of.
      flops: operations, a multiplication and an addition being two. What a loop does counts once.
      traffic: bytes that its operations read and write, likewise.
      messages: kind → messages between the devices, those of a loop as often as they are sent.
    """

    arguments: int
    temporaries: int
    largest: int
    largest_name: str
    flops: float
    traffic: float
    messages: dict[str, Messages]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    computation: str
    kind: str
    arrays: list[tuple[int, str]]  # bytes, and type with shape
    line: str


def read(compiled: jax.stages.Compiled) -> Program:
    """Reads a program from what XLA says of it."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    instructions, _, fused = _parse(text)
    largest, name = max(
        (
            (size, f"{array} {_origin(one.line)}".strip())
            for one in instructions
            if one.computation not in fused and one.kind not in HELD_ELSEWHERE
            for size, array in one.arrays
        ),
        default=(0, ""),
    )
    return Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        largest=largest,
        largest_name=name,
        flops=cost["flops"],
        traffic=cost["bytes accessed"],
        messages=messages(text),
    )


def messages(text: str) -> dict[str, Messages]:
    """The messages of a program, by kind, from its HLO."""
    instructions, times, _ = _parse(text)
    sent = {}  # by channel: what is fused with others stands in several places
    for number, one in enumerate(instructions):
        kind = one.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        sizes = [size for size, _ in one.arrays]
        if one.kind in ("all-gather-start", "collective-permute-start"):
            sizes = sizes[len(sizes) // 2 :]  # the operands come first
        channel = _CHANNEL.search(one.line)
        key = (kind, channel[1] if channel else f"instruction {number}")
        sent[key] = (sum(sizes), times.get(one.computation, 1))
    count, total = collections.Counter(), collections.Counter()
    for (kind, _), (size, repeats) in sent.items():
        count[kind] += repeats
        total[kind] += repeats * size
    return {kind: Messages(count[kind], total[kind]) for kind in KINDS if count[kind]}


def _parse(text: str) -> tuple[list[_Instruction], dict[str, int], set[str]]:
    """The instructions, how often each computation that another calls runs, and which are fused."""
    instructions, callers, fused, where = [], {}, set(), ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            where = header[1]
        elif found := _INSTRUCTION.match(line):
            arrays = [
                (_bytes(*array), "{}[{}]".format(*array)) for array in _ARRAY.findall(found[1])
            ]
            instructions.append(_Instruction(where, found[2], arrays, line))
            trips = _TRIPS.search(line) if found[2] == "while" else None
            for callee in _CALLED.findall(line):
                callers[callee] = (where, int(trips[1]) if trips else 1)
                if found[2] == "fusion":
                    fused.add(callee)

    def count(computation: str) -> int:
        if computation not in callers:
            return 1
        caller, trips = callers[computation]
        return trips * count(caller)

    return instructions, {name: count(name) for name in callers}, fused


def _bytes(dtype: str, dims: str) -> int:
    bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
    return math.prod(map(int, filter(None, dims.split(",")))) * bits // 8


def _origin(line: str) -> str:
    """What an instruction is of, as "blocks_3/mlp/fc1/dot_general"."""
    found = _NAME.search(line)
    return "/".join(part for part in found[1].split("/") if "(" not in part) if found else ""
