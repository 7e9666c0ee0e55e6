"""The optimizers do what their papers say, on stacked layers and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import config
from jaxprune.model import transformer
from jaxprune.model.sharding import make_mesh
from jaxprune.train.optimizer import make_optimizer, make_schedule


def _settings(**fields):
    return config.Optimizer(**{"peak_lr": 2e-4, "warmup": 0.1} | fields)


def test_schedules_rise_to_the_peak_and_fall_to_the_end():
    steps = 100
    cosine = make_schedule(_settings(), steps)
    assert 0 < cosine(0) < cosine(5) < cosine(10)
    assert cosine(10) == pytest.approx(2e-4)
    assert cosine(100) == pytest.approx(2e-5)
    wsd = make_schedule(_settings(schedule="wsd", decay=0.2), steps)
    assert wsd(10) == wsd(79) == pytest.approx(2e-4)
    assert wsd(90) == pytest.approx((2e-4 + 2e-5) / 2)
    assert wsd(100) == pytest.approx(2e-5)
    constant = make_schedule(_settings(schedule="constant", warmup=0.0), steps)
    assert constant(0) == constant(99) == pytest.approx(2e-4)


def test_lion_is_the_decoupled_lion_of_composer():
    """p <- p (1 - lr/lr0 wd); u = sign(b1 m + (1 - b1) g); p <- p - lr u; m <- b2 m + (1 - b2) g."""
    settings = _settings(name="lion", weight_decay=2e-4, b1=0.9, b2=0.99, clip=None)
    steps = 20
    transform, schedule = make_optimizer(settings, steps), make_schedule(settings, steps)
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 4))
    ours, state = {"w": jnp.asarray(p, jnp.float32)}, None
    state, m = transform.init(ours), np.zeros_like(p)
    for step in range(steps):
        g = rng.normal(size=p.shape)
        updates, state = transform.update({"w": jnp.asarray(g, jnp.float32)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        lr = float(schedule(step))
        p = p * (1 - lr / settings.peak_lr * settings.weight_decay)
        p = p - lr * np.sign(settings.b1 * m + (1 - settings.b1) * g)
        m = settings.b2 * m + (1 - settings.b2) * g
    np.testing.assert_allclose(ours["w"], p, rtol=1e-5, atol=1e-6)


@pytest.fixture
def params():
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    model = config.Model(d_model=32, n_layers=2, n_heads=4, context=16, dtype="float32")
    with jax.set_mesh(mesh):
        yield transformer.create(model, 97, 0, mesh)[1]


def _named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_adamw_decays_matrices_and_nothing_else(params):
    settings = _settings(name="adamw", weight_decay=0.1, warmup=0.0)
    transform = make_optimizer(settings, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = transform.update(zeros, transform.init(ones), ones)
    decayed = {name for name, update in _named(updates).items() if np.any(update)}
    kept = set(_named(updates)) - decayed
    assert decayed and kept
    assert all("scale_" in name or "bias_" in name for name in kept)
    assert not any("scale_" in name or "bias_" in name for name in decayed)


def test_muon_orthogonalises_every_matrix_of_the_stacked_blocks(params):
    settings = _settings(name="muon", weight_decay=0.0, peak_lr=1.0, warmup=0.0, clip=None)
    transform = make_optimizer(settings, 10)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    updates, _ = transform.update(grads, transform.init(params), params)
    matrices = 0
    for name, update in _named(updates).items():
        if "weight_LIO" in name:
            matrices += 1
            for u, g in zip(np.asarray(update), np.asarray(_named(grads)[name]), strict=True):
                # Newton-Schulz brings all but nearly zero singular values close to one another.
                assert _spread(u) < 2 < _spread(g), name
    assert matrices >= 4


def _spread(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return values[0] / np.quantile(values, 0.1)
