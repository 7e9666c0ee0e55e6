"""What a strategy of online mixing is: a rule that is asked, from time to time, how to go on.

The linear dynamic mixing law of the LMO framework (Chen et al., arXiv 2411.05735, section 3) unites the members:
L_i(t + 1) = L_i(t) - sum_j A_ij p_j(t). A member says how it comes to A, and how it solves for p. Most take a step
of exponentiated gradient descent, p_j ~ p_j exp(eta sum_i A_ij); `law`, `estimate` and `solve` say it in words.

A[i, j] is the decrease of the held-out loss of domain i for training on domain j: positive helps.

Legend: K domains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

State = dict[str, Any]
"""Plain JSON data, all that a strategy knows: it goes into the checkpoint, and comes back equal."""

Signal = Literal["validation", "training"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a strategy is told after the steps of its last decision."""

    step: int
    """Steps done."""
    loss_K: np.ndarray
    """validation: mean NLL of each domain's held-out slice, nats per token, at this step. training: of each domain's
    tokens in the steps since the last decision; NaN where there were none."""
    tokens_K: np.ndarray
    """Training tokens of each domain since the last decision."""
    drawn_K: np.ndarray
    """Training tokens of each domain since the run began."""
    weights_K: np.ndarray
    """Proportions that `tokens_K` were drawn in, the mean over their steps: as decided, or as they were cut to."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How to go on."""

    weights_K: np.ndarray
    """Proportions of the domains, which sum to one."""
    until: int
    """The step after which the strategy is asked again; at or beyond the end of the run: never."""
    record: dict[str, Any] = field(default_factory=dict)
    """Plain data on how it was found, for the history of the run."""


class Strategy(ABC):
    """A rule without memory of its own: everything is in the state, which it takes and gives back.

    A strategy with the signal `validation` decides on the next step. One with the signal `training` decides on the
    step after the next, since the losses of a step are read while the next is computed.
    """

    signal: Signal
    law: ClassVar[str] = "not said"
    estimate: ClassVar[str] = "not said"
    solve: ClassVar[str] = "not said"

    @abstractmethod
    def begin(self, step: int) -> tuple[State, Decision]:
        """The state and the decision before the step after `step`; with `validation`, no loss is known yet."""

    @abstractmethod
    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        """The state and the decision after the steps of the last one. Changes nothing in place."""
