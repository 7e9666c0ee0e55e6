"""Inverse word frequency: the counts of the documents that may be pruned, and nothing else."""

from collections import Counter
from math import log

import ibis
import numpy as np
import pytest

from jaxprune.config import Select
from jaxprune.prune.criteria import CRITERIA
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


def test_the_ends_of_documents_inside_a_sequence_do_not_count(tmp_path):
    """Sequences of which the first begins, and the last ends, with an end-of-document token."""
    texts = [[1, 1, 2, 1, 3], [2, 2, 4], [5, 1, 1, 1]]
    packed = token_store(tmp_path / "packed", [[0, 1, 1, 2, 0, 1, 3], [2, 2, 4], [5, 0, 1, 1, 1, 0]])
    plain = token_store(tmp_path / "plain", texts)
    found, expected = (unigram.load(store)(store, np.arange(3), Silent()) for store in (packed, plain))
    assert found["unigram_tokens"].to_pylist() == [5, 3, 4] == expected["unigram_tokens"].to_pylist()
    np.testing.assert_allclose(found["unigram_nll_sum"], expected["unigram_nll_sum"], rtol=1e-12)
    # The criterion divides by the text tokens, not by the sequence's.
    row = {**found.slice(2, 1).to_pydict(), "nll_sum": [6.0], "n_scored": [6], "n_tokens": [6]}
    value = ibis.memtable(row).select(value=CRITERIA["information"].value(Select())).to_pyarrow()["value"][0]
    assert value.as_py() == pytest.approx(1.0 + expected["unigram_nll_sum"][2].as_py() / 4)


def test_a_document_measured_alone_is_bitwise_the_same(store):
    measure = unigram.load(store)
    together = measure(store, np.arange(4), Silent())["unigram_nll_sum"].to_pylist()
    alone = [measure(store, np.array([n]), Silent())["unigram_nll_sum"][0].as_py() for n in range(4)]
    assert alone == together
