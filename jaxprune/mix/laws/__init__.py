"""Mixing laws: what a mixture of domains, and how much of it, does to the loss of each. One law a file.

    table = MixtureTable.read("table.csv")
    fitted = Combined().fit(table)
    fitted.predict(weights_NK, tokens)
    fitted.optimum(second=Reciprocal().fit(table))

Numpy and SciPy, without JAX.
"""

from jaxprune.mix.laws.autoscale import AutoScale
from jaxprune.mix.laws.bimix import BiMix
from jaxprune.mix.laws.combined import Combined
from jaxprune.mix.laws.exponential import Exponential
from jaxprune.mix.laws.gaussian_process import GaussianProcess
from jaxprune.mix.laws.law import Coefficient, FittedLaw, Law
from jaxprune.mix.laws.linear import Linear
from jaxprune.mix.laws.loglinear import LogLinear
from jaxprune.mix.laws.power import Power
from jaxprune.mix.laws.reciprocal import Reciprocal
from jaxprune.mix.laws.trees import Trees

LAWS: dict[str, Law] = {
    "combined": Combined(),
    "bimix": BiMix(),
    "bimix_floor": BiMix(floor=True),
    "exponential": Exponential(),
    "loglinear": LogLinear(),
    "reciprocal": Reciprocal(),
    "joint": Reciprocal(form="joint"),
    "autoscale": AutoScale(),
    "trees": Trees(),
    "linear": Linear(),
    "gaussian_process": GaussianProcess(),
    "power": Power(),
}
"""The laws by the name that a setting or the command line gives them."""

__all__ = [
    "LAWS", "AutoScale", "BiMix", "Coefficient", "Combined", "Exponential", "FittedLaw", "GaussianProcess", "Law", "Linear",
    "LogLinear", "Power", "Reciprocal", "Trees",
]  # fmt: skip
