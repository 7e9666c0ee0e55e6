"""Fixed held-out rows of each domain: the same tokens at every validation of every run.

Dimensions: R rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from jaxprune.data.store import HELDOUT, TokenStore
from jaxprune.model.sharding import BATCH, everywhere, put
from jaxprune.train.step import make_score_step


class Validation:
    """Mean NLL by domain over the first tokens of each domain's held-out documents.

    Documents are laid end to end in store order and cut into at most `rows` rows of T targets; a
    domain with fewer held-out tokens has fewer or shorter rows.
    """

    def __init__(self, store: TokenStore, *, context: int, rows: int, batch_rows: int) -> None:
        """`batch_rows` rows are computed at once: a multiple of the devices that share rows."""
        rows_RS, length_R, domain_R = [], [], []
        heldout = store.documents(HELDOUT)
        for domain in range(len(store.domains)):
            stream = _first_tokens(store, heldout[store.domain_N[heldout] == domain], rows * context + 1)
            for start in range(0, len(stream) - 1, context):
                row = stream[start : start + context + 1]
                rows_RS.append(np.pad(row, (0, context + 1 - len(row))))
                length_R.append(len(row) - 1)
                domain_R.append(domain)
        missing = -len(rows_RS) % batch_rows
        self.rows_RS = np.stack([*rows_RS, *[np.zeros(context + 1, np.int32)] * missing])
        self.length_R = np.array(length_R + [0] * missing, np.int32)
        self.domain_R = np.array(domain_R + [0] * missing)
        self.domains = store.domains
        self.batch_rows = batch_rows

    def __call__(
        self, graphdef: nnx.GraphDef, params: nnx.State, mesh: jax.sharding.Mesh
    ) -> dict[str, float]:
        """NLL in nats per token: `heldout/<domain>` each, and `heldout`, their unweighted mean."""
        return self._by_domain(self._nll(make_score_step(graphdef), params, mesh))

    def of_each(
        self, graphdef: nnx.GraphDef, params: nnx.State, mesh: jax.sharding.Mesh
    ) -> list[dict[str, float]]:
        """As a call, for each of the runs whose parameters are stacked along a first axis."""
        return [self._by_domain(nll_R) for nll_R in self._nll(_make_score_each(graphdef), params, mesh)]

    def _nll(self, step: Callable[..., jax.Array], params: nnx.State, mesh: jax.sharding.Mesh) -> np.ndarray:
        """What the step says of each row, in nats: float64, rows along the last axis."""
        pending = []
        for start in range(0, len(self.rows_RS), self.batch_rows):
            part = slice(start, start + self.batch_rows)
            tokens_BS, length_B = (put(values[part], mesh, BATCH) for values in (self.rows_RS, self.length_R))
            pending.append(everywhere(step(params, tokens_BS, length_B)))
        return np.concatenate(jax.device_get(pending), axis=-1).astype(np.float64)

    def _by_domain(self, nll_R: np.ndarray) -> dict[str, float]:
        n_domains = len(self.domains)
        nll_K = np.bincount(self.domain_R, nll_R, n_domains)
        tokens_K = np.bincount(self.domain_R, self.length_R, n_domains)
        mean_K = nll_K / tokens_K
        by_domain = {f"heldout/{name}": float(mean) for name, mean in zip(self.domains, mean_K, strict=True)}
        return {"heldout": float(mean_K.mean()), **by_domain}


@functools.lru_cache(maxsize=2)
def _make_score_each(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """The scoring step of the same rows under many parameters: [N, B] of N runs."""
    return jax.jit(jax.vmap(make_score_step(graphdef), in_axes=(0, None, None)))


def _first_tokens(store: TokenStore, numbers: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` stored tokens of documents laid end to end."""
    pieces, length = [], 0
    for number in numbers:
        if length >= limit:
            break
        pieces.append(np.asarray(store.stored(int(number)), np.int32))
        length += len(pieces[-1])
    return np.concatenate(pieces)[:limit]
