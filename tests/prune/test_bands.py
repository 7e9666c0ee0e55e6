import math
from fractions import Fraction

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ibis import _

from jaxprune.config import Config, Select
from jaxprune.prune import cuts
from jaxprune.prune.bands import select, uniform
from jaxprune.settings import notes

CRITERIA = ("low", "medium", "high", "random", "proportional")


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
            "hash": np.random.default_rng(7).integers(0, 1 << 62, 10 * n)[ids],
            "domain": np.array(list(domains))[rng.integers(0, len(domains), n)],
            "n_tokens": n_tokens,
            "n_bytes": n_tokens * 4,
            "n_scored": n_tokens,
            "nll_sum": nll_sum,
        }
    )


def decide(scores: pa.Table, rule: Select, seed: int = 0) -> pa.Table:
    order = "number" if "number" in scores.column_names else "id"
    return select(ibis.memtable(scores), rule, seed).order_by(order).to_pyarrow()


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
    bits = scores.set_column(7, "nll_sum", pa.array(scores["nll_sum"].to_numpy() / np.log(2)))
    for criterion in ("low", "medium", "high", "random"):
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
    scores = scores.set_column(7, "nll_sum", pa.array(scores["nll_sum"].to_numpy() + shift))
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
    scores = scores.set_column(7, "nll_sum", pa.array(fine))
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
        scores.set_column(7, "nll_sum", pa.array(planted)), Select(criterion="high", rate=noisy.mean())
    )
    assert found == set(np.array(scores["id"].to_pylist())[noisy])


def test_random_depends_on_the_seed_only():
    scores = corpus(1000)
    rule = Select(criterion="random", rate=0.5)
    zero, one = kept(scores, rule, 0), kept(scores, rule, 1)
    assert zero == kept(scores.set_column(7, "nll_sum", pa.array(np.arange(1000.0))), rule, 0)
    assert 200 < len(zero & one) < 300  # independent halves share a quarter; 3 standard deviations are 24


def test_short_documents_are_not_ranked():
    scores = corpus(100)
    short = np.arange(100) % 2 == 0
    n_tokens = np.where(short, 3, scores["n_tokens"].to_numpy())
    n_tokens[0] = 0
    scores = scores.set_column(4, "n_tokens", pa.array(n_tokens))
    for criterion in CRITERIA:
        decided = decide(scores, Select(criterion=criterion, rate=0.5, min_tokens=8))
        reasons = np.array(decided["reason"].to_pylist())
        assert (reasons[short] == "under 8 tokens").all()
        assert decided["kept"].to_numpy()[~short].sum() == 25
    everything = decide(scores, Select(rate=1.0, min_tokens=1000))
    assert not everything["kept"].to_numpy().any()


def messy(n: int, seed: int, hashes: int = 1 << 62) -> pa.Table:
    """Scores with ties, null and NaN signals, documents of no token, hashes that may collide, far keys."""
    rng = np.random.default_rng(seed)
    n_tokens = rng.integers(0, 40, n) * (rng.random(n) > 0.1)
    perplexity = np.round(rng.normal(3, 1, n), int(rng.integers(0, 3)))
    density = np.round(rng.normal(-2000, 900, n) * rng.choice([1, 1e-4, 1e6], n), 1)
    number = rng.permutation(n)
    return pa.table(
        {
            "number": number,
            "id": [f"document {i}" for i in number],
            "hash": rng.integers(0, hashes, n),
            "domain": np.array(list("xyz"))[np.minimum(rng.geometric(0.6, n) - 1, 2)],
            "n_tokens": n_tokens,
            "n_bytes": n_tokens * 4,
            "n_scored": n_tokens,
            "nll_sum": perplexity * n_tokens,
            "density": pa.array(np.where(rng.random(n) < 0.05, np.nan, density), mask=rng.random(n) < 0.05),
        }
    )


