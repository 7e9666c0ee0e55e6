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
        figures["composition"]["pruned"]["domains"],
        *figures["mixture"]["arms"].values(),
    ):
        domains[name] = domains.pop(old)
    for chart in (charts.ridges, charts.shares, charts.weights):
        assert any(name in text for text in _texts(chart(figures, charts.WIDE)))


def test_the_shaded_band_is_what_is_between_the_thresholds(reported):
    figures = copy.deepcopy(reported[2])
    shaded = charts.ridges(figures, charts.WIDE)
    for entry in figures["distribution"]["domains"].values():
        entry["low"] = entry["high"] = None
    assert charts.ridges(figures, charts.WIDE).count("<path") < shaded.count("<path")
