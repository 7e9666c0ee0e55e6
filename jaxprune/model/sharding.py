"""How arrays lie on the devices: the mesh, and one table of layouts named by shape.

Parameters and optimizer state are cut over `fsdp` (along the model's width, which every matrix has)
and over `tensor` (heads, MLP, vocabulary); rows are cut over `replica` and `fsdp`. Vectors (norms,
biases), under a thousandth of the parameters, are whole on every `fsdp` part. The axes are explicit:
an array's layout is part of its type, so gradients and optimizer moments keep their parameter's.

B rows, T positions, D model width, V vocabulary, L layers, H heads, C width of a head,
F MLP width, or H x C where heads are flat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P

from jaxprune import config

AXES = ("replica", "fsdp", "tensor")
ROWS = ("replica", "fsdp")  # cut a batch, and so are summed over in a weight's gradient

BATCH = P(ROWS)
ACT_BT = P(ROWS, None)
ACT_BTD = P(ROWS, None, None)
ACT_BTF = P(ROWS, None, "tensor")
ACT_BTHC = P(ROWS, None, "tensor", None)
ACT_BTGRC = P(ROWS, None, "tensor", None, None)
ROWS_BT = P("replica", None)  # where the tables are looked up, each device in its part of the width
ROWS_BTD = P("replica", None, "fsdp")

EMB_VD = P("tensor", "fsdp")
POS_TD = P(None, "fsdp")
HEAD_DV = P("fsdp", "tensor")
IN_LDF = P(None, "fsdp", "tensor")
OUT_LFD = P(None, "tensor", "fsdp")
VEC_LF = P(None, "tensor")
VEC_LD = P(None, None)
VEC_D = P(None)


def make_mesh(mesh: config.Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of `devices` (None: all of every process), axes `AXES`, all of them explicit.

    Raises:
      ValueError: the sizes of the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [mesh.replica, mesh.fsdp, mesh.tensor]
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // -math.prod(sizes)
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh replica={mesh.replica}, fsdp={mesh.fsdp}, tensor={mesh.tensor} does not fit "
            f"{len(devices)} devices: make the sizes multiply to {len(devices)}, or set one to -1"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})  # of GPUs: nodes
    if slices > 1 and not (sizes[0] % slices and devices[0].platform == "gpu"):
        if sizes[0] % slices:
            raise ValueError(
                f"mesh.replica is {sizes[0]} on {slices} slices, between which only the slow network runs: make it a "
                f"multiple of {slices}"
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:  # a topology of 16 x 16 chips may be cut into 64 x 4
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 3)


def put(values: np.ndarray, mesh: jax.sharding.Mesh, spec: P) -> jax.Array:
    """Values that every process has, laid out on the mesh: each puts what its own devices hold."""
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), values.__getitem__)


@jax.jit
def everywhere(values: jax.Array) -> jax.Array:
    """The same numbers on every device, so that every process can read them."""
    return reshard(values, P())


def check_divides(model: config.Model, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless each dimension of the model divides into the parts its axis cuts it into."""
    for name, size, axis in (
        ("d_model", model.d_model, "fsdp"),
        ("n_heads", model.n_heads, "tensor"),
        ("n_kv_heads", model.kv_heads, "tensor"),
        ("d_ff", model.mlp_width, "tensor"),
    ):
        if size % mesh.shape[axis]:
            raise ValueError(
                f"model.{name} is {size}, which mesh.{axis}={mesh.shape[axis]} does not divide: "
                f"set mesh.{axis} to a divisor of {size}, or change model.{name}"
            )
