"""Data mixing laws as they are nested (2403.16952, section 4): steps, then sizes, then mixtures.

Small and short runs are extrapolated to the tokens and the size of a run that is too dear to try, mixture by mixture,
and a mixing law is fitted to what they would have reached. Errors of the three fits add up.

Legend: R rows, E targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxprune.mix.laws.law import one_target
from jaxprune.mix.laws.power import Power
from jaxprune.mix.table import MixtureTable

_FEWEST = 4  # checkpoints of a run


def along_tokens(table: MixtureTable, tokens: float) -> MixtureTable:
    """Where each run would be at `tokens`: a power law of its own checkpoints, L = e + b n^-a, one a run and target.

    Targets with fewer than four checkpoints in a run are NaN there.

    Raises:
      ValueError: no run has enough checkpoints, or `tokens` is not above 0.
    """
    if tokens <= 0:
        raise ValueError(f"tokens is {tokens:g}: give a number above 0")
    rows, losses_RE = [], []
    for run in table.runs:
        loss_E = power_at(table.rows(table.run_R == run), tokens)
        if np.isfinite(loss_E).any():
            rows.append(int(np.flatnonzero(table.run_R == run)[0]))
            losses_RE.append(loss_E)
    if not rows:
        raise ValueError(f"no run has {_FEWEST} checkpoints, which a power law of tokens needs")
    ends = table.rows(np.array(rows))
    return dataclasses.replace(ends, tokens_R=np.full(len(rows), float(tokens)), loss_RE=np.stack(losses_RE))


def power_at(checkpoints: MixtureTable, tokens: float) -> np.ndarray:
    """Losses [E] of one run at `tokens`, by a power law of its checkpoints; NaN of targets with fewer than four."""
    loss_E = np.full(len(checkpoints.targets), np.nan)
    for e in range(len(loss_E)):
        one = one_target(checkpoints, e)
        loss_E[e] = _power(one.tokens_R, one.loss_RE[:, 0], tokens, _FEWEST)
    return loss_E


def along_params(tables: Sequence[MixtureTable], params: float) -> MixtureTable:
    """Losses of the mixtures that all tables have, at a model size beyond them: L = e + b N^-a for each.

    Args:
      tables: one a model size, each at one number of tokens; of several seeds of a mixture the mean is taken.
      params: the size that is asked for.

    Raises:
      ValueError: fewer than three sizes, no common mixture, or other domains.
    """
    if len({float(table.params_R.max()) for table in tables}) < 3:
        raise ValueError(
            f"{len(tables)} tables have fewer than three model sizes: a power law of sizes needs three"
        )
    first, *others = tables
    if any(table.domains != first.domains for table in others):
        raise ValueError("the tables mix other domains: give tables of one corpus")
    shared = [target for target in first.targets if all(target in table.targets for table in others)]
    mixtures = [_mean_losses(table) for table in tables]
    common = [mixture for mixture in mixtures[0] if all(mixture in of for of in mixtures[1:])]
    if not common:
        raise ValueError("no mixture is in all tables: run the same mixtures at every size")
    losses_RE = np.full((len(common), len(shared)), np.nan)
    for i, mixture in enumerate(common):
        for e, target in enumerate(shared):
            points = [
                (table.params_R[of[mixture][0]], of[mixture][1][table.targets.index(target)])
                for table, of in zip(tables, mixtures, strict=True)
            ]
            size_R, loss_R = np.array([point for point in points if np.isfinite(point[1])]).reshape(-1, 2).T
            losses_RE[i, e] = _power(size_R, loss_R, params, 3)
    ends = first.rows(np.array([mixtures[0][mixture][0] for mixture in common]))
    return dataclasses.replace(
        ends, targets=tuple(shared), params_R=np.full(len(common), float(params)), loss_RE=losses_RE
    )


def _mean_losses(table: MixtureTable) -> dict[tuple[float, ...], tuple[int, np.ndarray]]:
    """Mixture -> its first row, and losses [E], means over its seeds of what was measured."""
    rounded_RK = table.weights_RK.round(6)
    found = {}
    for row, weights_K in enumerate(rounded_RK):
        loss_SE = table.loss_RE[(rounded_RK == weights_K).all(axis=1)]
        n_E = np.isfinite(loss_SE).sum(axis=0)
        mean_E = np.where(n_E > 0, np.nansum(loss_SE, axis=0) / np.maximum(n_E, 1), np.nan)
        found.setdefault(tuple(weights_K), (row, mean_E))
    return found


def _power(scale_R: np.ndarray, loss_R: np.ndarray, at: float, fewest: int) -> float:
    """The loss at a scale beyond those given; NaN of too few."""
    if len(loss_R) < fewest:
        return float("nan")
    one = MixtureTable.from_arrays(np.ones((len(loss_R), 1)), loss_R[:, None], tokens_R=scale_R)
    return float(Power().fit(one).predict(np.ones((1, 1)), at)[0, 0])
