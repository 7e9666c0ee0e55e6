"""A second model's NLL of each document, for the signals that compare two models.

Sources: ScalingFilter (arXiv 2408.08310), which divides the perplexity of a small model by that of a large
one; RHO-LOSS (arXiv 2107.02565) and CoLoR-Filter (arXiv 2406.10670), which subtract the loss of a model that
has seen what is wanted from that of one that has not. The second model is `score.second`: the large one, or
the one that has seen it. Both are scored by the same code, in windows of the same context.

Nats per token of two models compare only where both cut a text into the same tokens; else they compare per
byte of the text. Which of the two holds is the same for all documents, and is stored with each.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jaxprune.artifact import Workdir
from jaxprune.config import Config
from jaxprune.data.store import TokenStore
from jaxprune.progress import Meter
from jaxprune.prune import models
from jaxprune.prune.score import Scorer
from jaxprune.prune.shards import Measure


def load(config: Config, workdir: Workdir) -> Measure:
    """Measures documents by the model `score.second`.

    The table holds number, second_nll_sum (nats, float64), second_n_scored (that model's tokens, int64) and
    second_same_tokens (bool, whether they are those of `score.model`).

    Raises:
      ArtifactMissing, ValueError: as `Scorer.named`.
    """
    name = config.score.second
    assert name is not None  # Config has checked it
    scorer = Scorer.named(name, config, workdir)
    same = models.tokenizer_digest(name, workdir) == models.tokenizer_digest(config.score.model, workdir)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        table = scorer(store, numbers, progress)
        return pa.table(
            {
                "number": table["number"],
                "second_nll_sum": table["nll_sum"],
                "second_n_scored": table["n_scored"],
                "second_same_tokens": np.full(len(numbers), same),
            }
        )

    return measure


def inputs(config: Config, workdir: Workdir) -> dict[str, str]:
    """What the table is made from beside the documents: the model, and the tokenizer that it is compared in."""
    name = config.score.second
    assert name is not None
    return {
        "second": models.fingerprint(name, config, workdir),
        "tokenizer": models.tokenizer_digest(config.score.model, workdir),
    }
