"""Which law predicts losses of mixtures best, how fast is it fitted, and how many runs does it take?

    python benchmarks/laws.py TABLE [TABLE ...] [--held-out TABLE] [--sizes 8 16 32]

Tables in the schema of `jaxprune mix fit`. Every fourth mixture is held out, at the number of tokens that most runs
reached; with `--sizes` the rest is thinned to so many mixtures, three times each. Beside our laws, in the same run:

- BiMix as the paper reads: `scipy.optimize.curve_fit` (trust region reflective) on losses, five coefficients,
- data mixing laws with 6,000 random starts a target, as their program has it, of which 60 are followed here
  (their L-BFGS on the sum of Huber losses; `--starts` takes more),
- RegMix: LightGBM with 1,000 rounds, stopped on a validation part of its own.

`--threads` fits the combined law to each table instead, with BLAS on one thread (as it is) and on all, on the machine as it
is and beside a process for each core that keeps it in use.

Prints R2, mean relative error and rank correlation, means over targets, and seconds for all targets.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import numpy as np
import scipy
from scipy.optimize import curve_fit, minimize

from jaxprune.mix.compare import errors
from jaxprune.mix.laws import LAWS, BiMix
from jaxprune.mix.laws.bimix import BiMixForm
from jaxprune.mix.laws.combined import Combined
from jaxprune.mix.laws.law import FittedLaw, Law, one_target
from jaxprune.mix.table import MixtureTable

_DELTA = 0.02  # of the peer's Huber loss, on losses


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("tables", nargs="*")
    parser.add_argument("--held-out", help="mixtures to test the only table on")
    parser.add_argument("--sizes", type=int, nargs="+", default=[])
    parser.add_argument("--starts", type=int, default=60)
    parser.add_argument(
        "--laws", nargs="+", default=[name for name in LAWS if name not in ("power", "joint")]
    )
    parser.add_argument("--threads", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that overflow on the way
    print(f"scipy {scipy.__version__}, numpy {np.__version__}, {platform.machine()}")
    if arguments.threads:
        for name in arguments.tables:
            time_threads(name)
        return
    time_bimix()
    laws = {name: LAWS[name].fit for name in arguments.laws} | {
        "peer: BiMix by curve_fit": lambda table: CurveFit().fit(table),
        f"peer: data mixing laws, {arguments.starts} starts": lambda table: ManyStarts(
            starts=arguments.starts
        ).fit(table),
    }
    for name in arguments.tables:
        table = MixtureTable.read(name)
        held_out = MixtureTable.read(arguments.held_out) if arguments.held_out else None
        end = table.end()
        fit, test = (end, held_out) if held_out is not None else end.split()
        print(
            f"\n{name}: {fit.n_mixtures} mixtures fitted, {test.n_mixtures} held out, {len(table.targets)} targets"
        )
        for size in [*arguments.sizes, fit.n_mixtures]:
            if size <= fit.n_mixtures:
                report(fit, test, size, laws)


def report(
    fit: MixtureTable, test: MixtureTable, size: int, laws: dict[str, Callable[[MixtureTable], FittedLaw]]
) -> None:
    """A line for each law, fitted to `size` runs: means over draws of them."""
    draws = 1 if size == fit.n_mixtures else 3
    print(f"| {size} runs | R2 | error % | rank | R2, mixed domains | error %, mixed domains | seconds |")
    own = [e for e, name in enumerate(test.targets) if name.lower() in {d.lower() for d in test.domains}]
    for name, make in laws.items():
        found = []
        for draw in range(draws):
            rows = (
                np.sort(np.random.default_rng(draw).permutation(len(fit))[:size])
                if draws > 1
                else np.arange(len(fit))
            )
            begin = time.perf_counter()
            try:
                fitted = make(fit.rows(rows))
            except ValueError as error:
                print(f"| {name} | {str(error)[:60]} |")
                break
            seconds = time.perf_counter() - begin
            e = errors(fitted, test)
            means = [float(np.nanmean(v)) for v in (e.r2_E, 100 * e.error_E, e.rank_E)]
            means += [float(np.nanmean(v[own])) if own else np.nan for v in (e.r2_E, 100 * e.error_E)]
            found.append([*means, seconds])
        else:
            r2, error, rank, own_r2, own_error, seconds = np.mean(found, axis=0)
            print(
                f"| {name} | {r2:.3f} | {error:.2f} | {rank:.3f} | {own_r2:.3f} | {own_error:.2f} | {seconds:.2f} |",
                flush=True,
            )


def time_threads(name: str) -> None:
    """A line for each load and number of threads: seconds to fit the combined law, and processor seconds."""
    table = MixtureTable.read(name).end()
    print(
        f"\n{name}: {table.n_mixtures} mixtures, {len(table.targets)} targets\n| cores | BLAS | s | processor s |"
    )
    for n_busy in (0, os.cpu_count() or 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            for many in (False, True):
                begin, processor = time.perf_counter(), time.process_time()
                with patch("jaxprune.mix.threads._blas", _Unlimited) if many else nullcontext():
                    Combined().fit(table)
                print(
                    f"| {'in use' if busy else 'free'} | {'all threads' if many else 'one thread'} "
                    f"| {time.perf_counter() - begin:.1f} | {time.process_time() - processor:.1f} |",
                    flush=True,
                )
        finally:
            for process in busy:
                process.kill()


class _Unlimited:
    """BLAS as it is without `one_thread`."""

    def limit(self, *, limits: int) -> AbstractContextManager[None]:
        return nullcontext()


def time_bimix() -> None:
    """60 mixtures x 10 checkpoints x 7 domains, planted: seconds of our fit and of the literal one."""
    rng = np.random.default_rng(0)
    weights_RK = np.repeat(rng.dirichlet(np.ones(7), 60) * 0.93 + 0.01, 10, axis=0)
    tokens_R = np.tile(np.linspace(0.1, 1, 10), 60)
    alpha_K, c_K = np.linspace(0.02, 0.1, 7), np.linspace(2.0, 3.5, 7)
    truth_RK = weights_RK**-alpha_K * (0.1 * tokens_R[:, None] ** -0.7 + c_K)
    loss_RK = truth_RK + 0.003 * rng.standard_normal(truth_RK.shape)
    names, runs = [f"domain{k}" for k in range(7)], [run for run in range(60) for _ in range(10)]
    table = MixtureTable.from_arrays(
        weights_RK,
        loss_RK,
        tokens_R=tokens_R,
        run_R=runs,
        domains=names,
        targets=names,
    )
    fit, test = table.split()
    for name, law in (("ours", BiMix()), ("peer, curve_fit", CurveFit())):
        taken = []
        for _ in range(5):
            begin = time.perf_counter()
            fitted = law.fit(fit)
            taken.append(time.perf_counter() - begin)
        error = float(np.nanmean(errors(fitted, test).error_E))
        print(
            f"BiMix, 45 of 60 mixtures x 10 checkpoints x 7 domains, {name}: {min(taken):.2f} s, held-out error {error:.3%}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveFit(Law):
    """BiMix as its paper reads: five coefficients, squared residuals of losses, SciPy's defaults; zeros are left out."""

    name = "bimix by curve_fit"
    source = "2405.14908"

    def fit(self, table: MixtureTable) -> FittedLaw:
        return FittedCurves(self, table)