def by_hand(scores: pa.Table, rule: Select, seed: int = 0) -> set[str]:
    """What a rule keeps, with sorts in Python and fractions."""
    drawn = ibis.memtable(scores).select("id", drawn=uniform(_.hash, seed)).to_pyarrow().to_pydict()
    uniform_of = dict(zip(drawn["id"], drawn["drawn"], strict=True))
    ranked: dict[str, list] = {}
    for row in scores.to_pylist():
        if row["n_tokens"] < rule.min_tokens:
            continue
        values = {"perplexity": row["nll_sum"] / row["n_tokens"], "density": row["density"]}
        row["values"] = [values[signal] for signal in rule.signals]
        if any(value is None or math.isnan(value) for value in row["values"]):
            continue
        row["draw"] = uniform_of[row["id"]]
        row["weight"] = row["n_tokens"] if rule.weight == "tokens" else 1
        ranked.setdefault(row["domain"] if rule.scope == "domain" else "all", []).append(row)
    kept: set[str] = set()
    for group, rows in ranked.items():
        total = sum(row["weight"] for row in rows)
        rate = Fraction(str(rule.rates.get(group, rule.rate)))

        def places(key, rows=rows):
            begin = 0
            for row in sorted(rows, key=lambda row: (key(row), row["hash"], row["id"])):
                yield row, begin, begin + row["weight"]
                begin += row["weight"]

        def band(key, first, last, places=places, total=total):
            first, last = math.ceil(first * total), math.ceil(last * total)
            return {row["id"] for row, begin, _end in places(key) if first <= begin < last}

        edges = {"low": (0, rate), "medium": ((1 - rate) / 2, (1 + rate) / 2), "high": (1 - rate, 1)}
        if rule.criterion == "threshold":
            low = -math.inf if rule.low is None else rule.low
            high = math.inf if rule.high is None else rule.high
            kept |= {row["id"] for row in rows if low <= row["values"][0] <= high}
        elif rule.criterion == "random":
            kept |= band(lambda row: row["draw"], 0, rate)
        elif rule.criterion == "proportional":
            kept |= band(
                lambda row: row["values"][0] / rule.temperature - math.log(-math.log(row["draw"])),
                1 - rate,
                1,
            )
        elif len(rule.signals) == 1:
            kept |= band(lambda row: row["values"][0], *edges[rule.criterion])
        elif rule.combine == "product":
            product = {row["id"]: 1.0 for row in rows}
            for number in range(len(rule.signals)):
                for row, begin, end in places(lambda row, number=number: row["values"][number]):
                    product[row["id"]] *= (begin + end) / 2 / total
            kept |= band(lambda row, product=product: product[row["id"]], *edges[rule.criterion])
        else:
            width = {row["id"]: 0 for row in rows}
            for number in range(len(rule.signals)):
                for row, begin, end in places(lambda row, number=number: row["values"][number]):
                    mine = {
                        "low": end,
                        "high": total - begin,
                        "medium": max(total - 2 * begin, 2 * end - total),
                    }
                    width[row["id"]] = max(width[row["id"]], mine[rule.criterion])
            kept |= band(lambda row, width=width: width[row["id"]], 0, rate)
    return kept


TWO = ("perplexity", "density")
RULES = [
    *({"criterion": criterion} for criterion in CRITERIA),
    {"criterion": "proportional", "signals": ("density",), "temperature": -300.0},
    {"criterion": "threshold", "low": 2.5, "high": 3.5},
    {"criterion": "threshold", "signals": ("density",), "high": -1000.0},
    *(
        {"criterion": criterion, "signals": TWO, "combine": combine}
        for criterion in ("low", "medium", "high", "random")
        for combine in ("intersection", "product")
    ),
]


SHARES = (
    {},
    {"scope": "domain"},
    {"scope": "domain", "rates": {"x": 0.9, "y": 0.0}},
    {"weight": "tokens"},
    {"weight": "tokens", "scope": "domain"},
)


