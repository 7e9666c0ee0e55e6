"""`jaxprune compile`: whether a config fits a topology, and how fast it can be there at best."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxprune.artifact import Workdir
from jaxprune.config import Config, Run
from jaxprune.progress import say, waiting
from jaxprune.scale import compiler, topology
from jaxprune.scale.report import Report
from jaxprune.scale.topology import GIB, Topology

NAMES = ("train", "evaluate", "score", "train-reference")
"""Steps of the pipeline: of a final run, of its evaluation, of scoring, and of the training of the model that scores."""


def run(
    config: Config,
    workdir: Workdir,
    names: Sequence[str],
    *,
    only: Sequence[str] | None,
    suggest: int,
    file: Path | None,
) -> int:
    """Compiles the programs `only` (None: all that the pipeline runs on the mesh) for each topology, prints what they take, and says whether all fit (0) or not (1).

    `suggest`: how many layouts that fit to look for, instead; 0: none. `file`: where the reports go as JSON too.

    Raises:
      ValueError: a topology is unknown, its compiler is missing, or the config cannot be laid out on it.
    """
    found = [topology.find(name) for name in names]
    if only is None:
        only = NAMES if config.scorers else ("train", "evaluate")
        if not config.scorers:
            say(f"score is left out: the config does not know the shape of score.model, {config.score.model}")
    if file is not None:  # now, and not when all is compiled
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ValueError(
                f"--json is {file}, which cannot be written: name a file in a folder that can be"
            )
    # What is only estimated is traced on as many CPU devices.
    n_cpus = max([1, *(t.n_chips for t in found if not compiler.is_here(t))])
    import jax

    jax.config.update("jax_platforms", "cpu")  # this machine's own accelerators are not asked
    if n_cpus > 1:
        with contextlib.suppress(RuntimeError):  # there are devices already: they are counted below
            jax.config.update("jax_num_cpu_devices", n_cpus)
    from jaxprune.scale.program import vocabulary

    vocab_size, n_domains = vocabulary(config, workdir)
    reports: list[Report] = []
    for target in found:
        can_compile = compiler.is_here(target)
        if can_compile:
            devices = compiler.devices(target)
        else:
            say(
                f"{target.name}: estimated; with jaxprune[cuda] installed it is compiled for, and needs no GPU"
            )
            devices = jax.devices("cpu")[: target.n_chips]
            if len(devices) < target.n_chips:
                raise ValueError(
                    f"{target.name} has {target.n_chips} chips, and JAX was started with {len(devices)} CPU devices"
                )
        asked = config if can_compile else _traceable(config)
        if suggest:
            reports += _suggest(asked, target, devices, vocab_size, suggest)
        else:
            reports += _reports(asked, target, devices, only, (vocab_size, n_domains))
    if file is not None:
        plain = [{"config": config.name, **report.plain()} for report in reports]
        file.write_text(json.dumps(plain, indent=1) + "\n")
        say(f"reports: {file.resolve()}")
    too_large = [report for report in reports if not report.fits]
    if suggest:
        return 0 if any(report.fits for report in reports) else 1
    for report in too_large:
        say(f"{report.program} does not fit {report.topology}: {_advice(config, report)}")
    return 1 if too_large else 0


def _traceable(config: Config) -> Config:
    """The config with the attention that CPUs can trace in place of cuDNN's, which keeps as much for the backward pass."""

    def run(of: Run) -> Run:
        attention = "xla" if of.model.attention == "cudnn" else of.model.attention
        return dataclasses.replace(of, model=dataclasses.replace(of.model, attention=attention))

    return dataclasses.replace(
        config, final=run(config.final), reference=run(config.reference), second=run(config.second)
    )


def _reports(
    config: Config, target: Topology, devices: Any, only: Sequence[str], sizes: tuple[int, int]
) -> list[Report]:
    from jaxprune.model.sharding import make_mesh
    from jaxprune.scale import report
    from jaxprune.scale.program import make_program

    mesh = make_mesh(config.mesh, devices)
    reports = []
    for place, name in enumerate(only, 1):
        program = make_program(name, config, mesh, *sizes)
        if compiler.is_here(target):
            with waiting(f"{name}: compiling for {target.name} ({place} of {len(only)})"):
                reports.append(report.compile(program, target))
        else:
            reports.append(report.estimated(program, target))
    _show(target, reports)
    return reports


