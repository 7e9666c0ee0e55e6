"""Whether documents can be scored and measured as a config says: asked before hours are spent on what comes before."""

from __future__ import annotations

import jax

from jaxprune.config import Config
from jaxprune.model import attention
from jaxprune.model.sharding import check_divides
from jaxprune.prune import models, score
from jaxprune.prune.signals import density, dsir, memorization


def check(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Reads what models and files say about themselves, and nothing large.

    Raises:
      ValueError: a model or a file that is read is not there or does not fit a setting or the devices.
    """
    for name in config.models:
        models.check(name)
        settings = models.settings(name, config)
        try:
            check_divides(settings, mesh)
            attention.choose(settings, mesh)
        except ValueError as error:
            raise ValueError(f"the model {name}: {error}") from None
    score.context_of(config)
    if "memorization" in config.signals:
        memorization.check_context(models.settings(config.score.model, config).context)
    if "density" in config.signals:
        density.check_file(config.score.density)
    if "dsir" in config.signals and config.score.target is not None:
        dsir.parts(config.corpus, config.score.target)
