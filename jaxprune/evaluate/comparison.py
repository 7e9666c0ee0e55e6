"""What one arm gains over another on held-out documents, with an interval that covers seeds and documents.

An arm's loss is its summed NLL over summed tokens (or bytes x ln 2), averaged over its seeds. Two things
would come out differently if everything were done again, and both are in the interval:

- seeds: the losses of an arm's runs differ. Their variance is pooled over all arms (which gives
  arms x (seeds - 1) degrees of freedom, and assumes that arms vary alike), divided by the number of
  seeds, and enters once for each of the two arms. Runs of one seed in two arms are not paired: what
  they have in common makes the interval wider than it need be.
- documents: other held-out documents could have been drawn. Their variance is that of the difference
  of the two arms document by document (paired, so that easy and hard documents cancel), by the
  linearised jackknife of a ratio of sums, stratified by domain.

The two variances are added, and the 95 % interval is Student's t with the degrees of freedom of
Welch and Satterthwaite. Nothing is resampled: a bootstrap over two seeds sees half their variance.
With two seeds there are few degrees of freedom and intervals are wide; with one there is no interval.

Intervals are conditional on the reference model and its scores (one seed, one split of the corpus):
all seeds of `pruned` share one selection, and what another reference would have kept is not in them.
They are not corrected for the number of comparisons: of twenty arms that change nothing, one is
expected to exclude zero.

A arms, S seeds, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from scipy.special import stdtrit

from jaxprune.artifact import Workdir

Measure = Literal["nll", "bits_per_byte"]
MEASURES: tuple[Measure, ...] = ("nll", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out documents as each run scored them."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    domains: tuple[str, ...]
    nll_ASN: np.ndarray  # float64 nats, summed over a document's tokens
    n_tokens_N: np.ndarray
    n_bytes_N: np.ndarray
    domain_N: np.ndarray  # index into domains

    def size_N(self, measure: Measure) -> np.ndarray:
        """What a document's nats are divided by: its tokens, or its bytes x ln 2."""
        return self.n_tokens_N if measure == "nll" else self.n_bytes_N * np.log(2)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Loss of one arm minus that of another; below 0, the first is better."""

    value: float
    low: float | None  # 95 % interval; None where a variance cannot be estimated
    high: float | None
    seeds_error: float | None  # standard error that comes from seeds
    documents_error: float | None  # standard error that comes from documents
    freedom: float | None  # degrees of freedom of the t distribution
    per_seed: tuple[float, ...]  # the difference of the runs of each seed


def read(workdir: Workdir, arms: Sequence[str], seeds: Sequence[int]) -> HeldOut:
    """Reads `scores.parquet` of every arm and seed.

    Raises:
      ValueError: two runs did not score the same documents, or a domain is called `all` or `mean`.
    """
    columns = ["number", "domain", "n_tokens", "n_bytes", "nll_sum"]
    tables = {
        (arm, seed): pq.read_table(workdir.evaluate(f"{arm}-{seed}") / "scores.parquet", columns=columns)
        for arm in arms
        for seed in seeds
    }
    first_name, first = next(iter(tables.items()))
    for name, table in tables.items():
        if not table.drop(["nll_sum"]).equals(first.drop(["nll_sum"])):
            raise ValueError(
                f"{name[0]}-{name[1]} and {first_name[0]}-{first_name[1]} were evaluated on different "
                "documents: evaluate them again on the same prepared corpus"
            )
    domains, domain_N = np.unique(first["domain"].to_numpy(zero_copy_only=False), return_inverse=True)
    for place in ("all", "mean"):
        if place in domains:
            raise ValueError(f"a domain is called {place}, which stands for all domains: rename it")
    return HeldOut(
        arms=tuple(arms),
        seeds=tuple(seeds),
        domains=tuple(str(domain) for domain in domains),
        nll_ASN=np.stack(
            [np.stack([tables[arm, seed]["nll_sum"].to_numpy() for seed in seeds]) for arm in arms]
        ),
        n_tokens_N=first["n_tokens"].to_numpy(),
        n_bytes_N=first["n_bytes"].to_numpy(),
        domain_N=domain_N,
    )


def losses(held_out: HeldOut, arm: str) -> dict[str, dict[str, Any]]:
    """The losses of one arm at each place: every domain, `all` documents, the unweighted `mean` of domains.

    Returns:
      {place: {"nll": nats per token, "bits_per_byte": ..., "per_seed": {measure: one value a seed}}},
      where `nll` and `bits_per_byte` are means over seeds.
    """
    a = held_out.arms.index(arm)
    result = {}
    for place in (*held_out.domains, "all", "mean"):
        parts = _parts(held_out, place)
        per_seed = {measure: _losses_AS(held_out, parts, measure)[a].tolist() for measure in MEASURES}
        result[place] = {m: float(np.mean(v)) for m, v in per_seed.items()} | {"per_seed": per_seed}
    return result


def difference(
    held_out: HeldOut, arm: str, base: str, place: str = "mean", measure: Measure = "bits_per_byte"
) -> Difference:
    """The loss of `arm` minus that of `base`, with the 95 % interval of the module's docstring.

    Args:
      held_out: the scores.
      arm: the arm in question.
      base: the arm that it is compared with.
      place: a domain, `all` (documents of every domain together) or `mean` (unweighted over domains).
      measure: `nll` in nats per token, or `bits_per_byte`.
    """
    a, b = held_out.arms.index(arm), held_out.arms.index(base)
    n_seeds = len(held_out.seeds)
    parts = _parts(held_out, place)
    losses_AS = _losses_AS(held_out, parts, measure)
    per_seed_S = losses_AS[a] - losses_AS[b]
    value = float(per_seed_S.mean())

    seeds_freedom = len(held_out.arms) * (n_seeds - 1)
    seeds_variance = 2 / n_seeds * float(losses_AS.var(axis=1, ddof=1).mean()) if n_seeds > 1 else None
    documents_variance, documents_freedom = _documents_variance(held_out, a, b, parts, measure)

    low = high = freedom = None
    if seeds_variance is not None and documents_variance is not None:
        variance = seeds_variance + documents_variance
        freedom = (
            variance**2 / (seeds_variance**2 / seeds_freedom + documents_variance**2 / documents_freedom)
            if variance > 0
            else float(seeds_freedom)
        )
        reach = float(stdtrit(freedom, 0.975)) * variance**0.5
        low, high = value - reach, value + reach
    return Difference(
        value=value,
        low=low,
        high=high,
        seeds_error=None if seeds_variance is None else seeds_variance**0.5,
        documents_error=None if documents_variance is None else documents_variance**0.5,
        freedom=freedom,
        per_seed=tuple(per_seed_S.tolist()),
    )


def _parts(held_out: HeldOut, place: str) -> list[np.ndarray]:
    """The sets of documents, as masks, whose losses are averaged."""
    if place == "all":
        return [np.ones_like(held_out.domain_N, dtype=bool)]
    if place == "mean":
        return [held_out.domain_N == index for index in range(len(held_out.domains))]
    return [held_out.domain_N == held_out.domains.index(place)]


def _losses_AS(held_out: HeldOut, parts: list[np.ndarray], measure: Measure) -> np.ndarray:
    size_N = held_out.size_N(measure)
    return np.mean(
        [held_out.nll_ASN[..., part_N].sum(axis=-1) / size_N[part_N].sum() for part_N in parts], axis=0
    )


def _documents_variance(
    held_out: HeldOut, a: int, b: int, parts: list[np.ndarray], measure: Measure
) -> tuple[float | None, float]:
    """Variance of the difference over draws of documents, and its degrees of freedom."""
    strata = [held_out.domain_N == k for k in np.unique(held_out.domain_N[np.any(parts, axis=0)])]
    if any(stratum_N.sum() < 2 for stratum_N in strata):
        return None, 0.0
    size_N = held_out.size_N(measure)
    delta_N = (held_out.nll_ASN[a] - held_out.nll_ASN[b]).mean(axis=0)
    influence_N = np.zeros_like(delta_N)  # what a document adds to the difference, to first order
    for part_N in parts:
        share_N = size_N[part_N] / size_N[part_N].sum()
        ratio = delta_N[part_N].sum() / size_N[part_N].sum()
        residual_N = delta_N[part_N] / size_N[part_N].sum() - ratio * share_N
        # As if the ratio came from the other documents (the jackknife): a long document pulls it along.
        influence_N[part_N] = residual_N / (1 - share_N) / len(parts)
    variance = sum(stratum_N.sum() * influence_N[stratum_N].var(ddof=1) for stratum_N in strata)
    return float(variance), float(sum(stratum_N.sum() - 1 for stratum_N in strata))
