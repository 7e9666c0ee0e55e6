"""The commands `mix fit`, `mix optimum` and `mix compare`: laws on a table of runs, from a swarm or from anywhere."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxprune.artifact import Workdir, require, write_json
from jaxprune.config import Config
from jaxprune.config.mix import MANY_EPOCHS
from jaxprune.data.store import TokenStore
from jaxprune.mix.compare import Comparison, Errors, compare
from jaxprune.mix.laws import LAWS, FittedLaw
from jaxprune.mix.laws.parametric import FittedParametric, ParametricLaw
from jaxprune.mix.optimum import Optimum, check_pairs
from jaxprune.mix.table import MixtureTable
from jaxprune.mix.weights import kept_tokens
from jaxprune.progress import say
from jaxprune.prune.select import selection_of
from jaxprune.settings import load

_PAIRS = {
    "natural": "the corpus's proportions, or tokens: DOMAIN NUMBER ... (default: of the CONFIG)",
    "available": "tokens there are: DOMAIN NUMBER ... (default: of the CONFIG)",
    "floors": "least proportions: DOMAIN NUMBER ...",
    "evaluation": "weights of targets in the mean loss: TARGET NUMBER ... (default: all alike)",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A table, and what a config knows of the corpus and the run that is planned."""

    table: MixtureTable
    kept: dict[str, float] | None  # tokens of each domain that may be trained on
    tokens: float | None  # of the final run


def main(command: str, arguments: Sequence[str], description: str) -> int:
    """Runs `mix <command> <arguments>`; returns the exit status.

    Raises:
      ValueError, ArtifactMissing: one line on what is wrong.
    """
    options, overrides = _parser(command, description).parse_known_args(list(arguments))
    if options.out is not None and not options.out.resolve().parent.is_dir():
        raise ValueError(
            f"--out is {options.out}: there is no folder {options.out.resolve().parent}, make it first"
        )
    source = _source(options.table, options.workdir, overrides)
    for note in source.table.notes:
        say(f"{options.table}: {note}")
    result = {"fit": _fit, "optimum": _optimum, "compare": _compare}[command](options, source)
    if options.out is not None:
        write_json(options.out, result)
        say(f"written to {options.out}")
    return 0


