"""What the proxies draw from: the documents of one arm, of each domain as many as repeat as in the final run.

A proxy of n tokens sees a document more rarely than a final run of N > n tokens at the same weights, and
finds harmless a repetition that the final run suffers from. Cut to the share n / N of each domain's documents, it
repeats them as often (repetition mismatch, arXiv 2606.07597; simulated epoching in UtiliMax, arXiv 2501.11747).

Legend: K domains, N documents.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from jaxprune.artifact import Workdir, require
from jaxprune.config import Config
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import say
from jaxprune.prune.select import selection_of


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The documents that all proxies draw from."""

    documents: np.ndarray
    """Their numbers in the store, ascending: int64 [N]."""
    natural_K: np.ndarray
    """Stored tokens of each domain before it is cut, 0 where they are less than a row: int64 [K]."""
    rows_K: np.ndarray
    """Rows of each domain after it is cut: int64 [K]."""
    share: float
    """What is left of each domain's tokens, about."""

    @property
    def digest(self) -> str:
        """Sixteen hex digits that stand for the documents."""
        return hashlib.sha256(np.ascontiguousarray(self.documents, np.int64).data).hexdigest()[:16]


def pool(config: Config, workdir: Workdir, store: TokenStore) -> Pool:
    """The documents of `swarm.arm`, cut where `swarm.simulate_epochs` asks for it.

    Raises:
      ArtifactMissing: the arm's documents are not selected yet.
    """
    selection = selection_of(config.proxy_arm, config.seeds[0])
    if selection == "none":
        documents = store.documents(TRAIN)
    else:
        require(workdir.select, "jaxprune select CONFIG")
        documents = np.load(workdir.select / f"{selection}.npy")
    context = config.swarm.proxy.model.context
    tokens_K = tokens_of(store, documents)
    natural_K = np.where(tokens_K > context, tokens_K, 0)
    share = min(1.0, config.swarm.proxy.trained_tokens / config.final.trained_tokens)
    if config.swarm.simulate_epochs and share < 1:
        documents = cut(store, documents, share, context + 1, config.seed)
    else:
        share = 1.0
    rows_K = np.where(natural_K > 0, (tokens_of(store, documents) - 1) // context, 0)
    return Pool(documents=documents, natural_K=natural_K, rows_K=rows_K, share=share)


def say_what_is_short(pool: Pool, domains: tuple[str, ...], context: int) -> None:
    """Names the domains that are left out, and those of which more is left than their share."""
    for domain, natural in zip(domains, pool.natural_K.tolist(), strict=True):
        if natural == 0:
            say(f"{domain} has less than a row of {context + 1} tokens and is left out")
        elif pool.share * natural <= context:
            say(
                f"{domain}: the share {pool.share:.2g} of its documents is less than a row and is raised to one, so "
                "that proxies repeat it less often than the final run"
            )


def cut(store: TokenStore, documents: np.ndarray, share: float, at_least: int, seed: int) -> np.ndarray:
    """Of each domain, so many of the documents that their tokens come nearest to `share` of its tokens.

    Args:
      store: holds the documents.
      documents: their numbers, int64 [N].
      share: of each domain's stored tokens.
      at_least: stored tokens of a domain below which the cut does not go, if it has them.
      seed: decides which; a smaller share takes some of those that a larger one takes.

    Returns:
      The numbers of those that are left, ascending: int64.
    """
    domain_N = np.asarray(store.domain_N[documents])
    order_N = np.lexsort((np.random.default_rng(seed).random(store.n_documents)[documents], domain_N))
    documents, domain_N = documents[order_N], domain_N[order_N]
    left = []
    for mine in np.split(documents, np.flatnonzero(np.diff(domain_N)) + 1):
        tokens_n = np.cumsum(
            store.offsets_N1[mine + 1] - store.offsets_N1[mine]
        )  # of the first 1, 2, ... documents
        enough = int(np.searchsorted(tokens_n, at_least))
        nearest = int(np.argmin(np.abs(tokens_n - share * tokens_n[-1])))
        left.append(mine[: max(enough, nearest) + 1])
    return np.sort(np.concatenate(left))


def tokens_of(store: TokenStore, documents: np.ndarray) -> np.ndarray:
    """Stored tokens of each domain's documents: int64 [K]."""
    length_N = store.offsets_N1[documents + 1] - store.offsets_N1[documents]
    return np.bincount(store.domain_N[documents], length_N, len(store.domains)).astype(np.int64)
