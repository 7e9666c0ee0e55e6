"""Every signal together, on models that were trained: from the corpus to a selection by each of them."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import write_corpus
from tiny import config as tiny

from jaxprune import pipeline
from jaxprune.artifact import Workdir
from jaxprune.config import Ask, Corpus, Density, Model, Score, Select, Tokenizer, Zip
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.prune.criteria import CRITERIA


@pytest.mark.parametrize("unit", [{}, {"sequence_tokens": 90}], ids=["documents", "sequences"])
def test_every_signal_ranks_documents(tmp_path, unit):
    write_corpus(tmp_path / "corpus", documents=60)
    workdir = Workdir(tmp_path / "workdir")
    run = dataclasses.replace(
        tiny().reference,
        model=Model(d_model=16, n_layers=1, n_heads=2, context=64, dtype="float32"),
        tokens=3_000,
        validate_every=0,
    )
    config = dataclasses.replace(
        tiny(),
        corpus=Corpus(sources=(str(tmp_path / "corpus"),), heldout=0.1, reference=0.4, **unit),
        tokenizer=Tokenizer(vocab_size=330, train_bytes=20_000),
        reference=run,
        second=dataclasses.replace(run, tokens=2_000),
        arms=("pruned",),
        score=Score(
            signals=tuple(CRITERIA),
            second="second",
            target=str(tmp_path / "corpus" / "prose.jsonl"),
            ask=Ask(model=str(workdir.run("reference")), prompt="{text}? ", yes="a", no="b"),
            vog_checkpoints=2,
            zip=Zip(candidates=10, shortlist=5, step=3),
            density=Density(dimensions=32, rows=20, buckets=50),
            batch_tokens=1024,
            shard_documents=17,
        ),
    )
    pipeline.prepare(config, workdir)
    pipeline.train(config, workdir, config.scorers)
    pipeline.score(config, workdir)
    store = TokenStore(workdir.prepare / "tokens")
    n_tokens_N = (np.diff(store.offsets_N1) - 1)[store.documents(TRAIN)]
    is_short = {"memorization": n_tokens_N < 64, "zip": n_tokens_N < Select().min_tokens}
    for signal in CRITERIA:
        select = Select(signals=(signal,), criterion="low", rate=0.3)
        pipeline.select(dataclasses.replace(config, select=select), workdir)
        table = pq.read_table(workdir.select / "pruned.parquet")
        value_N = table["score"].to_numpy(zero_copy_only=False).astype(float)
        is_kept_N = table["kept"].to_numpy(zero_copy_only=False)
        is_null_N = is_short.get(signal, np.zeros(len(value_N), bool))
        assert (np.isfinite(value_N) == ~is_null_N).all(), signal
        assert 0 < is_kept_N.sum() < len(value_N) / 2 and not is_kept_N[is_null_N].any(), signal
        assert value_N[is_kept_N].max() <= value_N[~is_kept_N & (n_tokens_N >= 64)].min(), signal
        assert signal == "memorization" or len(np.unique(value_N[~is_null_N])) > 5, signal
