"""EL2N: how long the error vectors of a document's predictions are.

Source: Marion et al., When Less is More (arXiv 2309.04564), section 3, after Paul et al. (arXiv 2107.07075).
Of a document of t tokens it is (1 / t) sum_i || p_i - onehot(w_i) ||_2, where p_i is the model's distribution
of token i given those before it; each term lies between 0 (certain and right) and sqrt 2 (certain and wrong).
The paper averages ten models of different seeds and keeps the middle of the ranks; one model is read here.
Stored is the sum over the tokens, so that any normalisation is a query.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jaxprune.artifact import Workdir
from jaxprune.config import Config
from jaxprune.data.store import TokenStore
from jaxprune.model.loss import next_token_error
from jaxprune.progress import Meter
from jaxprune.prune.score import Scorer
from jaxprune.prune.shards import Measure


def load(config: Config, workdir: Workdir) -> Measure:
    """Measures documents by the model `score.model`, in the windows of the score.

    Raises:
      ArtifactMissing, ValueError: as `Scorer.named`.
    """
    return measure_by(Scorer.named(config.score.model, config, workdir, next_token_error))


def measure_by(scorer: Scorer) -> Measure:
    """Measures documents by a scorer that sums `next_token_error`.

    The table holds number, el2n_sum (float64) and el2n_tokens (the model's tokens, int64).
    """

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        table = scorer(store, numbers, progress)
        return pa.table(
            {"number": table["number"], "el2n_sum": table["nll_sum"], "el2n_tokens": table["n_scored"]}
        )

    return measure
