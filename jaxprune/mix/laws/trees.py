"""RegMix (2407.01492): gradient-boosted trees from mixtures to losses.

Legend: N rows, K domains, E targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprune.mix.laws.law import FittedLaw, Law, one_target, varies
from jaxprune.mix.table import MixtureTable

_ROWS_A_LEAF = 20  # LightGBM's default, which cannot split a table of 40 runs: fewer there
_PATIENCE = 50  # rounds without a gain on the validation part


@dataclass(frozen=True, kw_only=True)
class Trees(Law):
    """LightGBM with RegMix's settings (section 3.3), one regressor a target.

    The number of rounds is found on a validation part of the table's own mixtures, and all of the table is then
    fitted with it; the authors' notebook stops on the test set instead.

    Attributes:
      rounds: at most.
      learning_rate: of a round.
      validation: share of the mixtures that decides the number of rounds.
      seed: of that share.
    """

    name = "trees"
    source = "2407.01492"
    rounds: int = 1000
    learning_rate: float = 0.01
    validation: float = 0.2
    seed: int = 0

    def fit(self, table: MixtureTable) -> FittedTrees:
        boosters = [self._fit_target(one_target(table, e)) for e in range(len(table.targets))]
        few = table.n_mixtures < 100
        note = f"{table.n_mixtures} mixtures are few for trees, which want 100 or more"
        return FittedTrees(self, table, boosters, (note,) if few else ())

    def _fit_target(self, table: MixtureTable) -> Any:
        library = lightgbm()
        if table.n_mixtures < 5:
            raise ValueError(
                f"trees: {table.targets[0]} has {table.n_mixtures} mixtures: give 5 or more, or use another law"
            )
        features_NF, log_loss_N = features(table), np.log(table.loss_RE[:, 0])
        _, mixture_N = np.unique(table.weights_RK.round(6), axis=0, return_inverse=True)
        mixtures = np.random.default_rng(self.seed).permutation(mixture_N.max() + 1)
        is_validation_N = np.isin(
            mixture_N.ravel(), mixtures[: max(1, round(self.validation * len(mixtures)))]
        )
        settings = {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "min_data_in_leaf": min(_ROWS_A_LEAF, max(2, len(table) // 15)),
            "seed": self.seed,
            "deterministic": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        train, validation = (
            library.Dataset(features_NF[rows_N], log_loss_N[rows_N])
            for rows_N in (~is_validation_N, is_validation_N)
        )
        stopped = library.train(
            settings,
            train,
            self.rounds,
            valid_sets=[validation],
            callbacks=[library.early_stopping(_PATIENCE, verbose=False)],
        )
        return library.train(
            settings, library.Dataset(features_NF, log_loss_N), max(stopped.best_iteration, 1)
        )


class FittedTrees(FittedLaw):
    """A booster for each target."""

    def __init__(self, law: Trees, table: MixtureTable, boosters: list[Any], notes: tuple[str, ...]) -> None:
        super().__init__(law, table, notes)
        self.boosters = boosters

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        features_NF = np.concatenate([weights_NK, *_scales(self.table, tokens_N, params_N)], axis=1)
        return np.exp(np.stack([booster.predict(features_NF) for booster in self.boosters], axis=1))


def features(table: MixtureTable) -> np.ndarray:
    """Weights, and the logs of tokens and parameters as far as they vary."""
    return np.concatenate([table.weights_RK, *_scales(table, table.tokens_R, table.params_R)], axis=1)


def _scales(table: MixtureTable, tokens_N: np.ndarray, params_N: np.ndarray) -> list[np.ndarray]:
    pairs = ((table.tokens_R, tokens_N), (table.params_R, params_N))
    return [np.log(values_N)[:, None] for known_R, values_N in pairs if varies(known_R)]


def lightgbm() -> Any:
    """The library; raises ValueError where it is not installed."""
    try:
        import lightgbm as library
    except ImportError:
        raise ValueError("trees need LightGBM: pip install 'jaxprune[trees]'") from None
    return library
