"""What was pruned, document by document: the distribution of scores, and texts to read.

N documents of a domain in ascending order of score, X points of an axis of NLL in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jaxprune.data.store import TokenStore
from jaxprune.data.tokenizer import Encoder

_AXIS_POINTS = 240
_TEXT_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The ranked documents of one domain, in ascending order of score."""

    number_N: np.ndarray
    score_N: np.ndarray  # NLL in nats per token
    kept_N: np.ndarray
    n_tokens_N: np.ndarray
    n_bytes_N: np.ndarray


def read(table: Path, domains: tuple[str, ...], min_tokens: int) -> dict[str, Scored]:
    """A selection's ranked documents by domain; shorter ones than `min_tokens` have no rank."""
    columns = ["number", "domain", "n_tokens", "n_bytes", "score", "kept"]
    selection = pq.read_table(table, columns=columns)
    domain_N = selection["domain"].to_numpy(zero_copy_only=False)
    number_N, n_tokens_N, n_bytes_N, score_N, kept_N = (
        selection[column].to_numpy() for column in ("number", "n_tokens", "n_bytes", "score", "kept")
    )
    by_domain = {}
    for domain in domains:
        index = np.flatnonzero((domain_N == domain) & (n_tokens_N >= min_tokens))
        index = index[np.argsort(score_N[index], kind="stable")]
        by_domain[domain] = Scored(
            number_N=number_N[index],
            score_N=score_N[index],
            kept_N=kept_N[index],
            n_tokens_N=n_tokens_N[index],
            n_bytes_N=n_bytes_N[index],
        )
    return by_domain


def distribution(by_domain: dict[str, Scored], thresholds: dict[str, Any]) -> dict[str, Any]:
    """Density of the score by domain, over one axis of NLL in nats per token (log-perplexity).

    The axis leaves out a thousandth of the corpus at each end, which would else set its scale.

    Args:
      by_domain: the ranked documents.
      thresholds: domain -> {"low": NLL or None, "high": NLL or None}, the edges of what is kept.
    """
    everything = np.concatenate([scored.score_N for scored in by_domain.values()])
    low, high = np.quantile(everything, [0.001, 0.999])
    room = max(0.06 * (high - low), 0.05)
    nll_X = np.linspace(max(0.0, low - room), high + room, _AXIS_POINTS)
    domains = {
        domain: {
            "documents": len(scored.score_N),
            "median": float(np.median(scored.score_N)) if len(scored.score_N) else None,
            "kept": float(scored.kept_N.mean()) if len(scored.score_N) else 0.0,
            "density": [round(float(value), 5) for value in density(scored.score_N, nll_X)],
            **thresholds[domain],
        }
        for domain, scored in by_domain.items()
    }
    return {"nll": [round(float(nll), 5) for nll in nll_X], "domains": domains}


def density(score_N: np.ndarray, nll_X: np.ndarray) -> np.ndarray:
    """Gaussian kernel density at evenly spaced points, with Silverman's rule for the bandwidth."""
    step = nll_X[1] - nll_X[0]
    if len(score_N) == 0:
        return np.zeros_like(nll_X)
    quartiles = np.quantile(score_N, [0.25, 0.75])
    spread = min(float(np.std(score_N)), float(np.diff(quartiles)[0]) / 1.34)
    # Counted in bins first, so that the cost does not grow with documents x points.
    smoothing = kernel(spread, len(score_N), step)
    reach = len(smoothing) // 2
    edges = nll_X[0] - step / 2 + step * np.arange(-reach, len(nll_X) + reach + 1)
    counts, _ = np.histogram(score_N, edges)
    return np.convolve(counts, smoothing, mode="valid") / (len(score_N) * step)


def kernel(spread: float, n_documents: int, step: float) -> np.ndarray:
    """Weights that smooth counts in bins of width `step`: a Gaussian of Silverman's bandwidth, of an odd length."""
    bandwidth = max(0.9 * spread * n_documents**-0.2, 2 * step)
    reach = int(np.ceil(4 * bandwidth / step))
    weights = np.exp(-0.5 * (step * np.arange(-reach, reach + 1) / bandwidth) ** 2)
    return weights / weights.sum()


def examples(
    by_domain: dict[str, Scored], thresholds: dict[str, Any], store: TokenStore, encoder: Encoder
) -> dict[str, list[dict[str, Any]]]:
    """Documents at the extremes and on both sides of each threshold, by domain, in ascending order.

    Args:
      by_domain: the ranked documents.
      thresholds: as for `distribution`.
      store: where their tokens stand.
      encoder: turns the tokens into text.
    """
    chosen: dict[str, list[dict[str, Any]]] = {}
    for domain, scored in by_domain.items():
        places = {}
        if len(scored.score_N) > 0:
            places = {0: "lowest perplexity", len(scored.score_N) - 1: "highest perplexity"}
        for edge, word in (("low", "lower"), ("high", "upper")):
            above = None if thresholds[domain][edge] is None else _first_above(scored, edge)
            if above is not None:
                places.setdefault(above - 1, f"just below the {word} threshold")
                places.setdefault(above, f"just above the {word} threshold")
        chosen[domain] = [
            {
                "place": places[index],
                "kept": bool(scored.kept_N[index]),
                "number": int(scored.number_N[index]),
                "id": store.ids(scored.number_N[index : index + 1])[0],
                "nll": float(scored.score_N[index]),
                "tokens": int(scored.n_tokens_N[index]),
                "bytes": int(scored.n_bytes_N[index]),
                **_beginning(store, encoder, int(scored.number_N[index])),
            }
            for index in sorted(places)
        ]
    return chosen


def _first_above(scored: Scored, edge: str) -> int | None:
    """Index of the first document above an edge of the kept band; None where the band has no such edge here."""
    change_N = np.diff(scored.kept_N.astype(np.int8))
    crossings = np.flatnonzero(change_N == (1 if edge == "low" else -1))
    return int(crossings[0]) + 1 if len(crossings) else None


def _beginning(store: TokenStore, encoder: Encoder, number: int) -> dict[str, Any]:
    """The first characters of a document, and whether it goes on."""
    tokens = store.stored(number)[1:]  # without the end-of-document token that begins it
    text = encoder.decode(np.asarray(tokens[:_TEXT_CHARACTERS]))
    return {
        "text": text[:_TEXT_CHARACTERS],
        "cut": len(text) > _TEXT_CHARACTERS or len(tokens) > _TEXT_CHARACTERS,
    }
