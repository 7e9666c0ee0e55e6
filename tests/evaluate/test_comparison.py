import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.artifact import Workdir
from jaxprune.evaluate import comparison


def simulate(
    rng: np.random.Generator,
    *,
    gains=(0.0, 0.1),
    seed_std=0.02,
    document_std=0.05,
    n_seeds=2,
    n_documents=200,
) -> comparison.HeldOut:
    """Arms that beat the first by `gains` nats per token, give or take seeds and documents."""
    domain_N = rng.integers(0, 3, n_documents)
    n_tokens_N = rng.lognormal(5, 1, n_documents).astype(int) + 1
    difficulty_N = 3 + domain_N + rng.normal(0, 1, n_documents)  # shared by all runs: must cancel
    shape = (len(gains), n_seeds, n_documents)
    nll_ASN = (
        difficulty_N
        - np.array(gains)[:, None, None]
        + rng.normal(0, seed_std, shape[:2])[..., None]
        + rng.normal(0, document_std, (len(gains), 1, n_documents))
    )
    return comparison.HeldOut(
        arms=tuple("abcde"[: len(gains)]),
        seeds=tuple(range(n_seeds)),
        domains=("x", "y", "z"),
        nll_ASN=nll_ASN * n_tokens_N,
        n_tokens_N=n_tokens_N,
        n_bytes_N=n_tokens_N * 4,
        domain_N=domain_N,
    )


def test_a_planted_difference_is_recovered():
    held_out = simulate(np.random.default_rng(0), n_seeds=4, n_documents=2000, seed_std=0.005)
    for place in ("mean", "all", "y"):
        nats = comparison.difference(held_out, "b", "a", place, "nll")
        assert nats.low < -0.1 < nats.high < 0
        assert nats.high - nats.low < 0.1
        bits = comparison.difference(held_out, "b", "a", place, "bits_per_byte")
        assert bits.value == pytest.approx(nats.value / 4 / np.log(2))
        assert bits.low == pytest.approx(nats.low / 4 / np.log(2))


@pytest.mark.parametrize(
    ("seed_std", "document_std", "n_arms"),
    [(0.05, 0.01, 2), (0.05, 0.01, 4), (0.001, 0.3, 2), (0.01, 0.15, 3)],
)
@pytest.mark.parametrize("place", ["mean", "all"])
def test_intervals_cover_the_truth_at_their_rate(seed_std, document_std, n_arms, place):
    """Two seeds only, whether seeds or documents make the noise: 95 % of intervals hold the truth."""
    rng = np.random.default_rng(1)
    trials = 600
    held = 0
    for _ in range(trials):
        held_out = simulate(
            rng, gains=(0.0, *(0.1,) * (n_arms - 1)), seed_std=seed_std, document_std=document_std
        )
        found = comparison.difference(held_out, "b", "a", place, "nll")
        held += found.low <= -0.1 <= found.high
    # Three standard errors of a rate of 0.95 over the trials are 0.027; the linearised ratio is slightly
    # narrow for 200 skewed documents, and two sources together are slightly wide.
    assert 0.915 < held / trials < 0.99


def test_losses_are_sums_over_sums_and_means_over_seeds():
    held_out = simulate(np.random.default_rng(2))
    found = comparison.losses(held_out, "a")
    nll_SN, tokens_N = held_out.nll_ASN[0], held_out.n_tokens_N
    assert found["all"]["nll"] == pytest.approx(np.mean(nll_SN.sum(1) / tokens_N.sum()))
    in_y = held_out.domain_N == 1
    y = nll_SN[:, in_y].sum(1) / tokens_N[in_y].sum()
    assert found["y"]["per_seed"]["nll"] == pytest.approx(y)
    assert found["y"]["nll"] == pytest.approx(y.mean())
    assert found["mean"]["nll"] == pytest.approx(np.mean([found[d]["nll"] for d in "xyz"]))
    assert found["all"]["bits_per_byte"] == pytest.approx(found["all"]["nll"] / 4 / np.log(2))


def test_the_difference_is_that_of_the_losses_and_antisymmetric():
    held_out = simulate(np.random.default_rng(3), n_seeds=3)
    there = comparison.difference(held_out, "b", "a")
    back = comparison.difference(held_out, "a", "b")
    a, b = (comparison.losses(held_out, arm)["mean"]["bits_per_byte"] for arm in "ab")
    assert there.value == pytest.approx(b - a) == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.value == pytest.approx(np.mean(there.per_seed))


def test_one_seed_or_one_document_gives_no_interval():
    one_seed = comparison.difference(simulate(np.random.default_rng(4), n_seeds=1), "b", "a")
    assert one_seed.low is None and one_seed.seeds_error is None and one_seed.documents_error > 0
    held_out = simulate(np.random.default_rng(4))
    lonely = dataclasses.replace(held_out, domain_N=np.where(np.arange(200) == 0, 2, held_out.domain_N % 2))
    assert comparison.difference(lonely, "b", "a", "z").low is None
    assert comparison.difference(lonely, "b", "a", "x").low is not None


def test_read_refuses_runs_that_scored_other_documents(tmp_path):
    workdir = Workdir(tmp_path)
    for name, n_tokens in (("none-0", 5), ("pruned-0", 5), ("pruned-1", 6)):
        workdir.evaluate(name).mkdir(parents=True)
        table = {"number": [3, 7], "domain": ["x", "y"], "n_tokens": [n_tokens, 4], "n_bytes": [20, 16]}
        pq.write_table(pa.table({**table, "nll_sum": [1.0, 2.0]}), workdir.evaluate(name) / "scores.parquet")
    held_out = comparison.read(workdir, ["none", "pruned"], [0])
    assert held_out.nll_ASN.shape == (2, 1, 2) and held_out.domains == ("x", "y")
    pq.write_table(
        pa.table({**table, "nll_sum": [1.0, 2.0]}), workdir.evaluate("pruned-0") / "scores.parquet"
    )
    with pytest.raises(ValueError, match="different documents"):
        comparison.read(workdir, ["none", "pruned"], [0])


def test_read_refuses_a_domain_that_would_hide_an_average(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.evaluate("none-0").mkdir(parents=True)
    table = {"number": [3], "domain": ["all"], "n_tokens": [4], "n_bytes": [20], "nll_sum": [1.0]}
    pq.write_table(pa.table(table), workdir.evaluate("none-0") / "scores.parquet")
    with pytest.raises(ValueError, match="called all"):
        comparison.read(workdir, ["none"], [0])
