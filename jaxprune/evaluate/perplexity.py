"""The stage `evaluate`: NLL, perplexity and bits per byte of a trained model on held-out documents.

Perplexity compares models of one tokenizer; bits per byte, models of any.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune import cluster
from jaxprune.artifact import Manifest, Workdir, build, require, write_json
from jaxprune.config import Config
from jaxprune.data.store import HELDOUT, TokenStore
from jaxprune.progress import meter
from jaxprune.prune.score import Scorer
from jaxprune.prune.shards import check_finite


def run(config: Config, workdir: Workdir, name: str) -> Manifest:
    """Evaluates the training run `name`, unless it is evaluated already.

    Raises:
      ArtifactMissing: the corpus is not prepared or the run not trained yet.
      ValueError: as `Scorer`.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    trained = require(workdir.run(name), f"jaxprune train CONFIG --only {name}")

    def make(folder: Path) -> dict[str, Any]:
        store = TokenStore(workdir.prepare / "tokens")
        numbers = store.documents(HELDOUT)
        n_tokens = int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum())
        scorer = Scorer.load(workdir.run(name), config)
        with meter(f"evaluate {name}", n_tokens, "tokens") as progress:
            scores = scorer(store, numbers, progress)
        check_finite(scores, f"evaluate {name}", store, f"the training of {name} has diverged, lower optimizer.peak_lr and train it again")  # fmt: skip
        if cluster.is_first():
            pq.write_table(scores, folder / "scores.parquet")
            write_json(folder / "summary.json", summary(scores))
        return {"documents": len(numbers), "tokens": n_tokens}

    inputs = {"prepare": prepare.fingerprint, "train": trained.fingerprint}
    return build(workdir.evaluate(name), f"evaluate {name}", {}, inputs, make)


def summary(scores: pa.Table) -> dict[str, Any]:
    """Losses by domain, of `all` documents together, and the unweighted `mean` of the domains.

    Args:
      scores: one row a document: domain, n_tokens, n_bytes, nll_sum (nats).

    Returns:
      {"domains": {domain: of}, "all": of, "mean": {"nll", "bits_per_byte"}}, where `of` holds
      documents, n_tokens, n_bytes, nll_sum, nll (nats per token), perplexity and bits_per_byte.
    """
    domain_N = scores["domain"].to_numpy(zero_copy_only=False)
    domains = {name: _losses(scores.filter(pa.array(domain_N == name))) for name in np.unique(domain_N)}
    mean = {
        measure: float(np.mean([losses[measure] for losses in domains.values()]))
        for measure in ("nll", "bits_per_byte")
    }
    return {"domains": domains, "all": _losses(scores), "mean": mean}


def _losses(scores: pa.Table) -> dict[str, Any]:
    n_tokens, n_bytes, nll_sum = (
        scores[column].to_numpy().sum().item() for column in ("n_tokens", "n_bytes", "nll_sum")
    )
    return {
        "documents": len(scores),
        "n_tokens": n_tokens,
        "n_bytes": n_bytes,
        "nll_sum": nll_sum,
        "nll": nll_sum / n_tokens,
        "perplexity": math.exp(nll_sum / n_tokens),
        "bits_per_byte": nll_sum / (math.log(2) * n_bytes),
    }
