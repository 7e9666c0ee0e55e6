"""The stage `mix design`: the mixtures that proxies are trained on.

Legend: R runs, K domains.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.artifact import Manifest, Workdir, build, require
from jaxprune.config import Config, Swarm
from jaxprune.data.store import TokenStore
from jaxprune.mix import proxies
from jaxprune.mix.design import dirichlet, exponential_grid, maximin, recommended_runs
from jaxprune.progress import say

_SHOWN = 20  # domains


def run(config: Config, workdir: Workdir) -> Manifest:
    """Chooses the mixtures, unless they are chosen already; leaves `mixtures.csv`.

    Raises:
      ArtifactMissing: there is no token store, or no selection yet.
      ValueError: there are fewer than two domains to mix, or too few tokens for the proxies; as the designs.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    store = TokenStore(workdir.prepare / "tokens")
    pool, domains = proxies.pool(config, workdir, store), store.domains
    cap_K = caps(config.swarm, pool.rows_K)
    mixed_K = pool.natural_K > 0
    check_supply(config.swarm, mixed_K, cap_K)
    n_runs = config.swarm.runs
    if n_runs is None:
        n_runs = recommended_runs(int(mixed_K.sum()), config.mix.law)

    def make(folder: Path) -> dict[str, Any]:
        proxies.say_what_is_short(pool, domains, config.swarm.proxy.model.context)
        weights_RK = np.zeros((n_runs, len(domains)))
        rng = np.random.default_rng(config.seed)
        weights_RK[:, mixed_K] = designed(config.swarm, pool.natural_K[mixed_K], cap_K[mixed_K], n_runs, rng)
        write(folder / "mixtures.csv", weights_RK, config.swarm.seeds, domains)
        _show(config.swarm, weights_RK, pool.natural_K / pool.natural_K.sum(), domains)
        return {"mixtures": n_runs, "runs": n_runs * len(config.swarm.seeds), "domains": int(mixed_K.sum())}

    inputs = {"prepare": prepare.fingerprint, "documents": pool.digest}
    return build(workdir.design, "mix design", settings_of(config, n_runs), inputs, make)


def settings_of(config: Config, n_runs: int) -> dict[str, Any]:
    """The settings that decide the design."""
    swarm = config.swarm
    of_design = {
        "dirichlet": {"strengths": list(swarm.strengths), "power": swarm.power},
        "grid": {},
        "maximin": {"floor": swarm.floor},
    }
    return {
        "design": swarm.design,
        **of_design[swarm.design],
        "runs": n_runs,
        "seeds": list(swarm.seeds),
        "max_epochs": swarm.max_epochs,
        "rows": swarm.proxy.steps * swarm.proxy.batch_rows,
        "context": swarm.proxy.model.context,
        "seed": config.seed,
    }


def caps(swarm: Swarm, rows_K: np.ndarray) -> np.ndarray:
    """The largest proportion of each domain that a proxy can have without repeating it more than `max_epochs` times."""
    return np.minimum(swarm.max_epochs * rows_K / (swarm.proxy.steps * swarm.proxy.batch_rows), 1.0)


def check_supply(swarm: Swarm, mixed_K: np.ndarray, cap_K: np.ndarray) -> None:
    """Raises ValueError where there is nothing to mix, or less than a proxy draws."""
    if mixed_K.sum() < 2:
        raise ValueError(
            f"{mixed_K.sum()} domains have as much as one row of swarm.proxy.model.context tokens, and a mixture needs "
            "2: shorten it, or keep more documents"
        )
    if cap_K.sum() < 1:
        raise ValueError(
            f"swarm.max_epochs is {swarm.max_epochs:g}, in which all domains together give a proxy {cap_K.sum():.0%} of its "
            "tokens: raise it, lower swarm.proxy.tokens (with swarm.simulate_epochs, final.tokens), or keep more documents"
        )


def designed(
    swarm: Swarm, natural_K: np.ndarray, cap_K: np.ndarray, n_runs: int, rng: np.random.Generator
) -> np.ndarray:
    """Mixtures of the domains that are mixed, float64 [R, K]; raises ValueError as the designs."""
    if swarm.design == "grid":
        return exponential_grid(cap_K, n_runs, rng=rng)
    if swarm.design == "maximin":
        return maximin(natural_K, n_runs, rng=rng, cap_K=cap_K, floor=swarm.floor)
    return dirichlet(natural_K, n_runs, rng=rng, strengths=swarm.strengths, power=swarm.power, cap_K=cap_K)


def write(path: Path, weights_RK: np.ndarray, seeds: tuple[int, ...], domains: tuple[str, ...]) -> None:
    """`mixtures.csv`: run_id (`<mixture>-<seed>`), w_<domain>..., a line for each mixture and seed."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["run_id", *(f"w_{domain}" for domain in domains)])
        for mixture, weights in enumerate(weights_RK.tolist()):
            for seed in seeds:
                lines.writerow([f"{mixture:03d}-{seed}", *weights])


def read(path: Path) -> dict[str, Mapping[str, float]]:
    """run_id -> weight of each domain, from `mixtures.csv`."""
    with path.open(newline="") as file:
        return {
            line.pop("run_id"): {name.removeprefix("w_"): float(weight) for name, weight in line.items()}
            for line in csv.DictReader(file)
        }


def _show(swarm: Swarm, weights_RK: np.ndarray, natural_K: np.ndarray, domains: tuple[str, ...]) -> None:
    seeds = f" x {len(swarm.seeds)} seeds" if len(swarm.seeds) > 1 else ""
    n_tokens = len(weights_RK) * len(swarm.seeds) * swarm.proxy.trained_tokens
    say(
        f"mix design: {len(weights_RK)} mixtures ({swarm.design}){seeds} of {(natural_K > 0).sum()} domains, "
        f"{swarm.proxy.trained_tokens:,} tokens each, {n_tokens:,} in all"
    )
    largest = np.argsort(-natural_K, kind="stable")[:_SHOWN]
    for domain in largest.tolist():
        weights_R = weights_RK[:, domain]
        say(
            f"  {domains[domain]}: {weights_R.min():.3f} to {weights_R.max():.3f} (natural {natural_K[domain]:.3f})"
        )
    if len(domains) > _SHOWN:
        say(f"  and {len(domains) - _SHOWN} smaller domains")
