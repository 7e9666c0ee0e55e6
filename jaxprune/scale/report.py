"""What is known of a program on a topology before it runs there: memory, collectives, FLOPs, and the least time."""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxprune.model import flops
from jaxprune.scale import estimate, hlo
from jaxprune.scale.hlo import Collective
from jaxprune.scale.program import Program, bytes_per_chip, kept_for_backward
from jaxprune.scale.topology import GIB, Topology

How = Literal["compiled", "estimated"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One program on one topology; bytes are of one chip."""

    topology: str
    program: str
    mesh: dict[str, int]
    microbatches: int
    remat: str
    how: How
    compile_s: float
    parameters: int
    optimizer: int
    batch: int
    padding: int  # of these three, in the layouts that the compiler chose
    temporaries: int  # all that lives during the step only
    kept: int  # what autodiff keeps for the backward pass: among the temporaries, unless the compiler makes it again
    code: int
    used: int  # all together
    capacity: int  # that a program may use
    flops_per_token: float  # 6 N + 12 L D T in training, a third of it otherwise
    flops_per_step: float
    tokens: int
    peak_flops: float  # of all chips, FLOP/s
    collectives: tuple[Collective, ...]
    counted: How  # these: estimated also where a TPU's compiler refused the program
    seconds: dict[str, float]  # the least of a step, by what bounds it

    @property
    def fits(self) -> bool:
        """Whether the chip's memory holds it."""
        return self.used <= self.capacity

    @property
    def least_seconds(self) -> float:
        """Of a step: what takes longest, if all else hides behind it."""
        return max(self.seconds.values())

    @property
    def serial_seconds(self) -> float:
        """Of a step: what all of it takes, if nothing hides behind anything."""
        return sum(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation at the least time: more than no run can have.

        Above 1 where attention is long: `flops_per_token` counts all of it, and half is computed.
        """
        return self.flops_per_step / self.peak_flops / self.least_seconds

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **dataclasses.asdict(self),
            "fits": self.fits,
            "least_seconds": self.least_seconds,
            "tokens_per_second": self.tokens / self.least_seconds,
            "mfu": self.mfu,
        }


def compile(program: Program, topology: Topology) -> Report:
    """Compiles, and reports on what the compiler made; a program that is too large is reported as that.

    Raises:
      ValueError: it calls a library that is not installed.
      JaxRuntimeError: it does not compile for another reason.
    """
    begin = time.perf_counter()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        temporaries = _refused(str(error), program)
        if temporaries is None:
            raise
        return _report(
            program, topology, "compiled", time.perf_counter() - begin, estimate.collectives(program, topology),
            temporaries=temporaries, counted="estimated",
        )  # fmt: skip
    except RuntimeError as error:  # of tracing
        if "cuDNN not found" not in str(error):
            raise
        raise ValueError(
            f"compiling {program.name} for {topology.name} needs cuDNN, whose attention it calls, and it is not installed: "
            "pip install 'jaxprune[cuda]', or set model.attention to xla"
        ) from None
    memory = hlo.memory(compiled)
    node = topology.n_chips // topology.slices if topology.chip.platform == "gpu" else None
    return _report(
        program,
        topology,
        "compiled",
        time.perf_counter() - begin,
        hlo.collectives(compiled.as_text() or "", node),
        temporaries=memory["temporaries"] + memory["results"],
        padding=memory["arguments"] - _arguments(program),
        code=memory["code"],
    )


def estimated(program: Program, topology: Topology) -> Report:
    """By arithmetic, where there is no compiler for these chips."""
    return _report(
        program,
        topology,
        "estimated",
        0.0,
        estimate.collectives(program, topology),
        temporaries=estimate.temporaries(program),
    )


def _report(
    program: Program,
    topology: Topology,
    how: How,
    compile_s: float,
    collectives: tuple[Collective, ...],
    *,
    temporaries: int,
    padding: int = 0,
    code: int = 0,
    counted: How | None = None,
) -> Report:
    model, chip = program.run.model, topology.chip
    kept = kept_for_backward(program) if program.is_training else 0
    per_token = flops.train_flops_per_token(model, program.vocab_size, model.context)
    per_token /= 1 if program.is_training else 3
    executed = flops.executed_flops_per_token(
        model, program.vocab_size, model.context, train=program.is_training
    )
    arguments = _arguments(program)
    touched = arguments * (2 if program.is_training else 1)  # the state is read and written
    microbatches = program.run.microbatches if program.is_training else 1
    if microbatches > 1:  # the sum of gradients is read and written, and what is added to it read
        touched += 3 * microbatches * bytes_per_chip(program.params)
    sent = {over: sum(c.bytes for c in collectives if c.over == over) for over in ("links", "network")}
    return Report(
        topology=topology.name,
        program=program.name,
        mesh=dict(program.mesh.shape),
        microbatches=microbatches,
        remat=model.remat,
        how=how,
        compile_s=compile_s,
        parameters=bytes_per_chip(program.params),
        optimizer=bytes_per_chip(program.optimizer),
        batch=bytes_per_chip(program.batch),
        padding=padding,
        temporaries=temporaries,
        kept=kept,
        code=code,
        used=arguments + padding + temporaries + code,
        capacity=round(chip.memory),
        flops_per_token=per_token,
        flops_per_step=per_token * program.tokens,
        tokens=program.tokens,
        peak_flops=topology.n_chips * chip.peak_flops,
        collectives=collectives,
        counted=counted or how,
        seconds={
            "compute": executed * program.tokens / topology.n_chips / chip.peak_flops,
            "memory": touched / chip.memory_bandwidth,
            "links": sent["links"] / chip.link_bandwidth,
            "network": sent["network"] / chip.network_bandwidth,
        },
    )


def _arguments(program: Program) -> int:
    return sum(map(bytes_per_chip, (program.params, program.optimizer, program.batch)))


def _refused(message: str, program: Program) -> int | None:
    """The temporaries of a program that libtpu found too large, in the two ways in which it says so."""
    if found := re.search(r"memory required for HLO temporaries \(([\d.]+)([KMGT])\)", message):
        return _bytes(found[1], found[2])
    if found := re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message):
        return _bytes(found[1], found[2]) - _arguments(program)
    return None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * GIB * {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}[unit])
