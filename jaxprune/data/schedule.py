"""The schedule: which domain stands at each place of the training stream, under weights that change.

Order of the domains. In a stage with weights w, draw k of domain d happens at the virtual time
(k + phase_d) / w_d, and the stream is the merge of all draws (stride scheduling, Waldspurger and
Weihl, 1995). Counts never go backwards, any weight above 0 gets its rows, and the domains drawn up
to a place are counted in closed form: w_d t - phase_d of domain d up to time t.

Phases. A first stage spreads them by the golden ratio. With one phase for all (1/2, which makes each
prefix a Webster apportionment) domains of equal weight come in a lump: beside one domain of weight 1/2,
199 equal ones stood in 199 places in a row, and the large one was 50 rows off; spread, 1 row.
A later stage takes over what each domain still lacks for its next row. Its counts are then within
one row (plus the drift of time) of their share, not always the nearest integer, but over many short
stages they average to the weights. Starting afresh would give every domain of less than half a row
in a stage nothing, in each of them.

Legend: B rows of a batch, K domains, P draws around a range of places.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Mixture weights that hold from a step until the next stage."""

    start: int
    """First step."""
    weights: tuple[float, ...]
    """Share of the rows for each domain, in the order of the store; divided by their sum."""

    def __post_init__(self) -> None:
        weights = tuple(float(weight) for weight in self.weights)
        if self.start < 0:
            raise ValueError(f"a stage starts at step {self.start}: start it at 0 or later")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise ValueError(
                f"the weights from step {self.start} are {weights}: give finite numbers, none negative, one above 0"
            )
        object.__setattr__(self, "weights", _normalised(weights))


