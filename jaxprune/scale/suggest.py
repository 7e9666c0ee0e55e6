"""The fastest layouts that fit: meshes, microbatches and recomputation, tried in the order of their estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxprune import config
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import waiting
from jaxprune.scale import report
from jaxprune.scale.program import Program, make_program
from jaxprune.scale.report import Report
from jaxprune.scale.topology import Topology

_TENSOR = (1, 2, 4, 8)
# From so many chips on, a TPU's parameters are not cut over all chips of a slice: for a group of all, the compiler sums whole
# arrays where it would gather or scatter them for two halves (libtpu 0.0.42: v5e-256 and v5p-128, see docs/scale.md).
_WHOLE_SLICE = 32
_LEAST_FSDP = 8  # where it could be more, copies of the parameters take its place only down to this
_NEAR = 1.3  # estimates above this much of the memory are not compiled: the compiler rarely needs less than 1 / 1.3 of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout, as settings and as it was judged."""

    settings: config.Config
    estimated: Report
    report: Report | None = None  # what the compiler made of it; None: not tried


def search(
    settings: config.Config,
    topology: Topology,
    devices: Any,
    vocab_size: int,
    *,
    wanted: int,
    can_compile: bool,
) -> tuple[list[Candidate], int]:
    """Layouts of the final run's step, fastest first, until `wanted` fit; and how many there are in all.

    Each is judged by estimate, and in that order compiled where `can_compile`. Time is estimated as the larger of compute and
    traffic, plus what microbatches cost in gathering again and in sums; equal times go to fewer microbatches, then to less
    memory.

    Raises:
      ValueError: there is none at all: what is wrong with the last.
    """
    candidates, refused = [], None
    for changed in layouts(settings, topology):
        try:
            program = _program(changed, devices, vocab_size)
        except ValueError as error:  # does not divide: not a candidate
            refused = error
            continue
        candidates.append(Candidate(settings=changed, estimated=report.estimated(program, topology)))
    if not candidates:
        rows, chips = settings.final.batch_rows, topology.n_chips
        raise refused or ValueError(
            f"final.batch_rows is {rows}, which cannot be cut over the {chips} chips of {topology.name}: make it a multiple of {chips}"
        )
    candidates.sort(
        key=lambda c: (float(f"{_time(c.estimated):.3g}"), c.estimated.microbatches, c.estimated.used)
    )
    n_all = len(candidates)
    tried: list[Candidate] = []
    for candidate in candidates:
        if sum((c.report or c.estimated).fits for c in tried) == wanted:
            break
        if candidate.estimated.used > candidate.estimated.capacity * (_NEAR if can_compile else 1):
            continue
        if can_compile:
            with waiting(f"compiling {describe(candidate.settings)}"):
                program = _program(candidate.settings, devices, vocab_size)
                candidate = dataclasses.replace(candidate, report=report.compile(program, topology))
        tried.append(candidate)
    return tried, n_all


def layouts(settings: config.Config, topology: Topology) -> Iterator[config.Config]:
    """The config with each mesh, number of microbatches and kind of recomputation that could be worth trying."""
    run, chips = settings.final, topology.n_chips // topology.slices
    for tensor in _TENSOR:
        if chips % tensor or run.model.kv_heads % tensor:
            continue
        fsdp = chips // tensor
        if topology.chip.platform == "tpu" and tensor == 1 and chips >= _WHOLE_SLICE:
            fsdp //= 2
        while True:
            mesh = config.Mesh(replica=topology.n_chips // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
            microbatches = 1
            while run.batch_rows % (microbatches * topology.n_chips // tensor) == 0:
                for remat in ("none", "dots", "full"):
                    model = dataclasses.replace(run.model, remat=remat)
                    final = dataclasses.replace(run, model=model, microbatches=microbatches)
                    yield dataclasses.replace(settings, final=final, mesh=mesh)
                microbatches *= 2
            if fsdp % 2 or fsdp <= _LEAST_FSDP:
                break
            fsdp //= 2


def describe(settings: config.Config) -> str:
    """The layout as options of the command line."""
    mesh, run = settings.mesh, settings.final
    return (
        f"--mesh.replica {mesh.replica} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor} "
        f"--final.microbatches {run.microbatches} --final.model.remat {run.model.remat}"
    )


def _program(settings: config.Config, devices: Any, vocab_size: int) -> Program:
    return make_program("train", settings, make_mesh(settings.mesh, devices), vocab_size)


def _time(judged: Report) -> float:
    """Of a step, with half of the traffic hidden behind the products, and nothing of the memory's: to rank, not to promise."""
    seconds = judged.seconds
    traffic = seconds["links"] + seconds["network"]
    return max(seconds["compute"], traffic) + 0.5 * min(seconds["compute"], traffic) + seconds["memory"]
