"""Aioli: learns how the domains help each other on the running model, and follows it (Chen et al., arXiv 2411.05735).

The member of the LMO family that estimates A on the model that is trained itself. A round (Algorithm 1):

1. LearnParams (Algorithm 2). `sweeps` times for each domain j, in random order, a segment of real training steps on
   (1 - smoothing) onehot_j + smoothing / K, and after it the held-out losses of all domains.
2. The decreases of the segments are explained by their shares of the domains: drops_s = A x_s.
3. A is shifted and scaled so that its entries are at least 0 and sum to one.
4. p_j ~ p_j exp(eta sum_i A_ij), and the rest of the round is trained on p.

Beyond the paper: shares are those that were drawn, not those intended; a column for the loss that falls in any case
(`drift`); and A is trusted as far as the segments' residuals let it be told from no difference between the domains
(`confidence`), since step 3 makes a full step of the faintest noise. `estimator="reference"` leaves all three out, and has
the numbers of the authors' code.

Legend: K domains, S segments.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.special import fdtri

from jaxprune.train.strategy import Decision, Observation, Signal, State, Strategy

_NO_PROGRESS = 1e-12  # nats, summed over the entries of A: below it no domain helped any
_ROUNDING = 1e-9  # of the largest entry of A: columns that differ by less do the same


@dataclass(frozen=True, kw_only=True)
class Aioli(Strategy):
    """Settings as in `config.Aioli`; the first round starts at the step that `begin` is called with."""

    n_domains: int
    steps: int
    """Of the whole run."""
    rounds: int
    sweeps: int
    """k: segments of each domain in a round."""
    segment_steps: int | None = None
    """Steps of a segment; None: as many as `learning` gives."""
    learning: float = 0.1
    """delta: share of a round in segments, where `segment_steps` does not say it."""
    smoothing: float = 0.75
    """epsilon: share of a segment that is uniform."""
    eta: float = 0.2
    ema: float | None = None
    """None: p follows from the p before it. Else p ~ exp(eta colsum), with A averaged over rounds: its share of the
    past."""
    interactions: Literal["full", "diagonal"] = "full"
    estimator: Literal["least_squares", "reference"] = "least_squares"
    normalise: bool = True
    drift: bool = True
    confidence: float | None = 0.75
    """With which domains must be told apart before the weights move; None: they always do."""
    floor: float = 0.01
    """Least weight, as a share of the uniform one."""
    targets_K: tuple[float, ...] | None = None
    """What each domain's held-out loss counts; None: all the same."""
    shuffle: Literal["sweep", "round"] = "sweep"
    """Order of the segments: each sweep a permutation, as released; or all of a round, as the paper says."""
    seed: int = 0

    signal: ClassVar[Signal] = "validation"
    law: ClassVar[str] = "linear dynamic"
    estimate: ClassVar[str] = (
        "A explains what segments of training on skewed mixtures did to the held-out losses"
    )
    solve: ClassVar[str] = "exponentiated gradient"

    def begin(self, step: int) -> tuple[State, Decision]:
        """Asks for the losses at once. Raises ValueError where the segments do not fit into the rounds."""
        state = {"start": step, "round": 0, "weights": [1 / self.n_domains] * self.n_domains, "ema": None}
        self._segment_steps(state)  # raises before anything is trained
        return state, Decision(weights_K=np.array(state["weights"]), until=step)

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        if "order" not in state:
            return self._segment(self._opened(state, seen.loss_K), seen.step)
        drop_K = np.array(state["loss"]) - seen.loss_K
        share_K = seen.tokens_K / seen.tokens_K.sum()
        state = state | {
            "loss": seen.loss_K.tolist(),
            "drops": [*state["drops"], drop_K.tolist()],
            "shares": [*state["shares"], share_K.tolist()],
        }
        if len(state["drops"]) < len(state["order"]):
            return self._segment(state, seen.step)
        return self._close(state, seen)

    def _opened(self, state: State, loss_K: np.ndarray) -> State:
        """A round begins: the order of its segments, and the losses before the first."""
        return state | {
            "order": self.order(state["round"]),
            "loss": loss_K.tolist(),
            "drops": [],
            "shares": [],
        }

    def order(self, number: int) -> list[int]:
        """The domain of each segment of a round, a pure function of the seed."""
        rng = np.random.default_rng((self.seed, number))
        sweeps = np.tile(np.arange(self.n_domains), (self.sweeps, 1))
        mixed = rng.permuted(sweeps, axis=1) if self.shuffle == "sweep" else rng.permuted(sweeps)
        return mixed.ravel().tolist()

    def _segment(self, state: State, step: int) -> tuple[State, Decision]:
        domain = state["order"][len(state["drops"])]
        record = {"round": state["round"], "segment": len(state["drops"]), "domain": domain}
        return state, Decision(
            weights_K=self.mixtures_KK[domain], until=step + self._segment_steps(state), record=record
        )

    @property
    def mixtures_KK(self) -> np.ndarray:
        """P: the mixture of each domain's segments."""
        uniform = np.full((self.n_domains, self.n_domains), 1 / self.n_domains)
        return (1 - self.smoothing) * np.eye(self.n_domains) + self.smoothing * uniform

    def _close(self, state: State, seen: Observation) -> tuple[State, Decision]:
        """The weights for the rest of the round; where the segments fill it, those of the next round's first segment."""
        A_KK, trust = self._learn(state)
        weights_K, ema, how = self._solve(state, A_KK, trust)
        record = {"round": state["round"], "A": A_KK.tolist(), "trust": trust, **how}
        opened = {
            "start": state["start"],
            "round": state["round"] + 1,
            "weights": weights_K.tolist(),
            "ema": ema,
        }
        end = self._starts(state["start"])[state["round"] + 1]
        if end <= seen.step < self.steps:
            opened, decision = self._segment(self._opened(opened, seen.loss_K), seen.step)
            return opened, replace(decision, record=record | {"next": decision.record})
        return opened, Decision(weights_K=weights_K, until=end, record=record)

    def _learn(self, state: State) -> tuple[np.ndarray, float | None]:
        """A, and how far it is to be trusted: from 0 to 1; None: that is not asked."""
        drops_SK, shares_SK = np.array(state["drops"]), np.array(state["shares"])
        if self.estimator == "reference":
            beta_KK = mean_drops(drops_SK, state["order"], self.n_domains)
            return solved(beta_KK, self.mixtures_KK, self.interactions), None
        A_KK = explained(drops_SK, shares_SK, interactions=self.interactions, drift=self.drift)
        if self.confidence is None:
            return A_KK, None
        if self.interactions == "diagonal":
            aimed_SK = drops_SK * self._targets_K
            return A_KK, told_apart_by_own(aimed_SK, shares_SK, drift=self.drift, confidence=self.confidence)
        drop_S = drops_SK @ self._targets_K
        return A_KK, told_apart(drop_S, shares_SK, drift=self.drift, confidence=self.confidence)

    def _solve(
        self, state: State, A_KK: np.ndarray, trust: float | None
    ) -> tuple[np.ndarray, list[list[float]] | None, dict[str, Any]]:
        """Weights, the average of A over rounds, and what was done."""
        before_K = np.array(state["weights"])
        aims_KK = self._targets_K[:, None] * A_KK
        if why := _kept(aims_KK):
            return before_K, state["ema"], {"kept": why}
        if self.normalise:
            aims_KK = normalised(aims_KK)
        if trust is not None:
            aims_KK = trust * aims_KK + (1 - trust) * aims_KK.mean()
        if self.ema is None:
            ema = None
            gain_K = self.eta * aims_KK.sum(axis=0)
            weights_K = _softmax(gain_K, before_K)
        else:
            if state["ema"] is not None:
                aims_KK = (1 - self.ema) * aims_KK + self.ema * np.array(state["ema"])
            ema = aims_KK.tolist()
            weights_K = _softmax(self.eta * aims_KK.sum(axis=0), np.ones(self.n_domains))
        weights_K = (1 - self.floor) * weights_K + self.floor / self.n_domains
        return weights_K, ema, {"aims": aims_KK.tolist()}

    @property
    def _targets_K(self) -> np.ndarray:
        """What each domain's loss counts, one on average."""
        if self.targets_K is None:
            return np.ones(self.n_domains)
        return np.array(self.targets_K) * self.n_domains / sum(self.targets_K)

    def _starts(self, start: int) -> list[int]:
        """First step of each round, and the end of the run."""
        dynamic = self.steps - start
        return [start + dynamic * number // self.rounds for number in range(self.rounds + 1)]

    def _segment_steps(self, state: State) -> int:
        starts = self._starts(state["start"])
        shortest = min(end - begin for begin, end in itertools.pairwise(starts))
        segments = self.sweeps * self.n_domains
        wanted = self.segment_steps
        if wanted is None:
            wanted = max(1, round(self.learning * shortest / segments))
        if segments * wanted > shortest:
            raise ValueError(
                f"mix.aioli: {self.sweeps} sweeps x {self.n_domains} domains x {wanted} steps are {segments * wanted}, more "
                f"than the {shortest} steps of a round: lower mix.aioli.sweeps, mix.aioli.segment_steps or mix.aioli.rounds, "
                "or train longer"
            )
        return wanted


def _kept(aims_KK: np.ndarray) -> str | None:
    """Why A says nothing, so that the weights stay; None: it says something."""
    if not np.isfinite(aims_KK).all():
        return "a held-out loss is not finite"
    if np.abs(aims_KK).sum() <= _NO_PROGRESS:
        return "no progress"
    columns_K = aims_KK.sum(axis=0)
    return "all domains do the same" if np.ptp(columns_K) <= _ROUNDING * np.abs(aims_KK).max() else None


def explained(
    drops_SK: np.ndarray, shares_SK: np.ndarray, *, interactions: Literal["full", "diagonal"], drift: bool
) -> np.ndarray:
    """A by least squares, from segments whose shares of the domains are as they came out.

    Args:
      drops_SK: decrease of each domain's held-out loss in each segment, nats.
      shares_SK: share of each domain in the segment's tokens.
      interactions: diagonal: only what a domain does for itself.
      drift: a part of the decrease may change linearly from the first segment to the last, whatever is trained on:
        a young model's loss falls faster in earlier segments.

    Returns:
      A_KK: decrease of the loss of i (rows) for training on j (columns). Of balanced segments without drift it is
      beta P^-1.
    """
    n_domains = shares_SK.shape[1]
    if interactions == "full":
        return np.linalg.lstsq(_design(shares_SK, drift), drops_SK, rcond=None)[0][:n_domains].T
    # What the others do on average is the intercept: the fit at a share of 1 is what the domain does for itself.
    own_K = [
        np.linalg.lstsq(_own(shares_SK, k, drift), drops_SK[:, k], rcond=None)[0][:2].sum()
        for k in range(n_domains)
    ]
    return np.diag(own_K)


def _own(shares_SK: np.ndarray, domain: int, drift: bool) -> np.ndarray:
    return _design(np.column_stack([shares_SK[:, domain], np.ones(len(shares_SK))]), drift)


def told_apart(drop_S: np.ndarray, shares_SK: np.ndarray, *, drift: bool, confidence: float) -> float:
    """How far segments tell what the domains do for the summed loss: max(0, 1 - F_c / F), from 0 to 1.

    F is the usual ratio of the variance explained by the shares to that of the residuals, and F_c what it exceeds in
    1 - c of cases where all domains do the same, if noise is independent. That of drops, which are differences of losses,
    is not: at c = 0.75 pure noise passes in 0.28 to 0.32 of cases. 0 where no residual is left to judge by.
    """
    full_SP = _design(shares_SK, drift)
    plain_SP = _design(np.ones((len(drop_S), 1)), drift)
    rank, plain_rank = (int(np.linalg.matrix_rank(design)) for design in (full_SP, plain_SP))
    of_shares, of_noise = rank - plain_rank, len(drop_S) - rank
    if of_shares <= 0 or of_noise <= 0:
        return 0.0
    noise, plain = _residual(full_SP, drop_S), _residual(plain_SP, drop_S)
    return _trust(plain - noise, of_shares, noise, of_noise, float((drop_S**2).sum()), confidence)


def told_apart_by_own(
    drops_SK: np.ndarray, shares_SK: np.ndarray, *, drift: bool, confidence: float
) -> float:
    """As `told_apart`, of a diagonal A: how far segments tell that domains' losses fall by their own shares at all."""
    n_domains = shares_SK.shape[1]
    designs = [_own(shares_SK, k, drift) for k in range(n_domains)]
    of_noise = sum(len(drops_SK) - int(np.linalg.matrix_rank(design)) for design in designs)
    if of_noise <= 0:
        return 0.0
    plain_SP = _design(np.ones((len(drops_SK), 1)), drift)
    noise = sum(_residual(design, drops_SK[:, k]) for k, design in enumerate(designs))
    plain = sum(_residual(plain_SP, drops_SK[:, k]) for k in range(n_domains))
    return _trust(plain - noise, n_domains, noise, of_noise, float((drops_SK**2).sum()), confidence)


def _trust(
    explained: float, of_shares: int, noise: float, of_noise: int, total: float, confidence: float
) -> float:
    """max(0, 1 - F_c / F) of squares explained and left, with their degrees of freedom; 0 at rounding of `total`."""
    if explained <= _ROUNDING**2 * total:
        return 0.0
    critical = float(fdtri(of_shares, of_noise, confidence))
    return max(0.0, 1 - critical * (noise / of_noise) / (explained / of_shares))


def _residual(design_SP: np.ndarray, drop_S: np.ndarray) -> float:
    """Squares left by a least-squares fit, summed."""
    fitted_S = design_SP @ np.linalg.lstsq(design_SP, drop_S, rcond=None)[0]
    return float(((drop_S - fitted_S) ** 2).sum())


def _design(columns_SP: np.ndarray, drift: bool) -> np.ndarray:
    if not drift:
        return columns_SP
    return np.column_stack([columns_SP, np.linspace(-0.5, 0.5, len(columns_SP))])


def mean_drops(drops_SK: np.ndarray, order: list[int], n_domains: int) -> np.ndarray:
    """beta_KK: the mean decrease of each domain's loss (rows) over the segments of each domain (columns)."""
    return np.stack([drops_SK[np.array(order) == domain].mean(axis=0) for domain in range(n_domains)], axis=1)


def solved(
    beta_KK: np.ndarray, mixtures_KK: np.ndarray, interactions: Literal["full", "diagonal"]
) -> np.ndarray:
    """A from mean decreases and the intended mixtures, as in the authors' code: A_i = P^-1 beta_i for every row.

    Their diagonal is beta_ii / P_ii, whatever the other domains in the mixture did.
    """
    if interactions == "diagonal":
        return np.diag(np.diag(beta_KK) / np.diag(mixtures_KK))
    return np.linalg.solve(mixtures_KK, beta_KK.T).T


def normalised(A_KK: np.ndarray) -> np.ndarray:
    """A shifted by its least entry where that is below 0, and divided by the sum of all entries (NaN where that is 0)."""
    shifted_KK = A_KK - min(float(A_KK.min()), 0.0)
    with np.errstate(invalid="ignore"):
        return shifted_KK / shifted_KK.sum()


def _softmax(gain_K: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """weights exp(gain), divided by their sum."""
    raised_K = weights_K * np.exp(gain_K - gain_K.max())
    return raised_K / raised_K.sum()
