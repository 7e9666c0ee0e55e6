"""The main job on the text of this Python installation, on a laptop's CPU.

jaxprune run configs/quickstart.py
"""

from jaxprune.config import Config, Corpus, Model, Optimizer, Run, Score, Select, Tokenizer


def config() -> Config:
    model = Model(
        d_model=128,
        n_layers=4,
        n_heads=4,
        context=256,
        position="rope",
        norm="rms",
        mlp="swiglu",
        bias=False,
        dtype="float32",
        unroll=4,
    )
    run = Run(
        model=model,
        optimizer=Optimizer(peak_lr=3e-3, weight_decay=0.1),
        tokens=500_000,
        batch_rows=16,
        validate_every=25,
        validation_rows=8,
        checkpoint_every=50,
        log_every=5,
    )
    return Config(
        name="quickstart",
        corpus=Corpus(max_domain_bytes=1_000_000),
        tokenizer=Tokenizer(vocab_size=4096, train_bytes=3_000_000),
        reference=run,
        score=Score(batch_tokens=8192, shard_documents=1024),
        select=Select(criterion="medium", rate=0.5),
        final=run,
    )