def _suggest(config: Config, target: Topology, devices: Any, vocab_size: int, wanted: int) -> list[Report]:
    from jaxprune.scale.suggest import describe, search

    can_compile = compiler.is_here(target)
    say(
        "searching meshes, final.microbatches and final.model.remat: what the config says of them is not kept"
    )
    tried, n_all = search(config, target, devices, vocab_size, wanted=wanted, can_compile=can_compile)
    table = Table(
        "layout", "memory a chip", "estimate", "fits", "step at least", "MFU at most",
        title=f"{target.name}: {len(tried)} of {n_all} layouts, fastest first by estimate", title_justify="left",
    )  # fmt: skip
    for candidate in tried:
        judged = candidate.report or candidate.estimated
        table.add_row(
            describe(candidate.settings),
            f"{_gib(judged.used)} of {_gib(judged.capacity)}",
            _gib(candidate.estimated.used),
            "yes" if judged.fits else "no",
            f"{judged.least_seconds:.3g} s",
            f"{judged.mfu:.0%}",
        )
    if tried:
        _print(table)
    if not any((candidate.report or candidate.estimated).fits for candidate in tried):
        run, lion = config.final, ", or --final.optimizer.name lion"
        say(
            f"no layout of {n_all} fits {target.name}: take more chips, --final.model.context below {run.model.context}"
            f"{lion if run.optimizer.name == 'adamw' else ''}"
        )
    return [candidate.report or candidate.estimated for candidate in tried]


def _show(target: Topology, reports: Sequence[Report]) -> None:
    chip = target.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in reports[0].mesh.items())
    table = Table("", *(report.program for report in reports), title_justify="left")
    table.title = f"{target.name}: {target.n_chips} chips, {mesh}"

    def row(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    row(
        "memory a chip",
        ["estimated" if r.how == "estimated" else f"compiled in {r.compile_s:.0f} s" for r in reports],
    )
    for part in ("parameters", "optimizer", "batch", "padding", "temporaries", "code"):
        row(f"  {part}", [_gib(getattr(r, part)) for r in reports])
    row("  (kept for the backward pass)", [_gib(r.kept) if r.kept else "-" for r in reports])
    row(
        f"  of {_gib(chip.memory)}", [f"{_gib(r.used)}: {'fits' if r.fits else 'TOO LARGE'}" for r in reports]
    )
    row("a chip sends", [r.counted for r in reports])
    kinds = dict.fromkeys((c.kind, c.over) for r in reports for c in r.collectives)
    for kind, over in kinds:
        cells = []
        for r in reports:
            same = [c for c in r.collectives if (c.kind, c.over) == (kind, over)]
            cells.append(
                f"{sum(c.bytes for c in same) / 1e9:.3g} GB in {sum(c.count for c in same)}" if same else "-"
            )
        row(f"  {kind}{' (network)' if over == 'network' else ''}", cells)
    row("model FLOPs a token", [f"{r.flops_per_token:.3g}" for r in reports])
    row("model FLOPs a step", [f"{r.flops_per_step:.3g}" for r in reports])
    row("a step takes at least", [f"{r.least_seconds:.3g} s" for r in reports])
    for part in ("compute", "memory", "links", "network"):
        row(f"  for {part}", [f"{r.seconds[part]:.3g} s" if r.seconds[part] else "-" for r in reports])
    row("  if nothing overlaps", [f"{r.serial_seconds:.3g} s" for r in reports])
    row("tokens/s at most", [f"{r.tokens / r.least_seconds:,.0f}" for r in reports])
    row("MFU at most", [f"{r.mfu:.0%}" for r in reports])
    _print(table)


def _advice(config: Config, report: Report) -> str:
    """What to turn, of what is not turned yet."""
    section = "final" if report.program in ("train", "evaluate") else config.scorers[0]
    run = {"final": config.final, "reference": config.reference, "second": config.second}[section]
    if report.program == "score":
        return "lower score.batch_tokens"
    rows = run.batch_rows // (report.mesh["replica"] * report.mesh["fsdp"])
    knobs = []
    if run.microbatches < rows:
        knobs.append(f"raise {section}.microbatches (now {run.microbatches}, up to {rows})")
    if run.model.remat != "full" and report.program != "evaluate":
        knobs.append(
            f"set {section}.model.remat to {'dots or full' if run.model.remat == 'none' else 'full'}"
        )
    if run.model.loss_chunk == 0 or run.model.loss_chunk > 128:
        knobs.append(f"lower {section}.model.loss_chunk (now {run.model.loss_chunk})")
    knobs.append("cut it further with mesh.fsdp or mesh.tensor, or take more chips")
    return "; ".join(knobs) + "; --suggest searches"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _print(table: Table) -> None:
    # As wide as it needs where nobody's terminal limits it: it is read in logs and files too.
    console = Console()
    Console(width=console.width if console.is_terminal else 200).print(table)
