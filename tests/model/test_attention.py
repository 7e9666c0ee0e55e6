"""Causal attention against a dense float64 computation, by every kernel that runs here.

B rows, T positions, H query heads, G key and value heads, C width of a head.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxprune import config
from jaxprune.model import attention, presets, sharding


def _dense(q_BTHC: np.ndarray, k_BTGC: np.ndarray, v_BTGC: np.ndarray) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTHC, k_BTGC, v_BTGC))
    B, T, H, C = q.shape
    y = np.empty_like(q)
    for b in range(B):
        for h in range(H):
            shared = h // (H // k.shape[2])
            for t in range(T):
                score = k[b, : t + 1, shared] @ q[b, t, h] / np.sqrt(C)
                share = np.exp(score - score.max())
                y[b, t, h] = share / share.sum() @ v[b, : t + 1, shared]
    return y


def _qkv(B: int, T: int, H: int, G: int, C: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (B, T, n, C)) for key, n in zip(keys, (H, G, G), strict=True)]


@pytest.mark.parametrize(("length", "kv_heads"), [(1, 4), (16, 2), (37, 4), (37, 2), (37, 1)])
def test_blocks_of_queries_are_dense_attention(monkeypatch, length: int, kv_heads: int) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    qkv = _qkv(2, length, 4, kv_heads, 8)
    y_BTHC = _attend("xla", qkv)
    np.testing.assert_allclose(y_BTHC, _dense(*qkv), rtol=1e-4, atol=1e-5)


def test_blocks_change_no_gradient(monkeypatch) -> None:
    qkv = _qkv(1, 40, 4, 2, 8)
    whole = _gradients("xla", qkv)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    for one, several in zip(whole, _gradients("xla", qkv), strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [128, 200])
def test_splash_is_dense_attention_on_each_device(length: int) -> None:
    """The TPU's kernel, interpreted: rows and heads cut over devices, lengths that its blocks do not divide."""
    qkv = _qkv(2, length, 4, 2, 64)
    with pltpu.force_tpu_interpret_mode():
        y_BTHC = _attend("splash", qkv, fsdp=2, tensor=2)
        grads = _gradients("splash", qkv, fsdp=2, tensor=2)
    assert y_BTHC.sharding.spec == grads[0].sharding.spec == sharding.ACT_BTHC
    np.testing.assert_allclose(y_BTHC, _dense(*qkv), rtol=1e-3, atol=1e-4)
    for theirs, ours in zip(grads, _gradients("xla", qkv), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)


def _attend(kernel: str, qkv: list[jax.Array], **axes: int) -> jax.Array:
    with _cut(qkv, **axes) as cut:
        return jax.jit(lambda *qkv: attention.attend(*qkv, kernel))(*cut)


def _gradients(kernel: str, qkv: list[jax.Array], **axes: int) -> list[jax.Array]:
    with _cut(qkv, **axes) as cut:
        return jax.jit(jax.grad(lambda qkv: jnp.sin(attention.attend(*qkv, kernel)).sum()))(cut)


@contextmanager
def _cut(qkv: list[jax.Array], fsdp: int = 1, tensor: int = 1) -> Iterator[list[jax.Array]]:
    mesh = sharding.make_mesh(config.Mesh(fsdp=fsdp, tensor=tensor), jax.devices()[: fsdp * tensor])
    with jax.set_mesh(mesh):
        yield [jax.device_put(x, jax.NamedSharding(mesh, sharding.ACT_BTHC)) for x in qkv]


def _devices(platform: str, kind: str) -> SimpleNamespace:
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform, device_kind=kind)]))


CPU, TPU, NVIDIA, AMD = (
    _devices("cpu", "cpu"),
    _devices("tpu", "TPU v5p"),
    _devices("gpu", "NVIDIA H200"),
    _devices("gpu", "AMD Instinct MI300X"),
)


def test_auto_takes_the_kernel_of_the_devices() -> None:
    model = presets.mpt_125m()
    chosen = [attention.choose(model, devices) for devices in (CPU, TPU, NVIDIA, AMD)]
    assert chosen == ["xla", "splash", "cudnn", "xla"]
    exact = dataclasses.replace(model, dtype="float32")
    assert {attention.choose(exact, devices) for devices in (CPU, TPU, NVIDIA, AMD)} == {"xla"}


@pytest.mark.parametrize(
    ("change", "devices", "message"),
    [
        ({"attention": "cudnn"}, CPU, "runs on NVIDIA GPUs, and this is cpu"),
        ({"attention": "cudnn"}, AMD, "runs on NVIDIA GPUs, and this is AMD"),
        ({"attention": "splash"}, CPU, "runs on TPUs, and this is cpu"),
        ({"attention": "cudnn", "dtype": "float32"}, NVIDIA, "needs model.dtype bfloat16"),
        ({"attention": "cudnn", "n_heads": 64}, NVIDIA, "d_model / n_heads is 12"),
    ],
)
def test_a_kernel_that_cannot_run_is_an_error(change: dict, devices: SimpleNamespace, message: str) -> None:
    model = dataclasses.replace(presets.mpt_125m(), **change)
    with pytest.raises(ValueError, match=message):
        attention.choose(model, devices)
