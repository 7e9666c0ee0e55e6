import math

import ibis
import pyarrow as pa
import pytest

from jaxprune.config import Config, Score, Select
from jaxprune.prune.criteria import CRITERIA, sources_of

TABLE = pa.table(
    {
        "n_tokens": [4, 0],
        "n_scored": [5, 0],
        "n_bytes": [20, 0],
        "nll_sum": [10.0, 0.0],
        "unigram_nll_sum": [24.0, 0.0],
        "unigram_tokens": [3, 0],
    }
)


@pytest.mark.parametrize(
    ("signal", "per", "expected"),
    [
        ("perplexity", "token", 2.0),  # of scored tokens
        ("bits_per_byte", "token", 10 / math.log(2) / 20),
        ("nll", "token", 10.0),
        ("information", "token", 10 / 5 + 24 / 3),
        ("information", "byte", 34 / 20),
        ("information", "document", 34.0),
    ],
)
def test_formulas(signal, per, expected):
    value = CRITERIA[signal].value(Select(signals=(signal,), information_per=per))
    got = ibis.memtable(TABLE).select(value=value).to_pyarrow()["value"].to_pylist()
    assert got[0] == pytest.approx(expected, rel=1e-15)
    assert got[1] is None or got[1] == 0.0  # an empty document has no mean


def test_only_the_artifacts_that_are_asked_for():
    assert sources_of(Config(name="x")) == ()
    both = Config(name="x", select=Select(signals=("information",)), score=Score(signals=("density",)))
    assert sources_of(both) == ("unigram", "density")
