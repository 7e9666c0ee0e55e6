"""The pipeline at its smallest, for tests that run all of it: seconds on a CPU.

jaxprune run tests/tiny.py --corpus.sources FOLDER
"""

from jaxprune.config import Config, Corpus, Model, Optimizer, Run, Score, Select, Tokenizer


def config() -> Config:
    run = Run(
        model=Model(d_model=32, n_layers=2, n_heads=2, context=64, dtype="float32"),
        optimizer=Optimizer(peak_lr=5e-3),
        tokens=20_000,
        batch_rows=8,
        validate_every=10,
        validation_rows=2,
        checkpoint_every=5,
        log_every=5,
    )
    return Config(
        name="tiny",
        corpus=Corpus(heldout=0.1, reference=0.4),
        tokenizer=Tokenizer(vocab_size=400, train_bytes=100_000),
        reference=run,
        score=Score(batch_tokens=2048, shard_documents=40),
        select=Select(criterion="medium", rate=0.5),
        final=run,
        arms=("none", "pruned"),
        seeds=(0,),
    )
