"""Inverse word frequency: the counts of the documents that may be pruned, and nothing else."""

from collections import Counter
from math import log

import numpy as np
import pytest

from jaxprune.prune.signals import unigram
from tests.texts import Silent, token_store

COMMON, MIXED, RARE, LONG, OUT = range(5)
DOCUMENTS = [[1] * 8, [1, 1, 2, 2, 3, 1], [3, 4, 5, 6, 7, 8, 9, 2], [1, 2] * 40, [4, 5, 6, 7, 8, 9] * 50]


@pytest.fixture
def store(tmp_path):
    return token_store(tmp_path / "tokens", DOCUMENTS, heldout=[OUT])


def test_it_is_the_surprisal_under_the_frequencies_of_what_may_be_pruned(store):
    progress = Silent()
    table = unigram.load(store)(store, np.arange(4), progress)
    assert table["number"].to_pylist() == [COMMON, MIXED, RARE, LONG]
    assert progress.done == sum(map(len, DOCUMENTS[:4]))

    def expected(counted):
        count = Counter(token for document in counted for token in document)
        return [sum(-log(count[token] / count.total()) for token in document) for document in DOCUMENTS[:4]]

    found = table["unigram_nll_sum"].to_numpy()
    np.testing.assert_allclose(found, expected(DOCUMENTS[:4]), rtol=1e-12)
    # Counting what is held out, or the end-of-document tokens, is another number.
    assert not np.allclose(found, expected(DOCUMENTS), rtol=0.01)
    assert not np.allclose(found, expected([*DOCUMENTS[:4], [0] * 4]), rtol=0.01)


def test_rare_words_rank_above_common_ones_however_long_the_document(store):
    table = unigram.load(store)(store, np.arange(4), Silent())
    total = table["unigram_nll_sum"].to_numpy()
    per_token = total / [len(document) for document in DOCUMENTS[:4]]
    assert per_token[RARE] > per_token[MIXED] > per_token[COMMON]
    assert per_token.argmax() == RARE
    assert total.argmax() == LONG  # the sum alone would rank by length


def test_a_document_measured_alone_is_bitwise_the_same(store):
    measure = unigram.load(store)
    together = measure(store, np.arange(4), Silent())["unigram_nll_sum"].to_pylist()
    alone = [measure(store, np.array([n]), Silent())["unigram_nll_sum"][0].as_py() for n in range(4)]
    assert alone == together
