"""The pruning paper's smaller pipeline: a 125M reference prunes for a 1B final model (Ankner et al., section 3.1).

    jaxprune run configs/final_1b.py --corpus.sources /data/corpus --workdir /runs/final_1b --mesh.replica 2 --distributed

26 billion tokens for the reference and for each final model (20 a parameter, as the paper), in batches of 512 rows.
A step has 512 x 2,048 tokens of 9.3 GFLOP each (6 N + 12 L D T): 9.7 PFLOP, and 24,796 steps.

What `jaxprune compile` says of the training step (none of these chips has to be here for it); all other steps of the pipeline
fit with the same settings. `products` is the time of its matrix products at the chips' peak, `links` that of what a chip
sends: the step takes the larger one at least, and their sum if neither hides the other. One H100 reaches 41 % of the peak on 1B and
3B, one H200 45 to 51 % on all (docs/benchmarks.md): this model 49,400 tokens/s in 50.9 GiB, laid out as h200-1 below.

| chips | settings to add | memory a chip | products | links | tokens/s at most |
|---|---|---|---|---|---|
| v5e-256 | `--mesh.replica 2` | 5.3 of 15.8 GiB | 0.19 s | 0.052 s | 5,523k |
| v5p-128 | `--mesh.replica 2` | 18.1 of 95.7 GiB | 0.33 s | 0.018 s | 3,217k |
| v6e-256 | `--mesh.replica 2` | 5.7 of 31.2 GiB | 0.04 s | 0.026 s | 25,738k |
| h100-8 | `--final.microbatches 4` | 34.4 of 73.2 GiB | 1.21 s | 0.086 s | 867k |
| h200-8 | `--final.microbatches 2` | 64.8 of 129.2 GiB | 1.21 s | 0.044 s | 867k |
| h200-1 | `--final.microbatches 32 --reference.microbatches 8 --score.batch_tokens 131072` | 50.5 of 129.2 GiB | 9.68 s | 0.000 s | 108k |

Elsewhere leave `--mesh.replica` out or set it to the number of slices or nodes; docs/scale.md says why it is 2 on one TPU slice.
"""

from dataclasses import replace

from jaxprune.config import Config, Optimizer, Run, Score, Select, Tokenizer
from jaxprune.model import presets


def config() -> Config:
    """1B models, pruned and not, one seed."""
    lion = Optimizer(name="lion", peak_lr=2e-4)
    return Config(
        name="final_1b",
        tokenizer=Tokenizer(vocab_size=65_536, train_bytes=2_000_000_000),
        reference=Run(model=presets.mpt_125m(), optimizer=lion, tokens=26_000_000_000, batch_rows=256),
        score=Score(batch_tokens=1_048_576),
        select=Select(criterion="medium", rate=0.5),
        final=Run(
            model=replace(presets.mpt_1b(), remat="dots"),
            optimizer=Optimizer(name="lion", peak_lr=1e-4),
            tokens=26_000_000_000,
            batch_rows=512,
        ),
        arms=("none", "pruned"),
        seeds=(0,),
    )
