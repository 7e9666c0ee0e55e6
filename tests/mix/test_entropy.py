import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stores import stored_as

from jaxprune.mix import bigrams
from jaxprune.mix.entropy import Entropies, entropies, von_neumann

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "bimix_entropy.json").read_text())
SHARED = Path(__file__).parents[3] / "shared" / "data" / "mixing" / "bimix_published.json"


def texts(n_documents=60, vocab_size=50, seed=0, dtype=np.uint16):
    """Documents of Zipfian tokens, 0 in front of each."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocab_size)
    return [
        np.append(0, rng.choice(np.arange(1, vocab_size), rng.integers(1, 90), p=p / p.sum())).astype(dtype)
        for _ in range(n_documents)
    ]


def _pairs(documents, sequence):
    stream = np.concatenate(documents).tolist()
    cut = [stream[begin : begin + sequence] for begin in range(0, len(stream), sequence)]
    return Counter(pair for tokens in cut for pair in itertools.pairwise(tokens))


def by_hand(documents, sequence):
    """SE and JE from dictionaries: heads and bigrams inside the sequences of documents laid end to end."""
    pairs = _pairs(documents, sequence)
    heads = Counter(head for head, _ in pairs.elements())

    def entropy(counts):
        share = np.array(list(counts.values())) / counts.total()
        return -(share * np.log(share)).sum()

    return entropy(heads), entropy(pairs), pairs.total(), len(pairs)


def test_a_case_worked_out_by_hand(tmp_path):
    # 0 1 2 1 | 0 1 1 2 in sequences of 4: bigrams 01 12 21 and 01 11 12; heads 0 1 2 and 0 1 1
    store = stored_as(
        tmp_path / "s", [np.array([0, 1, 2, 1], "u2"), np.array([0, 1, 1, 2], "u2")], [0, 0], 1, 3
    )
    found = entropies(store, sequence=4, miller_madow=False)
    assert found.tokens_K.tolist() == [8]
    assert found.bigrams_K.tolist() == [6] and found.different_K.tolist() == [4]
    ln2, ln3 = np.log([2, 3])
    shannon = 1 / 3 * ln3 + 1 / 2 * ln2 + 1 / 6 * (ln2 + ln3)
    joint = 2 * (1 / 3) * ln3 + 2 * (1 / 6) * (ln2 + ln3)
    conditional = 0.5 * (
        2 / 3 * np.log(3 / 2) + 1 / 3 * ln3
    )  # after 1 comes 2 twice and 1 once; 0 and 2 are sure
    assert found.shannon_K == pytest.approx(shannon, rel=1e-14)
    assert found.joint_K == pytest.approx(joint, rel=1e-14)
    assert found.conditional_K == pytest.approx(conditional, rel=1e-14)
    corrected = entropies(store, sequence=4)
    assert corrected.shannon_K == pytest.approx(shannon + 2 / 12, rel=1e-14)
    assert corrected.joint_K == pytest.approx(joint + 3 / 12, rel=1e-14)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(50, np.uint16), (70_000, np.uint32), (131_072, np.uint32)]
)
def test_domains_are_measured_apart_as_dictionaries_would(tmp_path, vocab_size, dtype):
    documents = [
        np.where(tokens > 5, tokens + vocab_size - 50, tokens).astype(dtype) for tokens in texts(dtype=dtype)
    ]
    domain = np.arange(len(documents)) % 3
    store = stored_as(tmp_path / "s", documents, domain, 3, vocab_size)
    found = entropies(store, sequence=16, miller_madow=False)
    for k in range(3):
        shannon, joint, total, different = by_hand(documents[k::3], 16)
        assert found.shannon_K[k] == pytest.approx(shannon, rel=1e-12)
        assert found.joint_K[k] == pytest.approx(joint, rel=1e-12)
        assert (found.bigrams_K[k], found.different_K[k]) == (total, different)
    # the chain rule, with the conditional entropy from its definition
    rows = {}
    for (head, tail), count in _pairs(documents[::3], 16).items():
        rows.setdefault(head, {})[tail] = count
    total = sum(sum(row.values()) for row in rows.values())
    conditional = -sum(
        count / total * np.log(count / sum(row.values())) for row in rows.values() for count in row.values()
    )
    assert found.conditional_K[0] == pytest.approx(conditional, rel=1e-12)
    np.testing.assert_allclose(found.joint_K, found.shannon_K + found.conditional_K, rtol=1e-15)


@pytest.mark.parametrize("vocab_size", [50, 70_000])
def test_a_stream_in_chunks_is_one_stream(tmp_path, monkeypatch, vocab_size):
    store = stored_as(tmp_path / "s", texts(), [0] * 60, 1, vocab_size)
    together = entropies(store, sequence=16)
    monkeypatch.setattr(bigrams, "_EVERY", 2)
    for chunk in (16, 100, 1000):
        monkeypatch.setattr(bigrams, "CHUNK", chunk)
        monkeypatch.setattr(bigrams, "_RANGE", chunk // 2)
        apart = entropies(store, sequence=16)
        assert apart.different_K == together.different_K and apart.bigrams_K == together.bigrams_K
        np.testing.assert_allclose(apart.shannon_K, together.shannon_K, rtol=1e-13)
        np.testing.assert_allclose(apart.joint_K, together.joint_K, rtol=1e-13)


def test_counts_are_ascending_different_and_bounded(monkeypatch):
    """Whatever the runs, a bigram comes once, in order, and no range holds many more rows than it should."""
    monkeypatch.setattr(bigrams, "_EVERY", 4)
    monkeypatch.setattr(bigrams, "_RANGE", 256)
    rng = np.random.default_rng(0)
    stream = (rng.zipf(1.2, 20_000) - 1).clip(max=69_999).astype(np.uint32)  # 0 0 occurs, the least bigram
    stream[100:102] = divmod(1 << 32, 70_000)  # the first bigram that is wider than 32 bits
    ranges = list(bigrams.counts(np.split(stream, range(250, 20_000, 250)), 50, 70_000))
    keys = np.concatenate([key for key, _ in ranges])
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert dict(zip(keys.tolist(), np.concatenate([n for _, n in ranges]).tolist(), strict=True)) == {
        head * 70_000 + tail: count for (head, tail), count in _pairs([stream], 50).items()
    }
    assert max(len(key) for key, _ in ranges) <= 256 + 80 * 4  # a range misses less than a sample of each run


def test_the_order_of_documents_does_not_matter_where_no_cut_is(tmp_path):
    documents = [tokens[:17] for tokens in texts(200) if len(tokens) >= 17]  # each is a sequence
    n_documents = len(documents)
    shuffled = [documents[number] for number in np.random.default_rng(1).permutation(n_documents)]
    one, other = (
        entropies(stored_as(tmp_path / name, order, [0] * n_documents, 1, 50), sequence=17)
        for name, order in (("one", documents), ("other", shuffled))
    )
    assert one.joint_K == other.joint_K and one.shannon_K == other.shannon_K
    assert one.von_neumann_K == pytest.approx(other.von_neumann_K, rel=1e-10)


def test_only_the_given_documents_are_measured(tmp_path):
    documents = texts()
    store = stored_as(tmp_path / "s", documents, [0] * 60, 1, 50)
    found = entropies(store, np.array([3, 4, 9]), sequence=32, miller_madow=False)
    assert found.joint_K == pytest.approx(by_hand([documents[k] for k in (3, 4, 9)], 32)[1], rel=1e-12)


def test_a_domain_is_sampled_to_the_token(tmp_path):
    store = stored_as(tmp_path / "s", texts(300), np.arange(300) % 2, 2, 50)
    first, same, other = (entropies(store, max_tokens=1000, seed=seed) for seed in (0, 0, 1))
    assert first.tokens_K.tolist() == [1000, 1000]
    assert first.joint_K.tolist() == same.joint_K.tolist()
    assert first.joint_K.tolist() != other.joint_K.tolist()
    assert (np.exp(entropies(store, max_documents=2).von_neumann_K) < 2 + 1e-9).all()
    assert entropies(store, max_tokens=10**9).tokens_K.sum() == len(store.tokens)


def test_the_correction_takes_most_of_the_bias(tmp_path):
    """64 equally likely tokens: SE is ln 64 and JE 2 ln 64, of which 20,000 bigrams show ever less."""
    rng = np.random.default_rng(0)
    store = stored_as(tmp_path / "s", [rng.integers(0, 64, 20_001, np.uint16)], [0], 1, 64)
    plain, corrected = (
        entropies(store, sequence=30_000, miller_madow=flag, vectors=np.ones((1, 2)))
        for flag in (False, True)
    )
    for found, truth in (("shannon_K", np.log(64)), ("joint_K", 2 * np.log(64))):
        bias, left = (getattr(entropy, found)[0] - truth for entropy in (plain, corrected))
        assert bias < 0 and abs(left) < abs(bias) / 2


def test_nothing_is_uncertain_in_one_token_and_nothing_weighs_without_documents(tmp_path):
    store = stored_as(tmp_path / "s", [np.array([0], "u2"), np.array([0, 1, 2], "u2")], [0, 1], 3, 3)
    found = entropies(store)
    assert found.joint_K[0] == found.shannon_K[0] == found.conditional_K[0] == 0
    assert found.bigrams_K.tolist() == [0, 2, 0]
    assert np.isnan([found.joint_K[2], found.von_neumann_K[2]]).all()
    for kind in ("shannon", "conditional", "joint", "von_neumann"):
        weights = found.proportions(kind)
        assert weights["domain2"] == 0 and sum(weights.values()) == pytest.approx(1)
    assert found.proportions("von_neumann")["domain0"] == 0  # it has no word to make a vector of


def of_published(corpus):
    domains, values = zip(*PUBLISHED[corpus].items(), strict=True)
    se_K, ce_K, je_K = np.array(values).T
    zeros = np.zeros(len(domains), np.int64)
    return je_K, Entropies(
        domains=domains, tokens_K=zeros, bigrams_K=zeros, different_K=zeros, shannon_K=np.log(se_K),
        conditional_K=np.log(ce_K), joint_K=np.log(se_K) + np.log(ce_K), von_neumann_K=np.log(se_K),
    )  # fmt: skip


@pytest.mark.parametrize("corpus", ["pile", "slimpajama"])
def test_published_mixtures_obey_the_chain_rule(corpus):
    """Proportions by exp(SE) and exp(CE) give those by exp(JE), to the rounding of four decimals."""
    je_K, found = of_published(corpus)
    assert list(found.proportions("joint").values()) == pytest.approx(je_K.tolist(), abs=1.5e-4)


def test_published_mixtures_are_those_of_the_table():
    if not SHARED.is_file():
        pytest.skip("the published tables that this test reads, ../shared/data/mixing, are not here")
    tables = json.loads(SHARED.read_text())
    for corpus, table in (("pile", "table4_pile_mixtures"), ("slimpajama", "table5_slimpajama_mixtures")):
        columns = [tables[table]["columns"].index(kind) for kind in PUBLISHED["columns"]]
        rows = {name: [row[column] for column in columns] for name, row in tables[table]["rows"].items()}
        assert PUBLISHED[corpus] == rows


def test_von_neumann_is_that_of_the_matrix_of_cosines():
    rng = np.random.default_rng(0)
    x_ND = rng.standard_normal((40, 12)) * rng.uniform(0.1, 9, (40, 1))
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    eigenvalue = np.linalg.eigvalsh(unit_ND @ unit_ND.T / 40)
    eigenvalue = eigenvalue[eigenvalue > 1e-12]
    expected = -(eigenvalue * np.log(eigenvalue)).sum()
    assert von_neumann([x_ND]) == pytest.approx(expected, rel=1e-10)
    assert von_neumann([x_ND[:7], x_ND[7:7], x_ND[7:]]) == pytest.approx(expected, rel=1e-10)
    assert von_neumann([np.zeros((3, 12)), x_ND]) == pytest.approx(expected, rel=1e-10)


def test_the_vendi_score_counts_documents_that_share_nothing():
    assert np.exp(von_neumann([np.eye(9) * 3])) == pytest.approx(9, rel=1e-12)
    assert von_neumann([np.ones((5, 9))]) == pytest.approx(0, abs=1e-12)


def test_given_vectors_are_those_of_the_documents(tmp_path):
    store = stored_as(tmp_path / "s", texts(6), [0, 1, 0, 1, 0, 1], 2, 50)
    x_ND = np.random.default_rng(0).standard_normal((5, 8))
    found = entropies(store, np.array([0, 1, 2, 4, 5]), vectors=x_ND)
    assert found.von_neumann_K[0] == pytest.approx(von_neumann([x_ND[[0, 2, 3]]]), rel=1e-12)
    assert found.von_neumann_K[1] == pytest.approx(von_neumann([x_ND[[1, 4]]]), rel=1e-12)


def test_repeated_documents_are_less_varied(tmp_path):
    varied = texts(40)
    store = stored_as(tmp_path / "s", [*varied, *varied[:4] * 10], [0] * 40 + [1] * 40, 2, 50)
    found = entropies(store)
    assert np.exp(found.von_neumann_K[1]) < 4 + 1e-6 < np.exp(found.von_neumann_K[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence": 1}, "sequence is 1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_documents": 0}, "max_documents is 0"),
        ({"vectors": np.ones((2, 3))}, r"shape \(2, 3\) for 3 documents"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, settings, message):
    store = stored_as(tmp_path / "s", texts(3), [0] * 3, 1, 50)
    with pytest.raises(ValueError, match=message):
        entropies(store, **settings)
    with pytest.raises(ValueError, match=r"kind is perplexity.*von_neumann"):
        entropies(store).proportions("perplexity")
