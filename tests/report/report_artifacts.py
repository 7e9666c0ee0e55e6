"""A finished work directory made without training: artifacts as the stages leave them, with chosen results."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune import config
from jaxprune.artifact import Manifest, Workdir, read_manifest, write_json
from jaxprune.data import prepare
from jaxprune.data.store import HELDOUT, TRAIN, TokenStore
from jaxprune.mix import weights
from jaxprune.model import flops
from jaxprune.prune import score, select
from jaxprune.prune.signals import stage as signals

HARDNESS = {"code": 1.6, "legal": 2.3, "prose": 3.3, "web": 3.9}  # nats per token under the reference


def settings(**changes) -> config.Config:
    run = config.Run(
        model=config.Model(d_model=32, n_layers=2, n_heads=2, context=64),
        tokens=200_000,
        batch_rows=8,
    )
    base = config.Config(
        name="four domains",
        tokenizer=config.Tokenizer(vocab_size=400),
        corpus=config.Corpus(heldout=0.2, reference=0.3),
        reference=dataclasses.replace(run, tokens=60_000),
        final=run,
    )
    return dataclasses.replace(base, **changes)


def texts(documents: int = 60, domains: tuple[str, ...] = tuple(HARDNESS)) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abdegiklmnoprstu"), size=rng.integers(2, 9))) for _ in range(200)]
    habits = {
        "code": "x_{} = {}({})\n",
        "legal": "The {} shall {} the {}. ",
        "prose": "{} {}, {}; ",
        "web": "<b>{}</b> {} & {} ",
    }
    return {
        domain: [
            "".join(
                habits.get(domain, "{} {} {} ").format(*rng.choice(words, size=3))
                for _ in range(rng.integers(6, 40))
            )
            for _ in range(documents)
        ]
        for domain in domains
    }


def finish(
    folder: Path,
    stage: str,
    seconds: float,
    settings: dict[str, Any],
    inputs: dict[str, Path | str],
    **counts: Any,
) -> None:
    """Leaves the manifest that makes a folder an artifact; of inputs that are artifacts, their folders are given."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: fingerprint(of) if isinstance(of, Path) else of for name, of in inputs.items()}
    manifest = Manifest(
        stage=stage, settings=settings, inputs=given, counts=counts, versions={"jax": "0"}, seconds=seconds
    )
    write_json(folder / "manifest.json", dataclasses.asdict(manifest))


def fingerprint(folder: Path) -> str:
    """Of the artifact that stands in a folder."""
    manifest = read_manifest(folder)
    assert manifest is not None, folder
    return manifest.fingerprint


def write_workdir(
    root: Path,
    settings: config.Config,
    texts: dict[str, list[str]],
    effect: dict[str, float],
    seed_noise: float = 0.003,
) -> tuple[config.Config, Workdir]:
    """Writes every artifact that the report reads.

    Returns the settings with the corpus that was written, and the work directory.

    Args:
      effect: nats per token that each arm's held-out loss lies above (+) or below (-) that of `none`.
      seed_noise: standard deviation between seeds of the same.
    """
    _write_corpus(root / "corpus", texts)
    corpus = dataclasses.replace(settings.corpus, sources=(str(root / "corpus"),))
    settings, workdir = dataclasses.replace(settings, corpus=corpus), Workdir(root / "run")
    prepare.run(settings, workdir)
    store = TokenStore(workdir.prepare / "tokens")
    reference = {"run": config.identity(settings.reference), "seed": settings.seed, "weights": []}
    _trained(workdir, "reference", settings.reference, store.vocab_size, 31.0, reference, {})
    _score(workdir, store, settings)
    signals.run(settings, workdir)
    select.run(settings, workdir)
    weights.run(settings, workdir)
    rng = np.random.default_rng(1)
    for name, (arm, seed) in settings.final_runs.items():
        by = effect.get(arm, 0.0) + rng.normal(0, seed_noise)
        _metrics(workdir.run(name), store.domains, by, seed)
        mixture = json.loads((workdir.mix / "weights.json").read_text())[name]
        mixed = {"seed": seed, "weights": [mixture["weights"][domain] for domain in store.domains]}
        kept = (workdir.select / f"{mixture['selection']}.npy").read_bytes()
        _trained(
            workdir,
            name,
            settings.final,
            store.vocab_size,
            95.0 + seed,
            {"run": config.identity(settings.final), **mixed},
            {"documents": hashlib.sha256(kept).hexdigest()[:16]},
        )
        _evaluate(workdir, name, store, by)
    return settings, workdir


