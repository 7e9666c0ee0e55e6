import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import mesh_of, random_documents, scorer_on, write_store

from jaxprune.artifact import Workdir, write_json
from jaxprune.config import Config
from jaxprune.data.store import HELDOUT
from jaxprune.evaluate import comparison, perplexity
from jaxprune.progress import meter
from jaxprune.prune.score import Scorer


def test_losses_are_sums_over_sums():
    scores = pa.table(
        {
            "domain": ["b", "a", "b"],
            "n_tokens": [10, 5, 30],
            "n_bytes": [40, 10, 80],
            "nll_sum": [20.0, 20.0, 40.0],
        }
    )
    found = perplexity.summary(scores)
    assert list(found["domains"]) == ["a", "b"]
    b = found["domains"]["b"]
    assert (b["documents"], b["n_tokens"], b["n_bytes"], b["nll_sum"]) == (2, 40, 120, 60.0)
    assert b["nll"] == pytest.approx(1.5) and b["perplexity"] == pytest.approx(math.exp(1.5))
    assert b["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert found["all"]["nll"] == pytest.approx(80 / 45)
    assert found["mean"]["nll"] == pytest.approx((4 + 1.5) / 2)
    assert found["mean"]["bits_per_byte"] == pytest.approx((2 + 0.5) / 2 / math.log(2))


def test_the_stage_scores_the_held_out_documents(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", random_documents(30, longest=150))
    workdir = Workdir(tmp_path / "run")
    for folder in (workdir.prepare, workdir.run("none-0")):
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {"stage": folder.name, "settings": {}})
    (workdir.prepare / "tokens").symlink_to(store.folder)
    scorer = scorer_on(mesh_of(1))
    monkeypatch.setattr(Scorer, "load", lambda run, config: scorer)
    perplexity.run(Config(name="x"), workdir, "none-0")

    scores = pq.read_table(workdir.evaluate("none-0") / "scores.parquet")
    assert scores["number"].to_pylist() == store.documents(HELDOUT).tolist()
    with meter("score", None, "tokens") as progress:
        everything = scorer(store, np.arange(store.n_documents), progress)
    assert scores.equals(everything.take(store.documents(HELDOUT)))

    found = json.loads((workdir.evaluate("none-0") / "summary.json").read_text())
    assert found == perplexity.summary(scores)
    compared = comparison.losses(comparison.read(workdir, ["none"], [0]), "none")
    for place, losses in (found["domains"] | {"all": found["all"], "mean": found["mean"]}).items():
        for measure in comparison.MEASURES:
            assert compared[place][measure] == pytest.approx(losses[measure])
