"""Do proxies train faster together, as one program, than one by one?

    python benchmarks/swarm.py [--together 2 4 8]

The same proxies (model, steps, batches, validations, checkpoints), trained by `fit` one after the other, which is
the peer, and by `fit_together` in groups. Compilation is not counted: each way trains once before it is timed. They
take turns; printed are the medians over turns, by the clock and by processor time.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprune import config
from jaxprune.allocator import keep_freed_memory
from jaxprune.data.schedule import Stage
from jaxprune.data.store import HELDOUT, TRAIN, TokenStore
from jaxprune.model import flops
from jaxprune.model.sharding import make_mesh
from jaxprune.train.loop import fit
from jaxprune.train.plan import Plan
from jaxprune.train.together import fit_together

VOCAB, DOMAINS = 2048, 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Proxies together and one by one.")
    parser.add_argument("--together", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128], help="d_model")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--context", type=int, default=128, help="T")
    parser.add_argument("--batch-rows", type=int, default=8, help="B")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--proxies", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    console = Console(soft_wrap=True)
    device = jax.devices()[0].device_kind
    console.print(
        f"{arguments.proxies} proxies of {arguments.steps} steps of {arguments.batch_rows} x {arguments.context} tokens"
    )
    console.print(f"{device}, {platform.processor() or platform.machine()}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "tokens")
        for width in arguments.widths:
            plans = make_plans(store, width, arguments)
            console.print(compare(plans, arguments.together, arguments.turns, Path(folder)))


def make_store(folder: Path, n_documents: int = 4000) -> TokenStore:
    """Random tokens: how fast a step is does not depend on them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    length_N = rng.integers(50, 500, n_documents)
    offsets_N1 = np.concatenate([[0], np.cumsum(length_N)])
    rng.integers(1, VOCAB, offsets_N1[-1]).astype(np.uint16).tofile(folder / "tokens")
    np.save(folder / "offsets.npy", offsets_N1)
    np.save(folder / "domain.npy", (np.arange(n_documents) % DOMAINS).astype(np.uint16))
    np.save(folder / "split.npy", np.where(np.arange(n_documents) < 200, HELDOUT, TRAIN).astype(np.uint8))
    np.save(folder / "n_bytes.npy", 4 * length_N)
    meta = {
        "vocab_size": VOCAB,
        "eod_id": 0,
        "domains": [f"domain{k}" for k in range(DOMAINS)],
        "dtype": "uint16",
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


def make_plans(store: TokenStore, width: int, arguments: argparse.Namespace) -> list[Plan]:
    """Proxies that differ in their mixture."""
    run = config.Run(
        model=config.Model(
            d_model=width, n_layers=arguments.layers, n_heads=4, context=arguments.context, position="rope", norm="rms",
            mlp="swiglu", bias=False, dtype="float32" if jax.default_backend() == "cpu" else "bfloat16", unroll=arguments.layers,
        ),
        tokens=arguments.steps * arguments.batch_rows * arguments.context,
        batch_rows=arguments.batch_rows,
        validate_every=arguments.steps // 5,
        checkpoint_every=arguments.steps,
    )  # fmt: skip
    mixtures = np.random.default_rng(0).dirichlet(np.ones(DOMAINS), arguments.proxies)
    return [
        Plan(
            title=f"proxy {number}",
            run=run,
            store=store,
            documents=store.documents(TRAIN),
            stages=(Stage(start=0, weights=tuple(weights.tolist())),),
            seed=0,
            mesh=make_mesh(config.Mesh(fsdp=1), jax.devices()[:1]),
        )
        for number, weights in enumerate(mixtures)
    ]


def compare(plans: list[Plan], sizes: list[int], turns: int, folder: Path) -> Table:
    """Proxies per second of each way."""
    ways: dict[str, Callable[[Path], None]] = {"one by one": functools.partial(one_by_one, plans)}
    for size in sizes:
        ways[f"{size} together"] = functools.partial(in_groups, plans, size)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                begin, begin_cpu = time.perf_counter(), time.process_time()
                way(Path(scratch))
                if turn > 0:
                    seconds[name].append((time.perf_counter() - begin, time.process_time() - begin_cpu))
    model = plans[0].run.model
    table = Table(
        title=f"d_model {model.d_model}, {flops.n_non_embedding(model, VOCAB):,} parameters without embeddings"
    )
    for column in ("", "proxies/s", "of one by one", "proxies/CPU-s", "of one by one"):
        table.add_column(column, justify="right" if column else "left")
    median = {
        name: [statistics.median(of) for of in zip(*times, strict=True)] for name, times in seconds.items()
    }
    for name, of_way in median.items():
        rates = [
            (f"{len(plans) / ours:.3f}", f"{usual / ours:.2f}")
            for ours, usual in zip(of_way, median["one by one"], strict=True)
        ]
        table.add_row(name, *rates[0], *rates[1])
    return table


def one_by_one(plans: list[Plan], folder: Path) -> None:
    for number, plan in enumerate(plans):
        (folder / str(number)).mkdir()
        fit(plan, folder / str(number))


def in_groups(plans: list[Plan], size: int, folder: Path) -> None:
    for start in range(0, len(plans), size):
        group = folder / str(start)
        group.mkdir()
        fit_together(f"proxies {start} to {start + size - 1}", plans[start : start + size], group)


if __name__ == "__main__":
    main()
