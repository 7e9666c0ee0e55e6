"""Mixtures to try in small runs, from whose losses a mixing law is fitted.

Caps are those of the final run (`caps`). Proxy runs feel its repetition only if their domains are shrunk as
the budget is, by proxy tokens / final tokens (simulated epoching: UtiliMax, arXiv 2501.11747).

Legend: R runs, K domains, M candidates, S steps of a lattice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxprune.mix import caps

_STRENGTHS = 15  # in RegMix's log grid
_ROUNDS = 100  # of draws, after which too few mixtures are distinct and under the caps
_LATTICE = 1 << 14  # steps of a proportion in the exponential grid
_CONCENTRATIONS = (0.25, 4.0)  # of maximin's candidates, by domain; 1 is the flat distribution
_ROUNDING = 1e-9  # two mixtures that are nearer are one
_ACROSS = ("combined", "exponential", "loglinear", "reciprocal", "joint", "gaussian_process", "linear")
_RUNS: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(("bimix", "bimix_floor", "autoscale"), lambda k: max(k + 1, 4)),
    **dict.fromkeys(_ACROSS, lambda k: 3 * (k + 1)),
    "trees": lambda k: 128,
}


def dirichlet(
    natural_K: np.ndarray,
    n_runs: int,
    *,
    rng: np.random.Generator,
    strengths: tuple[float, float] = (0.1, 5.0),
    power: float = 0.5,
    cap_K: np.ndarray | None = None,
    minimum: float = 2e-4,
) -> np.ndarray:
    """Draws mixtures around the natural one, from nearly one domain alone to nearly the prior.

    Source: RegMix (arXiv 2407.01492) and its code. A mixture is Dirichlet(strength x prior) with prior
    natural ** power renormalised, and strength from a log grid of 15 values; what is above a cap is drawn again.
    Caps so tight that 100 draws a run do not give one that fits leave runs over; these get mixtures that did not
    fit, moved to the nearest that do (`caps.nearest`).

    Args:
      natural_K: tokens or proportions of the domains, above 0.
      n_runs: R.
      rng: decides everything.
      strengths: least and largest.
      power: 1 is the natural prior, 0 the uniform one.
      cap_K: largest proportions; None: 1.
      minimum: proportions below it become 0, as in RegMix: at 2e-4 a proxy run of 500,000 rows holds 100 of them.

    Returns:
      Mixtures, float64 [R, K], no two the same.

    Raises:
      ValueError: arguments out of range; caps that add up to less than 1, or leave too few mixtures.
    """
    natural_K = _natural(natural_K)
    cap_K = caps.checked(cap_K, len(natural_K))
    _check_runs(n_runs)
    if not 0 < strengths[0] <= strengths[1]:
        raise ValueError(f"strengths is {strengths}: give the least and the largest, both above 0")
    if not 0 <= minimum < 1 / len(natural_K):
        raise ValueError(
            f"minimum is {minimum} for {len(natural_K)} domains: set 0, or a number below 1 / domains"
        )
    prior_K = natural_K**power / (natural_K**power).sum()
    grid = np.geomspace(*strengths, _STRENGTHS)
    drawn_RK = moved_RK = np.empty((0, len(natural_K)))
    for _ in range(_ROUNDS):
        x_RK = np.array([rng.dirichlet(strength * prior_K) for strength in rng.choice(grid, n_runs)])
        x_RK = np.where(x_RK < minimum, 0.0, x_RK)
        x_RK = x_RK / x_RK.sum(axis=1, keepdims=True)
        fits_R = (x_RK <= cap_K).all(axis=1)
        can_fit_R = ~fits_R & ((cap_K * (x_RK > 0)).sum(axis=1) >= 1 - caps.ROUNDING)
        drawn_RK = _distinct(np.concatenate([drawn_RK, x_RK[fits_R]]))
        moved_RK = np.concatenate([moved_RK, caps.nearest(x_RK[can_fit_R], cap_K)])[:n_runs]
        if len(drawn_RK) >= n_runs:
            return drawn_RK[:n_runs]
    weights_RK = _distinct(np.concatenate([drawn_RK, moved_RK]))[:n_runs]
    if len(weights_RK) < n_runs:
        raise ValueError(
            f"{_ROUNDS * n_runs} draws gave {len(weights_RK)} different mixtures under the caps, and n_runs is "
            f"{n_runs}: raise cap_K or strengths, or lower n_runs"
        )
    return weights_RK


def exponential_grid(
    cap_K: np.ndarray, n_runs: int, *, rng: np.random.Generator, halvings: int = 4
) -> np.ndarray:
    """Draws mixtures whose proportions are the caps halved, and halved again.

    Source: Data Mixing Laws (arXiv 2403.16952) and its code. A domain has cap x 2^-k for k = 0..halvings,
    or 0; one domain takes the rest, if that is between 0 and its cap. It is the domain with the largest cap
    (in the authors' code the last one): the rest would seldom be under the cap of a domain of few tokens.
    Points are drawn without replacement, each as likely as any other. They are counted, not listed, so
    that there may be many domains.

    Args:
      cap_K: largest proportions (above 1 counts as 1); in steps of 2^-14, rounded down.
      n_runs: R.
      rng: decides everything.
      halvings: largest k; the authors stop at 1/16.

    Returns:
      Mixtures, float64 [R, K], no two the same, that add up to 1 exactly.

    Raises:
      ValueError: arguments out of range; caps that add up to less than 1; a grid of fewer than R points.
    """
    cap_K = caps.checked(cap_K, len(cap_K))
    _check_runs(n_runs)
    if halvings < 0:
        raise ValueError(f"halvings is {halvings}: set 0 or more")
    steps_K = np.floor(cap_K * _LATTICE).astype(np.int64)
    rest = int(np.argmax(steps_K))
    levels = [np.unique(np.append(steps >> np.arange(halvings + 1), 0)) for steps in steps_K]
    others = [domain for domain in range(len(cap_K)) if domain != rest]
    count_KS = _ways([levels[domain] for domain in others])
    total_S = np.where(_LATTICE - np.arange(_LATTICE + 1) <= steps_K[rest], count_KS[-1], 0.0)
    if total_S.sum() < n_runs:
        raise ValueError(
            f"n_runs is {n_runs}, and the grid under these caps has {total_S.sum():.0f} points: raise cap_K or halvings, "
            "or lower n_runs"
        )
    found: dict[tuple[int, ...], None] = {}
    while len(found) < n_runs:
        place = int(rng.choice(_LATTICE + 1, p=total_S / total_S.sum()))
        point_K = np.zeros(len(cap_K), np.int64)
        point_K[rest] = _LATTICE - place
        for domain, before_S in zip(reversed(others), reversed(count_KS[:-1]), strict=True):
            level = levels[domain][levels[domain] <= place]
            ways = before_S[place - level]
            point_K[domain] = rng.choice(level, p=ways / ways.sum())
            place -= int(point_K[domain])
        found[tuple(point_K.tolist())] = None
    return np.array(list(found), np.float64) / _LATTICE


def maximin(
    natural_K: np.ndarray,
    n_runs: int,
    *,
    rng: np.random.Generator,
    cap_K: np.ndarray | None = None,
    floor: float = 0.0,
    candidates: int = 10_000,
) -> np.ndarray:
    """Spreads mixtures over the simplex: each next one is the candidate farthest from its nearest neighbour.

    The first two are the natural and the uniform mixture, or the nearest that floor and caps allow: a law is asked
    about both. Candidates are Dirichlet draws, half around the uniform and half around natural ** 0.5.

    The distance is Hellinger's, the Euclidean one between square roots of proportions. Laws are linear in
    proportions (Data Mixing Laws) or nearly in their logarithms (r^-alpha of BiMix, alpha under 0.1): in the
    first a small domain never matters, the second spends all runs on the way to 0. The square root lies
    between, and from .01 to .04 is as far as from .25 to .36.

    Args:
      natural_K: tokens or proportions of the domains, above 0.
      n_runs: R.
      rng: decides everything.
      cap_K: largest proportions; None: 1.
      floor: least proportion of every domain; above 0 for laws with a pole at 0 (BiMix).
      candidates: M, from which the runs are chosen.

    Returns:
      Mixtures, float64 [R, K], no two the same; the first n of them are the design for n runs.

    Raises:
      ValueError: arguments out of range; caps that add up to less than 1, or leave too few mixtures.
    """
    natural_K = _natural(natural_K)
    n_domains = len(natural_K)
    cap_K = caps.checked(cap_K, n_domains)
    _check_runs(n_runs)
    if candidates < n_runs:
        raise ValueError(
            f"candidates is {candidates} for n_runs {n_runs}: set at least as many, better 100 times"
        )
    if not 0 <= floor <= min(1 / n_domains, float(cap_K.min())):
        raise ValueError(
            f"floor is {floor}, and {n_domains} domains with caps from {cap_K.min():.3g} allow 0 to "
            f"{min(1 / n_domains, float(cap_K.min())):.3g}: lower it"
        )
    uniform_K = np.full(n_domains, 1 / n_domains)
    tempered_K = natural_K**0.5 / (natural_K**0.5).sum()
    concentrations = n_domains * np.geomspace(*_CONCENTRATIONS, _STRENGTHS)
    x_MK = [natural_K - floor, uniform_K - floor]
    for m, concentration in enumerate(rng.choice(concentrations, candidates)):
        x_MK.append(rng.dirichlet(concentration * (uniform_K if m % 2 else tempered_K)))
    free = 1 - n_domains * floor  # what is left to be shared out
    room_K = (cap_K - floor) / max(free, _ROUNDING)
    x_MK = np.maximum(x_MK, 1e-12)  # the domains below their caps must be able to take the rest
    weights_MK = floor + free * caps.nearest(x_MK, room_K)
    chosen = _farthest(np.sqrt(weights_MK), n_runs)
    if len(chosen) < n_runs:
        raise ValueError(
            f"caps and floor leave {len(chosen)} different mixtures, and n_runs is {n_runs}: raise cap_K, or "
            "lower floor or n_runs"
        )
    return weights_MK[chosen]


def recommended_runs(n_domains: int, law: str) -> int:
    """How many mixtures to train before the law is fitted.

    What was measured on public tables, whole runs held out (R2 across unseen mixtures at the last checkpoint):

    - bimix, where a domain's loss depends on its own proportion only: 25 runs for 17 domains (RegMix) gave
      .78 to .81, which 512 do not surpass (.815); 4 runs for 7 domains (SlimPajama) .41. Domains + 1, at least 4.
    - exponential and reciprocal, with coefficients for each pair of domains: .13 and .58 from 25 runs for 17 domains,
      above .95 from 16 for 7. 3 x (domains + 1), as Olmix (arXiv 2602.12237) found, and for what combines them.
    - autoscale: .93 from 8 runs for 7 domains; as few as bimix.
    - trees, RegMix's: need over 100 runs (over 118 in Olmix), and gave .981 from 512. 128.

    Args:
      n_domains: K.
      law: its name in `jaxprune.mix.laws.LAWS`.

    Raises:
      ValueError: fewer than 2 domains, or a law that is not known.
    """
    if n_domains < 2:
        raise ValueError(f"n_domains is {n_domains}: there is nothing to mix, give 2 or more")
    if law not in _RUNS:
        raise ValueError(f"law is {law}, which is none of {', '.join(_RUNS)}: name one of them")
    return _RUNS[law](n_domains)


def _ways(levels: list[np.ndarray]) -> list[np.ndarray]:
    """In how many ways the first 0, 1, ..., K domains can add up to s steps: float64 [S] each."""
    count_S = np.zeros(_LATTICE + 1)
    count_S[0] = 1.0
    counts = [count_S]
    for level in levels:
        next_S = np.zeros_like(count_S)
        for step in level.tolist():
            next_S[step:] += counts[-1][: len(count_S) - step]
        counts.append(next_S)
    return counts


def _farthest(root_MK: np.ndarray, n_runs: int) -> list[int]:
    """Rows 0 and 1, and then again and again that whose nearest chosen row is farthest; fewer if rows repeat."""
    chosen, distance_M = [0], np.linalg.norm(root_MK - root_MK[0], axis=1)
    while len(chosen) < n_runs:
        following = 1 if len(chosen) == 1 and distance_M[1] > _ROUNDING else int(np.argmax(distance_M))
        if distance_M[following] <= _ROUNDING:
            break
        chosen.append(following)
        distance_M = np.minimum(distance_M, np.linalg.norm(root_MK - root_MK[following], axis=1))
    return chosen


def _distinct(weights_RK: np.ndarray) -> np.ndarray:
    """The rows, in their order, without those that came before."""
    _, first = np.unique(np.round(weights_RK / _ROUNDING), axis=0, return_index=True)
    return weights_RK[np.sort(first)]


def _natural(natural_K: np.ndarray) -> np.ndarray:
    natural_K = np.asarray(natural_K, np.float64)
    if natural_K.ndim != 1 or len(natural_K) < 2:
        raise ValueError(
            f"natural_K has the shape {natural_K.shape}: give one number for each of 2 or more domains"
        )
    if not (np.isfinite(natural_K) & (natural_K > 0)).all():
        raise ValueError(
            f"natural_K is {natural_K.tolist()}: every domain must be above 0, leave out those that are not"
        )
    return natural_K / natural_K.sum()


def _check_runs(n_runs: int) -> None:
    if n_runs < 1:
        raise ValueError(f"n_runs is {n_runs}: set 1 or more")
