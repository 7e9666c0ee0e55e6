"""Token priors: term frequency times document frequency, its mean logarithm and its deviation."""

from collections import Counter

import numpy as np
import pytest

from jaxprune.prune.signals import prior
from tests.texts import Silent, token_store

ONE, EVEN, STUFFED, GIBBERISH = 0, 1, 2, 3


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    natural = [np.concatenate([rng.integers(1, 5, 30), rng.integers(5, 60, 30)]) for _ in range(30)]
    stuffed = [99] * 60  # frequent, but in this document only
    return [[1] * 40, [1, 2, 3, 4] * 15, stuffed, list(range(61, 91)), *natural, [61, 62, 63] * 99]


@pytest.fixture(scope="module")
def store(documents, tmp_path_factory):
    return token_store(tmp_path_factory.mktemp("prior") / "tokens", documents, heldout=[len(documents) - 1])


def by_definition(documents, weigh):
    """Mean of ln p and deviation of p, with p in proportion to weigh(tf, df)."""
    tf = Counter(token for document in documents for token in document)
    df = Counter(token for document in documents for token in set(document))
    total = sum(weigh(tf[token], df[token]) for token in tf)
    priors = [[weigh(tf[token], df[token]) / total for token in document] for document in documents]
    return [float(np.mean(np.log(p))) for p in priors], [float(np.std(p)) for p in priors]


def test_it_is_term_times_document_frequency(documents, store):
    kept = documents[:-1]
    progress = Silent()
    table = prior.load(store)(store, np.arange(len(kept)), progress)
    assert progress.done == sum(map(len, kept))
    found_mean, found_std = table["prior_mean"].to_numpy(), table["prior_std"].to_numpy()
    mean, std = by_definition(kept, lambda tf, df: tf * df)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found_std, std, rtol=1e-10, atol=1e-15)
    for wrong in (lambda tf, df: tf, lambda tf, df: df, lambda tf, df: tf / df):
        mean, std = by_definition(kept, wrong)
        assert not np.allclose(found_mean, mean, rtol=0.01)
        assert not np.allclose(found_std, std, rtol=0.01)
    mean, _ = by_definition(documents, lambda tf, df: tf * df)  # with what is held out
    assert not np.allclose(found_mean, mean[:-1], rtol=0.01)


def test_noise_is_at_the_ends_of_the_ranks(store, documents):
    table = prior.load(store)(store, np.arange(len(documents) - 1), Silent())
    mean, std = table["prior_mean"].to_numpy(), table["prior_std"].to_numpy()
    natural = slice(GIBBERISH + 1, None)
    assert mean[GIBBERISH] < mean[natural].min()  # words that occur nowhere else
    assert max(mean[ONE], mean[EVEN]) > mean[natural].max()  # nothing but common words
    assert mean[STUFFED] < mean[natural].min()  # a word that fills one document is not a common one
    assert std[ONE] == std[GIBBERISH] == 0 < std[EVEN] < std[natural].min()  # all words equally common


def test_the_ends_of_documents_inside_a_sequence_do_not_count(tmp_path):
    packed = token_store(tmp_path / "packed", [[0, 1, 1, 2, 0, 1, 3], [2, 2, 4], [5, 0, 1, 1, 1, 0]])
    plain = token_store(tmp_path / "plain", [[1, 1, 2, 1, 3], [2, 2, 4], [5, 1, 1, 1]])
    found, expected = (prior.load(store)(store, np.arange(3), Silent()) for store in (packed, plain))
    for column in ("prior_mean", "prior_std"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-12)


def test_a_document_measured_alone_is_bitwise_the_same(store):
    measure = prior.load(store)
    together = measure(store, np.arange(20), Silent()).to_pylist()
    assert [measure(store, np.array([n]), Silent()).to_pylist()[0] for n in range(20)] == together


def test_a_document_without_tokens_is_zero(tmp_path):
    store = token_store(tmp_path / "tokens", [[], [1, 2, 2]])
    row = prior.load(store)(store, np.array([0]), Silent()).to_pylist()[0]
    assert row == {"number": 0, "prior_mean": 0.0, "prior_std": 0.0}
