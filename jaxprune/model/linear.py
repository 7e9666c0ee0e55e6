"""A linear layer whose weight lies cut over the devices and is whole only while it is used.

B rows, T positions, I width in, O width out, L layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jax.typing import DTypeLike

from jaxprune.model.sharding import ROWS


class Linear(nnx.Module):
    """x W + b, with weight_LIO and bias_LO stacked over layers; a call sees one layer's."""

    def __init__(self, key: jax.Array, shape: tuple[int, int, int], spec: P, *, std: float, bias: bool):
        n_layers, _, width_out = shape
        self.weight_LIO = nnx.Param(std * jax.random.normal(key, shape, out_sharding=spec))
        self.bias_LO = (
            nnx.Param(jnp.zeros((n_layers, width_out), out_sharding=P(None, _whole(spec)[-1])))
            if bias
            else None
        )

    def __call__(self, x_BTI: jax.Array) -> jax.Array:
        y_BTO = product(x_BTI, self.weight_LIO[...], x_BTI.dtype)
        if self.bias_LO is None:
            return y_BTO
        # Added in float32, so that the bias's gradient is summed in float32.
        return (y_BTO.astype(jnp.float32) + self.bias_LO[...]).astype(y_BTO.dtype)


def product(x_BTI: jax.Array, weight_IO: jax.Array, dtype: DTypeLike) -> jax.Array:
    """x W in x's type, accumulated in float32 and returned as `dtype`; W is float32.

    W is cast and gathered over `fsdp` here, in the forward and again in the backward pass, so that no
    gathered weight is kept in between. Its gradient is accumulated and summed over the rows in float32
    (autodiff would sum in x's type, or multiply in float32), and scattered as W lies.
    """
    return _product(x_BTI, weight_IO, dtype)


def gathered_once(weight_IO: jax.Array) -> jax.Array:
    """W whole over `fsdp`, for several products whose gradients are summed before they are scattered."""
    # In two steps, because the transpose of the second scatters: of one step over both axes the TPU's
    # compiler makes a gradient that is summed whole on every device.
    spec = _spec(weight_IO)
    weight_IO = reshard(weight_IO, P(*spec.partitions, reduced=frozenset({"replica"})))
    return reshard(weight_IO, P(*_whole(spec), reduced=frozenset(ROWS)))


def _forward(
    x_BTI: jax.Array, weight_IO: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    used_IO = _gathered(weight_IO, x_BTI.dtype)
    y_BTO = jnp.einsum(
        "bti,io->bto",
        x_BTI,
        used_IO,
        precision=precision(x_BTI.dtype),
        preferred_element_type=dtype,
        out_sharding=P(ROWS, None, _spec(used_IO).partitions[-1]),
    )
    return checkpoint_name(y_BTO, "product"), (x_BTI, weight_IO)


def _backward(
    dtype: DTypeLike, saved: tuple[jax.Array, jax.Array], dy_BTO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTI, weight_IO = saved
    dy_BTO = dy_BTO.astype(x_BTI.dtype)
    spec = _spec(weight_IO)
    dx_BTI = jnp.einsum(
        "bto,io->bti",
        dy_BTO,
        _gathered(weight_IO, x_BTI.dtype),
        precision=precision(x_BTI.dtype),
        out_sharding=_spec(x_BTI),
    )
    dweight_IO = jnp.einsum(
        "bti,bto->io",
        x_BTI,
        dy_BTO,
        precision=precision(x_BTI.dtype),
        preferred_element_type=weight_IO.dtype,
        out_sharding=P(*spec.partitions, unreduced=spec.reduced),
    )
    return dx_BTI, dweight_IO


_product = jax.custom_vjp(lambda x, weight, dtype: _forward(x, weight, dtype)[0], nondiff_argnums=(2,))
_product.defvjp(_forward, _backward)


def precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Of products of `dtype`: float32 means float32, also on devices that would round it to less."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def _gathered(weight_IO: jax.Array, dtype: DTypeLike) -> jax.Array:
    spec = _spec(weight_IO)
    return reshard(weight_IO.astype(dtype), P(*_whole(spec), reduced=spec.reduced))


def _whole(spec: P) -> P:
    return P(*(None if axis == "fsdp" else axis for axis in spec.partitions))


def _spec(x: jax.Array) -> P:
    return jax.typeof(x).sharding.spec
