"""The report's charts: each takes the report's figures and gives one inline SVG.

Colours are CSS variables of the page, so that one drawing is right in light, in dark and on paper.
matplotlib knows no variables: a chart is drawn with stand-in colours, which are replaced in its SVG.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator

from jaxprune.report.numbers import percent, short

WIDE, NARROW = 920, 360  # pixels that a laptop and a phone have for a chart
_TEXT = 13  # pixels
_NAME = 28  # characters of a name that a chart has room for
DOMAIN_COLOURS = 9  # a corpus of more domains uses them again: names stand beside them everywhere

_VARIABLES = (
    *("ink", "muted", "grid", "paper", "better", "worse"),
    *("arm-none", "arm-random", "arm-pruned", "arm-reweighted", "arm-within_domain"),
    *(f"domain-{number}" for number in range(DOMAIN_COLOURS)),
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "path.simplify_threshold": 0.3,
}


def colour(variable: str) -> str:
    """The stand-in for the page's CSS variable `--<variable>`."""
    return f"#a5c3{_VARIABLES.index(variable):02x}"


def domain_variable(domains: Sequence[str], domain: str) -> str:
    """The CSS variable of a domain's colour, the same in every chart and table."""
    return f"domain-{domains.index(domain) % DOMAIN_COLOURS}"


def intervals(figures: Mapping[str, Any], width: int) -> str:
    """Differences of bits per byte with their intervals, one row a comparison and mix, around zero."""
    comparisons = figures["comparisons"]
    rows = [(comparison, mix) for comparison in comparisons for mix in ("mean", "all")]
    wide = width > NARROW
    left, row_height = (210, 25) if wide else (12, 42)
    figure, axes = _canvas(width, 46 + row_height * len(rows), left=left, right=16, top=22, bottom=24)
    for row, (comparison, mix) in enumerate(rows):
        y = -row - (0.0 if wide else 0.22)
        change = comparison["bits_per_byte"][mix]
        shade = colour(f"arm-{comparison['arm']}")
        if change["low"] is not None:
            axes.plot([change["low"], change["high"]], [y, y], color=shade, lw=2.5, solid_capstyle="round")
        axes.plot(change["value"], y, "o", color=shade, ms=8 if mix == "mean" else 6,
                  mfc=shade if mix == "mean" else colour("paper"), mew=2)  # fmt: skip
        title = f"{comparison['arm']} vs {comparison['base']}" if mix == "mean" else "natural mix"
        at, height = (-(left - 6) / (width - left - 16), y) if wide else (0, -row + 0.2)
        _text(axes, at, height, title, x_in_axes=True, shade="ink" if mix == "mean" else "muted")
    ends = [0.0] + [change[end] for comparison, mix in rows for change in [comparison["bits_per_byte"][mix]]
            for end in ("value", "low", "high") if change[end] is not None]  # fmt: skip
    reach = max(max(ends) - min(ends), 1e-4)
    axes.set_xlim(min(ends) - 0.15 * reach, max(ends) + 0.15 * reach)
    axes.set_ylim(-len(rows) + 0.5, 0.5)
    axes.axvline(0, color=colour("muted"), lw=1)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(_ticks(6 if wide else 4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value)))
    for x, word, side in ((0, "◂ better", "left"), (1, "worse ▸", "right")):
        axes.text(
            x, 1.0, word, transform=axes.transAxes, color=colour("muted"), ha=side, va="bottom", size=_TEXT
        )
    return _svg(figure, f"intervals-{width}", "Differences of held-out bits per byte with 95 % intervals")


