"""Small models on many mixtures of the text of this Python installation, to fit mixing laws on.

    jaxprune prepare configs/sweep_mixing.py
    jaxprune mix swarm configs/sweep_mixing.py

27 proxies of 123,200 parameters without embeddings, 200,704 tokens each, on mixtures of eight domains that lie
far apart; they repeat data as often as a final run of 600,000 tokens. Measured: 5.5 minutes of processor time,
10 minutes on two cores shared with other work; so about 4 on two idle ones. It leaves 216 rows (8 checkpoints of
each) in runs/sweep_mixing/swarm/table/table.csv.

Expect mean losses of the domains from 4.80 (the uniform mixture, 001-0; the natural one, 000-0, is 4.81) to 5.84
at the end. Some domains' losses follow their own weight closely (licences: from 6.1 to 1.5 nats, correlation with
log weight -1.0), others hardly, since they learn from their neighbours (code -0.3, package_code -0.4).
"""

from dataclasses import replace

from jaxprune.config import Config, Corpus, Model, Optimizer, Run, Swarm, Tokenizer


def config() -> Config:
    """The corpus of the quickstart without pruning; the final run is what the proxies stand for."""
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
        validation_rows=8,
        checkpoint_every=50,
        log_every=10,
    )
    return Config(
        name="sweep_mixing",
        corpus=Corpus(max_domain_bytes=400_000),
        tokenizer=Tokenizer(vocab_size=2048, train_bytes=2_000_000),
        swarm=Swarm(design="maximin", floor=0.02, proxy=proxy, checkpoints=8),
        final=replace(proxy, model=replace(model, d_model=96, n_layers=3, unroll=3), tokens=600_000),
        arms=("none",),
    )
