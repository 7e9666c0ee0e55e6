"""All ways of mixing against the stratified mixture, at the same tokens: what benchmarks/members.py runs.

    python benchmarks/members.py --sources FOLDER

One model of 0.5 M parameters, 600,000 tokens (293 steps), three seeds, nothing pruned. Proxies (DoReMi, DoGE, Skill-It) take half of
these tokens in all. On two cores a run takes a minute, and the whole comparison on nine domains three quarters of an hour.
"""

from jaxprune.config import (
    Ado,
    Aioli,
    Config,
    Corpus,
    Mix,
    Model,
    Optimizer,
    Run,
    Score,
    SkillIt,
    Swarm,
    Tokenizer,
)


def config() -> Config:
    """The stratified mixture; `--mix.method` makes it another."""
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
        optimizer=Optimizer(name="muon", peak_lr=2e-2, warmup=0.1),
        tokens=600_000,
        batch_rows=8,
        validate_every=50,
        validation_rows=8,
        checkpoint_every=100,
        log_every=10,
    )
    return Config(
        name="compare_mixing",
        corpus=Corpus(max_domain_bytes=1_500_000, reference=0.1),
        tokenizer=Tokenizer(vocab_size=2048, train_bytes=2_000_000),
        reference=Run(model=run.model, optimizer=run.optimizer, tokens=50_000, batch_rows=8),
        score=Score(batch_tokens=8192),
        mix=Mix(
            method="uniform",
            rows=8,
            aioli=Aioli(rounds=6, sweeps=2, segment_steps=1),
            skillit=SkillIt(rounds=6),
            ado=Ado(refit=50),
        ),
        swarm=Swarm(
            proxy=Run(model=run.model, optimizer=run.optimizer, tokens=150_000, batch_rows=8, log_every=10)
        ),
        final=run,
        arms=("none",),
        seeds=(0, 1, 2),
        metrics=(),
    )
