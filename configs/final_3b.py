"""The pruning paper's larger pipeline: a 125M reference prunes for a 3B final model (Ankner et al., section 3.1).

    jaxprune run configs/final_3b.py --corpus.sources /data/corpus --workdir /runs/final_3b --mesh.replica 2 --distributed

26 billion tokens for the reference and 54 billion for each final model (20 a parameter, as the paper), in batches of 512 rows.
A step has 512 x 2,048 tokens of 18.1 GFLOP each (6 N + 12 L D T): 18.9 PFLOP, and 51,499 steps.

What `jaxprune compile` says of the training step (none of these chips has to be here for it); all other steps of the pipeline
fit with the same settings. `products` is the time of its matrix products at the chips' peak, `links` that of what a chip
sends: the step takes the larger one at least, and their sum if neither hides the other. One H100 reaches 41 % of the peak on 1B and
3B, one H200 45 to 51 % on all (docs/benchmarks.md): this model 26,100 tokens/s in 65.3 GiB, laid out as h200-1 below.

| chips | settings to add | memory a chip | products | links | tokens/s at most |
|---|---|---|---|---|---|
| v5e-256 | `--mesh.replica 2` | 8.4 of 15.8 GiB | 0.37 s | 0.127 s | 2,835k |
| v5p-128 | `--mesh.replica 2` | 28.4 of 95.7 GiB | 0.64 s | 0.036 s | 1,651k |
| v6e-256 | `--mesh.replica 2` | 8.6 of 31.2 GiB | 0.08 s | 0.068 s | 13,210k |
| h100-8 | `--final.microbatches 4` | 55.7 of 73.2 GiB | 2.36 s | 0.170 s | 445k |
| h200-8 | `--final.microbatches 4` | 56.2 of 129.2 GiB | 2.36 s | 0.170 s | 445k |
| h200-1 | `--final.microbatches 64 --reference.microbatches 8 --score.batch_tokens 131072` | 65.1 of 129.2 GiB | 18.86 s | 0.000 s | 56k |

Elsewhere leave `--mesh.replica` out or set it to the number of slices or nodes; docs/scale.md says why it is 2 on one TPU slice.
"""

from dataclasses import replace

from jaxprune.config import Config, Optimizer, Run, Score, Select, Tokenizer
from jaxprune.model import presets


def config() -> Config:
    """3B models, pruned and not, one seed."""
    lion = Optimizer(name="lion", peak_lr=2e-4)
    return Config(
        name="final_3b",
        tokenizer=Tokenizer(vocab_size=65_536, train_bytes=2_000_000_000),
        reference=Run(model=presets.mpt_125m(), optimizer=lion, tokens=26_000_000_000, batch_rows=256),
        score=Score(batch_tokens=1_048_576),
        select=Select(criterion="medium", rate=0.5),
        final=Run(
            model=replace(presets.mpt_3b(), remat="dots"),
            optimizer=Optimizer(name="lion", peak_lr=1e-4),
            tokens=54_000_000_000,
            batch_rows=512,
        ),
        arms=("none", "pruned"),
        seeds=(0,),
    )
