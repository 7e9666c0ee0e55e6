"""Charts: one per page without clashes, colours of the page, text as it was meant."""

import copy
import re
import xml.etree.ElementTree as ET

import pytest

from jaxprune.report import charts


def _all(figures):
    yield from (chart(figures, width) for chart in (charts.intervals, charts.ridges, charts.shares, charts.weights)
                for width in (charts.WIDE, charts.NARROW))  # fmt: skip
    yield charts.curves(figures, "training", "training")
    for kind in ("heldout", "difference"):
        yield from (charts.curves(figures, kind, s) for s in ("heldout", f"heldout/{figures['domains'][0]}"))


def _texts(drawing):
    return [element.text for element in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]


def test_every_colour_is_a_variable_and_every_id_is_unique(reported):
    drawings = list(_all(reported[2]))
    for drawing in drawings:
        ET.fromstring(drawing)
        assert re.search(r"(fill|stroke): var\(--", drawing)
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"#[a-z][0-9a-f]{10}", "", drawing)), (
            "a colour of its own"
        )
    ids = [name for drawing in drawings for name in re.findall(r' id="([^"]+)"', drawing)]
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        assert set(re.findall(r"url\(#([^)]+)\)", drawing)) <= set(re.findall(r' id="([^"]+)"', drawing))


def test_the_same_figures_give_the_same_drawing(reported):
    assert list(_all(reported[2])) == list(_all(reported[2]))


def test_tick_labels_keep_all_their_digits(reported):
    figures = copy.deepcopy(reported[2])
    for comparison in figures["comparisons"]:
        for place in ("mean", "all"):
            comparison["bits_per_byte"][place] |= {"value": 0.0125, "low": 0.0105, "high": 0.0148}
    labels = _texts(charts.intervals(figures, charts.WIDE))
    assert "+0.005" in labels and "+0.015" in labels


@pytest.mark.parametrize("name", ["a $_{x}$ b", 'quotes " & <tags>'])
def test_names_of_domains_are_shown_as_they_are(reported, name):
    figures = copy.deepcopy(reported[2])
    old = figures["domains"][0]
    figures["domains"][0] = name
    for domains in (
        figures["distribution"]["domains"],
        figures["pruning"]["thresholds"],
        figures["composition"]["pruned"]["domains"],
        *figures["mixture"]["arms"].values(),
    ):
        domains[name] = domains.pop(old)
    for chart in (charts.ridges, charts.shares, charts.weights):
        assert any(name in text for text in _texts(chart(figures, charts.WIDE)))


def test_the_shaded_part_ends_at_the_thresholds(reported):
    figures = copy.deepcopy(reported[2])
    score_X = figures["distribution"]["score"]
    for entry in figures["distribution"]["domains"].values():
        entry["kept_density"] = entry["density"]  # as if all were kept
    everywhere = score_X[0] - 1, score_X[-1] + 1
    middle = score_X[len(score_X) // 3], score_X[len(score_X) // 2]
    widths = [_shaded(figures, *edges) for edges in (everywhere, middle)]
    share = (middle[1] - middle[0]) / (score_X[-1] - score_X[0])
    assert all(mine / whole == pytest.approx(share, abs=1e-3) for whole, mine in zip(*widths, strict=True))
    assert _shaded(figures, score_X[-1] + 1, score_X[-1] + 2) == []


def _shaded(figures, low, high):
    """Widths of the dark parts when thresholds are `low` and `high`."""
    for edges in figures["pruning"]["thresholds"].values():
        edges |= {"low": low, "high": high}
    drawing = charts.ridges(figures, charts.WIDE)
    dark = [path for path in re.findall(r"<path[^>]*>", drawing) if "fill-opacity: 0.75" in path]
    across = [[float(x) for x in re.findall(r"[ML] ([-\d.]+) ", path)] for path in dark]
    return [max(x) - min(x) for x in across]


def test_the_axis_of_another_signal_is_in_its_unit(reported):
    figures = copy.deepcopy(reported[2])
    texts = {"perplexity": _texts(charts.ridges(figures, charts.WIDE))}
    figures["pruning"] |= {"signals": ["bits per byte"], "unit": "bits per byte"}
    texts["other"] = _texts(charts.ridges(figures, charts.WIDE))
    assert "perplexity under the reference model (logarithmic)" in texts["perplexity"]
    assert "bits per byte (bits per byte)" in texts["other"] and "3" in texts["other"]
    assert "50" in texts["perplexity"] and "50" not in texts["other"]  # e ** 3.9
