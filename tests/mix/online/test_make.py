"""Strategies made from what the stage `mix` decided: their domains are the right ones, and what cannot be is refused."""

import pytest

from jaxprune.artifact import StageError
from jaxprune.config import Ado, Mix, Model, Odm, Run
from jaxprune.mix.online.bounded import Bounded
from jaxprune.mix.online.make import online, strategy
from jaxprune.mix.online.skillit import SkillIt

RUN = Run(model=Model(d_model=32, n_layers=1, n_heads=2, context=16), tokens=1000 * 8 * 16, batch_rows=8)
ROWS = {"books": 400, "code": 0, "web": 900}
WEIGHTS = {"books": 0.75, "code": 0.0, "web": 0.25}
# What training on a domain (outer) takes from the loss of another: books teach web, and not the other way.
GRAPH = {"books": {"books": 0.5, "web": 0.4}, "web": {"books": 0.1, "web": 0.3}}


def made(mix: Mix, graph=None) -> Bounded:
    mixture = {"rows": ROWS, "weights": WEIGHTS, "online": online(mix, RUN, graph)}
    found = strategy(mix, RUN, mixture, 0)
    assert isinstance(found, Bounded)
    return found


@pytest.mark.parametrize("method", ["aioli", "odm", "ado"])
def test_domains_without_a_row_are_not_the_strategys(method):
    mix = Mix(method=method, prior="natural", prior_share=0.1, ado=Ado(refit=100))
    found = made(mix)
    assert found.mixed_K == (True, False, True)
    _, decision = found.begin(10)
    assert decision.weights_K[1] == 0 and decision.weights_K.sum() == pytest.approx(1)


def test_the_graph_keeps_who_teaches_whom():
    found = made(Mix(method="skillit"), GRAPH)
    assert isinstance(found.inner, SkillIt)
    assert found.inner.graph_KK == ((0.5, 0.4), (0.1, 0.3))
    with pytest.raises(ValueError, match="its graph has no web"):
        made(Mix(method="skillit"), {"books": {"books": 1.0}})


def test_a_prior_part_may_not_use_up_what_the_cap_allows_nor_all_steps():
    # 800 steps x 8 rows x 3/4 are 4,800 of 400 books, 12 epochs, and 1,600 of 900 rows of the web.
    made(Mix(method="odm", prior="natural", prior_share=0.8, max_epochs=12.1))
    with pytest.raises(
        ValueError, match=r"mix.prior draws books 12 times over before odm begins, and mix.max_epochs is 11"
    ):
        made(Mix(method="odm", prior="natural", prior_share=0.8, max_epochs=11.0))
    with pytest.raises(ValueError, match=r"mix.prior_share is 0.9999 and leaves odm none of 1000 steps"):
        made(Mix(method="odm", prior="natural", prior_share=0.9999))
    with pytest.raises(ValueError, match="in which all domains together give"):
        made(Mix(method="odm", max_epochs=5.0))


def test_ado_that_would_never_fit_a_law_is_refused():
    with pytest.raises(
        ValueError, match="mix.ado.refit is 1000, and ado decides on 1000 steps: no law would be fitted"
    ):
        made(Mix(method="ado"))


@pytest.mark.parametrize("now", ["natural", "ado", "doremi"])
def test_a_mixture_of_another_method_is_not_trained_on(now):
    """As where `mix --strategy odm` was run, and `train` without it."""
    mixture = {"rows": ROWS, "weights": WEIGHTS, "online": online(Mix(method="odm"), RUN, None)}
    with pytest.raises(StageError, match=r"the stage mix was run with other settings \(of odm\)"):
        strategy(Mix(method=now), RUN, mixture, 0)


def test_settings_by_which_no_weight_could_move_are_refused():
    with pytest.raises(ValueError, match="mix.odm decides first after 1000 steps"):
        made(Mix(method="odm", odm=Odm(warmup=1000)))
    with pytest.raises(ValueError, match="mix.ado.least is 0.5 for 2 domains.*set less than 0.5"):
        made(Mix(method="ado", ado=Ado(refit=100, least=0.5)))
