"""Token priors: how common a document's tokens are, and how evenly common and rare ones are mixed.

Source: Seo et al., Prior-based Noisy Text Data Filtering (arXiv 2509.18577). The prior of token w is
p(w) = tf(w) df(w) / sum_v tf(v) df(v): tf counts its occurrences, df the documents that hold it, both among
the documents that may be pruned. With the n tokens w_i of a document, counted without end-of-document
tokens, prior_mean = mean_i ln p(w_i), in nats, and prior_std = sqrt(mean_i (p(w_i) - mean_j p(w_j))^2), a
probability. The authors take the deviation of 1000 p, which is the same for ranks, and divide by n - 1,
which is the same for their chunks of equal length; ours is defined for a single token as well.

The filter keeps the documents that are in the middle ranks of both: select.signals ("prior_mean",
"prior_std") with select.combine "intersection" and select.criterion "medium".

Legend: V vocabulary, N documents, B documents of a block, P their tokens.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import Meter, meter
from jaxprune.prune.shards import Measure
from jaxprune.prune.signals.blocks import blocks


def load(store: TokenStore) -> Measure:
    """Counts tokens in the documents that may be pruned, and gives what measures documents by their priors.

    The table that it returns holds number, prior_mean (nats) and prior_std (a probability), both float64;
    a document without tokens has 0 for both.
    """
    prior_V = _priors(store)
    with np.errstate(divide="ignore"):  # a token that does not occur is not looked up either
        log_V = np.log(prior_V)
    log_V[store.eod_id] = 0.0  # its prior is 0: it counts nowhere

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        mean_N, std_N = np.empty(len(numbers)), np.empty(len(numbers))
        for block in blocks(store, numbers):
            n_B = np.maximum(block.n_text_B, 1)
            prior_P = prior_V[block.tokens_P]
            deviation_P = prior_P - np.repeat(block.sums(prior_P) / n_B, block.length_B)
            deviation_P[~block.is_text_P] = 0.0
            mean_N[block.place] = block.sums(log_V[block.tokens_P]) / n_B
            std_N[block.place] = np.sqrt(block.sums(np.square(deviation_P)) / n_B)
            progress.add(len(block.tokens_P) - len(block.start_B))
        return pa.table({"number": numbers, "prior_mean": mean_N, "prior_std": std_N})

    return measure


def _priors(store: TokenStore) -> np.ndarray:
    """p of every token, float64 [V]."""
    numbers = store.documents(TRAIN)
    tf_V, df_V = np.zeros((2, store.vocab_size), np.int64)
    total = int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum())
    with meter("prior: counting", total, "tokens") as progress:
        for block in blocks(store, numbers):
            tf_V += np.bincount(block.tokens_P, minlength=len(tf_V))
            for token_P in np.split(block.tokens_P, block.start_B[1:]):
                df_V[token_P] += 1  # once, however often a token is among them
            progress.add(len(block.tokens_P) - len(block.start_B))
    weight_V = tf_V.astype(np.float64) * df_V
    weight_V[store.eod_id] = 0.0
    return weight_V / max(weight_V.sum(), 1.0)