def ridges(figures: Mapping[str, Any], width: int) -> str:
    """Density of the scores for each domain, one above the other, with thresholds and what was kept."""
    distribution, domains, pruning = figures["distribution"], figures["domains"], figures["pruning"]
    signal, unit = pruning["signals"][0], pruning["unit"]
    grid_X = np.array(distribution["score"])
    wide = width > NARROW
    left, right, row_height = (_room_for(domains), 96, 58) if wide else (8, 8, 66)
    figure, axes = _canvas(
        width, 54 + row_height * (len(domains) + 0.35), left=left, right=right, top=8, bottom=40
    )
    peak = max(max(entry["density"]) for entry in distribution["domains"].values())
    span = (width - left - right) / 1.0
    for row, domain in enumerate(domains):
        entry = distribution["domains"][domain]
        variable = colour(domain_variable(domains, domain))
        base = -float(row)
        # Each ridge has its own height, so that a broad one can be read beside a sharp one.
        height = (0.95 if wide else 0.72) / max(*entry["density"], 0.3 * peak, 1e-9)
        density_X, kept_X = (base + height * np.array(entry[part]) for part in ("density", "kept_density"))
        axes.axhline(base, color=colour("grid"), lw=1, zorder=1)
        edges, top = pruning["thresholds"][domain], base + (1 if wide else 0.72)
        _ridge(axes, grid_X, density_X, kept_X, edges, (base, top), variable, zorder=2 + row)
        kept = f"{percent(entry['kept'])} kept"
        if wide:
            _text(axes, -(left - 4) / span, base + 0.22, _fitted(domain), x_in_axes=True, weight="bold")
            _text(axes, 1 + 10 / span, base + 0.22, kept, x_in_axes=True, shade="muted")
        else:
            _text(axes, 0, base + 0.84, f"{_fitted(domain)} · {kept}", x_in_axes=True)
    axes.set_ylim(-len(domains) + 0.92, 1.02)
    model = figures["score_model"]
    if model in ("reference", "second"):
        of_model = f" under the {model} model"
    else:  # a folder, of which the last part is the name; a phone has no room for it
        of_model = f" under {_fitted(model.rstrip('/').split('/')[-1])}" if wide else ""
    label = f"perplexity{of_model} (logarithmic)" if unit is None else f"{signal} ({unit})"
    _score_axis(axes, grid_X, unit, label, 9 if wide else 5)
    return _svg(figure, f"ridges-{width}", f"Distribution of {signal} by domain, with what was kept")


def scores(
    score_X: Sequence[float],
    entry: Mapping[str, Any],
    edges: Mapping[str, float | None],
    unit: str | None,
    variable: str,
    name: str,
) -> str:
    """Density of one domain's scores, the kept part of it dark, thresholds dashed.

    Args:
      score_X: the axis.
      entry: density and kept_density at its points.
      edges: low and high threshold, None where there is none.
      unit: of the scores; None: NLL in nats per token, whose ticks are perplexities.
      variable: CSS variable of the colour.
      name: of the drawing, unique in its page.
    """
    figure, axes = _canvas(300, 150, left=8, right=8, top=6, bottom=38)
    grid_X, density_X, kept_X = map(np.array, (score_X, entry["density"], entry["kept_density"]))
    top = 1.06 * max(*entry["density"], 1e-9)
    _ridge(axes, grid_X, density_X, kept_X, edges, (0, top), colour(variable), zorder=2)
    axes.set_ylim(0, top)
    _score_axis(axes, grid_X, unit, unit or "perplexity (logarithmic)", 5)
    return _svg(figure, f"scores-{name}", f"Distribution of scores, {name}")


def shares(figures: Mapping[str, Any], width: int) -> str:
    """Share of the tokens before (open) and after (filled) pruning, of each domain that the composition has."""
    composition = figures["composition"][figures["pruning"]["selection"]]["domains"]
    domains = figures["domains"]
    rows = {
        domain: [sizes[when]["share_tokens"] for when in ("before", "after")]
        for domain, sizes in composition.items()
    }
    figure, axes, place = _domain_rows(width, list(rows))
    for domain, (before, after) in rows.items():
        shade, y = colour(domain_variable(domains, domain)), place[domain]
        axes.plot([before, after], [y, y], color=shade, lw=3, alpha=0.55, solid_capstyle="butt")
        axes.plot(before, y, "o", mfc=colour("paper"), mec=shade, mew=2, ms=9)
        axes.plot(after, y, "o", color=shade, ms=10)
        right = after >= before
        axes.annotate(percent(after), (after, y), (11 if right else -11, 0), textcoords="offset points",
                      ha="left" if right else "right", va="center", color=colour("ink"), size=_TEXT)  # fmt: skip
    top = max(max(pair) for pair in rows.values())
    axes.set_xlim(-0.12 * top if width <= NARROW else -0.06 * top, 1.14 * top)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:.3g} %" if value >= 0 else "")
    )
    axes.set_xlabel("share of training-split tokens", color=colour("muted"), size=_TEXT)
    return _svg(figure, f"shares-{width}", "Share of tokens by domain before and after pruning")


