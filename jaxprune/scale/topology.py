"""Accelerators by the names under which clouds offer them.

`v5e-256` (or `v5litepod-256`) is a slice of 256 chips, `v5p-128` one of 64 (v5p is counted in cores, two a chip),
`h100-8` a node of eight GPUs; `4xv5e-256` is four slices, `4xh100-8` four nodes.

Sources: docs.cloud.google.com/tpu/docs/v5e, v5p and v6e for TPUs (peaks, bandwidths, shapes of slices), NVIDIA's data
sheets of the SXM modules (A100 with 80 GB), and of the DGX systems for the network. Memory is what the compiler may use of it: the limits
that libtpu 0.0.42 names when a program is too large, and the share of a GPU's that XLA is let to allocate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
GPU_SHARE = 0.92
"""Of a GPU's memory, that programs may use: what the command line lets XLA allocate."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, as XLA sees it."""

    platform: Literal["tpu", "gpu"]
    peak_flops: float  # dense bfloat16, FLOP/s
    memory: float  # bytes that a program may use
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s that it sends to the others of its slice or node, over all its links
    network_bandwidth: float  # bytes/s that it sends to other slices or nodes: its share of the host's


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Some chips, in equal slices (TPU) or nodes (GPU)."""

    name: str
    chip: Chip
    grid: tuple[int, ...]  # chips of a slice along each of its axes
    slices: int = 1

    @property
    def n_chips(self) -> int:
        """Chips of all slices."""
        n = self.slices
        for size in self.grid:
            n *= size
        return n


CHIPS = {
    "v5e": Chip(
        platform="tpu", peak_flops=197e12, memory=15.75 * GIB, memory_bandwidth=819e9,
        link_bandwidth=200e9, network_bandwidth=25e9 / 8,
    ),
    "v5p": Chip(
        platform="tpu", peak_flops=459e12, memory=95.74 * GIB, memory_bandwidth=2765e9,
        link_bandwidth=600e9, network_bandwidth=50e9 / 8,
    ),
    "v6e": Chip(
        platform="tpu", peak_flops=918e12, memory=31.25 * GIB, memory_bandwidth=1638e9,
        link_bandwidth=400e9, network_bandwidth=100e9 / 8,
    ),
    "a100": Chip(
        platform="gpu", peak_flops=312e12, memory=GPU_SHARE * 79.1 * GIB, memory_bandwidth=2039e9,
        link_bandwidth=300e9, network_bandwidth=25e9,
    ),
    "h100": Chip(
        platform="gpu", peak_flops=989e12, memory=GPU_SHARE * 79.6 * GIB, memory_bandwidth=3350e9,
        link_bandwidth=450e9, network_bandwidth=50e9,
    ),
    "h200": Chip(
        platform="gpu", peak_flops=989e12, memory=GPU_SHARE * 140.4 * GIB, memory_bandwidth=4800e9,
        link_bandwidth=450e9, network_bandwidth=50e9,
    ),
    "b200": Chip(
        platform="gpu", peak_flops=2250e12, memory=GPU_SHARE * 178.3 * GIB, memory_bandwidth=8000e9,
        link_bandwidth=900e9, network_bandwidth=50e9,
    ),
}  # fmt: skip

_SQUARE = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_SHAPES: dict[str, dict[int, tuple[int, ...]]] = {
    "v5e": _SQUARE,
    "v6e": _SQUARE,
    "v5p": {
        8: (2, 2, 1), 16: (2, 2, 2), 32: (2, 2, 4), 64: (2, 4, 4), 128: (4, 4, 4), 256: (4, 4, 8), 512: (4, 8, 8),
        1024: (8, 8, 8), 2048: (8, 8, 16), 4096: (8, 16, 16), 8192: (16, 16, 16), 12288: (16, 16, 24),
    },
    **{gpu: {n: (n,) for n in (1, 2, 4, 8)} for gpu in ("a100", "h100", "h200", "b200")},
}  # fmt: skip
_ALIASES = {"v5litepod": "v5e"}


def find(name: str) -> Topology:
    """The accelerator of this name.

    Raises:
      ValueError: there is none.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)-(\d+)", name.lower())
    kind = "" if found is None else _ALIASES.get(found[2], found[2])
    if found is None or kind not in CHIPS:
        raise ValueError(
            f"there is no topology {name}: write KIND-SIZE or SLICESxKIND-SIZE with one of the kinds "
            f"{', '.join(CHIPS)}, such as v5e-256, 4xv5p-128 or h100-8"
        )
    slices, size = int(found[1] or 1), int(found[3])
    shapes = _SHAPES[kind]
    if size not in shapes or slices < 1:
        raise ValueError(
            f"there is no topology {name}: {kind} comes in sizes of {', '.join(map(str, shapes))}"
        )
    return Topology(name=name, chip=CHIPS[kind], grid=shapes[size], slices=slices)
