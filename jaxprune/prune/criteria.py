"""What documents are ranked by: an expression over the columns of scores and signals for each criterion.

Each has its formula, unit and source beside it. `sources` are the artifacts (prune/signals/stage.py) whose
columns it reads beside those of the scores: n_tokens (of the store), n_bytes, n_scored and nll_sum (tokens
and nats of the scoring model).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ibis import _

from jaxprune.config import Config, Select, Signal


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A number for each document, of which low, medium or high ranks are kept."""

    value: Callable[[Select], Any]  # Ibis expression
    unit: str
    sources: tuple[str, ...] = ()


def _information(rule: Select) -> Any:
    """H(W, q) + H(W, f): surprisal under the data probe and average inverse word frequency.

    Source: Kim & Baek (arXiv 2406.14124). The paper does not say how the first term is normalised:
    `rule.information_per` does.
    """
    match rule.information_per:
        case "token":
            return _.nll_sum / _.n_scored + _.unigram_nll_sum / _.n_tokens
        case "byte":
            return (_.nll_sum + _.unigram_nll_sum) / _.n_bytes
        case "document":
            return _.nll_sum + _.unigram_nll_sum


CRITERIA: dict[Signal, Criterion] = {
    "perplexity": Criterion(value=lambda rule: _.nll_sum / _.n_scored, unit="nats per token"),
    "information": Criterion(value=_information, unit="nats", sources=("unigram",)),
}


def sources_of(config: Config) -> tuple[str, ...]:
    """The signal artifacts that the selections of a config read, or that it asks for in `score.signals`."""
    signals = (*config.select.signals, *config.score.signals)
    return tuple(dict.fromkeys(source for signal in signals for source in CRITERIA[signal].sources))
