import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.artifact import ArtifactMissing, StageError, Workdir, write_json
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
    write_json(
        workdir.score / "manifest.json", {"stage": "score", "settings": {}, "counts": {"documents": 90}}
    )
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
    shutil.copy(workdir.score / "manifest.json", other.score)
    select.run(settings, other)
    for name in ("pruned", "random-0"):
        for kind in ("parquet", "npy"):
            ours, theirs = workdir.select / f"{name}.{kind}", other.select / f"{name}.{kind}"
            assert ours.read_bytes() == theirs.read_bytes()


def add_signal(workdir, name, column, numbers, values, parts=2):
    """A signal's artifact, in shards of its own."""
    folder = workdir.signal(name)
    folder.mkdir(parents=True)
    table = pa.table({"number": numbers, column: values})
    size = -(-len(table) // parts)
    for part in range(parts):
        pq.write_table(table.slice(size * part, size), folder / f"part-{part:05d}.parquet")
    _finish(folder, parts=parts)


def _finish(folder, **settings):
    write_json(
        folder / "manifest.json", {"stage": folder.name, "settings": settings, "counts": {"documents": 90}}
    )


@pytest.mark.parametrize("combine", ["intersection", "product"])
def test_a_signal_of_another_artifact_is_laid_beside_the_scores(workdir, combine, monkeypatch):
    monkeypatch.setattr("jaxprune.prune.cuts._WHOLE", 8)
    values = np.random.default_rng(4).normal(size=90)
    add_signal(workdir, "density", "density", np.arange(100, 190), values, parts=7)
    rule = Select(signals=("perplexity", "density"), combine=combine, criterion="high", rate=0.5)
    select.run(Config(name="x", select=rule, arms=("pruned",)), workdir)
    table = pq.read_table(workdir.select / "pruned.parquet")
    assert table["number"].to_pylist() == list(range(100, 190))
    assert table["density"].to_pylist() == values.tolist()
    assert (
        np.load(workdir.select / "pruned.npy").tolist() == table.filter(table["kept"])["number"].to_pylist()
    )
    summary = json.loads((workdir.select / "summary.json").read_text())["pruned"]
    assert summary["all"]["after"]["documents"] == 30
    if combine == "product":
        assert summary["thresholds"] == {}
    else:
        inside = values[table["kept"].to_numpy()]
        assert summary["thresholds"]["all"]["density"] == {"low": inside.min(), "high": inside.max()}
        assert set(table["reason"].to_pylist()) <= {
            "", "under 8 tokens", "below the band of perplexity", "below the band of density",
        }  # fmt: skip


def test_a_signal_of_other_documents_is_refused(workdir):
    add_signal(workdir, "density", "density", np.arange(101, 191), np.zeros(90))
    settings = Config(name="x", select=Select(signals=("density",)), arms=("pruned",))
    with pytest.raises(ValueError, match="density holds other documents than .*: delete it"):
        select.run(settings, workdir)


def test_a_signal_that_is_not_computed_names_the_command(workdir):
    settings = Config(name="x", select=Select(signals=("information",)), arms=("pruned",))
    with pytest.raises(
        ArtifactMissing,
        match="unigram is not there yet: run `jaxprune score CONFIG --select.signals information`",
    ):
        select.run(settings, workdir)


@pytest.mark.parametrize("artifact", ["score", "density"])
def test_fewer_documents_than_were_scored_are_refused(workdir, artifact):
    """A selection of less would be taken for one of all when the shard is there again."""
    add_signal(workdir, "density", "density", np.arange(100, 190), np.arange(90.0))
    folder = workdir.score if artifact == "score" else workdir.signal("density")
    shard = folder / "part-00001.parquet"
    whole = shard.read_bytes()
    settings = Config(name="x", select=Select(signals=("density",)), arms=("none", "pruned"))
    shard.unlink()
    with pytest.raises(StageError, match="holds 45 of its 90 documents: run `jaxprune score CONFIG`"):
        select.run(settings, workdir)
    shard.write_bytes(whole[:-20])
    with pytest.raises(StageError, match="part-00001.parquet is damaged: run `jaxprune score CONFIG`"):
        select.run(settings, workdir)
    shard.write_bytes(whole)
    select.run(settings, workdir)
    summary = json.loads((workdir.select / "summary.json").read_text())
    assert summary["none"]["all"]["before"]["documents"] == 90


def test_a_shard_that_cannot_be_read_is_named(workdir):
    """Its footer is whole, so that only the checksum tells."""
    shard = workdir.score / "part-00001.parquet"
    for path in workdir.score.glob("*.parquet"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    content = bytearray(shard.read_bytes())
    content[4:2000] = bytes(1996)
    shard.write_bytes(content)
    with pytest.raises(StageError, match="part-00001.parquet is damaged: run `jaxprune score CONFIG`"):
        select.run(Config(name="x", arms=("pruned",)), workdir)


def test_an_input_that_changes_makes_the_selection_again(workdir):
    add_signal(workdir, "density", "density", np.arange(100, 190), np.arange(90.0))
    settings = Config(name="x", select=Select(signals=("density",), criterion="low"), arms=("pruned",))
    first = select.run(settings, workdir)
    _finish(workdir.signal("density"), other=1)
    assert select.run(settings, workdir).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"criterion": "threshold", "low": 9.0},
            r"select.low is 9, .*perplexity goes from 2\.\d+ to 5\.9\d+",
        ),
        (
            {"criterion": "threshold", "high": 1.0},
            r"select.high is 1, .*from 2\.\d+ to 5\.9\d+ \(nats per token",
        ),
        ({"min_tokens": 5000}, r"pruned keeps no document \(90 under 5000 tokens\): "),
        ({"criterion": "threshold", "low": 0.0, "min_tokens": 5000}, "no document has 5000 tokens"),
        ({"scope": "domain", "rates": {"esy": 0.1}}, "names esy, which is no domain .*did you mean easy"),
    ],
)
def test_a_selection_of_nothing_is_refused(workdir, rule, said):
    with pytest.raises(ValueError, match=said):
        select.run(Config(name="x", select=Select(**rule), arms=("pruned", "random")), workdir)
    assert not list(workdir.root.glob("select*"))