def _fit(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    _say_size(source.table)
    along = isinstance(LAWS[options.law], ParametricLaw)
    fitted = _fitted(options.law, source.table if along else source.table.end())
    coefficients = fitted.coefficients(n_resamples=options.resamples)
    table = Table(
        "target", "coefficient", "value", "95 % interval", title=f"{options.law} ({fitted.law.source})"
    )
    for one in coefficients:
        interval = "" if np.isnan(one.low) else f"{one.low:.4g} to {one.high:.4g}"
        table.add_row(one.target, escape(one.name), f"{one.value:.4g}", interval)
    if coefficients:
        _print(table)
    else:
        say(f"{options.law} has no coefficients to show")
    return {
        "law": options.law,
        "coefficients": [_plain(dataclasses.asdict(one)) for one in coefficients],
        "notes": list(fitted.notes),
        "fits": _diagnosed(fitted),
    }


def _diagnosed(fitted: FittedLaw) -> dict[str, Any]:
    """What is to be known of the fit of each target."""
    if not isinstance(fitted, FittedParametric):
        return {}
    return {
        target: {
            "huber_delta": fitted.law.delta,
            "cost": fit.solution.cost,
            "rows_left_out": fit.n_dropped,
            "condition": fit.solution.condition if np.isfinite(fit.solution.condition) else None,
        }
        for target, fit in zip(fitted.targets, fitted.fits, strict=True)
    }


def _optimum(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    bounds = _bounds(options, source)
    second_name = options.second or ("exponential" if options.law == "reciprocal" else "reciprocal")
    # At the end of the runs laws predict best; only other tokens than theirs need the way there.
    table = source.table if options.tokens is not None or options.law == "joint" else source.table.end()
    fitted = _fitted(options.law, table)
    second = _fitted(second_name, table) if second_name != "none" else None
    best = fitted.optimum(second=second, **bounds)
    _show_optimum(best, bounds["natural"])
    return dataclasses.asdict(best)


def _bounds(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    """The arguments of the optimum, checked as far as they can be before the minutes that a fit may take."""
    table = source.table
    if options.second == options.law:
        raise ValueError(f"--second is {options.law}, as --law: name a law of another kind, or none")
    pairs = {name: _pairs(getattr(options, name), f"--{name}") for name in _PAIRS}
    for name, given in pairs.items():
        check_pairs(given, f"--{name}", table.targets if name == "evaluation" else table.domains)
    for name in ("tokens", "params", "epochs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"--{name} is {value:g}: give a finite number above 0")
    if options.kl is not None and not 0 <= options.kl < np.inf:
        raise ValueError(f"--kl is {options.kl:g}: give a finite number, 0 or more")
    bounds = {
        "natural": pairs["natural"] or source.kept,
        "evaluation": pairs["evaluation"],
        "floors": pairs["floors"],
        "available": pairs["available"] or source.kept,
        "epochs": options.epochs,
        "tokens": source.tokens if options.tokens is None else options.tokens,
        "params": options.params,
        "extrapolate": options.extrapolate,
    }
    return bounds if options.kl is None else bounds | {"kl": options.kl}


def _compare(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    unknown = [name for name in options.laws if name not in LAWS]
    if unknown:
        raise ValueError(f"there is no law {unknown[0]}: the laws are {', '.join(LAWS)}")
    held_out = None if options.held_out is None else MixtureTable.read(options.held_out)
    laws = {name: LAWS[name] for name in options.laws or LAWS if name != "power"}
    found = compare(source.table, laws, held_out, lambda name: say(f"{name}: fitting"))
    for name, why in found.failed.items():
        say(f"{name}: {why}")
    _show_comparison(found)
    return _plain(dataclasses.asdict(found))


def _say_size(table: MixtureTable) -> None:
    n_runs, k = len(table.runs), len(table.domains)
    say(
        f"{n_runs} runs of {table.n_mixtures} mixtures, {len(table)} rows, {k} domains, {len(table.targets)} targets: "
        f"{n_runs / (k + 1):.1f} runs for each of {k + 1} coefficients (3 or more tell domains apart)"
    )


def _fitted(name: str, table: MixtureTable) -> FittedLaw:
    say(f"{name}: fitting {len(table)} rows")
    fitted = LAWS[name].fit(table)
    for note in fitted.notes:
        say(f"{name}: {note}")
    return fitted


def _source(name: str, workdir: str | None, overrides: list[str]) -> Source:
    """A table file, or the table of a config's swarm with what the config, with its overrides, knows."""
    if not name.endswith(".py"):
        if overrides:
            raise ValueError(
                f"{overrides[0]} is no option of this command, and the table {name} has no settings: see --help"
            )
        return Source(MixtureTable.read(name).informative(), None, None)
    config = load(name, overrides)
    place = Workdir(Path(workdir or Path("runs") / config.name))
    require(place.table, f"jaxprune mix swarm {name}")
    table = MixtureTable.read(place.table / "table.csv").informative()
    kept = {domain: tokens for domain, tokens in _kept(config, place).items() if domain in table.domains}
    return Source(table, kept, float(config.final.trained_tokens))


def _kept(config: Config, workdir: Workdir) -> dict[str, float]:
    """Tokens of each domain in the documents that the proxies stand for."""
    store = TokenStore(workdir.prepare / "tokens")
    summary = workdir.select / "summary.json"
    if summary.is_file():
        selections = json.loads(summary.read_text())
        name = selection_of(config.proxy_arm, config.seeds[0])
        if name not in selections:
            raise ValueError(
                f"the artifacts in {workdir.root} have no selection {name}, so that they are of other settings: name "
                f"{workdir.table / 'table.csv'} in place of the CONFIG"
            )
        kept = kept_tokens(selections[name], store.domains)
    else:
        from jaxprune.mix.proxies import pool

        kept = dict(zip(store.domains, pool(config, workdir, store).natural_K.tolist(), strict=True))
    return {domain: float(tokens) for domain, tokens in kept.items()}


def _show_optimum(best: Optimum, natural: dict[str, float] | None) -> None:
    total = sum(natural.values()) if natural else 0.0
    weights = Table(
        "domain",
        "weight",
        "natural",
        "bound",
        title=f"optimum of {best.law}" + (f" at {best.tokens:.3g} tokens" if best.tokens > 1 else ""),
    )
    for domain, weight in best.weights.items():
        own = f"{natural.get(domain, 0) / total:.4f}" if natural else ""
        weights.add_row(domain, f"{weight:.4f}", own, best.bounded.get(domain, ""))
    _print(weights)
    laws = list(next(iter(best.compared.values())))
    losses = Table("mixture", *(f"{law}, nats" for law in laws), title="predicted mean loss")
    for mixture, values in best.compared.items():
        losses.add_row(mixture, *(f"{values[law]:.4f}" for law in laws))
    _print(losses)
    for note in best.notes:
        say(note)


def _show_comparison(found: Comparison) -> None:
    shown = Table(
        "law", "R2", "error %", "95 % interval", "rank", "R2 along training",
        title=f"{found.n_held_out} held-out mixtures, {found.n_fitted} fitted, at {found.tokens:.3g} tokens; means over {len(found.targets)} targets",
    )  # fmt: skip
    for name, errors in sorted(found.at_end.items(), key=lambda item: np.nanmean(item[1].error_E)):
        along = found.along.get(name)
        shown.add_row(name, *_mean(errors), "" if along is None else f"{np.nanmean(along.r2_E):.4f}")
    _print(shown)
    if found.last is not None:
        say(
            f"the end of each run, by a power law of its earlier checkpoints: error {np.nanmean(found.last.error_E):.2%}"
        )


def _mean(errors: Errors) -> tuple[str, str, str, str]:
    return (
        f"{np.nanmean(errors.r2_E):.4f}",
        f"{100 * np.nanmean(errors.error_E):.3f}",
        f"{100 * errors.error_low:.3f} to {100 * errors.error_high:.3f}",
        f"{np.nanmean(errors.rank_E):.4f}",
    )


def _print(table: Table) -> None:
    Console(width=None, highlight=False).print(table)


def _pairs(words: list[str] | None, option: str) -> dict[str, float] | None:
    if not words:
        return None
    try:
        if len(words) % 2:
            raise ValueError
        return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"{option} is {' '.join(words)}: write pairs of a name and a number") from None


def _plain(data: Any) -> Any:
    """JSON of arrays, without NaN."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, np.ndarray)):
        return [_plain(value) for value in data]
    if isinstance(data, (float, np.floating)):
        return float(data) if np.isfinite(data) else None
    return data


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"jaxprune mix {command}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "table",
        metavar="TABLE",
        help="a CSV or Parquet file with columns w_<domain>, loss_<target>, run_id, tokens; or a CONFIG whose swarm has run, with the settings it had: --SETTING VALUE ...",
    )
    parser.add_argument("--workdir", metavar="DIR", help="of the CONFIG (default: runs/NAME OF THE CONFIG)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON too")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    {"fit": _add_fit, "optimum": _add_optimum, "compare": _add_compare}[command](parser)
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--law", choices=list(LAWS), default="combined", help="default: combined")
    parser.add_argument(
        "--resamples", type=int, default=100, metavar="N", help="of the bootstrap over runs (100)"
    )


def _add_optimum(parser: argparse.ArgumentParser) -> None:
    of_mixtures = [name for name in LAWS if name != "power"]
    parser.add_argument("--law", choices=of_mixtures, default="combined", help="default: combined")
    parser.add_argument(
        "--second", choices=["none", *of_mixtures], help="law that is asked too (reciprocal, or exponential)"
    )
    parser.add_argument(
        "--tokens",
        type=float,
        metavar="N",
        help="of the run that is planned (default: of the CONFIG, or the table's most)",
    )
    parser.add_argument(
        "--params", type=float, metavar="N", help="of the model that is planned (the table's most)"
    )
    for option, text in _PAIRS.items():
        parser.add_argument(f"--{option}", nargs="+", metavar="PAIR", help=text)
    parser.add_argument(
        "--epochs", type=float, default=MANY_EPOCHS, help=f"most repetitions of a domain ({MANY_EPOCHS:g})"
    )
    parser.add_argument(
        "--kl",
        type=float,
        help="weight of the divergence from the natural mixture, nats (0; loglinear: 0.05)",
    )
    parser.add_argument(
        "--extrapolate", action="store_true", help="leave the range of proportions of the runs"
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--held-out", metavar="TABLE", help="mixtures to test on (default: every fourth of the table's)"
    )
    parser.add_argument(
        "--laws", nargs="+", default=[], metavar="LAW", help=f"of {', '.join(LAWS)} (default: all)"
    )
