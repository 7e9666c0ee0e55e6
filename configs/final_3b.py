"""X"""

from dataclasses import replace

from jaxprune.config import Config, Optimizer, Run, Score, Select, Tokenizer
from jaxprune.model import presets


def config() -> Config:
    """One"""
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
