"""Makes the tables of notebook 03: 24 small models, each trained on another mixture of five domains, and then some more.

    python notebooks/data/swarm.py

The domains are text of this Python installation (jaxprune.data.embedded), up to 450 kB each. A model has 123,200 parameters
without embeddings and sees 200,704 tokens; the mixtures are the natural one, the uniform one, and 22 that lie far apart
(jaxprune.mix.design.maximin). Losses are those of held-out text at six times of the training: swarm.csv. Then the
mixtures that the notebook chose from that table are trained: checked.csv. Killed, it continues.
"""

import csv
import dataclasses
import itertools
import json
from pathlib import Path

from jaxprune import pipeline
from jaxprune.artifact import Workdir
from jaxprune.config import Config, Corpus, Model, Optimizer, Run, Swarm, Tokenizer
from jaxprune.data import embedded
from jaxprune.data.mixture import Stage
from jaxprune.mix import swarm

DOMAINS = ("code", "docstrings", "headers", "licences", "manuals")
BYTES = 450_000  # of a domain, about
CHECKED = {  # mixtures in the order of DOMAINS, and their seeds; uniform with seed 0 is in the swarm
    "recommended": ((0.109, 0.156, 0.162, 0.414, 0.159), (0, 1, 2)),
    "uniform": ((0.2, 0.2, 0.2, 0.2, 0.2), (1, 2)),
    "disputed_1": ((0.046, 0.037, 0.700, 0.186, 0.031), (0,)),
    "disputed_2": ((0.610, 0.036, 0.039, 0.125, 0.190), (0,)),
    "disputed_3": ((0.154, 0.147, 0.533, 0.119, 0.047), (0,)),
}


def write_text(folder: Path) -> None:
    """JSON lines of each domain, unless they are there; a document is a whole file, so that none is trained on in part."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        path, n_bytes = folder / f"{domain}.jsonl", 0
        if path.exists():
            continue
        lines = []
        for file, pieces in itertools.groupby(embedded.read(domain), key=lambda piece: piece[3]):
            text = "".join(piece[1] for piece in pieces)
            lines.append(json.dumps({"id": file, "text": text, "domain": domain}))
            n_bytes += len(text.encode())
            if n_bytes > BYTES:
                break
        path.write_text("\n".join(lines) + "\n")


def config(folder: Path) -> Config:
    """The swarm on the text of a folder; there is no final run to stand for, so that repetition is not simulated."""
    model = Model(
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        context=256,
        position="rope",
        norm="rms",
        mlp="swiglu",
        bias=False,
        dtype="float32",
        unroll=2,
    )
    proxy = Run(
        model=model,
        optimizer=Optimizer(name="muon", peak_lr=2e-2, warmup=0.1),
        tokens=200_000,
        batch_rows=8,
        validation_rows=16,
        checkpoint_every=50,
        log_every=10,
    )
    return Config(
        name="swarm",
        corpus=Corpus(sources=(str(folder),)),
        tokenizer=Tokenizer(vocab_size=2048, train_bytes=2_000_000),
        swarm=Swarm(
            design="maximin",
            runs=24,
            floor=0.03,
            arm="none",
            simulate_epochs=False,
            proxy=proxy,
            checkpoints=6,
        ),
        arms=("none",),
    )


def checked(proxies: list[swarm.Proxy]) -> list[swarm.Proxy]:
    """The mixtures of CHECKED, each with its seeds, as runs like those of the swarm."""
    [first, *_] = proxies
    found = []
    for mixture, (weights, seeds) in CHECKED.items():
        for seed in seeds:
            plan = dataclasses.replace(
                first.plan,
                title=f"proxy {mixture}-{seed}",
                stages=(Stage(start=0, weights=weights),),
                seed=seed,
            )
            settings = first.wanted.settings | {"seed": seed, "weights": list(weights)}
            wanted = dataclasses.replace(first.wanted, stage=plan.title, settings=settings)
            found.append(swarm.Proxy(f"{mixture}-{seed}", plan, wanted))
    return found


def write(path: Path, proxies: list[swarm.Proxy], workdir: Workdir) -> None:
    """The table of trained proxies, with numbers of six digits."""
    rows = swarm.table(proxies, workdir)
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(rows[0])
        for row in rows:
            lines.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row.values())


def main() -> None:
    """Trains what is not trained yet, and writes both tables beside this file."""
    root = Path("runs/swarm")
    write_text(root / "text")
    settings, workdir = config(root / "text"), Workdir(root)
    pipeline.prepare(settings, workdir)
    pipeline.mix_swarm(settings, workdir)
    proxies = swarm.proxies_of(settings, workdir)
    write(Path(__file__).parent / "swarm.csv", proxies, workdir)
    more = checked(proxies)
    swarm.train(more, workdir, together=1)
    write(Path(__file__).parent / "checked.csv", more, workdir)


if __name__ == "__main__":
    main()
