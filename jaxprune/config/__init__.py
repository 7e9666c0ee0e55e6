"""The settings of a run: one tree of frozen dataclasses, made by the functions in `configs/`.

Every field has its unit and its meaning in the docstring below it, which is what `--help` prints.
"""

from jaxprune.config.audit import Audit
from jaxprune.config.base import Settings, check, identity, neutral
from jaxprune.config.config import Config
from jaxprune.config.data import Corpus, Tokenizer
from jaxprune.config.mix import Mix, MixStage, Swarm
from jaxprune.config.model import Model
from jaxprune.config.online import Ado, Aioli, DoGE, DoReMi, Odm, Own, SkillIt
from jaxprune.config.run import Mesh, Optimizer, Run
from jaxprune.config.score import Ask, Density, Score, Signal, Zip
from jaxprune.config.select import Arm, Select

__all__ = [
    "Ado",
    "Aioli",
    "Arm",
    "Ask",
    "Audit",
    "Config",
    "Corpus",
    "Density",
    "DoGE",
    "DoReMi",
    "Mesh",
    "Mix",
    "MixStage",
    "Model",
    "Odm",
    "Optimizer",
    "Own",
    "Run",
    "Score",
    "Select",
    "Settings",
    "Signal",
    "SkillIt",
    "Swarm",
    "Tokenizer",
    "Zip",
    "check",
    "identity",
    "neutral",
]
