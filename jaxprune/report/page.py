"""The stage `report`: one page that a person reads, and the same figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxprune.artifact import Manifest, Workdir, build, write_json
from jaxprune.config import Config, identity
from jaxprune.report import charts, numbers, provenance
from jaxprune.report.figures import collect
from jaxprune.report.headline import ARMS, headline, verdict


def run(config: Config, workdir: Workdir) -> Manifest:
    """Writes `index.html` and `report.json` from the artifacts of all stages.

    Raises:
      ArtifactMissing, StageError: as `provenance.read`.
    """
    manifests = provenance.read(config, workdir)

    def make(folder: Path) -> dict[str, Any]:
        figures = collect(config, workdir, manifests, folder / "spill")
        figures = {"headline": headline(figures), **figures}
        write_json(folder / "report.json", figures)
        page = render(figures)
        (folder / "index.html").write_text(page, encoding="utf-8")
        return {"bytes": len(page.encode())}

    inputs = {name: manifest.fingerprint for name, manifest in manifests.items()}
    return build(workdir.report, "report", {"config": identity(config)}, inputs, make)


def render(figures: dict[str, Any]) -> str:
    """The page, which needs nothing but itself, from the figures and nothing else."""
    return (
        environment(figures["domains"])
        .get_template("template.html")
        .render(figures=figures, arm_names=ARMS, verdict=verdict, depth=partial(_depth, figures))
    )


def environment(domains: Sequence[str]) -> Environment:
    """What pages are made with: escapes all that is put in them, writes numbers, and knows charts and colours."""
    made = Environment(
        loader=PackageLoader("jaxprune.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (
        *(numbers.short, numbers.count, numbers.percent, numbers.perplexity, numbers.score),
        *(numbers.decimals, numbers.signed, numbers.duration, numbers.scientific),
    ):
        made.filters[write.__name__] = write
    made.filters["pretty"] = lambda data: json.dumps(data, indent=2, ensure_ascii=False)
    made.globals["charts"] = charts
    made.globals["widths"] = (charts.WIDE, charts.NARROW)
    made.globals["domain_variable"] = partial(charts.domain_variable, domains)
    return made


def _depth(figures: dict[str, Any], measure: str, change: dict[str, Any]) -> float:
    """Strength of a cell's colour, from 0 to 1: a quarter where the interval does not exclude zero."""
    cells = [cell[measure]["to_none"] for of_arm in figures["results"].values() for cell in of_arm.values()]
    most = max(abs(cell["value"]) for cell in cells if cell is not None)
    share = abs(change["value"]) / max(most, 1e-12)
    return round(share if verdict(change) in ("better", "worse") else share / 4, 3)