def _normalised(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Weights with a sum that rounds to exactly 1. Such weights stay as they are, bit for bit, so that a
    stage read back from a file draws the same rows."""
    if math.fsum(weights) == 1.0:
        return weights
    largest = max(weights)  # dividing by it first keeps the sum from overflowing
    total = math.fsum(weight / largest for weight in weights)
    shares = [weight / largest / total for weight in weights]
    shares[weights.index(largest)] += math.fsum([1.0, *(-share for share in shares)])
    return tuple(shares)


class _Draws:
    """The endless merge of the domains' draws in one stage; places and numbers of draws count from 0."""

    def __init__(self, weights_K: np.ndarray, phase_K: np.ndarray) -> None:
        """Takes weights of sum 1 and, in [0, 1], the share of a row that each domain lacks for its first draw."""
        self._weights_K, self._phase_K = weights_K, phase_K
        self._drawn_K = weights_K > 0
        self._lead = float(phase_K[self._drawn_K].sum())

    def between(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain and number of the draw at each place in [begin, end): two int64 [end - begin]."""
        before_K, domain_P, number_P, _ = self._around(begin, end)
        first = begin - int(before_K.sum())
        return domain_P[first : first + end - begin], number_P[first : first + end - begin]

    def until(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws of each domain in [0, end), end > 0, and the phases with which a stage that starts there goes on."""
        before_K, domain_P, _, time_P = self._around(end - 1, end)
        n = end - int(before_K.sum())
        count_K = before_K + np.bincount(domain_P[:n], minlength=len(before_K))
        return count_K, np.clip(count_K + self._phase_K - time_P[n - 1] * self._weights_K, 0.0, 1.0)

    def _around(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The merge over a span of time that covers [begin, end), and the draws of each domain before it.

        Up to time t there are more than t - sum(phase) draws, and at most K more than that. The bounds below
        leave one draw of margin on either side, so that a count that rounding makes one too low or high moves
        only draws outside [begin, end): places come from the sorted times alone.
        """
        before_K = self._count(begin + self._lead - np.count_nonzero(self._drawn_K) - 1)
        n_K = self._count(end + self._lead + 1) - before_K
        n_before_K = np.cumsum(n_K) - n_K
        domain_P = np.repeat(np.arange(len(n_K)), n_K)
        number_P = np.arange(len(domain_P)) + np.repeat(before_K - n_before_K, n_K)
        time_P = self._time(domain_P, number_P)
        order_P = np.argsort(time_P, kind="stable")  # ties go to the lower domain
        assert before_K.sum() <= begin and before_K.sum() + len(order_P) >= end
        return before_K, domain_P[order_P], number_P[order_P], time_P[order_P]

    def _time(self, domain: np.ndarray, number: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # a weight near the smallest float: never
            return (number + self._phase_K[domain]) / self._weights_K[domain]

    def _count(self, time: float) -> np.ndarray:
        """Draws of each domain up to a time, to rounding: int64 [K]."""
        count_K = np.floor(time * self._weights_K - self._phase_K).astype(np.int64) + 1
        return np.where(self._drawn_K, np.maximum(count_K, 0), 0)


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A stage in its place: its draws, and how many rows of each domain were drawn before it."""

    stage: Stage
    draws: _Draws
    drawn_K: np.ndarray


class Schedule:
    """Stages in their order, which can only grow at the end, and what they draw: no tokens needed."""

    def __init__(self, stages: Sequence[Stage], *, n_domains: int, batch_rows: int) -> None:
        """Plans global batches of `batch_rows` rows from `n_domains` domains.

        Raises:
          ValueError: the first stage is not at step 0, starts do not increase, or a stage has another number
            of weights.
        """
        if not stages or stages[0].start != 0:
            raise ValueError(
                f"the stages start at steps {[stage.start for stage in stages]}: start the first at 0"
            )
        self.n_domains, self.batch_rows = n_domains, batch_rows
        phase_K = (np.arange(1, n_domains + 1) * _GOLDEN) % 1.0
        self._segments = [self._segment(stages[0], phase_K, np.zeros(n_domains, np.int64))]
        for stage in stages[1:]:
            self._segments.append(self._after(self._segments[-1], stage))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, to be saved: a schedule made of them again draws the same."""
        return tuple(segment.stage for segment in self._segments)

    def start(self, step: int) -> int:
        """First step of the stage that `step` is in."""
        return self._at(step).stage.start

    def weights(self, step: int) -> tuple[float, ...]:
        """What `step` is drawn with."""
        return self._at(step).stage.weights

    def append(self, stage: Stage) -> Schedule:
        """This schedule with one more stage. Raises `ValueError` where the stage does not fit."""
        longer = copy.copy(self)
        longer._segments = [*self._segments, self._after(self._segments[-1], stage)]
        return longer

    def _after(self, last: _Segment, stage: Stage) -> _Segment:
        if stage.start <= last.stage.start:
            raise ValueError(
                f"a stage at step {stage.start} follows one at step {last.stage.start}: starts must increase"
            )
        count_K, phase_K = last.draws.until((stage.start - last.stage.start) * self.batch_rows)
        return self._segment(stage, phase_K, last.drawn_K + count_K)

    def _segment(self, stage: Stage, phase_K: np.ndarray, drawn_K: np.ndarray) -> _Segment:
        if len(stage.weights) != self.n_domains:
            raise ValueError(
                f"the stage at step {stage.start} has {len(stage.weights)} weights: give one for each of "
                f"the {self.n_domains} domains"
            )
        return _Segment(stage=stage, draws=_Draws(np.array(stage.weights), phase_K), drawn_K=drawn_K)

    def _at(self, step: int) -> _Segment:
        return self._segments[bisect_right(self._segments, step, key=lambda segment: segment.stage.start) - 1]

    def cursors(self, step: int) -> np.ndarray:
        """Rows of each domain that all steps before `step` draw: int64 [K]."""
        segment = self._at(step)
        if step == segment.stage.start:
            return segment.drawn_K.copy()
        return segment.drawn_K + segment.draws.until((step - segment.stage.start) * self.batch_rows)[0]

    def draws(self, step: int, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """What the global batches of `n_steps` steps from `step` draw under the weights of `step`.

        Returns:
          The domain of each row, and how many rows were drawn from it before since step 0: two int64 [B n_steps].
        """
        segment = self._at(step)
        place = (step - segment.stage.start) * self.batch_rows
        domain_B, number_B = segment.draws.between(place, place + n_steps * self.batch_rows)
        return domain_B, segment.drawn_K[domain_B] + number_B
