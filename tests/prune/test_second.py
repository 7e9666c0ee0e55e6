"""The second model: the same scoring, and the signals that compare two models."""

import ibis
import numpy as np
import pyarrow as pa
import pytest
from scoring import mesh_of, random_documents, scorer_on, write_store

from jaxprune import config
from jaxprune.artifact import Workdir
from jaxprune.progress import meter
from jaxprune.prune.criteria import CRITERIA, sources_of
from jaxprune.prune.score import Scorer, settings_of
from jaxprune.prune.signals import second
from jaxprune.prune.signals.stage import SOURCES


@pytest.mark.parametrize("same", [True, False])
def test_the_second_model_is_scored_as_the_first(tmp_path, monkeypatch, same: bool) -> None:
    store = write_store(tmp_path / "tokens", random_documents(12))
    scorer = scorer_on(mesh_of(1))
    named = []
    monkeypatch.setattr(Scorer, "named", lambda name, *_: named.append(name) or scorer)
    monkeypatch.setattr(
        second.models, "tokenizer_digest", lambda name, workdir: "a" if same or name == "large" else "b"
    )
    measure = second.load(
        config.Config(name="x", score=config.Score(model="small", second="large")), Workdir(tmp_path)
    )
    numbers = np.array([4, 2, 9])
    with meter("score", None, "tokens") as progress:
        table, wanted = measure(store, numbers, progress), scorer(store, numbers, progress)
    assert named == ["large"]
    assert table["number"].to_pylist() == [4, 2, 9]
    assert table["second_nll_sum"] == wanted["nll_sum"]
    assert table["second_n_scored"] == wanted["n_scored"]
    assert table["second_same_tokens"].to_pylist() == [same] * 3


def values(signal: str, columns: dict) -> list[float]:
    table = ibis.memtable(pa.table(columns))
    return table.select(value=CRITERIA[signal].value(config.Select())).to_pyarrow()["value"].to_pylist()


def test_ratio_and_excess() -> None:
    """What the larger model reads better than the smaller stands out; the unit follows the tokenizers."""
    columns = {
        "nll_sum": [40.0, 40.0, 90.0],  # the small model's: 4, 4 and 3 nats a token
        "second_nll_sum": [20.0, 38.0, 90.0],
        "n_scored": [10, 10, 30],
        "second_n_scored": [10, 10, 30],
        "n_bytes": [40, 20, 60],
        "second_same_tokens": [True] * 3,
    }
    assert values("excess", columns) == pytest.approx([2.0, 0.2, 0.0])
    small, large = np.array([4.0, 4.0, 3.0]), np.array([2.0, 3.8, 3.0])
    assert values("ratio", columns) == pytest.approx((np.exp(small) / np.exp(large)).tolist())
    per_byte = columns | {"second_n_scored": [10, 12, 31], "second_same_tokens": [False] * 3}
    assert values("excess", per_byte) == pytest.approx([0.5, 0.1, 0.0])
    assert values("ratio", per_byte) == pytest.approx(np.exp([0.5, 0.1, 0.0]).tolist())


@pytest.mark.parametrize("signal", ["ratio", "excess"])
def test_a_signal_of_two_models_needs_two(signal) -> None:
    def made(**score) -> config.Config:
        return config.Config(name="x", score=config.Score(**score), select=config.Select(signals=(signal,)))

    for score in ({}, {"second": "reference"}):
        with pytest.raises(ValueError, match=f"the signal {signal} needs a model beside score.model"):
            made(**score)
    settings = made(second="second")
    assert sources_of(settings) == ("second",) and "second" in SOURCES
    assert settings.scorers == ("reference", "second")
    assert made(second="a folder").scorers == ("reference",)
    unread = config.Config(name="x", score=config.Score(second="second"))
    assert unread.models == unread.scorers == ("reference",)


def test_two_models_are_compared_in_the_same_windows() -> None:
    """And what is not said is the same artifact as what says it."""

    def context(*signals: str, **score) -> int:
        settings = config.Config(
            name="x",
            score=config.Score(second="second", signals=signals, **score),
            reference=config.Run(model=config.Model(context=512)),
            second=config.Run(model=config.Model(context=256)),
        )
        made = {name: SOURCES[name].settings(settings) for name in sources_of(settings) if name == "second"}
        assert all(found == settings_of(settings) for found in made.values())
        assert bool(made) == ("ratio" in signals)
        return settings_of(settings)["context"]

    assert context("ratio") == context("ratio", context=256) == 256
    assert context("ratio", context=100) == 100
    assert context() == context(context=512) == 512
    with pytest.raises(ValueError, match="score.context is 300: set 256, the context of the model second"):
        context("ratio", context=300)
