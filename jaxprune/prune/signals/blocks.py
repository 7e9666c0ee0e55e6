"""Documents of a store in blocks, so that numpy works on a million tokens at a time.

Legend: B documents of a block, P their stored tokens, end to end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxprune.data.store import TokenStore

_TOKENS = 1 << 17  # of a block, about: what numpy makes of them stays in the cache


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some documents, each with the end-of-document token (EOD) in front."""

    place: slice  # among the numbers that were asked for
    tokens_P: np.ndarray  # of the store's type
    start_B: np.ndarray  # int64, where each document's EOD stands in tokens_P
    is_text_P: np.ndarray  # bool, False at every EOD: packed sequences hold more than the one in front

    def sums(self, value_P: np.ndarray) -> np.ndarray:
        """The sum of a value (float64) over each document: [B].

        A document's values are added in an order that depends on nothing but their number: the sum is
        bitwise the same in any block.
        """
        return np.add.reduceat(value_P, self.start_B)

    @property
    def n_text_B(self) -> np.ndarray:
        """Text tokens of each document, int64: all but EOD."""
        return np.add.reduceat(self.is_text_P, self.start_B, dtype=np.int64)

    @property
    def length_B(self) -> np.ndarray:
        """Stored tokens of each document, int64: its text tokens and its EODs."""
        return np.diff(self.start_B, append=len(self.tokens_P))


def blocks(store: TokenStore, numbers: np.ndarray, tokens: int = _TOKENS) -> Iterator[Block]:
    """Cuts the documents `numbers` (int64, [N]) into blocks of about `tokens` stored tokens, in their order."""
    length_N = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers]
    block_N = np.cumsum(length_N) // tokens
    edges = [0, *(np.flatnonzero(np.diff(block_N)) + 1).tolist(), len(numbers)]
    for begin, end in itertools.pairwise(edges):
        if begin == end:
            continue  # there are no numbers
        length_B = length_N[begin:end]
        tokens_P = np.concatenate([store.stored(number) for number in numbers[begin:end].tolist()])
        yield Block(
            place=slice(begin, end),
            tokens_P=tokens_P,
            start_B=np.cumsum(length_B) - length_B,
            is_text_P=tokens_P != store.eod_id,
        )
