import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.artifact import Workdir, write_json
from jaxprune.config import Config, Select
from jaxprune.prune import select


@pytest.fixture
def workdir(tmp_path):
    """Scores of 90 documents in two shards: domain `hard` has the highest, `short` too few tokens."""
    workdir = Workdir(tmp_path)
    workdir.score.mkdir()
    number = np.arange(100, 190)
    domain = np.array(["easy", "hard", "short"])[number % 3]
    n_tokens = np.where(domain == "short", 4, 100 + number)
    score = np.where(domain == "hard", 5.0, 2.0) + np.random.default_rng(0).random(90)
    table = pa.table(
        {
            "number": number,
            "id": [f"id {i}" for i in number],
            "hash": np.random.default_rng(1).integers(0, 1 << 62, 90),
            "domain": domain,
            "n_tokens": n_tokens,
            "n_bytes": 5 * n_tokens,
            "n_scored": n_tokens,
            "nll_sum": score * n_tokens,
        }
    )
    for part in range(2):
        pq.write_table(table.slice(45 * part, 45), workdir.score / f"part-{part:05d}.parquet")
    write_json(workdir.score / "manifest.json", {"stage": "score", "settings": {}})
    return workdir


ARMS = ("none", "random", "pruned", "reweighted", "within_domain")


def test_each_selection_that_the_arms_need_is_made_once():
    assert list(select.rules_of(Config(name="x", arms=ARMS, seeds=(3, 4)))) == [
        "none",
        "random-3",
        "random-4",
        "pruned",
        "within_domain",
    ]
    assert list(select.rules_of(Config(name="x", arms=("reweighted",), seeds=(3,)))) == ["random-3", "pruned"]
    for arm in ARMS:
        rules = select.rules_of(Config(name="x", arms=(arm,), seeds=(3,)))
        assert select.selection_of(arm, 3) in rules


def test_run_writes_tables_numbers_and_a_summary(workdir):
    select.run(Config(name="x", select=Select(criterion="high", rate=0.5), arms=ARMS), workdir)
    names = {"none", "pruned", "random-0", "random-1", "within_domain"}
    files = {path.name for path in workdir.select.iterdir()}
    assert files == {"manifest.json", "summary.json"} | {
        f"{name}.{kind}" for name in names for kind in ("parquet", "npy")
    }
    summary = json.loads((workdir.select / "summary.json").read_text())
    for name in names:
        table = pq.read_table(workdir.select / f"{name}.parquet")
        assert table.column_names == [
            "number", "id", "domain", "n_tokens", "n_bytes", "score", "kept", "reason",
        ]  # fmt: skip
        assert table["number"].to_pylist() == list(range(100, 190))
        kept = table.filter(table["kept"])
        numbers = np.load(workdir.select / f"{name}.npy")
        assert numbers.dtype == np.int64 and numbers.tolist() == kept["number"].to_pylist()
        assert set(kept["reason"].to_pylist()) == {""}
        of = summary[name]
        assert of["all"]["after"]["tokens"] == sum(kept["n_tokens"].to_pylist())
        assert of["all"]["before"]["documents"] == 90
        for size in ("documents", "tokens", "bytes"):
            for when in ("before", "after"):
                assert sum(d[when][f"share_{size}"] for d in of["domains"].values()) == pytest.approx(1)
        assert sum(of["removed"].values()) == 90 - len(kept)
    assert summary["none"]["all"]["after"]["documents"] == 90

    # High scores at a half of the 60 that are ranked: the domain `hard` and nothing else.
    pruned = summary["pruned"]
    assert pruned["domains"]["hard"]["after"]["share_documents"] == 1
    assert pruned["domains"]["easy"]["after"]["documents"] == 0
    assert pruned["removed"] == {"below the band": 30, "under 8 tokens": 30}
    assert 5 <= pruned["thresholds"]["all"]["low"] < pruned["thresholds"]["all"]["high"] <= 6
    within = summary["within_domain"]
    assert [within["domains"][d]["after"]["documents"] for d in ("easy", "hard", "short")] == [15, 15, 0]
    assert within["thresholds"]["easy"]["low"] > 2.2 and within["thresholds"]["hard"]["low"] > 5.2
    assert within["thresholds"]["short"] == {"low": None, "high": None}
    assert summary["random-0"]["thresholds"] == {}


def test_the_same_scores_in_other_shards_give_the_same_files(workdir, tmp_path):
    settings = Config(name="x", arms=("pruned", "random"), seeds=(0,))
    select.run(settings, workdir)
    other = Workdir(tmp_path / "other")
    other.score.mkdir(parents=True)
    table = pa.concat_tables([pq.read_table(path) for path in sorted(workdir.score.glob("*.parquet"))])
    for part in range(9):
        pq.write_table(table.slice(10 * part, 10), other.score / f"part-{part:05d}.parquet")
    write_json(other.score / "manifest.json", {"stage": "score", "settings": {}})
    select.run(settings, other)
    for name in ("pruned", "random-0"):
        for kind in ("parquet", "npy"):
            ours, theirs = workdir.select / f"{name}.{kind}", other.select / f"{name}.{kind}"
            assert ours.read_bytes() == theirs.read_bytes()
