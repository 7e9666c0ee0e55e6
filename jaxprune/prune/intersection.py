"""What several rankings keep together: the same band of each, as wide as it takes for a share to survive.

Source: the prior filter (arXiv 2509.18577, its code), which keeps what is inside the central bands of two
signals and widens both until half survives. Here: a band of width t, in running weight, is low (0, t],
medium (W/2 - t/2, W/2 + t/2] or high (W - t, W]; a document comes in at the least t at which its whole
place (start, end] is inside the band of every signal. Documents are kept in the order in which they come
in, those that come in together by their hash, up to the one that reaches the share of W.

Legend: n documents of a group that were fetched, W weight of the group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprune.prune.cuts import FIRST, LAST, Cuts, Near, Sides, Zone, Zones


@dataclass(frozen=True)
class Search:
    """For `cuts.find`: where the cuts of all signals are."""

    criterion: str
    n_keys: int
    sides: Sides
    target: Callable[[str, int], int]  # of a group and its weight W: the weight that is kept

    def guess(
        self, group: str, weight: int, sample: Near, slack: float
    ) -> dict[tuple[int, str], tuple[float, float]]:
        """Between which running weights the cuts are, from the width at which a share of the sample survives."""
        whole = Zone(FIRST, LAST)
        width_n = self._widths({place: whole for place in self._places}, sample)
        order_n = np.argsort(width_n)
        reached_n = np.cumsum(sample.weight_n[order_n])
        target = self.target(group, weight)
        ends = np.searchsorted(reached_n, [target - slack, target + slack])
        widths = np.append(width_n[order_n], weight)[ends]
        between = {side: sorted(self._edge(side, width, weight) for width in widths) for side in self.sides}
        return {(signal, side): (between[side][0], between[side][-1]) for signal, side in self._places}

    def settle(self, group: str, zones: Zones, near: Near) -> Cuts | None:
        """The cuts, where all documents at which they can be are known."""
        target = self.target(group, near.weight)
        if target == 0:
            return {place: FIRST for place in zones} | {(0, "upto"): FIRST}
        width_n = self._widths(zones, near)
        candidates = np.flatnonzero(np.isfinite(width_n))
        order = candidates[np.lexsort([of[candidates] for of in (*near.ties, width_n)])]
        reached = near.certain + np.cumsum(near.weight_n[order])
        if not len(order) or near.certain >= target or reached[-1] < target:
            return None
        n_kept = int(np.searchsorted(reached, target)) + 1
        width = width_n[order[n_kept - 1]]
        is_kept_n = np.zeros(len(width_n), bool)
        is_kept_n[order[:n_kept]] = True
        settled = {}
        for place, zone in zones.items():
            signal, side = place
            found, start_n, end_n = near.inside(signal, zone)
            after = end_n[-1] if len(found) else zone.before
            surely, surely_not = (zone.before, after) if side == "upto" else (after, zone.before)
            if (
                not self._width(side, surely, near.weight)
                <= width
                <= self._width(side, surely_not, near.weight)
            ):
                return None
            own_n = self._width(side, end_n if side == "upto" else start_n, near.weight)
            # The document at the edge itself is in if it is kept; nothing else stands there.
            is_in = (own_n < width) | ((own_n == width) & is_kept_n[found])
            n_before = int(is_in.sum()) if side == "upto" else int((~is_in).sum())
            settled[place] = near.cut(signal, found, n_before - 1) if n_before else zone.low
        return settled

    @property
    def _places(self) -> list[tuple[int, str]]:
        return [(signal, side) for signal in range(self.n_keys) for side in self.sides]

    def _widths(self, zones: Zones, near: Near) -> np.ndarray:
        """The width at which each document comes in; infinite for those that stay out, or are surely inside."""
        width_n = np.full(len(near.hash_n), -np.inf)
        for (signal, side), zone in zones.items():
            found, start_n, end_n = near.inside(signal, zone)
            order_n = near.order_Sn[signal]
            mine_n = np.full(len(order_n), -np.inf)
            out = ~near.behind(signal, zone.low) if side == "below" else near.behind(signal, zone.high)
            mine_n[out] = np.inf
            mine_n[found] = self._width(side, end_n if side == "upto" else start_n, near.weight)
            width_n = np.maximum(width_n, mine_n)
        return width_n

    def _width(self, side: str, position: Any, weight: int) -> Any:
        """The width of the band that reaches to a running weight on one side."""
        if side == "upto":
            return position if self.criterion == "low" else 2 * position - weight
        return weight - position if self.criterion == "high" else weight - 2 * position

    def _edge(self, side: str, width: float, weight: int) -> float:
        """The running weight at which a band of this width begins or ends."""
        if side == "upto":
            return width if self.criterion == "low" else (weight + width) / 2
        return weight - width if self.criterion == "high" else (weight - width) / 2
