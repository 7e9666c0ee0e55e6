import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jaxprune.config import Select
from jaxprune.prune.bands import select

CRITERIA = ("low", "medium", "high", "random")


def corpus(n: int, seed: int = 0, domains: str = "xyz", ties: bool = False) -> pa.Table:
    rng = np.random.default_rng(seed)
    n_tokens = rng.integers(10, 400, n)
    score = rng.normal(3, 1, n)
    nll_sum = n_tokens * (np.round(score) if ties else score)
    ids = rng.permutation(10 * n)[:n]
    return pa.table(
        {
            "number": np.arange(n),
            "id": [f"document {number}" for number in ids],
            "domain": np.array(list(domains))[rng.integers(0, len(domains), n)],
            "n_tokens": n_tokens,
            "n_bytes": n_tokens * 4,
            "nll_sum": nll_sum,
        }
    )


def decide(scores: pa.Table, rule: Select, seed: int = 0) -> pa.Table:
    return select(ibis.memtable(scores), rule, seed).order_by("number").to_pyarrow()


def kept(scores: pa.Table, rule: Select, seed: int = 0) -> set[str]:
    decided = decide(scores, rule, seed)
    return set(decided.filter(decided["kept"])["id"].to_pylist())


@pytest.mark.parametrize("n", [1, 7, 100])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75, 1.0])
def test_shares_are_exact(n, rate):
    hundredths = round(rate * 100) * n
    for criterion in CRITERIA:
        keeps = len(kept(corpus(n), Select(criterion=criterion, rate=rate, min_tokens=1)))
        assert abs(keeps - hundredths / 100) < 1
        if hundredths % 100 == 0:
            assert keeps == hundredths // 100


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("weight", ["documents", "tokens"])
@pytest.mark.parametrize("ties", [False, True])
def test_low_and_high_are_a_partition(rate, weight, ties):
    scores = corpus(101, ties=ties)
    low = kept(scores, Select(criterion="low", rate=rate, weight=weight))
    high = kept(scores, Select(criterion="high", rate=round(1 - rate, 2), weight=weight))
    assert not low & high
    assert low | high == set(scores["id"].to_pylist())


@pytest.mark.parametrize(("scope", "weight"), [("global", "documents"), ("domain", "tokens")])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_order_of_the_corpus_does_not_matter_even_with_ties(criterion, scope, weight):
    scores = corpus(120, ties=True)
    rule = Select(criterion=criterion, rate=0.4, scope=scope, weight=weight)
    shuffled = scores.take(np.random.default_rng(1).permutation(120))
    assert kept(scores, rule) == kept(shuffled, rule)


def test_the_base_of_the_logarithm_does_not_matter():
    scores = corpus(150)
    bits = scores.set_column(5, "nll_sum", pa.array(scores["nll_sum"].to_numpy() / np.log(2)))
    for criterion in CRITERIA:
        rule = Select(criterion=criterion, rate=0.35)
        assert kept(scores, rule) == kept(bits, rule)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_counting_tokens_keeps_the_rate_of_tokens_within_one_document(criterion):
    scores = corpus(200)
    for rate in (0.05, 0.8):
        decided = decide(scores, Select(criterion=criterion, rate=rate, weight="tokens"))
        tokens = decided["n_tokens"].to_numpy()
        share = tokens[decided["kept"].to_numpy()].sum()
        assert abs(share - rate * tokens.sum()) < tokens.max()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("weight", ["documents", "tokens"])
def test_inside_domains_the_mixture_stays(criterion, weight):
    """Domains of very different scores keep their shares within one document."""
    scores = corpus(300)
    shift = scores["n_tokens"].to_numpy() * (scores["domain"].to_numpy(zero_copy_only=False) == "y") * 5
    scores = scores.set_column(5, "nll_sum", pa.array(scores["nll_sum"].to_numpy() + shift))
    decided = decide(scores, Select(criterion=criterion, rate=0.3, scope="domain", weight=weight))
    for domain in "xyz":
        mine = decided.filter(pc.equal(decided["domain"], domain))
        keeps = mine["kept"].to_numpy()
        size = mine["n_tokens"].to_numpy() if weight == "tokens" else np.ones(len(mine))
        assert abs(size[keeps].sum() - 0.3 * size.sum()) < (size.max() if weight == "tokens" else 1)


def test_bands_agree_with_ranks_in_numpy():
    """An independent computation with a sort; scores that share slices of the search included."""
    scores = corpus(500)
    fine = scores["n_tokens"].to_numpy() * np.random.default_rng(2).normal(3, 0.002, 500)
    scores = scores.set_column(5, "nll_sum", pa.array(fine))
    score = fine / scores["n_tokens"].to_numpy()
    u = np.argsort(np.argsort(score)) / 500
    ids = np.array(scores["id"].to_pylist())
    bands = {"low": u < 0.25, "medium": (u >= 0.375) & (u < 0.625), "high": u >= 0.75}
    for criterion, band in bands.items():
        assert kept(scores, Select(criterion=criterion, rate=0.25)) == set(ids[band])


def test_high_finds_planted_noise():
    scores = corpus(400)
    noisy = np.random.default_rng(3).random(400) < 0.1
    planted = scores["nll_sum"].to_numpy() + 6 * noisy * scores["n_tokens"].to_numpy()
    found = kept(
        scores.set_column(5, "nll_sum", pa.array(planted)), Select(criterion="high", rate=noisy.mean())
    )
    assert found == set(np.array(scores["id"].to_pylist())[noisy])


def test_random_depends_on_the_seed_only():
    scores = corpus(1000)
    rule = Select(criterion="random", rate=0.5)
    zero, one = kept(scores, rule, 0), kept(scores, rule, 1)
    assert zero == kept(scores.set_column(5, "nll_sum", pa.array(np.arange(1000.0))), rule, 0)
    assert 200 < len(zero & one) < 300  # independent halves share a quarter; 3 standard deviations are 24


def test_short_documents_are_not_ranked():
    scores = corpus(100)
    short = np.arange(100) % 2 == 0
    n_tokens = np.where(short, 3, scores["n_tokens"].to_numpy())
    n_tokens[0] = 0
    scores = scores.set_column(3, "n_tokens", pa.array(n_tokens))
    for criterion in CRITERIA:
        decided = decide(scores, Select(criterion=criterion, rate=0.5, min_tokens=8))
        reasons = np.array(decided["reason"].to_pylist())
        assert (reasons[short] == "under 8 tokens").all()
        assert decided["kept"].to_numpy()[~short].sum() == 25
    everything = decide(scores, Select(rate=1.0, min_tokens=1000))
    assert not everything["kept"].to_numpy().any()


def test_reasons_say_which_side():
    decided = decide(corpus(100), Select(criterion="medium", rate=0.5))
    reasons = np.array(decided["reason"].to_pylist())
    score = decided["score"].to_numpy()
    assert score[reasons == "below the band"].max() < score[reasons == ""].min()
    assert score[reasons == "above the band"].min() > score[reasons == ""].max()
    assert [(reasons == r).sum() for r in ("below the band", "", "above the band")] == [25, 50, 25]


def test_no_rule_keeps_everything():
    scores = corpus(10)
    decided = select(ibis.memtable(scores), None).to_pyarrow()
    assert decided["kept"].to_pylist() == [True] * 10 and set(decided["reason"].to_pylist()) == {""}