def weights(figures: Mapping[str, Any], width: int) -> str:
    """Mixture weight of each domain, a dot for each arm."""
    mixture, domains, arms = figures["mixture"]["arms"], figures["domains"], figures["arms"]
    figure, axes, place = _domain_rows(width, domains)
    values = {arm: {domain: mixture[arm][domain]["weight"] for domain in domains} for arm in arms}
    for domain in domains:
        ends = [values[arm][domain] for arm in arms]
        axes.plot([min(ends), max(ends)], [place[domain]] * 2, color=colour("grid"), lw=3, zorder=1)
    for position, arm in enumerate(arms):
        # Arms of equal weight would hide each other: each has its own height in the row.
        y = [place[domain] + 0.15 * ((len(arms) - 1) / 2 - position) for domain in domains]
        axes.plot(list(values[arm].values()), y, "o", color=colour(f"arm-{arm}"), ms=8, zorder=2)
    top = max(max(weight.values()) for weight in values.values())
    axes.set_xlim(-0.03 * top, 1.08 * top)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_xlabel("share of the training tokens", color=colour("muted"), size=_TEXT)
    return _svg(figure, f"weights-{width}", "Mixture weights by domain and arm")


def curves(figures: Mapping[str, Any], kind: str, series: str) -> str:
    """Loss over training tokens: thin lines are seeds, thick ones their mean.

    Args:
      kind: `heldout`, `training`, or `difference` (to no pruning).
      series: `heldout` (mean over domains), `heldout/<domain>`, or `training`.
    """
    figure, axes = _canvas(300, 200, left=48, right=8, top=8, bottom=38)
    shown = [0.0] if kind == "difference" else []
    for arm, lines in figures["curves"][kind].items():
        shade = colour(f"arm-{arm}")
        late = []  # the first tenth of a run would set the scale
        for line in lines.values():
            tokens, loss = np.array(line["tokens"]), np.array(line["loss"][series])
            is_late = tokens >= 0.1 * tokens[-1]
            late.append((tokens[is_late], loss[is_late]))
            shown += loss[is_late].tolist()
        common = min((tokens for tokens, _ in late), key=len)
        mean = np.mean([np.interp(common, tokens, loss) for tokens, loss in late], axis=0)
        for tokens, loss in late if len(late) > 1 else ():
            axes.plot(tokens, loss, color=shade, lw=0.9, alpha=0.5)
        axes.plot(common, mean, color=shade, lw=2.2)
    room = 0.06 * max(max(shown) - min(shown), 1e-4)
    axes.set_ylim(min(shown) - room, max(shown) + room)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(_ticks(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_locator(_ticks(5))
    axes.grid(axis="y", color=colour("grid"), lw=1)
    if kind == "difference":
        axes.axhline(0, color=colour("arm-none"), lw=2.2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value)))
    axes.set_xlabel("training tokens", color=colour("muted"), size=_TEXT)
    return _svg(figure, f"curves-{kind}-{series}", f"{kind} loss over training tokens, {series}")


