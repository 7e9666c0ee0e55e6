"""The pruning paper's reference, and final models of its size: a day on one H100, or an hour on eight chips and more.

    jaxprune run configs/ref_125m.py --corpus.sources /data/corpus --workdir /runs/ref_125m

One H100 trains 406,000 tokens/s and scores 1.12 M (docs/benchmarks.md): the reference's 2.5 billion tokens take 1.7 hours,
each of the six final runs as long, and 10 billion tokens are scored in 2.5 hours. `--reference.tokens 26_000_000_000` is what
the paper's reference was trained on (Ankner et al., section 3.1), 18 hours of one H100.

| chips | settings to add | memory a chip | products | links | tokens/s at most |
|---|---|---|---|---|---|
| h100-1 | (as it is) | 27.4 of 73.2 GiB | 0.49 s | 0.000 s | 1,069k |
| h100-8 | `--final.microbatches 2 --reference.microbatches 2` | 26.0 of 73.2 GiB | 0.06 s | 0.005 s | 8,548k |

Measured on one H100: 24.5 GiB and 406k tokens/s with AdamW and one microbatch.
docs/scale.md says how these figures are made.
"""

from dataclasses import replace

from jaxprune.config import Config, Optimizer, Run, Score, Select, Tokenizer
from jaxprune.model import presets


def config() -> Config:
    """125M models: medium and random pruning against none, two seeds."""
    # Unrolled and with whole rows of logits: the fastest on an H100 (docs/benchmarks.md), if it has the memory.
    model = replace(presets.mpt_125m(), unroll=12, loss_chunk=2048)
    run = Run(
        model=model,
        optimizer=Optimizer(name="lion", peak_lr=2e-4),
        tokens=2_500_000_000,
        batch_rows=256,
        microbatches=16,
    )
    return Config(
        name="ref_125m",
        tokenizer=Tokenizer(vocab_size=65_536, train_bytes=2_000_000_000),
        reference=run,
        score=Score(batch_tokens=131_072),
        select=Select(criterion="medium", rate=0.5),
        final=run,
    )
