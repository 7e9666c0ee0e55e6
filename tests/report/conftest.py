"""One finished work directory for the tests that only read it."""

import json

import pytest
from report_artifacts import settings, texts, write_workdir

from jaxprune.report import page


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """Four domains, three arms, two seeds; pruning gains. Gives settings, work directory and figures."""
    config, workdir = write_workdir(
        tmp_path_factory.mktemp("reported"), settings(), texts(), {"pruned": -0.08, "random": 0.02}
    )
    page.run(config, workdir)
    return config, workdir, json.loads((workdir.report / "report.json").read_text())
