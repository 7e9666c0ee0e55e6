"""The mixture: which rows of which domains each step trains on.

`schedule` says which domain stands at each place of the training stream, `rows` which tokens its next
row holds. Together they are one random-access source, a pure function of the step, the seed and the
stages, so that the whole position of a loader is one integer, for any number of hosts.

Legend: B rows of a batch, T positions, S = T + 1 tokens of a row, K domains, N kept documents.
"""

from __future__ import annotations

import copy

import numpy as np

from jaxprune.data.rows import Plan, Rows
from jaxprune.data.schedule import Schedule, Stage
from jaxprune.data.store import TokenStore

_STEPS = 2**31 - 1  # length of a source, which has no end of its own
_PLAN_ROWS = 4096  # rows of the global batches that are planned at once


class MixtureSource:
    """Batches of token rows: what this process trains on in each step. Picklable, never changed in place.

    Goes into `grain.MapDataset.source`; one element is the process's whole slice of a global batch,
    since Grain's cost is by element.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        *,
        context: int,
        batch_rows: int,
        stages: tuple[Stage, ...],
        seed: int,
        rows: np.ndarray | None = None,
    ) -> None:
        """Mixes rows of `context` + 1 tokens of the given documents.

        Args:
          store: the tokens.
          documents: numbers of the documents to train on, int [N].
          context: positions that a row trains (T).
          batch_rows: rows of the global batch, of all processes together.
          stages: weights over time; `append` adds more.
          seed: decides the order of documents and rows.
          rows: which rows of the global batch to hand out, int, ascending; None: all. The global batch does not
            depend on it.

        Raises:
          ValueError: the stages or documents are not valid, or a domain with a weight has too few tokens for a row.
        """
        self._local = np.arange(batch_rows) if rows is None else rows
        self.domains = store.domains
        self.schedule = Schedule(stages, n_domains=len(store.domains), batch_rows=batch_rows)
        self._rows = Rows(store, documents, context=context, seed=seed)
        self._plan_steps = max(1, _PLAN_ROWS // batch_rows)
        self._last_plan: tuple[int, Plan] | None = None
        for stage in stages:
            self._check_rows(stage)

    def __len__(self) -> int:
        """More steps than any run has: the source has no end."""
        return _STEPS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of step `index`: {"tokens_BS": int32, "domain_B": int32}."""
        if not 0 <= index < _STEPS:
            raise IndexError(f"step {index} is not in [0, {_STEPS})")
        begin, plan = self._planned(index)
        n_rows = len(self._local)
        rows = slice((index - begin) * n_rows, (index - begin + 1) * n_rows)
        return {"tokens_BS": self._rows.read(plan, rows), "domain_B": plan.domain_B[rows].astype(np.int32)}

    def _planned(self, step: int) -> tuple[int, Plan]:
        """The first step of a plan that covers `step`, and the plan.

        Planning a hundred steps costs little more than planning ten, so the last plan is kept. Plans grow with
        the age of their stage (1, 1, 2, 4, ... steps), for one that is new may end with the next step. They may
        reach beyond the end of their stage, where nobody reads them.
        """
        start = self.schedule.start(step)
        age = step - start
        n_steps = min(self._plan_steps, 1 << max(age.bit_length() - 1, 0))
        begin = start + age // n_steps * n_steps
        planned = self._last_plan
        if planned is None or planned[0] != begin:
            domain_B, draw_B = self.schedule.draws(begin, n_steps)
            mine = (slice(None), self._local)
            domain_B = domain_B.reshape(n_steps, -1)[mine].ravel()
            draw_B = draw_B.reshape(n_steps, -1)[mine].ravel()
            planned = self._last_plan = begin, self._rows.plan(domain_B, draw_B)
        return planned

    @property
    def n_rows_K(self) -> np.ndarray:
        """Rows of each domain, which one epoch of it draws: int64 [K]."""
        return self._rows.n_rows_K

    def append(self, stage: Stage) -> MixtureSource:
        """This source with one more stage, which shares its rows; raises `ValueError` where the stage does not fit."""
        longer = copy.copy(self)
        longer.schedule = self.schedule.append(stage)
        longer._last_plan = None
        self._check_rows(stage)
        return longer

    def cursors(self, step: int) -> np.ndarray:
        """Rows of each domain that all processes together have drawn before `step`: int64 [K]."""
        return self.schedule.cursors(step)

    def epochs(self, step: int) -> np.ndarray:
        """How often each domain has been drawn before `step`, in multiples of its rows: float64 [K]."""
        return self.cursors(step) / np.maximum(self.n_rows_K, 1)

    def _check_rows(self, stage: Stage) -> None:
        for domain, weight, n_rows, n_tokens in zip(
            self.domains, stage.weights, self.n_rows_K, self._rows.n_tokens_K, strict=True
        ):
            if weight > 0 and n_rows == 0:
                raise ValueError(
                    f"domain {domain} has weight {weight:g} but only {n_tokens} tokens, less than one row of "
                    f"{self._rows.context + 1}: set its weight to 0, keep more of its documents, or shorten model.context"
                )
