"""The compiled steps of DoReMi and DoGE: where their weights do not move they are plain training, and else they are not."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxprune.mix.online.doge import DoGE
from jaxprune.mix.online.doremi import DoReMi
from jaxprune.train.checkpoint import load_params
from jaxprune.train.loop import fit
from jaxprune.train.metrics import read

ALL = (True, True, True)


def _params(folder, mesh):
    with jax.set_mesh(mesh):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(folder, mesh)[1])]


def _doge(mu):
    return lambda reference: DoGE(
        mixed_K=ALL, mu=mu, smoothing=0.0, clip=1e9, against="domains", heldout=None
    )


def _doremi(eta):
    return lambda reference: DoReMi(reference=reference, mixed_K=ALL, eta=eta, smoothing=0.0, form="paper")


@pytest.mark.parametrize(
    ("still", "moving"), [(_doremi(0.0), _doremi(50.0)), (_doge(1e9), _doge(1e-3))], ids=["doremi", "doge"]
)
def test_weights_that_do_not_move_make_it_plain_training(make_plan, tmp_path, still, moving):
    """Nine rows of three domains, three of each: the mean over domains is the mean over the batch."""
    plan = make_plan(weights=(1 / 3,) * 3, tokens=12 * 9 * 16, batch_rows=9)
    (tmp_path / "plain").mkdir()
    fit(plan, tmp_path / "plain")
    plain = _params(tmp_path / "plain", plan.mesh)
    apart = {}
    for name, learner in (("still", still), ("moving", moving)):
        folder = tmp_path / name
        folder.mkdir()
        fit(replace(plan, learner=learner(tmp_path / "plain")), folder)
        learnt = _params(folder, plan.mesh)
        apart[name] = max(np.abs(a - b).max() for a, b in zip(learnt, plain, strict=True))
    assert apart["still"] < 1e-4 < 1e-3 < apart["moving"]
    last = [line for line in read(tmp_path / "moving" / "metrics.jsonl") if "learnt/a" in line][-1]
    weights = [last[f"learnt/{name}"] for name in "abc"]
    assert sum(weights) == pytest.approx(1, abs=1e-5) and max(weights) > 0.5
