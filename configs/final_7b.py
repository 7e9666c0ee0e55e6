"""Beyond the pruning paper: a 125M reference prunes for a 7B final model, trained on 20 tokens a parameter.

    jaxprune run configs/final_7b.py --corpus.sources /data/corpus --workdir /runs/final_7b --mesh.replica 2 --distributed

26 billion tokens for the reference and 137 billion for each final model, in batches of 1,024 rows.
A step has 1,024 x 2,048 tokens of 43.5 GFLOP each (6 N + 12 L D T): 91.2 PFLOP, and 65,327 steps.

What `jaxprune compile` says of the training step (none of these chips has to be here for it); all other steps of the pipeline
fit with the same settings. `products` is the time of its matrix products at the chips' peak, `links` that of what a chip
sends: the step takes the larger one at least, and their sum if neither hides the other. One H100 reaches 41 % of the peak on 1B and
3B, one H200 45 to 51 % on all (docs/benchmarks.md): this model 10,200 tokens/s in 104.4 GiB, laid out as h200-1 below.

| chips | settings to add | memory a chip | products | links | tokens/s at most |
|---|---|---|---|---|---|
| v5e-256 | `--mesh.replica 2` | 8.8 of 15.8 GiB | 1.79 s | 1.127 s | 1,174k |
| v5p-128 | `--mesh.replica 2 --final.microbatches 2` | 49.5 of 95.7 GiB | 3.07 s | 0.182 s | 684k |
| v6e-256 | `--mesh.replica 2 --final.microbatches 2` | 14.9 of 31.2 GiB | 0.38 s | 0.272 s | 5,470k |
| h100-8 | `--final.microbatches 16` | 56.9 of 73.2 GiB | 11.39 s | 1.679 s | 184k |
| h200-8 | `--final.microbatches 8` | 94.1 of 129.2 GiB | 11.39 s | 0.844 s | 184k |
| h200-1 | `--final.microbatches 256 --final.model.remat full --reference.microbatches 8 --score.batch_tokens 131072` | 105.5 of 129.2 GiB | 118.42 s | 0.000 s | 18k |

Elsewhere leave `--mesh.replica` out or set it to the number of slices or nodes; docs/scale.md says why it is 2 on one TPU slice.
"""

from dataclasses import replace

from jaxprune.config import Config, Optimizer, Run, Score, Select, Tokenizer
from jaxprune.model import presets


def config() -> Config:
    """7B models, pruned and not, one seed."""
    lion = Optimizer(name="lion", peak_lr=2e-4)
    return Config(
        name="final_7b",
        tokenizer=Tokenizer(vocab_size=65_536, train_bytes=2_000_000_000),
        reference=Run(model=presets.mpt_125m(), optimizer=lion, tokens=26_000_000_000, batch_rows=256),
        score=Score(batch_tokens=1_048_576),
        select=Select(criterion="medium", rate=0.5),
        final=Run(
            model=replace(presets.mpt_7b(), remat="dots"),
            optimizer=Optimizer(name="lion", peak_lr=1e-4),
            tokens=137_000_000_000,
            batch_rows=1024,
            microbatches=4,
        ),
        arms=("none", "pruned"),
        seeds=(0,),
    )