@pytest.mark.parametrize("trial", range(len(RULES)))
@pytest.mark.parametrize("margin", [None, 0.5, 0.01])
def test_every_rule_keeps_what_sorting_by_hand_keeps(trial, margin, monkeypatch):
    """Cuts that are looked for in whole groups, near those of a sample, and in zones that were too small."""
    if margin is not None:
        monkeypatch.setattr(cuts, "_WHOLE", 8)
        monkeypatch.setattr(cuts, "_MARGIN", margin)
    number = trial * 3 + (0 if margin is None else round(2 * margin) + 1)
    scores = messy(150, number, hashes=(1 << 62, 40)[trial % 2])
    share = SHARES[number % len(SHARES)]
    rule = Select(**{"rate": (0.1, 0.5, 0.77)[number % 3], "min_tokens": 3, **RULES[trial], **share})
    assert kept(scores, rule, number) == by_hand(scores, rule, number)


def test_equal_scores_and_equal_hashes_are_in_the_order_of_their_ids():
    scores = corpus(60).set_column(2, "hash", pa.array(np.zeros(60, np.int64)))
    scores = scores.set_column(7, "nll_sum", pa.array(scores["n_tokens"].to_numpy() * 3.0))
    ids = sorted(scores["id"].to_pylist())
    assert kept(scores, Select(criterion="low", rate=0.3)) == set(ids[:18])
    assert kept(scores, Select(criterion="high", rate=0.3)) == set(ids[42:])


def test_two_signals_survive_in_bands_of_one_width():
    """Independent signals: a document in the lowest t of both has probability t^2, so t is near sqrt(rate)."""
    rng = np.random.default_rng(0)
    n = 2000
    scores = corpus(n).append_column("density", pa.array(rng.normal(size=n)))
    for criterion in ("low", "medium", "high"):
        decided = decide(scores, Select(signals=TWO, criterion=criterion, rate=0.25))
        inside = decided["kept"].to_numpy()
        assert inside.sum() == 500
        for column in ("score", "density"):
            rank = np.argsort(np.argsort(decided[column].to_numpy()))[inside]
            width = {"low": rank.max() + 1, "high": n - rank.min(), "medium": rank.max() - rank.min() + 1}
            # The share in a square of side t of two independent ranks has standard deviation under 1 %.
            assert abs(width[criterion] / n - 0.5) < 0.04
        assert not {"below the band", "above the band"} & set(decided["reason"].to_pylist())