class FittedCurves(FittedLaw):
    def __init__(self, law: Law, table: MixtureTable) -> None:
        super().__init__(law, table)
        self.curves = [self._fit(one_target(table, e)) for e in range(len(table.targets))]

    def _fit(self, table: MixtureTable) -> tuple[int, np.ndarray]:
        found = []
        for form in BiMix().forms(table):
            assert isinstance(form, BiMixForm)
            r_N, s_N, loss_N = (
                table.weights_RK[:, form.domain],
                table.tokens_R / table.tokens_R.max(),
                table.loss_RE[:, 0],
            )
            used_N = r_N > 0
            start = [1, 0.1, 0.1, 0.5, loss_N.mean()]
            try:
                p, _ = curve_fit(
                    _bimix, (r_N[used_N], s_N[used_N]), loss_N[used_N], p0=start, method="trf", maxfev=5000
                )
            except RuntimeError:
                p = np.array([1, 0, 0, 1, loss_N.mean()])
            cost = float(((_bimix((r_N[used_N], s_N[used_N]), *p) - loss_N[used_N]) ** 2).mean())
            found.append((cost, form.domain, p))
        _, domain, p = min(found, key=lambda one: one[0])
        return domain, p

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        s_N = tokens_N / self.table.tokens_R.max()
        losses = [_bimix((np.maximum(weights_NK[:, domain], 1e-12), s_N), *p) for domain, p in self.curves]
        return np.stack(losses, axis=1)


def _bimix(at, a, alpha, b, beta, c):
    r_N, s_N = at
    return a / r_N**alpha * (b / s_N**beta + c)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManyStarts(Law):
    """L = c + k exp(t . r), Huber on losses, the best of many random starts followed by L-BFGS (2403.16952)."""

    name = "data mixing laws, many starts"
    source = "2403.16952"
    starts: int

    def fit(self, table: MixtureTable) -> FittedLaw:
        return FittedStarts(self, table)


class FittedStarts(FittedLaw):
    law: ManyStarts

    def __init__(self, law: ManyStarts, table: MixtureTable) -> None:
        super().__init__(law, table)
        self.theta_EP = np.stack(
            [self._fit(one_target(table, e), np.random.default_rng(e)) for e in range(len(table.targets))]
        )

    def _fit(self, table: MixtureTable, rng: np.random.Generator) -> np.ndarray:
        weights_NK, loss_N = table.weights_RK, table.loss_RE[:, 0]

        def value(theta_P: np.ndarray) -> tuple[float, np.ndarray]:
            floor, mixed_N = np.exp(theta_P[0]), np.exp(np.minimum(theta_P[1] + weights_NK @ theta_P[2:], 50))
            residual_N = floor + mixed_N - loss_N
            slope_N = np.clip(residual_N, -_DELTA, _DELTA)
            huber_N = np.where(
                np.abs(residual_N) <= _DELTA, residual_N**2 / 2, _DELTA * (np.abs(residual_N) - _DELTA / 2)
            )
            gradient = np.concatenate(
                [[(slope_N * floor).sum(), slope_N @ mixed_N], (slope_N * mixed_N) @ weights_NK]
            )
            return float(huber_N.sum()), gradient

        starts = [
            np.concatenate(
                [[rng.uniform(-2, 1.5), rng.uniform(-10, 1)], rng.uniform(-1, 0.1, weights_NK.shape[1])]
            )
            for _ in range(self.law.starts)
        ]
        found = [
            minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}) for start in starts
        ]
        return min(found, key=lambda one: one.fun).x

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        return np.exp(self.theta_EP[:, 0]) + np.exp(self.theta_EP[:, 1] + weights_NK @ self.theta_EP[:, 2:].T)


if __name__ == "__main__":
    main()
