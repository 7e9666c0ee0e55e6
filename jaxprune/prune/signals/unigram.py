"""Inverse word frequency: the surprisal of a document's tokens under their frequencies in the corpus.

Source: Kim & Baek, Measuring Sample Importance in Data Pruning for Language Models based on Information
Entropy (arXiv 2406.14124), H(W, f). With f(w) the share of token w among all tokens of the documents that
may be pruned, H(W, f) = (1 / n) sum_i -ln f(w_i), in nats; the n tokens of a document are counted without
end-of-document tokens (a packed sequence has some inside). Stored are the sum and n, so that any normalisation is
a query.

Legend: V vocabulary, N documents.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import Meter, meter
from jaxprune.prune.shards import Measure
from jaxprune.prune.signals.blocks import blocks


def load(store: TokenStore) -> Measure:
    """Counts the tokens of the documents that may be pruned, and gives what measures documents by them.

    The table that it returns holds number, unigram_nll_sum (nats, float64) and unigram_tokens (n, int64).
    """
    nll_V = _surprisal(store)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        nll_sum_N, n_text_N = np.empty(len(numbers)), np.empty(len(numbers), np.int64)
        for block in blocks(store, numbers):
            nll_sum_N[block.place] = block.sums(nll_V[block.tokens_P])
            n_text_N[block.place] = block.n_text_B
            progress.add(len(block.tokens_P) - len(block.start_B))
        return pa.table({"number": numbers, "unigram_nll_sum": nll_sum_N, "unigram_tokens": n_text_N})

    return measure


def _surprisal(store: TokenStore) -> np.ndarray:
    """-ln f of every token, float64 [V]: 0 for the end-of-document token, which counts nowhere."""
    numbers = store.documents(TRAIN)
    count_V = np.zeros(store.vocab_size, np.int64)
    total = int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum())
    with meter("unigram: counting", total, "tokens") as progress:
        for block in blocks(store, numbers):
            count_V += np.bincount(block.tokens_P, minlength=len(count_V))
            progress.add(len(block.tokens_P) - len(block.start_B))
    count_V[store.eod_id] = 0
    with np.errstate(divide="ignore"):  # a token that does not occur is not looked up either
        nll_V = np.log(count_V.sum()) - np.log(count_V)
    nll_V[store.eod_id] = 0.0
    return nll_V
