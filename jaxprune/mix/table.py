"""Tables of runs: mixture weights and training tokens in, losses out; what mixing laws are fitted to.

One row is one checkpoint of one run. The columns of a file or a dataframe: `run_id`, `w_<domain>` (proportions),
`loss_<target>` (nats per token) and, where known, `tokens` (trained on so far) and `params` (of the model).

Legend: R rows, K domains that are mixed, E targets whose loss was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

_MOST_RUNS = 0.8  # share of the runs that must have reached the end
ROUNDING = (
    0.01  # by which weights may miss the sum of one: published tables are rounded (RegMix: 0.996 to 1.004)
)


@dataclass(frozen=True, kw_only=True)
class MixtureTable:
    """Losses of runs on mixtures. Made by `read`, `from_frame` or `from_arrays`, which check what they are given.

    Attributes:
      domains, targets: names of the K domains and E targets.
      run_R: the run that a row belongs to.
      weights_RK: proportions, which sum to one.
      tokens_R: training tokens at the row; 1 where the source does not say.
      params_R: parameters of the model; 1 where the source does not say.
      loss_RE: nats per token; NaN where it was not measured.
      notes: what was mended or left out, a line each.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    run_R: np.ndarray
    weights_RK: np.ndarray
    tokens_R: np.ndarray
    params_R: np.ndarray
    loss_RE: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | str) -> MixtureTable:
        """A table from a CSV or Parquet file; raises ValueError as `from_frame`."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"there is no table {path}: name a CSV or Parquet file with columns w_<domain>, loss_<target>"
            )
        if path.suffix == ".parquet":
            return cls.from_frame(pq.read_table(path), str(path))
        text = pacsv.ConvertOptions(column_types={"run_id": pa.string()}, strings_can_be_null=True)
        try:
            return cls.from_frame(pacsv.read_csv(path, convert_options=text), str(path))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no CSV table: {str(error).splitlines()[0]}") from None

    @classmethod
    def from_frame(cls, frame: Any, name: str = "the table") -> MixtureTable:
        """A table from a dataframe: pyarrow, pandas, polars, or whatever speaks Arrow.

        Raises:
          ValueError: it is no dataframe, columns are missing or hold no numbers; or as `from_arrays`.
        """
        try:
            table = frame if isinstance(frame, pa.Table) else pa.table(frame)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} is of type {type(frame).__name__}, not a dataframe: {str(error).splitlines()[0]}; give pandas, polars or pyarrow"
            ) from None
        twice = [column for column in table.column_names if table.column_names.count(column) > 1]
        if twice:
            raise ValueError(f"{name} has two columns {twice[0]}: rename or delete one")
        domains = tuple(column[2:] for column in table.column_names if column.startswith("w_"))
        targets = tuple(column[5:] for column in table.column_names if column.startswith("loss_"))
        if not domains or not targets:
            missing = "w_<domain>" if not domains else "loss_<target>"
            raise ValueError(
                f"{name} has no column {missing}: its columns are {', '.join(table.column_names)}"
            )
        numbers = {
            column: _numbers(table, column, name) for column in table.column_names if column != "run_id"
        }
        n_rows = table.num_rows
        runs: list[Any] = list(range(n_rows))
        if "run_id" in table.column_names:
            runs = table["run_id"].to_pylist()
            if None in runs:
                row = next(row for row, run in enumerate(runs) if run is None)
                raise ValueError(f"{name}: row {row + 1} has no run_id: name its run")
        return cls.from_arrays(
            np.stack([numbers[f"w_{domain}"] for domain in domains], axis=1),
            np.stack([numbers[f"loss_{target}"] for target in targets], axis=1),
            tokens_R=numbers.get("tokens"),
            params_R=numbers.get("params"),
            run_R=runs,
            domains=domains,
            targets=targets,
            name=name,
        )

    @classmethod
    def from_arrays(
        cls,
        weights_RK: np.ndarray,
        loss_RE: np.ndarray,
        *,
        tokens_R: np.ndarray | None = None,
        params_R: np.ndarray | None = None,
        run_R: Sequence[Any] | None = None,
        domains: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        name: str = "the table",
    ) -> MixtureTable:
        """A table from arrays; without `run_R` every row is a run of its own.

        Weights that sum to one but for rounding are divided by their sum; rows further off, without any loss, or
        that repeat another are left out, with a note.

        Raises:
          ValueError: nothing is left, shapes differ, a weight is negative, a loss or a number of tokens is not
            above 0, or two rows of one run at the same tokens differ.
        """
        weights_RK, loss_RE = np.array(weights_RK, float), np.array(loss_RE, float)
        if weights_RK.ndim != 2 or loss_RE.ndim != 2 or len(weights_RK) != len(loss_RE):
            raise ValueError(
                f"{name}: weights of shape {weights_RK.shape} and losses of shape {loss_RE.shape} do not fit: give [R, K] and [R, E]"
            )
        n_rows, n_domains = weights_RK.shape
        named = {
            "domains": (domains, n_domains), "targets": (targets, loss_RE.shape[1]),
            "tokens_R": (tokens_R, n_rows), "params_R": (params_R, n_rows), "run_R": (run_R, n_rows),
        }  # fmt: skip
        for what, (given, length) in named.items():
            if given is not None and np.shape(given) != (length,):
                raise ValueError(f"{name}: {what} has shape {np.shape(given)}: give {length}, one each")
        table = cls(
            domains=tuple(f"domain{k}" for k in range(n_domains))
            if domains is None
            else tuple(map(str, domains)),
            targets=tuple(f"target{e}" for e in range(loss_RE.shape[1]))
            if targets is None
            else tuple(map(str, targets)),
            run_R=np.array([str(run) for run in (range(n_rows) if run_R is None else run_R)], object),
            weights_RK=weights_RK,
            tokens_R=np.ones(n_rows) if tokens_R is None else np.array(tokens_R, float),
            params_R=np.ones(n_rows) if params_R is None else np.array(params_R, float),
            loss_RE=loss_RE,
        )
        _check_values(table, name)
        return _without_repeats(_normalised(table, name), name)

    def __len__(self) -> int:
        return len(self.run_R)

    def rows(self, chosen: np.ndarray) -> MixtureTable:
        """The rows of a mask or of indices."""
        parts = {
            name: getattr(self, name)[chosen]
            for name in ("run_R", "weights_RK", "tokens_R", "params_R", "loss_RE")
        }
        return dataclasses.replace(self, **parts)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs, in the order in which they come."""
        return tuple(dict.fromkeys(self.run_R.tolist()))

    @property
    def mixture_R(self) -> np.ndarray:
        """The mixture of each row, counted in their order: int [R]."""
        return np.unique(self.weights_RK.round(6), axis=0, return_inverse=True)[1].ravel()

    @property
    def n_mixtures(self) -> int:
        """Mixtures that differ."""
        return int(self.mixture_R.max()) + 1

    @property
    def measured_E(self) -> np.ndarray:
        """Targets of which any loss was measured: bool [E]."""
        return np.asarray(np.isfinite(self.loss_RE).any(axis=0))

    def chosen_targets(self, chosen_E: np.ndarray) -> MixtureTable:
        """The targets of a mask."""
        names = tuple(name for name, is_chosen in zip(self.targets, chosen_E, strict=True) if is_chosen)
        return dataclasses.replace(self, targets=names, loss_RE=self.loss_RE[:, chosen_E])

    def informative(self) -> MixtureTable:
        """Without domains that no run draws from and targets that no run measured, which are named in the notes."""
        mixed_K, measured_E = np.asarray((self.weights_RK > 0).any(axis=0)), self.measured_E
        unmixed = [name for name, mixed in zip(self.domains, mixed_K, strict=True) if not mixed]
        unmeasured = [name for name, measured in zip(self.targets, measured_E, strict=True) if not measured]
        notes = [f"no run draws from {', '.join(unmixed)}"] if unmixed else []
        notes += [f"no loss of {', '.join(unmeasured)} was measured"] if unmeasured else []
        domains = tuple(name for name, mixed in zip(self.domains, mixed_K, strict=True) if mixed)
        left = dataclasses.replace(
            self, domains=domains, weights_RK=self.weights_RK[:, mixed_K], notes=(*self.notes, *notes)
        )
        return left.chosen_targets(measured_E)

    def last(self) -> MixtureTable:
        """The last checkpoint of each run."""
        ends = {str(self.run_R[row]): int(row) for row in np.argsort(self.tokens_R, kind="stable")}
        return self.rows(np.array([ends[run] for run in self.runs], int))

    def end(self) -> MixtureTable:
        """The rows at one number of tokens: the largest that four in five of all runs have reached and were measured at.

        Losses of different mixtures compare only at the same tokens; single runs that went on longer do not count.
        """
        tokens, n_runs = np.unique(self.tokens_R, return_counts=True)
        common = tokens[n_runs >= _MOST_RUNS * len(self.runs)]
        if len(common) == 0:
            raise ValueError(
                f"the {len(self.runs)} runs share no number of tokens (at most {n_runs.max()} of them): measure them at the same tokens"
            )
        return self.rows(self.tokens_R == common[-1])

    def thinned(self, n_rows: int) -> MixtureTable:
        """At most about `n_rows` rows: of each run its last checkpoint, and others evenly spaced before it."""
        if len(self) <= n_rows:
            return self
        each = max(n_rows // len(self.runs), 1)
        kept = []
        for run in self.runs:
            rows = np.flatnonzero(self.run_R == run)
            rows = rows[np.argsort(self.tokens_R[rows], kind="stable")]
            places = np.linspace(len(rows) - 1, 0, each).round().astype(int) if each > 1 else [len(rows) - 1]
            kept.append(rows[np.unique(places)])
        return self.rows(np.sort(np.concatenate(kept)))

    def split(self, of: int = 4, place: int = 2) -> tuple[MixtureTable, MixtureTable]:
        """Table to fit and held-out table: every `of`-th of the sorted mixtures, with all rows of its runs.

        Whole mixtures are held out: checkpoints of one mixture in both would leak (and so would its second seed).
        """
        held_out_R = self.mixture_R % of == place
        return self.rows(~held_out_R), self.rows(held_out_R)


def _numbers(table: pa.Table, column: str, name: str) -> np.ndarray:
    try:
        return table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        wanted = column.startswith(("w_", "loss_")) or column in ("tokens", "params")
        if wanted:
            raise ValueError(
                f"{name}: column {column} holds what is no number: mend it, or rename the column"
            ) from None
        return np.full(table.num_rows, np.nan)


def _check_values(table: MixtureTable, name: str) -> None:
    faults = (
        ("a weight", ~(table.weights_RK >= 0), "make weights 0 or more, and fill in those that are missing"),
        (
            "a loss",
            (table.loss_RE <= 0) | np.isinf(table.loss_RE),
            "give losses in nats per token, which are above 0; leave out what was not measured, or a run that diverged",
        ),
        (
            "tokens",
            ~((table.tokens_R > 0) & np.isfinite(table.tokens_R))[:, None],
            "give the training tokens of every row, or leave out the column",
        ),
        (
            "params",
            ~(table.params_R > 0)[:, None],
            "give the parameters of every row, or leave out the column",
        ),
    )
    for what, wrong, advice in faults:
        if wrong.any():
            row = int(np.flatnonzero(wrong.any(axis=1))[0])
            raise ValueError(
                f"{name}: {what} of run {table.run_R[row]} (row {row + 1}) is not valid: {advice}"
            )


def _normalised(table: MixtureTable, name: str) -> MixtureTable:
    total_R = table.weights_RK.sum(axis=1)
    off_R = np.abs(total_R - 1) > ROUNDING
    empty_R = ~np.isfinite(table.loss_RE).any(axis=1)
    notes = [
        f"run {run} is left out: its weights sum to {total:.4f}"
        for run, total in {r: t for r, t in zip(table.run_R[off_R], total_R[off_R], strict=True)}.items()
    ]
    if empty_R.any():
        notes.append(f"{empty_R.sum()} rows without any loss are left out")
    if ((np.abs(total_R - 1) > 1e-6) & ~off_R).any():
        notes.append("rounded weights were divided by their sum")
    kept_R = ~off_R & ~empty_R
    if not kept_R.any():
        raise ValueError(
            f"{name} has no row to fit: {notes[0] if notes else 'it is empty'}; weights must sum to one"
        )
    divided = dataclasses.replace(
        table, weights_RK=table.weights_RK / np.where(off_R, 1, total_R)[:, None], notes=tuple(notes)
    )
    return divided.rows(kept_R)


def _without_repeats(table: MixtureTable, name: str) -> MixtureTable:
    seen: dict[tuple[str, float], int] = {}
    kept = []
    for row, key in enumerate(zip(table.run_R.tolist(), table.tokens_R.tolist(), strict=True)):
        first = seen.setdefault(key, row)
        if first == row:
            kept.append(row)
        elif not all(
            np.array_equal(values[first], values[row], equal_nan=True)
            for values in (table.weights_RK, table.loss_RE)
        ):
            raise ValueError(
                f"{name}: run {key[0]} has two rows at {key[1]:g} tokens that differ: give their tokens, rename a run, or delete a row"
            )
    repeats = len(table) - len(kept)
    if not repeats:
        return table
    notes = (*table.notes, f"{repeats} repeated rows are left out")
    return dataclasses.replace(table.rows(np.array(kept)), notes=notes)
