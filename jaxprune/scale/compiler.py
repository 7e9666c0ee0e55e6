"""The compilers of chips that are not here: libtpu, and JAX's plugin for NVIDIA GPUs. Neither needs a device."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

from jaxprune.scale.topology import CHIPS, Topology

_GPU_NAMES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}  # as CUDA names them


def is_here(topology: Topology) -> bool:
    """Whether programs are compiled for it, or estimated: for TPUs always (`devices` says what is missing), for GPUs if JAX's
    plugin for NVIDIA's is installed.
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
