"""Signals without a model, from a prepared corpus to the numbers that documents are ranked by."""

import dataclasses
import json
import random

import ibis
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxprune.artifact import Manifest, Workdir, read_manifest
from jaxprune.config import Config, Density, Score, Select, Zip
from jaxprune.data.store import TRAIN
from jaxprune.prune.criteria import CRITERIA
from jaxprune.prune.signals import joint, stage
from tests.texts import text_store

SIGNALS = ("prior_mean", "prior_std", "compression", "zip", "density", "dsir")
SOURCES = ("prior", "compression", "zip", "density", "dsir")


@pytest.fixture
def workdir(tmp_path):
    rng = random.Random(0)
    words = [
        "the",
        "court",
        "held",
        "that",
        "an",
        "appeal",
        "was",
        "allowed",
        "as",
        "no",
        "harm",
        "had",
        "shown",
    ]
    texts = [" ".join(rng.choices(words, k=rng.randint(5, 60))) + "." for _ in range(23)]
    workdir = Workdir(tmp_path / "run")
    text_store(workdir.prepare, texts, heldout=[4, 11])
    manifest = Manifest(stage="prepare", settings={})
    (workdir.prepare / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    (tmp_path / "target.txt").write_text("The court held that the appeal was allowed.")
    return workdir


def config(workdir, **score):
    settings = {
        "signals": SIGNALS,
        "target": f"law={workdir.root.parent / 'target.txt'}",
        "density": Density(dimensions=32, rows=20, buckets=50),
        "zip": Zip(candidates=8, shortlist=4, step=2),
        "shard_documents": 9,
    }
    return Config(name="signals", select=Select(rate=0.5), score=Score(**settings | score))


def tables(workdir):
    return {
        source: [pq.read_table(path) for path in sorted(workdir.signal(source).glob("*.parquet"))]
        for source in SOURCES
    }


def test_each_signal_is_a_number_for_each_document(workdir):
    stage.run(config(workdir), workdir)
    store = stage.TokenStore(workdir.prepare / "tokens")
    for signal in SIGNALS:
        [source] = CRITERIA[signal].sources
        parts = tables(workdir)[source]
        assert [len(part) for part in parts] == [9, 9, 3]
        numbers = np.concatenate([part["number"].to_numpy() for part in parts])
        np.testing.assert_array_equal(numbers, store.documents(TRAIN))
        table = ibis.memtable(parts[0])
        value = table.select(value=CRITERIA[signal].value(Select())).to_pyarrow()["value"].to_numpy()
        assert value.shape == (9,) and np.isfinite(value).all() and len(np.unique(value)) > 4, signal


def test_a_damaged_shard_is_made_again(workdir, monkeypatch):
    stage.run(config(workdir), workdir)
    shards = [workdir.signal(source) / "part-00001.parquet" for source in SOURCES]
    whole = [path.read_bytes() for path in shards]
    for path, content in zip(shards, whole, strict=True):
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    monkeypatch.setattr(joint, "_greedy", None)  # the order of zip is kept: nothing is ordered again
    stage.run(config(workdir), workdir)
    assert [path.read_bytes() for path in shards] == whole


def test_zip_does_not_depend_on_what_is_kept_of_it(workdir):
    """But on which documents are long enough."""
    made = config(workdir)
    stage.run(made, workdir)
    before = read_manifest(workdir.signal("zip"))
    stage.run(dataclasses.replace(made, select=Select(rate=0.1)), workdir)
    assert read_manifest(workdir.signal("zip")) == before
    stage.run(dataclasses.replace(made, select=Select(min_tokens=40)), workdir)
    places = np.concatenate([part["zip"].to_pylist() for part in tables(workdir)["zip"]])
    store = stage.TokenStore(workdir.prepare / "tokens")
    n_tokens = np.diff(store.offsets_N1)[store.documents(TRAIN)] - 1
    assert [place is None for place in places] == (n_tokens < 40).tolist()
    assert 0 < (n_tokens < 40).sum() < len(n_tokens)


def test_shards_do_not_change_a_signal(workdir, tmp_path):
    stage.run(config(workdir), workdir)
    cut = {source: np.concatenate(parts) for source, parts in tables(workdir).items()}
    for source in SOURCES:  # as if it had never been made
        workdir.signal(source).rename(tmp_path / source)
    stage.run(config(workdir, shard_documents=100), workdir)
    for source, [whole] in tables(workdir).items():
        np.testing.assert_array_equal(np.array(whole), cut[source])


def test_a_setting_makes_its_own_signal_again_and_no_other(workdir):
    stage.run(config(workdir), workdir)
    before = {source: read_manifest(workdir.signal(source)) for source in SOURCES}
    stage.run(config(workdir, density=Density(dimensions=32, rows=21, buckets=50)), workdir)
    after = {source: read_manifest(workdir.signal(source)) for source in SOURCES}
    assert {source for source in SOURCES if before[source] != after[source]} == {"density"}