@pytest.mark.parametrize("weight", ["documents", "tokens"])
def test_the_controls_of_a_threshold_keep_what_it_keeps(workdir, weight):
    """4 <= score: the domain `hard`, 30 of the 60 documents that are ranked."""
    rule = Select(criterion="threshold", low=4.0, weight=weight, rate=0.1)
    select.run(Config(name="x", select=rule, arms=ARMS, seeds=(0,)), workdir)
    summary = json.loads((workdir.select / "summary.json").read_text())
    pruned = summary["pruned"]
    assert pruned["domains"]["hard"]["after"]["documents"] == 30 == pruned["all"]["after"]["documents"]
    assert pruned["removed"] == {"below the threshold": 30, "under 8 tokens": 30}
    kept, random, within = (
        summary[name]["all"]["after"][weight] for name in ("pruned", "random-0", "within_domain")
    )
    most = 300 if weight == "tokens" else 1  # of one document
    assert abs(random - kept) < most and abs(within - kept) < 2 * most
    if weight == "documents":
        assert random == kept
        domains = summary["within_domain"]["domains"]
        assert [domains[d]["after"]["documents"] for d in ("easy", "hard", "short")] == [15, 15, 0]
        assert summary["within_domain"]["thresholds"]["easy"]["low"] > 2.2  # its upper half
        assert summary["random-0"]["rule"]["rate"] == 0.5


def test_the_control_of_draws_in_domains_keeps_their_rates(workdir):
    rule = Select(criterion="high", scope="domain", rates={"easy": 0.1}, rate=0.5)
    select.run(Config(name="x", select=rule, arms=("pruned", "random"), seeds=(0,)), workdir)
    summary = json.loads((workdir.select / "summary.json").read_text())
    for name in ("pruned", "random-0"):
        kept = {d: of["after"]["documents"] for d, of in summary[name]["domains"].items()}
        assert kept == {"easy": 3, "hard": 15, "short": 0}
