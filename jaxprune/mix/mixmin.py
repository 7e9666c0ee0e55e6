"""MixMin: the mixture of small models, one of each domain, that predicts the target best (Thudi et al., arXiv 2502.10510).

The best model of a mixture of the domains is nearly the mixture of the domains' best models. So weights follow from how
probable a proxy P_j of each domain finds the examples x of a target; it is a convex problem:

1. L(p) = mean_x -log(sum_j p_j P_j(x)) / |x|, in nats per token, with P_j(x) the probability of the whole example;
2. exponentiated gradient descent from uniform weights: p_j ~ p_j exp(-lr dL/dp_j).

Legend: K domains, N examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.special import logsumexp, softmax

_FINITE = 600.0  # nats, whose exponential is a number: what is as improbable under the mixture is raised in any case


def loss(log_prob_KN: np.ndarray, tokens_N: np.ndarray, weights_K: np.ndarray) -> float:
    """L, from the log-probabilities of whole examples, in nats, and their tokens."""
    return float(-(_mixed(log_prob_KN, weights_K) / tokens_N).mean())


def weights(log_prob_KN: np.ndarray, tokens_N: np.ndarray, *, steps: int, lr: float = 1.0) -> np.ndarray:
    """p after so many steps of descent, which comes to rest where `lr` is small against the tokens of an example."""
    return next(itertools.islice(descent(log_prob_KN, tokens_N, lr), steps, None))


def descent(log_prob_KN: np.ndarray, tokens_N: np.ndarray, lr: float) -> Iterator[np.ndarray]:
    """p before each step, without end."""
    weights_K = np.full(len(log_prob_KN), 1 / len(log_prob_KN))
    while True:
        yield weights_K
        # -dL/dp_j: how many times more probable than the mixture domain j finds an example.
        ratio_KN = np.exp(np.minimum(log_prob_KN - _mixed(log_prob_KN, weights_K), _FINITE))
        gain_K = (ratio_KN / tokens_N).mean(axis=1)
        weights_K = softmax(_log(weights_K) + lr * gain_K)


def _mixed(log_prob_KN: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """log sum_j p_j P_j of each example."""
    return np.asarray(logsumexp(log_prob_KN + _log(weights_K)[:, None], axis=0))


def _log(weights_K: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # a weight may have become 0, and stays so
        return np.log(weights_K)
