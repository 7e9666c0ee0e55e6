"""What one GPU reaches: attention kernels, training and scoring of the presets, and what the settings are worth.

    python benchmarks/gpu.py attention train score [--sizes 125m 1b 3b]
    python benchmarks/gpu.py configs --config "configs/final_1b.py --final.microbatches 32" [--config ...]

Random tokens; the steps are those of `jaxprune train` and `jaxprune score`. A line for each setting: tokens/s of the
median of some steps, MFU (6 N + 12 L D T FLOPs a token to train, a third of it to score, against the dense bfloat16 peak
of the device), seconds to compile, and bytes: what the compiler says, and what was allocated at the peak. `configs` runs
the training step of a config's final run, of at most four microbatches, beside what `jaxprune compile` says of one such
device. What does not fit or run says so, and the next goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import config
from jaxprune.data import tokenizer
from jaxprune.model import attention, flops, presets, transformer
from jaxprune.model.sharding import ACT_BTHC, BATCH, make_mesh, put
from jaxprune.scale import report
from jaxprune.scale.program import make_program
from jaxprune.scale.topology import GIB, find
from jaxprune.settings import load
from jaxprune.train.feed import Feed
from jaxprune.train.hardware import peak_flops
from jaxprune.train.step import init_state, make_score_step, make_train_step

VOCAB, DOMAINS, TURNS = 50_304, 7, 5
SIZES = {"125m": presets.mpt_125m, "1b": presets.mpt_1b, "3b": presets.mpt_3b, "tiny": presets.tiny}
# Rows, the optimizer, and what differs from the preset; the first of a size is what the others are to be read against.
TRAIN = {
    "125m": [
        (16, "adamw", {}),
        (16, "adamw", {"unroll": 12}),
        (16, "adamw", {"attention": "xla"}),
        (16, "adamw", {"loss_chunk": 2048}),
        (16, "adamw", {"unroll": 12, "loss_chunk": 2048}),
        (32, "adamw", {}),
        (32, "adamw", {"remat": "dots"}),
        (64, "adamw", {"remat": "full"}),
    ],
    "1b": [
        (8, "adamw", {"remat": "dots"}),
        (8, "adamw", {"remat": "dots", "loss_chunk": 2048}),
        (8, "adamw", {"remat": "dots", "unroll": 24, "loss_chunk": 2048}),
        (16, "adamw", {"remat": "full"}),
    ],
    "3b": [
        (8, "lion", {"remat": "full"}),
        (8, "lion", {"remat": "full", "loss_chunk": 2048}),
        (8, "adamw", {"remat": "full"}),
    ],
    "tiny": [(8, "adamw", {}), (8, "lion", {"unroll": 2})],
}
SCORE = {
    "125m": [(32, {}), (32, {"attention": "xla"}), (32, {"unroll": 12})],
    "1b": [(16, {})],
    "3b": [(16, {})],
    "tiny": [(8, {})],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("parts", nargs="+", choices=("attention", "train", "score", "configs"))
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=("125m", "1b", "3b"))
    parser.add_argument("--first", type=int, help="only so many settings of each size")
    parser.add_argument(
        "--config", action="append", default=[], help="a config and its settings, in quotes, for `configs`"
    )
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"{device.device_kind}, jax {jax.__version__}, vocabulary {VOCAB:,}, median of {TURNS} steps",
        flush=True,
    )
    mesh = make_mesh(config.Mesh(), [device])
    with jax.set_mesh(mesh):
        if "attention" in arguments.parts:
            _guarded("attention", attentions)
        for size in arguments.sizes:
            for rows, optimizer, changes in (
                TRAIN[size][: arguments.first] if "train" in arguments.parts else ()
            ):
                model = dataclasses.replace(SIZES[size](), **changes)
                title = f"train {size} {rows} x {model.context} {optimizer} {_said(changes)}"
                run = config.Run(
                    model=model,
                    optimizer=config.Optimizer(name=optimizer, peak_lr=1e-4),  # pyright: ignore[reportArgumentType]
                    batch_rows=rows,
                    tokens=1000 * rows * model.context,
                )
                _guarded(title, lambda run=run: train(run, VOCAB, mesh))
            for rows, changes in SCORE[size][: arguments.first] if "score" in arguments.parts else ():
                model = dataclasses.replace(SIZES[size](), **changes)
                title = f"score {size} {rows} x {model.context} {_said(changes)}"
                _guarded(title, lambda m=model, r=rows: score(m, r, mesh))
        for line in arguments.config if "configs" in arguments.parts else ():
            _guarded(line, lambda line=line: of_config(line, mesh))


def _said(changes: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in changes.items()) or "preset"


def _guarded(title: str, measure: Callable[[], str]) -> None:
    try:
        print(f"{title}: {measure()}", flush=True)
    except Exception as error:  # of a setting that does not fit or run, which is a result
        print(f"{title}: FAILED {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)


def attentions() -> str:
    """cuDNN beside XLA under the explicit mesh: how far apart, and how long, forward and backward."""
    rng = np.random.default_rng(0)
    shape = (16, 2048, 12, 64)
    mesh = jax.sharding.get_mesh()
    q, k, v, g = (
        jax.device_put(
            jnp.asarray(rng.standard_normal(shape), jnp.bfloat16), jax.sharding.NamedSharding(mesh, ACT_BTHC)
        )
        for _ in range(4)
    )
    outcomes, lines = {}, []
    for kernel in ("xla", "cudnn"):

        def loss(q, k, v, kernel=kernel):
            y_BTHC = attention.attend(q, k, v, kernel)
            return (y_BTHC * g).astype(jnp.float32).sum(), y_BTHC

        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        outcomes[kernel] = [np.asarray(x, np.float32) for x in jax.tree.leaves(step(q, k, v))]
        seconds = _timed(lambda step=step: step(q, k, v))
        lines.append(f"{kernel} {1e3 * seconds:.2f} ms")
    far = [
        float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(outcomes["cudnn"], outcomes["xla"], strict=True)
    ]
    return (
        f"{shape} forward and backward: {', '.join(lines)}; largest difference of dq, dk, dv, y: "
        + ", ".join(f"{value:.1e}" for value in far)
    )


def of_config(line: str, mesh: jax.sharding.Mesh) -> str:
    """A config's training step beside what is estimated of it."""
    path, *overrides = line.split()
    settings = load(path, overrides)
    microbatches = min(settings.final.microbatches, 4)
    rows = settings.final.batch_rows // settings.final.microbatches * microbatches
    run = dataclasses.replace(settings.final, batch_rows=rows, microbatches=microbatches)
    settings = dataclasses.replace(settings, final=run)
    vocab_size = tokenizer.vocab_size(settings.tokenizer)
    kind = jax.devices()[0].device_kind.lower()
    target = next((find(f"{name}-1") for name in ("h100", "h200") if name in kind), None)
    expected = ""
    if target is not None:
        said = report.estimated(make_program("train", settings, mesh, vocab_size), target)
        expected = f"; estimated {said.used / GIB:.1f} GiB, at least {1e3 * said.least_seconds:.1f} ms"
    return f"{rows} rows in {microbatches}: {train(run, vocab_size, mesh)}{expected}"