def mixing(figures: Mapping[str, Any], run: str, kind: str) -> str:
    """Weights (in steps), drawn shares or held-out losses of the domains over the steps of a run.

    Args:
      run: one of figures["mixing"], or, for `learnt`, a proxy of figures["learnt"].
      kind: `weights`, `shares`, `loss` or `learnt`.
    """
    series = figures["learnt"]["proxies"][run] if kind == "learnt" else figures["mixing"][run][kind]
    domains = figures["domains"]
    figure, axes = _canvas(300, 200, left=48, right=8, top=8, bottom=38)
    for domain in domains:
        values = np.array([np.nan if value is None else value for value in series["values"][domain]])
        if values.size and np.isfinite(values).any():
            axes.plot(
                series["step"],
                values,
                color=colour(domain_variable(domains, domain)),
                lw=1.6,
                drawstyle="steps-post" if kind == "weights" else "default",
            )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(_ticks(4))
    axes.yaxis.set_major_locator(_ticks(5))
    axes.grid(axis="y", color=colour("grid"), lw=1)
    if kind != "loss":
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_xlabel("step", color=colour("muted"), size=_TEXT)
    return _svg(figure, f"mixing-{kind}-{run}", f"{kind} by domain over the steps of {run}")


def interactions(matrix: Mapping[str, Any], mixed: Sequence[str], most: float, name: str) -> str:
    """A of a round: rows are domains whose loss was measured, columns those trained on; blue falls, red rises.

    Args:
      matrix: `A`, of the domains that are mixed.
      mixed: their names.
      most: the entry of full colour.
      name: of the drawing, unique in its page.
    """
    n = len(mixed)
    left, cell = _room_for(mixed), max(14, min(26, 300 // n))
    figure, axes = _canvas(left + cell * n + 8, cell * n + left, left=left, right=8, top=8, bottom=left - 8)
    for row, values in enumerate(matrix["A"]):
        for column, value in enumerate(values):
            strength = min(abs(value) / most, 1.0) if most > 0 else 0.0
            shade = colour("better" if value >= 0 else "worse")
            axes.add_patch(Rectangle((column, row), 1, 1, fc=shade, alpha=strength, lw=0))
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    places = [place + 0.5 for place in range(n)]
    axes.set_xticks(places, [_fitted(domain) for domain in mixed], rotation=90, size=_TEXT, parse_math=False)
    axes.set_yticks(places, [_fitted(domain) for domain in mixed], size=_TEXT, parse_math=False)
    return _svg(
        figure, f"interactions-{name}", "How training on a domain (column) lowered the loss of another (row)"
    )


def _canvas(
    width: int, height: float, *, left: int, right: int, top: int, bottom: int
) -> tuple[Figure, Axes]:
    """A transparent figure of `width` x `height` pixels whose axes leave the given margins."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        axes = figure.add_axes(
            (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        )
        axes.patch.set_visible(False)
        axes.spines["bottom"].set_color(colour("muted"))
        axes.tick_params(color=colour("muted"), labelcolor=colour("muted"))
        return figure, axes


def _domain_rows(width: int, domains: Sequence[str]) -> tuple[Figure, Axes, dict[str, float]]:
    """Axes with one named row for each domain, and the height of each row."""
    wide = width > NARROW
    left, row_height = (_room_for(domains), 40) if wide else (8, 52)
    figure, axes = _canvas(width, 52 + row_height * len(domains), left=left, right=24, top=8, bottom=44)
    place = {domain: -row - (0.0 if wide else 0.14) for row, domain in enumerate(domains)}
    for row, domain in enumerate(domains):
        if wide:
            _text(
                axes, -(left - 4) / (width - left - 24), -row, _fitted(domain), x_in_axes=True, weight="bold"
            )
        else:
            _text(axes, 0, -row + 0.3, _fitted(domain), x_in_axes=True, weight="bold")
        axes.axhline(place[domain], color=colour("grid"), lw=1, zorder=0)
    axes.set_ylim(-len(domains) + 0.45, 0.55)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(_ticks(8 if wide else 4))
    return figure, axes, place


def _text(axes: Axes, x: float, y: float, text: str, *, x_in_axes: bool, shade: str = "ink", weight: str = "normal") -> None:  # fmt: skip
    """Text at a row: `y` in data, `x` as a share of the axes' width."""
    transform = axes.get_yaxis_transform() if x_in_axes else axes.transData
    axes.text(
        x,
        y,
        text,
        transform=transform,
        color=colour(shade),
        weight=weight,
        va="center",
        zorder=100,
        size=_TEXT,
        parse_math=False,
    )


def _ridge(
    axes: Axes,
    grid_X: np.ndarray,
    density_X: np.ndarray,
    kept_X: np.ndarray,
    edges: Mapping[str, float | None],
    rise: tuple[float, float],
    shade: str,
    zorder: int,
) -> None:
    """A density from `rise[0]` on, the kept part of it dark, thresholds as dashed lines up to `rise[1]`."""
    axes.fill_between(grid_X, rise[0], density_X, color=shade, alpha=0.18, lw=0, zorder=zorder)
    low = grid_X[0] if edges["low"] is None else max(grid_X[0], edges["low"])
    high = grid_X[-1] if edges["high"] is None else min(grid_X[-1], edges["high"])
    if low < high:
        inside_X = np.linspace(low, high, len(grid_X))
        axes.fill_between(inside_X, rise[0], np.interp(inside_X, grid_X, kept_X), color=shade, alpha=0.75, lw=0,
                          zorder=zorder)  # fmt: skip
    axes.plot(grid_X, density_X, color=shade, lw=1.5, zorder=zorder)
    for edge in edges.values():
        if edge is not None and grid_X[0] < edge < grid_X[-1]:
            axes.plot([edge] * 2, rise, color=colour("ink"), lw=1, ls=(0, (2, 2)), zorder=99)


def _score_axis(axes: Axes, grid_X: np.ndarray, unit: str | None, label: str, most: int) -> None:
    """The axis of a signal; where `unit` is None, of NLL in nats per token with ticks at round perplexities."""
    axes.set_xlim(grid_X[0], grid_X[-1])
    axes.yaxis.set_major_locator(NullLocator())
    if unit is None:
        _perplexity_axis(axes, grid_X, most)
    else:
        axes.xaxis.set_major_locator(_ticks(most))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("-", "−")))
    axes.set_xlabel(label, color=colour("muted"), size=_TEXT, parse_math=False)


