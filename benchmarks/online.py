"""What online mixing costs: the host's part of a change of weights, and Aioli's held-out losses beside the training.

    python benchmarks/online.py [--size 125m] [--rows 32]

Random tokens of seven domains; a real run with Aioli, whose decisions and steps are timed as it logs them. Its share of
a whole run is arithmetic from these two: 1 + sweeps x domains decisions in each of 20 rounds of the preset's 2.5 billion
tokens in batches of 256 rows, that is, with as many steps as that gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune import config
from jaxprune.data.loader import Loader
from jaxprune.data.mixture import Stage
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.mix.online.ado import Ado
from jaxprune.mix.online.aioli import Aioli
from jaxprune.mix.online.odm import Odm
from jaxprune.model import presets
from jaxprune.model.sharding import make_mesh
from jaxprune.train.loop import fit
from jaxprune.train.metrics import read
from jaxprune.train.plan import Plan
from jaxprune.train.strategy import Observation

VOCAB, DOMAINS, HELDOUT_SHARE = 50_304, 7, 0.1
SIZES = {"125m": presets.mpt_125m, "tiny": presets.tiny}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="125m")
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=60_000_000, help="of the corpus")
    arguments = parser.parse_args()
    model = SIZES[arguments.size]()
    for n_domains in (DOMAINS, 22):
        print("\n".join(by_training_losses(n_domains, 3500)))
    with tempfile.TemporaryDirectory() as name:
        store = write_store(Path(name) / "tokens", arguments.tokens)
        strategy = Aioli(n_domains=DOMAINS, steps=arguments.steps, rounds=1, sweeps=2, segment_steps=1)
        run = config.Run(
            model=model,
            tokens=arguments.steps * arguments.rows * model.context,
            batch_rows=arguments.rows,
            validate_every=0,
            validation_rows=4,
            checkpoint_every=10**6,
            log_every=1,
        )
        plan = Plan(
            title="aioli",
            run=run,
            store=store,
            documents=store.documents(TRAIN),
            stages=(),
            strategy=strategy,
            mixing_rows=4,
            seed=0,
            mesh=make_mesh(config.Mesh(), jax.devices()[:1]),
        )
        change = change_seconds(plan)
        folder = Path(name) / "run"
        folder.mkdir()
        fit(plan, folder)
        decisions = [line["seconds"] for line in read(folder / "mixing.jsonl")][2:]
        speeds = [line["tokens_per_s"] for line in read(folder / "metrics.jsonl") if "tokens_per_s" in line]
    step = arguments.rows * model.context / statistics.median(speeds[-(arguments.steps // 3) :])
    decision = statistics.median(decisions)
    whole = config.Run(model=model)
    per_round = whole.steps // 20
    passes = 1 + config.Aioli().sweeps * DOMAINS
    full_step = step * whole.batch_rows / arguments.rows
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {arguments.size}, {arguments.rows} x {model.context}"
    )
    print(
        f"host: a change of weights and the first batch under them {1e3 * change:.2f} ms, {change / step:.2%} of this step "
        f"({1e3 * step:.0f} ms), {change / full_step:.2%} of one of {whole.batch_rows} rows"
    )
    print(
        f"Aioli: a decision with {DOMAINS} x 4 held-out rows {1e3 * decision:.0f} ms; {passes} in a round of {per_round} steps "
        f"of {whole.batch_rows} rows: {passes * decision / (passes * decision + per_round * full_step):.2%} of the time"
    )


def by_training_losses(n_domains: int, steps: int) -> list[str]:
    """ODM and ADO, which decide after every step: what a decision takes on losses that fall as power laws, ADO's fits included."""
    lines = []
    even = (1 / n_domains,) * n_domains
    for name, strategy in (("ODM", Odm(initial_K=even)), ("ADO", Ado(prior_K=even, steps=steps))):
        rng, drawn_K = np.random.default_rng(0), np.zeros(n_domains)
        state, decision = strategy.begin(0)
        taken = []
        for step in range(1, steps):
            weights_K = decision.weights_K
            tokens_K = weights_K * 65_536
            drawn_K = drawn_K + tokens_K
            if step < decision.until:
                continue
            loss_K = 3 + 5 * drawn_K**-0.2 + 0.01 * rng.standard_normal(n_domains)
            seen = Observation(
                step=step, loss_K=loss_K, tokens_K=tokens_K, drawn_K=drawn_K, weights_K=weights_K
            )
            begin = time.perf_counter()
            state, decision = strategy.update(state, seen)
            taken.append(time.perf_counter() - begin)
        lines.append(
            f"{name}, {n_domains} domains, {steps} steps: {1e3 * statistics.median(taken):.3f} ms a step, "
            f"{1e3 * statistics.mean(taken):.2f} ms with the {sum(t > 0.1 for t in taken)} that fit, at most {max(taken):.1f} s; "
            f"state {len(json.dumps(state)) / 1e3:.0f} kB"
        )
    return lines


def change_seconds(plan: Plan) -> float:
    """Seconds of appending a stage and handing out the first batch under it, the median of twenty."""
    loader = Loader(plan.source((Stage(start=0, weights=(1.0,) * DOMAINS),)))
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(20):
        next(loader)
        weights = tuple(rng.dirichlet(np.ones(DOMAINS)))
        begin = time.perf_counter()
        loader.append(Stage(start=loader.step, weights=weights))
        next(loader)
        taken.append(time.perf_counter() - begin)
    loader.close()
    return statistics.median(taken)


def write_store(folder: Path, n_tokens: int) -> TokenStore:
    """Random tokens in documents of 500, of seven domains in turn; a tenth is held out."""
    folder.mkdir()
    n_documents = n_tokens // 500
    rng = np.random.default_rng(0)
    rng.integers(1, VOCAB, n_documents * 500, np.uint16).tofile(folder / "tokens")
    np.save(folder / "offsets.npy", np.arange(n_documents + 1, dtype=np.int64) * 500)
    np.save(folder / "domain.npy", (np.arange(n_documents) % DOMAINS).astype(np.uint16))
    split_N = np.where(rng.random(n_documents) < HELDOUT_SHARE, 0, TRAIN).astype(np.uint8)
    np.save(folder / "split.npy", split_N)
    np.save(folder / "n_bytes.npy", np.full(n_documents, 2000))
    index = {"number": np.arange(n_documents), "id": [f"document {n}" for n in range(n_documents)]}
    pq.write_table(pa.table(index), folder / "index.parquet")
    names = [f"domain{n}" for n in range(DOMAINS)]
    meta = {"vocab_size": VOCAB, "eod_id": 0, "domains": names, "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


if __name__ == "__main__":
    main()