def test_proportional_draws_with_the_probabilities_of_draws_without_replacement():
    """Documents of weights 1, 2, 4 in each of many domains; two are drawn, one after the other."""
    weights = np.array([1.0, 2.0, 4.0])
    n_domains = 1000
    scores = pa.table(
        {
            "id": [str(number) for number in range(3 * n_domains)],
            "hash": np.random.default_rng(0).integers(0, 1 << 62, 3 * n_domains),
            "domain": [str(number // 3) for number in range(3 * n_domains)],
            "n_tokens": np.full(3 * n_domains, 10),
            "density": np.tile(np.log(weights) * -0.5, n_domains),
        }
    )
    rule = Select(signals=("density",), criterion="proportional", rate=0.67, temperature=-0.5, scope="domain")
    drawn = kept(scores, rule)
    expected = np.zeros(3)
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            expected[[first, second]] += weights[first] / 7 * weights[second] / (7 - weights[first])
    found = np.bincount([int(number) % 3 for number in drawn], minlength=3)
    assert found.sum() == 2 * n_domains
    assert (abs(found - n_domains * expected) < 4 * np.sqrt(n_domains * expected * (1 - expected))).all()


def test_a_draw_is_uniform_and_differs_by_seed():
    """Sequential hashes, the worst there are: moments, independence of seeds, no two alike."""
    n = 20_000
    hashes = ibis.memtable(pa.table({"hash": np.arange(n) + (1 << 61)}))
    drawn = hashes.select(**{f"s{seed}": uniform(_.hash, seed) for seed in range(4)}).to_pyarrow()
    u_SN = np.stack([drawn[f"s{seed}"].to_numpy() for seed in range(4)])
    assert ((u_SN > 0) & (u_SN < 1)).all()
    # Five standard deviations of: a mean of uniforms, a count in one of 16 cells, a correlation.
    assert (abs(u_SN.mean(1) - 0.5) < 5 / math.sqrt(12 * n)).all()
    cells = np.stack([np.histogram(u_N, 16, (0, 1))[0] for u_N in u_SN])
    assert (abs(cells - n / 16) < 5 * math.sqrt(n / 16)).all()
    assert (abs(np.corrcoef(u_SN) - np.eye(4)) < 5 / math.sqrt(n)).all()
    assert all(len(np.unique(u_N)) == n for u_N in u_SN)


def test_a_draw_does_not_overflow():
    extremes = pa.table({"hash": [0, 1, (1 << 31) - 1, 1 << 31, (1 << 62) - 1]})
    for seed in (0, 1, 2**32 - 1):
        drawn = ibis.memtable(extremes).select(u=uniform(_.hash, seed)).to_pyarrow()["u"].to_numpy()
        assert ((drawn > 0) & (drawn < 1)).all()


def test_documents_without_a_signal_say_so():
    scores = corpus(4).append_column("density", pa.array([None, math.nan, 1.0, 2.0]))
    decided = decide(scores, Select(signals=("density",), criterion="high", rate=0.5))
    assert decided["reason"].to_pylist() == ["no density", "no density", "below the band", ""]


def test_a_column_of_the_name_of_a_signal_is_taken_and_other_columns_stay():
    table = pa.table(
        {"id": ["a", "b"], "hash": [1, 2], "domain": ["x", "x"], "n_tokens": [9, 9], "perplexity": [2.0, 1.0],
         "group": ["mine", "mine"], "weight": [5, 5]}
    )  # fmt: skip
    decided = select(ibis.memtable(table), Select(criterion="low")).order_by("id").to_pyarrow()
    assert decided["kept"].to_pylist() == [False, True]
    assert decided.column_names == [*table.column_names, "score", "kept", "reason"]
    assert decided["group"].to_pylist() == ["mine", "mine"]


def test_what_is_missing_is_named():
    table = ibis.memtable(corpus(3))
    with pytest.raises(ValueError, match="no column hash: it needs id, hash, domain"):
        select(table.drop("hash"), Select())
    with pytest.raises(ValueError, match="no column unigram_nll_sum, from which information is computed"):
        select(table, Select(signals=("information",)))
    with pytest.raises(ValueError, match="select.rates names code, of which .*: name some of x, y, z"):
        select(ibis.memtable(corpus(30)), Select(scope="domain", rates={"code": 0.1}))


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


WRONG = {
    "name one signal or more, each once": {"signals": ("nll", "nll")},
    "proportional, which takes one signal": {"criterion": "proportional", "signals": ("nll", "density")},
    "threshold but select.low and select.high are None": {"criterion": "threshold"},
    "set a higher select.high": {"criterion": "threshold", "low": 3.0, "high": 2.0},
    "select.low is nan: set a finite number": {"low": math.nan},
    "set select.scope to domain, or give no rates": {"rates": {"x": 0.5}},
    "set shares from 0 to 1": {"scope": "domain", "rates": {"x": 1.5}},
    "select.temperature is 0.0: set a finite number that is not 0": {"temperature": 0.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_settings_are_refused(message):
    with pytest.raises(ValueError, match=message):
        Select(**WRONG[message])


@pytest.mark.parametrize(
    ("rule", "unused"),
    [
        ({"low": 1.0, "temperature": 2.0}, {"select.temperature", "select.low"}),
        ({"combine": "product", "information_per": "byte"}, {"select.combine", "select.information_per"}),
        ({"criterion": "threshold", "low": 1.0, "rate": 0.1}, {"select.rate"}),
        ({"criterion": "proportional", "temperature": -1.0}, set()),
        ({"signals": ("perplexity", "information"), "combine": "product", "information_per": "byte"}, set()),
    ],
)
def test_settings_without_effect_are_said(rule, unused):
    said = " ".join(notes(Config(name="x", select=Select(**rule), arms=("pruned",))))
    assert {name for name in said.replace(",", "").split() if name.startswith("select.")} - {
        "select.criterion", "select.signals",
    } == unused  # fmt: skip
