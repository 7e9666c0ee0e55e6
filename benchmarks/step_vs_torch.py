"""How fast are a scoring pass and a training step of the 125M model on this CPU, beside PyTorch?

    python benchmarks/step_vs_torch.py [--torch-python PATH]

Both sides start from the same weights, are shown to give the same loss, and take turns, PyTorch in a
process of its own (and of another environment, with `--torch-python`). PyTorch runs eagerly, with
F.scaled_dot_product_attention and fused AdamW. Printed: tokens/s of the median turn, CPU-seconds of it
(all threads: what other work on the machine distorts less), and how the two compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from jaxprune import config
from jaxprune.allocator import keep_freed_memory
from jaxprune.model import presets, transformer
from jaxprune.model.loss import next_token_nll
from jaxprune.model.sharding import make_mesh

VOCAB = 50_304
CASES = (("score", 512), ("score", 2048), ("train", 512))
ADAMW = {"rate": 1e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "decay": 0.1}

Figures = dict[str, float]  # loss, seconds, cpu_seconds
Side = Callable[[str, int], Figures]  # (score or train, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and numpy")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch")
    parser.add_argument("--turns", type=int, default=5, help="measured steps of each side, for each case")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    model = dataclasses.replace(presets.mpt_125m(), dtype="float32", unroll=12)
    print(
        f"mpt_125m, vocabulary {VOCAB:,}, float32, batch 1, median of {arguments.turns} turns, {os.cpu_count()} cores"
    )
    print(f"ours: jax {jax.__version__}, all blocks unrolled, XLA attention, loss chunk {model.loss_chunk}")
    with tempfile.TemporaryDirectory() as folder:
        ours = our_side(model, Path(folder))
        with their_side(model, Path(folder), arguments) as theirs:
            for work, length in CASES:
                # The first turn compiles and warms up.
                turns = [(ours(work, length), theirs(work, length)) for _ in range(arguments.turns + 1)]
                report(work, length, turns)


def report(work: str, length: int, turns: list[tuple[Figures, Figures]]) -> None:
    losses = [side["loss"] for side in turns[0]]
    if not np.isclose(*losses, rtol=1e-5):
        raise SystemExit(
            f"{work} T={length}: not the same model, loss {losses[0]} here and {losses[1]} in PyTorch"
        )

    def medians(figure: str) -> list[float]:
        return [statistics.median(turn[side][figure] for turn in turns[1:]) for side in (0, 1)]

    seconds, cpu = medians("seconds"), medians("cpu_seconds")
    print(
        f"{work} T={length}: {length / seconds[0]:,.0f} tokens/s against {length / seconds[1]:,.0f}, "
        f"{seconds[1] / seconds[0]:.2f} of PyTorch's speed; CPU-seconds {cpu[0]:.2f} against {cpu[1]:.2f}, "
        f"{cpu[1] / cpu[0]:.2f}; loss {losses[0]:.6f} and {losses[1]:.6f}",
        flush=True,
    )


def our_side(model: config.Model, folder: Path) -> Side:
    """Writes the weights and tokens to `folder`, for the other side."""
    mesh = make_mesh(config.Mesh(), jax.devices("cpu")[:1])
    graphdef, params = transformer.create(model, VOCAB, 0, mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.save(folder / (".".join(key.key for key in path) + ".npy"), leaf)
    tokens = {}
    for length in {length for _, length in CASES}:
        tokens[length] = np.random.default_rng(0).integers(0, VOCAB, (1, length + 1), dtype=np.int32)
        np.save(folder / f"tokens-{length}", tokens[length])
    optimizer = optax.adamw(
        ADAMW["rate"], ADAMW["b1"], ADAMW["b2"], ADAMW["eps"], weight_decay=ADAMW["decay"]
    )

    def loss(params: nnx.State, tokens_BS: jax.Array) -> jax.Array:
        return next_token_nll(nnx.merge(graphdef, params), tokens_BS).mean()

    def train(state: tuple[nnx.State, optax.OptState], tokens_BS: jax.Array):
        params, moments = state
        value, grads = jax.value_and_grad(loss)(params, tokens_BS)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    score_step, train_step = jax.jit(loss), jax.jit(train, donate_argnums=0)
    with jax.set_mesh(mesh):
        state = (params, jax.jit(optimizer.init)(params))

    def step(work: str, length: int) -> Figures:
        nonlocal state
        start, cpu_start = time.perf_counter(), time.process_time()
        with jax.set_mesh(mesh):
            if work == "score":
                value = score_step(state[0], tokens[length])
            else:
                state, value = jax.block_until_ready(train_step(state, tokens[length]))
        return {
            "loss": float(value),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
        }

    return step


@contextmanager
def their_side(model: config.Model, folder: Path, arguments: argparse.Namespace) -> Iterator[Side]:
    """Starts PyTorch with what `folder` holds."""
    settings = {"heads": model.n_heads, "threads": arguments.threads, **ADAMW}
    peer = Path(__file__).with_name("step_vs_torch_peer.py")
    command = [arguments.torch_python, str(peer), str(folder), json.dumps(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout

        def answer() -> str:
            line = child.stdout.readline() if child.stdout else ""
            if not line:
                raise SystemExit(f"PyTorch stopped: does {arguments.torch_python} have torch and numpy?")
            return line

        def step(work: str, length: int) -> Figures:
            print(json.dumps([work, length]), file=child.stdin, flush=True)
            return json.loads(answer())

        print(f"theirs: {answer().strip()}")
        yield step
        child.stdin.close()


if __name__ == "__main__":
    main()
