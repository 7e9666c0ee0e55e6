"""What documents are ranked by: an expression over the columns of scores and signals for each criterion.

Each has its formula, unit and source beside it. `sources` are the artifacts (prune/signals/stage.py) whose
columns it reads beside those of the scores: n_tokens (of the store), n_bytes, n_scored and nll_sum (tokens
and nats of the scoring model).
"""

from __future__ import annotations

import math
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
            return _.nll_sum / _.n_scored.nullif(0) + _.unigram_nll_sum / _.unigram_tokens.nullif(0)
        case "byte":
            return (_.nll_sum + _.unigram_nll_sum) / _.n_bytes.nullif(0)
        case "document":
            return _.nll_sum + _.unigram_nll_sum


def _excess(rule: Select) -> Any:
    """NLL under the model that scores less that under the second: per token, or where these cut a text into
    different tokens per byte, which alone is then comparable."""
    return (_.nll_sum - _.second_nll_sum) / _.second_same_tokens.ifelse(_.n_scored, _.n_bytes).nullif(0)


CRITERIA: dict[Signal, Criterion] = {
    # Ankner et al. (arXiv 2405.20541), section 2: the mean over tokens, which ranks as its exponential does.
    "perplexity": Criterion(value=lambda rule: _.nll_sum / _.n_scored.nullif(0), unit="nats per token"),
    # Divided by ln 2 and not multiplied by it: DuckDB takes the literal for a decimal, whose product is slow.
    "bits_per_byte": Criterion(
        value=lambda rule: _.nll_sum / _.n_bytes.nullif(0) / math.log(2), unit="bits per byte"
    ),
    "nll": Criterion(value=lambda rule: _.nll_sum, unit="nats"),
    "information": Criterion(value=_information, unit="nats", sources=("unigram",)),
    # ScalingFilter (arXiv 2408.08310): PPL_small / PPL_large; the second model is the large one. High is kept.
    "ratio": Criterion(
        value=lambda rule: _excess(rule).exp(), unit="perplexity by perplexity", sources=("second",)
    ),
    # RHO-LOSS (arXiv 2107.02565), CoLoR-Filter (arXiv 2406.10670): the second has seen what is wanted. High is kept.
    "excess": Criterion(value=lambda rule: _excess(rule), unit="nats per token (byte)", sources=("second",)),
    # Marion et al. (arXiv 2309.04564), section 3: of a document's error vectors the mean length. Middle is kept.
    "el2n": Criterion(
        value=lambda rule: _.el2n_sum / _.el2n_tokens.nullif(0), unit="length", sources=("el2n",)
    ),
    # Marion et al., section 3: the share of a continuation that is known by heart; null under 64 tokens, which
    # are not ranked. Low is kept.
    "memorization": Criterion(value=lambda rule: _.memorization, unit="share", sources=("memorization",)),
    # Anand et al. (arXiv 2311.16298): how much the gradient moved between checkpoints. High is kept.
    "vog": Criterion(value=lambda rule: _.vog, unit="logits by embedding", sources=("vog",)),
    # Sachdeva et al. (arXiv 2402.09668): log odds of yes against no, in the order of P(yes). High is kept.
    "ask_llm": Criterion(value=lambda rule: _.ask_llm, unit="nats", sources=("ask_llm",)),
    "prior_mean": Criterion(value=lambda rule: _.prior_mean, unit="nats per token", sources=("prior",)),
    "prior_std": Criterion(value=lambda rule: _.prior_std, unit="probability", sources=("prior",)),
    "compression": Criterion(
        value=lambda rule: _.compression, unit="bytes per byte", sources=("compression",)
    ),
    "zip": Criterion(value=lambda rule: _["zip"], unit="place in the order", sources=("zip",)),
    "density": Criterion(value=lambda rule: _.density, unit="log of documents", sources=("density",)),
    "dsir": Criterion(value=lambda rule: _.dsir, unit="nats", sources=("dsir",)),
}


def sources_of(config: Config) -> tuple[str, ...]:
    """The signal artifacts that the selections of a config read, or that it asks for in `score.signals`."""
    signals = (*config.select.signals, *config.score.signals)
    return tuple(dict.fromkeys(source for signal in signals for source in CRITERIA[signal].sources))
