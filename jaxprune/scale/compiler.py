"""The compilers of chips that are not here: libtpu, and JAX's plugin for NVIDIA GPUs. Neither needs a device."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxprune.scale.topology import CHIPS, Topology


@dataclass(frozen=True, kw_only=True)
class _Gpu:
    """What XLA's compiler asks of a GPU beside what `Chip` says.

    Sources: the white papers of NVIDIA's A100, H100 and B200, and for limits the CUDA C++ Programming Guide (technical
    specifications by compute capability).
    """

    name: str  # as CUDA says it
    capability: int  # major; the minor one is 0
    multiprocessors: int
    lanes: int  # float32, of each multiprocessor
    clock_ghz: float
    l2: int  # MiB
    shared: int  # KiB a multiprocessor; a block may ask for 1 less


_GPUS = {
    "a100": _Gpu(name="NVIDIA A100-SXM4-80GB", capability=8, multiprocessors=108, lanes=64, clock_ghz=1.41, l2=40, shared=164),
    "h100": _Gpu(name="NVIDIA H100 80GB HBM3", capability=9, multiprocessors=132, lanes=128, clock_ghz=1.98, l2=50, shared=228),
    "h200": _Gpu(name="NVIDIA H200", capability=9, multiprocessors=132, lanes=128, clock_ghz=1.98, l2=50, shared=228),
    "b200": _Gpu(name="NVIDIA B200", capability=10, multiprocessors=148, lanes=128, clock_ghz=1.965, l2=126, shared=228),
}  # fmt: skip


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
    except RuntimeError as error:  # JaxRuntimeError, or that the plugin is missing
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
            topology.name, "cuda", topology=shape, target_config=_description(topology, cuda)
        ).devices
    except RuntimeError as error:  # JaxRuntimeError, or NotImplementedError where the plugin did not load
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


def _description(topology: Topology, cuda: int) -> str:
    """XLA's description of a GPU (GpuTargetConfigProto, as text): what its compiler would ask the device."""
    chip, gpu = topology.chip, _GPUS[_kind(topology)]
    cudnn = _version(f"nvidia-cudnn-cu{cuda}")
    dnn = f"dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} }}" if cudnn else ""
    return f"""
        platform_name: "CUDA"
        device_description_str: "{gpu.name}"
        runtime_version {{ major: {cuda} }}
        {dnn}
        gpu_device_info {{
            cuda_compute_capability {{ major: {gpu.capability} }}
            core_count: {gpu.multiprocessors}
            fpus_per_core: {gpu.lanes}
            clock_rate_ghz: {gpu.clock_ghz}
            l2_cache_size: {gpu.l2 * 2**20}
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
            shared_memory_per_core: {gpu.shared * 2**10}
            shared_memory_per_block: {48 * 2**10}
            shared_memory_per_block_optin: {(gpu.shared - 1) * 2**10}
        }}
    """


def _kind(topology: Topology) -> str:
    return next(kind for kind, chip in CHIPS.items() if chip is topology.chip)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