def train(run: config.Run, vocab_size: int, mesh: jax.sharding.Mesh) -> str:
    model = run.model
    graphdef, params = transformer.create(model, vocab_size, 0, mesh)
    state = init_state(params, run.optimizer, run.steps)
    del params  # donated with the state
    step = make_train_step(graphdef, run.optimizer, run.steps, DOMAINS)
    rng = np.random.default_rng(0)
    batch = Feed(mesh, run.batch_rows, run.microbatches)(
        {
            "tokens_BS": rng.integers(1, vocab_size, (run.batch_rows, model.context + 1), np.int32),
            "domain_B": rng.integers(0, DOMAINS, run.batch_rows, np.int32),
        }
    )
    begin = time.perf_counter()
    compiled = step.lower(state, *batch).compile()  # pyright: ignore[reportFunctionMemberAccess]
    compiling = time.perf_counter() - begin

    def turn() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, *batch)
        return metrics.grad_norm

    seconds = _timed(turn)
    return _line(model, vocab_size, run.batch_rows, seconds, compiling, 1.0, compiled)


def score(model: config.Model, rows: int, mesh: jax.sharding.Mesh) -> str:
    graphdef, params = transformer.create(model, VOCAB, 0, mesh)
    rng = np.random.default_rng(0)
    tokens_BS = put(rng.integers(1, VOCAB, (rows, model.context + 1), np.int32), mesh, BATCH)
    length_B = put(np.full(rows, model.context, np.int32), mesh, BATCH)
    begin = time.perf_counter()
    compiled = make_score_step(graphdef).lower(params, tokens_BS, length_B).compile()  # pyright: ignore
    compiling = time.perf_counter() - begin
    seconds = _timed(lambda: compiled(params, tokens_BS, length_B))
    return _line(model, VOCAB, rows, seconds, compiling, 1 / 3, compiled)


def _timed(turn: Callable[[], object]) -> float:
    """Seconds of the median turn, after two to warm up."""
    for _ in range(2):
        jax.block_until_ready(turn())
    taken = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        jax.block_until_ready(turn())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _line(
    model: config.Model,
    vocab_size: int,
    rows: int,
    seconds: float,
    compiling: float,
    share: float,
    compiled: jax.stages.Compiled,
) -> str:
    tokens_per_s = rows * model.context / seconds
    work = share * flops.train_flops_per_token(model, vocab_size, model.context) * tokens_per_s
    peak = peak_flops(jax.devices()[0].device_kind)
    mfu = "" if peak is None else f", MFU {work / peak:.1%}"
    memory = compiled.memory_analysis()
    assert memory is not None
    size = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / GIB
    taken = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")  # since the process began
    peak_taken = "" if taken is None else f", {taken / GIB:.1f} GiB allocated at the peak so far"
    return (
        f"{tokens_per_s:,.0f} tokens/s, {1e3 * seconds:.1f} ms{mfu}, {size:.1f} GiB arguments and temporaries{peak_taken}, "
        f"compiled in {compiling:.0f} s"
    )


if __name__ == "__main__":
    main()
