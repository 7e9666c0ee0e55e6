"""Blocks of documents: every token once, and sums that do not depend on the block."""

import numpy as np
import pytest

from jaxprune.prune.signals.blocks import blocks
from tests.texts import token_store


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [0, 1, 7, 8, 9, 127, 128, 129, 2000, 0, *rng.integers(0, 300, 30)]
    return token_store(tmp_path / "tokens", [rng.integers(1, 100, length) for length in lengths])


@pytest.mark.parametrize("tokens", [1, 100, 1 << 20])
def test_blocks_hold_each_document_once_and_in_order(store, tokens):
    numbers = np.array([5, 3, 0, 39, 8, 8, 9])
    found = []
    for block in blocks(store, numbers, tokens):
        documents = np.split(block.tokens_P, block.start_B[1:])
        assert [len(document) for document in documents] == block.length_B.tolist()
        assert len(documents) == len(numbers[block.place])
        found += documents
    assert len(found) == len(numbers)
    for number, document in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(document, store.stored(number))


def test_sums_are_bitwise_the_same_in_any_block_and_order(store):
    value_V = np.random.default_rng(1).normal(size=100)
    n = store.n_documents

    def sums(numbers, tokens):
        found = np.full(len(numbers), np.nan)
        for block in blocks(store, numbers, tokens):
            found[block.place] = block.sums(value_V[block.tokens_P])
        return found

    together = sums(np.arange(n), 1 << 20)
    exact = [np.sum(value_V[store.stored(number)].astype(np.longdouble)) for number in range(n)]
    np.testing.assert_allclose(together, np.array(exact, float), rtol=1e-13, atol=1e-13)
    for tokens in (1, 50, 1000):
        np.testing.assert_array_equal(sums(np.arange(n), tokens), together)
    order = np.random.default_rng(2).permutation(n)
    np.testing.assert_array_equal(sums(order, 300), together[order])


def test_no_documents_are_no_blocks(store):
    assert list(blocks(store, np.zeros(0, np.int64))) == []
