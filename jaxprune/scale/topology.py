"""Accelerators by the names under which clouds offer them, and their devices for the compiler.

`v5e-256` (or `v5litepod-256`) is a slice of 256 chips, `v5p-128` one of 64 (v5p is counted in cores, two a chip),
`h100-8` a node of eight GPUs; `4xv5e-256` is four slices, `4xh100-8` four nodes.

Sources: docs.cloud.google.com/tpu/docs/v5e, v5p and v6e for TPUs (peaks, bandwidths, shapes of slices), NVIDIA's data
sheets of H100 SXM and H200 SXM, and of DGX H100 for the network. Memory is what the compiler may use of it: the limits
that libtpu 0.0.42 names when a program is too large, and the share of a GPU's that XLA is let to allocate.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    "h100": Chip(
        platform="gpu", peak_flops=989e12, memory=GPU_SHARE * 79.6 * GIB, memory_bandwidth=3350e9,
        link_bandwidth=450e9, network_bandwidth=50e9,
    ),
    "h200": Chip(
        platform="gpu", peak_flops=989e12, memory=GPU_SHARE * 140.4 * GIB, memory_bandwidth=4800e9,
        link_bandwidth=450e9, network_bandwidth=50e9,
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
    "h100": {n: (n,) for n in (1, 2, 4, 8)},
    "h200": {n: (n,) for n in (1, 2, 4, 8)},
}  # fmt: skip
_ALIASES = {"v5litepod": "v5e"}
_GPU_NAMES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}  # as CUDA names them


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


def has_compiler(topology: Topology) -> bool:
    """Whether programs are compiled for it (TPUs: always, and `devices` says what is missing) or estimated.

    GPUs: if JAX's plugin for NVIDIA's is installed, which compiles without a GPU.
    """
    return topology.chip.platform == "tpu" or _cuda() is not None


def devices(topology: Topology) -> Sequence[Any]:
    """The devices of a topology, which XLA compiles for and which cannot run anything.

    Raises:
      ValueError: the compiler is not installed, or refuses the topology.
    """
    return _tpus(topology) if topology.chip.platform == "tpu" else _gpus(topology)


def _tpus(topology: Topology) -> Sequence[Any]:
    # libtpu is told not to look for the machine's own TPU, nor for other processes that have it open.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    shape = "x".join(map(str, topology.grid))
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.grid == (1, 1):  # a slice of one chip, of a host that has four
        more["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(f"{_kind(topology)}:{shape}", "tpu", **more).devices
    except Exception as error:  # JaxRuntimeError, or what a missing plugin raises
        if "not installed" in str(error):
            raise ValueError(
                f"compiling for {topology.name} needs libtpu: pip install 'jaxprune[tpu]'"
            ) from None
        raise ValueError(f"libtpu refuses the topology {topology.name}: {_first_line(error)}") from None


def _gpus(topology: Topology) -> Sequence[Any]:
    from jax.experimental import topologies

    cuda = _cuda()
    if cuda is None:
        raise ValueError(
            f"compiling for {topology.name} needs JAX's plugin for NVIDIA GPUs: pip install 'jaxprune[cuda]'"
        )
    # Processes (of one partition) and their devices; a process is a node here.
    shape = f"1x{topology.slices}x{topology.grid[0]}"
    try:
        return topologies.get_topology_desc(
            topology.name, "cuda", topology=shape, target_config=_hopper(topology, cuda)
        ).devices
    except Exception as error:  # JaxRuntimeError, or NotImplementedError where the plugin did not load
        raise ValueError(
            f"JAX's plugin for NVIDIA GPUs refuses the topology {topology.name}: {_first_line(error)}: "
            "is it of the version of jaxlib? pip install 'jaxprune[cuda]'"
        ) from None


def _cuda() -> int | None:
    """The major version of CUDA that the installed plugin is for."""
    return next((major for major in (13, 12) if _version(f"jax-cuda{major}-plugin")), None)


def _version(distribution: str) -> list[str]:
    """Of an installed distribution, in its parts; empty: it is not installed."""
    try:
        return importlib.metadata.version(distribution).split(".")
    except importlib.metadata.PackageNotFoundError:
        return []


def _hopper(topology: Topology, cuda: int) -> str:
    """XLA's description of a GPU (GpuTargetConfigProto, as text): what its compiler would ask the device.

    Limits of compute capability 9.0 are those of NVIDIA's CUDA C++ Programming Guide (technical specifications), sizes of
    the SXM modules those of the Hopper architecture's white paper.
    """
    chip, kind = topology.chip, _kind(topology)
    cudnn = _version(f"nvidia-cudnn-cu{cuda}")
    dnn = f"dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} }}" if cudnn else ""
    return f"""
        platform_name: "CUDA"
        device_description_str: "{_GPU_NAMES[kind]}"
        runtime_version {{ major: {cuda} }}
        {dnn}
        gpu_device_info {{
            cuda_compute_capability {{ major: 9 }}
            core_count: 132
            fpus_per_core: 128
            clock_rate_ghz: 1.98
            l2_cache_size: {50 * 2**20}
            device_memory_size: {round(chip.memory)}
            memory_bandwidth: {round(chip.memory_bandwidth)}
            threads_per_warp: 32
            threads_per_block_limit: 1024
            threads_per_core_limit: 2048
            block_dim_limit_x: {2**31 - 1}
            block_dim_limit_y: {2**16 - 1}
            block_dim_limit_z: {2**16 - 1}
            registers_per_core_limit: {2**16}
            registers_per_block_limit: {2**16}
            shared_memory_per_core: {228 * 2**10}
            shared_memory_per_block: {48 * 2**10}
            shared_memory_per_block_optin: {227 * 2**10}
        }}
    """


def _kind(topology: Topology) -> str:
    return next(kind for kind, chip in CHIPS.items() if chip is topology.chip)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
