"""What cannot train is refused before anything is spent on it."""

import jax
import pytest

from jaxprune import config
from jaxprune.model.sharding import make_mesh
from jaxprune.train import layout


def test_a_type_that_the_cpu_cannot_train_in_is_refused(monkeypatch):
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    run = config.Run(
        model=config.Model(d_model=8, n_layers=1, n_heads=2, context=8, dtype="bfloat16"),
        tokens=640,
        batch_rows=8,
    )
    if layout._untrainable("bfloat16"):
        with pytest.raises(ValueError, match="model.dtype is bfloat16, .*: set model.dtype float32"):
            layout.check(run, mesh)
    else:
        layout.check(run, mesh)
    monkeypatch.setattr(layout, "_untrainable", lambda dtype: "")
    layout.check(run, mesh)
