"""The main job on the text of this Python installation: under five minutes on two CPU cores.

    jaxprune run configs/quickstart.py

Eight domains (code, tests, docstrings, manuals, licences, ...), a reference of 0.5 M parameters, and three
arms with two seeds each.
"""

from dataclasses import replace

from jaxprune.config import Config, Corpus, Model, Optimizer, Run, Score, Select, Swarm, Tokenizer


def config() -> Config:
    """Small enough for a laptop; every stage is the real one."""
    run = Run(
        model=Model(
            d_model=96,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            context=256,
            position="rope",
            norm="rms",
            mlp="swiglu",
            bias=False,
            dtype="float32",
            unroll=3,
        ),
        # In 150 steps AdamW does not get past the frequencies of single tokens; Muon does.
        optimizer=Optimizer(name="muon", peak_lr=2e-2, warmup=0.1),
        tokens=300_000,
        batch_rows=8,
        validate_every=35,
        validation_rows=4,
        checkpoint_every=50,
        log_every=5,
    )
    return Config(
        name="quickstart",
        corpus=Corpus(max_domain_bytes=400_000),
        tokenizer=Tokenizer(vocab_size=2048, train_bytes=2_000_000),
        reference=run,
        score=Score(batch_tokens=8192),
        select=Select(criterion="medium", rate=0.5),
        final=run,
        swarm=Swarm(proxy=replace(run, tokens=100_000, validate_every=250)),  # for mix.method law
    )
