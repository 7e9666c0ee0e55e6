"""Likeness of two A: the analysis's numbers, and its ends."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.online.similarity import similarity

CASES = json.loads((Path(__file__).parents[2] / "golden" / "online_mixing" / "similarity.json").read_text())[
    "cases"
]


@pytest.mark.parametrize("case", CASES)
def test_it_has_the_numbers_of_the_analysis(case):
    assert similarity(np.array(case["A"]), np.array(case["B"])) == pytest.approx(case["sim"], abs=1e-9)


def test_only_the_proportions_of_the_column_sums_count():
    A_KK = np.array([[3.0, 1.0, 0.2], [0.1, 1.0, 0.3], [0.1, 0.2, 0.1]])
    assert similarity(A_KK, 7 * A_KK[[2, 0, 1]]) == pytest.approx(1)
    assert similarity(A_KK, -A_KK) == pytest.approx(-1)