def _trained(
    workdir: Workdir,
    name: str,
    run: config.Run,
    vocab_size: int,
    seconds: float,
    settings: dict[str, Any],
    inputs: dict[str, Path | str],
) -> None:
    tokens = run.steps * run.batch_rows * run.model.context
    per_token = flops.train_flops_per_token(run.model, vocab_size, run.model.context)
    finish(
        workdir.run(name),
        f"train {name}",
        seconds,
        settings,
        {"prepare": workdir.prepare, **inputs},
        tokens=tokens,
        train_flops=tokens * per_token,
        devices="1 x cpu",
    )


def _write_corpus(folder: Path, texts: dict[str, list[str]]) -> None:
    """JSON lines; the first document of each domain comes twice, and one is empty."""
    folder.mkdir(parents=True)
    for domain, of_domain in texts.items():
        lines = [*enumerate(of_domain), ("again", of_domain[0]), ("empty", "")]
        records = [{"id": f"{domain}/{i}", "domain": domain, "text": text} for i, text in lines]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _documents(
    store: TokenStore, split: int, rng: np.random.Generator, by: float
) -> dict[str, np.ndarray | list]:
    numbers = store.documents(split)
    domains = [store.domains[k] for k in store.domain_N[numbers]]
    n_tokens = np.diff(store.offsets_N1)[numbers] - 1
    nll = np.array([HARDNESS.get(domain, 3.0) for domain in domains]) + 0.45 * rng.normal(size=len(numbers))
    return {
        "number": numbers,
        "id": store.ids(numbers),
        "domain": domains,
        "hash": np.arange(len(numbers))[::-1],
        "n_tokens": n_tokens,
        "n_bytes": store.n_bytes_N[numbers],
        "n_scored": n_tokens,
        "nll_sum": (np.maximum(nll, 0.1) + by) * n_tokens,
    }


def _score(workdir: Workdir, store: TokenStore, settings: config.Config) -> None:
    workdir.score.mkdir()
    scores = pa.table(_documents(store, TRAIN, np.random.default_rng(2), 0.0))
    pq.write_table(scores, workdir.score / "part-00000.parquet")
    inputs: dict[str, Path | str] = {"prepare": workdir.prepare, "reference": workdir.run("reference")}
    tokens = sum(scores["n_tokens"].to_pylist())
    model = settings.reference.model
    forward_flops = flops.train_flops_per_token(model, store.vocab_size, model.context) / 3
    finish(
        workdir.score,
        "score",
        12.5,
        score.settings_of(settings),
        inputs,
        documents=len(scores),
        tokens=tokens,
        parameters=flops.n_params(model, store.vocab_size),
        flops=tokens * forward_flops,
    )


def _metrics(folder: Path, domains: tuple[str, ...], by: float, seed: int) -> None:
    """Losses that fall over the run, a training line every 5 steps and a validation every 20."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(0, 391, 5):
        falling = 4.5 * np.exp(-step / 60)
        if step > 0:
            lines.append(
                {
                    "step": step,
                    "tokens": step * 512,
                    "loss": 2.9 + by + falling + 0.06 * rng.normal(),
                    "lr": 1e-3,
                }
            )
        if step % 20 == 0 or step == 390:
            values = [HARDNESS.get(domain, 3.0) + by + falling for domain in domains]
            named = {f"heldout/{domain}": value for domain, value in zip(domains, values, strict=True)}
            lines.append({"step": step, "tokens": step * 512, "heldout": float(np.mean(values)), **named})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _evaluate(workdir: Workdir, name: str, store: TokenStore, by: float) -> None:
    folder = workdir.evaluate(name)
    folder.mkdir(parents=True)
    scores = pa.table(_documents(store, HELDOUT, np.random.default_rng(3), by))
    pq.write_table(scores, folder / "scores.parquet")
    inputs: dict[str, Path | str] = {"prepare": workdir.prepare, "train": workdir.run(name)}
    finish(folder, f"evaluate {name}", 3.3, {}, inputs, tokens=sum(scores["n_tokens"].to_pylist()))