def _perplexity_axis(axes: Axes, nll_X: np.ndarray, most: int) -> None:
    """Ticks at round perplexities on an axis of NLL in nats."""
    low, high = math.exp(nll_X[0]), math.exp(nll_X[-1])
    ticks: list[int] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10**power for power in range(9) for step in steps if low <= step * 10**power <= high]
        if len(ticks) <= most:
            break
    axes.xaxis.set_major_locator(FixedLocator([math.log(tick) for tick in ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(round(math.exp(value)))))


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element for a page: variables for colours, unique ids, a title."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.S)
    drawing = re.sub(r'(<g\b[^>]*?) id="[^"]*"', r"\1", drawing)  # each figure has the same ones
    drawing = re.sub(r"#a5c3([0-9a-f]{2})", lambda hit: f"var(--{_VARIABLES[int(hit[1], 16)]})", drawing)
    # A hundredth of a pixel is enough; the numbers between tags are text.
    drawing = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), drawing)
    drawing = re.sub(r">\s+<", "><", drawing)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    opening = f'<svg viewBox="0 0 {width} {height}" style="max-width:{1.25 * width:.0f}px" role="img" aria-label="{html.escape(title)}"'
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return re.sub(r"<svg [^>]*>", f"{opening} {links}>", drawing, count=1)


def _signed(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:+.3g}".replace("-", "−")


def _ticks(most: int) -> Locator:
    """At round numbers."""
    return MaxNLocator(most, steps=[1, 2, 5, 10])


def _room_for(domains: Sequence[str]) -> int:
    """Pixels that the longest name takes at the left of a wide chart."""
    return 24 + 8 * min(max(len(domain) for domain in domains), _NAME)


def _fitted(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
