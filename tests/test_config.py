"""The settings: what an optimizer takes of its own, and what does not decide a result."""

import dataclasses

import pytest

from jaxprune.config import Optimizer, Run, identity


@pytest.mark.parametrize(
    ("name", "shrinkage", "momenta"),
    [("adamw", 0.1, (0.9, 0.95)), ("lion", 2e-4, (0.9, 0.99)), ("muon", 0.1, (0.9, 0.95))],
)
def test_each_optimizer_has_its_own_decay_and_momenta(name, shrinkage, momenta):
    settings = Optimizer(name=name, peak_lr=2e-4)
    assert (settings.shrinkage, settings.momenta) == (shrinkage, momenta)
    given = dataclasses.replace(settings, weight_decay=0.0, b1=0.0, b2=0.5)
    assert (given.shrinkage, given.momenta) == (0.0, (0.0, 0.5))


def test_what_is_only_measured_does_not_decide_a_run():
    assert identity(Run(validate_every=1, validation_rows=3)) == identity(Run())
    assert identity(Run(batch_rows=8)) != identity(Run())
