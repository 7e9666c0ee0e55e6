"""Chameleon: weights from how much a domain's embedding has in common with the others' (arXiv 2505.24844).

No proxy learns them. With a vector x_k of each domain (the mean embedding of its documents under a small model), centred:

1. K_ij = <x_i, x_j>, and the ridge leverage scores S = diag(K (K + lambda k I)^-1), k the number of domains, which are
   then divided by their sum;
2. for pretraining p ~ exp(1 / (temperature S)), which raises domains that share what others have; for finetuning
   p ~ exp(S / temperature), which raises those that stand alone.

Legend: K domains, D width of an embedding.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

_LEAST = 1e-9  # of S


def leverage(embedding_KD: np.ndarray, ridge: float = 10.0) -> np.ndarray:
    """S, which sums to one.

    Raises:
      ValueError: the embeddings of all domains are the same.
    """
    n_domains = len(embedding_KD)
    centred_KD = embedding_KD - embedding_KD.mean(axis=0)
    kernel_KK = centred_KD @ centred_KD.T
    score_K = np.diag(np.linalg.solve(kernel_KK + ridge * n_domains * np.eye(n_domains), kernel_KK))
    if not score_K.sum() > 0:
        raise ValueError(
            f"the embeddings of the {n_domains} domains are all the same: give each domain its own, or mix them alike"
        )
    return score_K / score_K.sum()


def pretraining_weights(leverage_K: np.ndarray, temperature: float = 5.0) -> np.ndarray:
    """p ~ exp(1 / (temperature S)). Domains at the very centre, whose S is 0, share all of it."""
    return softmax(1 / (temperature * np.maximum(leverage_K, _LEAST)))


def finetuning_weights(leverage_K: np.ndarray, temperature: float = 0.2) -> np.ndarray:
    """p ~ exp(S / temperature)."""
    return softmax(leverage_K / temperature)
