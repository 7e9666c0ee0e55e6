"""Numbers as the report writes them."""

import math

import pytest

from jaxprune.report import numbers


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (numbers.short, 0, "0"),
        (numbers.short, 9_970, "9,970"),
        (numbers.short, 12_345_678, "12.3M"),
        (numbers.short, 26e9, "26B"),
        (numbers.percent, 0.4711, "47 %"),
        (numbers.percent, 0.0213, "2.1 %"),
        (numbers.percent, 1.61, "161 %"),
        (numbers.perplexity, math.log(6.214), "6.21"),
        (numbers.perplexity, math.log(48.26), "48.3"),
        (numbers.perplexity, math.log(12_043.4), "12,043"),
        (numbers.perplexity, None, "–"),
        (numbers.signed, -0.0123, "−0.012"),
        (numbers.signed, -0.0001, "0.000"),
        (numbers.signed, 0.5, "+0.500"),
        (numbers.duration, 0.42, "0.42 s"),
        (numbers.duration, 59.9, "60 s"),
        (numbers.duration, 200, "3 min 20 s"),
        (numbers.duration, 7500, "2 h 5 min"),
        (numbers.scientific, 1.23e15, "1.23 × 10¹⁵"),
    ],
)
def test_numbers(write, value, text):
    assert write(value) == text


def test_scores_are_perplexities_where_they_have_no_unit():
    assert numbers.score(math.log(48.26), None) == "48.3"
    assert numbers.score(-0.012345, "nats") == "−0.01235"
    assert numbers.score(None, None) == numbers.score(None, "nats") == "–"
