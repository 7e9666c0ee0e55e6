"""A small token store and a small run for the tests of training."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune import config
from jaxprune.data.mixture import Stage
from jaxprune.data.store import SPLITS, TokenStore
from jaxprune.model.sharding import make_mesh
from jaxprune.train.plan import Plan

VOCAB, EOD = 97, 0
DOMAINS = ("a", "b", "c")


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> TokenStore:
    """Ninety documents of three domains, each with a pattern of its own to learn."""
    folder: Path = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    domain_N = np.arange(90) % 3
    pieces = []
    for domain in domain_N:
        n = int(rng.integers(20, 120))
        text = (np.cumsum(rng.integers(1, 3 + domain, n)) + rng.integers(VOCAB)) % (VOCAB - 1) + 1
        pieces.append(np.concatenate([[EOD], text]).astype(np.uint16))
    length_N = np.array([len(piece) for piece in pieces])
    split_N = np.where(np.arange(90) < 15, 0, np.where(np.arange(90) < 40, 1, 2)).astype(np.uint8)
    np.concatenate(pieces).tofile(folder / "tokens")
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64))
    np.save(folder / "domain.npy", domain_N.astype(np.uint16))
    np.save(folder / "split.npy", split_N)
    np.save(folder / "n_bytes.npy", (3 * (length_N - 1)).astype(np.int64))
    index = {
        "number": pa.array(range(90), pa.int64()),
        "id": [f"doc-{n}" for n in range(90)],
        "domain": [DOMAINS[d] for d in domain_N],
        "split": [SPLITS[s] for s in split_N],
        "n_tokens": pa.array(length_N - 1, pa.int64()),
        "n_bytes": pa.array(3 * (length_N - 1), pa.int64()),
    }
    pq.write_table(pa.table(index), folder / "index.parquet")
    meta = {
        "vocab_size": VOCAB,
        "eod_id": EOD,
        "domains": list(DOMAINS),
        "dtype": "uint16",
        "n_documents": 90,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


@pytest.fixture
def make_plan(store):
    """A plan of twelve steps; keywords replace its parts."""

    def make(mesh=None, weights=(0.5, 0.3, 0.2), model=None, optimizer=None, seed=0, documents=None, **run):
        settings = {
            "tokens": 12 * 8 * 16,
            "batch_rows": 8,
            "validate_every": 5,
            "validation_rows": 2,
            "checkpoint_every": 4,
            "log_every": 3,
        } | run
        return Plan(
            title="train test",
            run=config.Run(
                model=config.Model(
                    **{"d_model": 32, "n_layers": 2, "n_heads": 4, "context": 16, "dtype": "float32"}
                    | (model or {})
                ),
                optimizer=config.Optimizer(**{"peak_lr": 3e-3, "warmup": 0.2} | (optimizer or {})),
                **settings,
            ),
            store=store,
            documents=store.documents(2) if documents is None else documents,
            stages=(Stage(start=0, weights=weights),),
            seed=seed,
            mesh=mesh or make_mesh(config.Mesh(fsdp=1), _devices(1)),
        )

    return make


def _devices(n: int):
    import jax

    return jax.devices()[:n]
