"""Hashed embeddings: vectors of documents that need no model.

Each unigram and bigram of a document adds 1 or -1 to one of the dimensions, both by its hash, and of the sums
the signed square roots are taken, so that frequent words do not drown the others. Vectors have length 1.

Legend: N documents, B documents of a block, D dimensions, P tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from jaxprune.data.store import TokenStore
from jaxprune.prune.signals.blocks import blocks

DOCUMENTS = 256  # that are hashed at once
_ODD = np.uint64(0x9E3779B97F4A7C15)

Embed = Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
"""For numbers [N]: some of them after the others [B], with the embeddings of these documents [B, D]."""


def embedder(store: TokenStore, n_dimensions: int) -> Embed:
    """Makes embeddings, float64 of length 1 (0 where a document has no token), of the tokens of documents."""

    def embed(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in range(0, len(numbers), DOCUMENTS):
            part = numbers[begin : begin + DOCUMENTS]
            for block in blocks(store, part):
                count_BD = _features(block.tokens_P, block.is_text_P, block.length_B, n_dimensions)
                total_B = np.abs(count_BD).sum(axis=1, keepdims=True)  # exact: whole numbers
                yield (
                    part[block.place],
                    np.sign(count_BD) * np.sqrt(np.abs(count_BD) / np.maximum(total_B, 1)),
                )

    return embed


def _features(
    tokens_P: np.ndarray, is_text_P: np.ndarray, length_B: np.ndarray, n_dimensions: int
) -> np.ndarray:
    """Signed counts of the unigrams of text tokens, and of the bigrams with no other between: [B, D]."""
    token_P = tokens_P.astype(np.uint64)
    is_pair_P = is_text_P[:-1] & is_text_P[1:]
    document_P = np.repeat(np.arange(len(length_B)), length_B)
    gram = np.concatenate(
        [token_P[is_text_P] + 1, (token_P[:-1] + 1)[is_pair_P] << np.uint64(32) | token_P[1:][is_pair_P]]
    )
    document = np.concatenate([document_P[is_text_P], document_P[1:][is_pair_P]])
    mixed = (gram ^ gram >> np.uint64(29)) * _ODD
    mixed = (mixed ^ mixed >> np.uint64(32)) * _ODD
    sign = 1.0 - 2.0 * (mixed >> np.uint64(63)).astype(np.float64)
    dimension = (mixed << np.uint64(1) >> np.uint64(33)) % np.uint64(n_dimensions)
    place = document * n_dimensions + dimension.astype(np.int64)
    return np.bincount(place, sign, len(length_B) * n_dimensions).reshape(-1, n_dimensions)
