"""Documents: the bar moves along a part while it is read."""

import gzip
import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from jaxprune import config
from jaxprune.data import corpus, documents


@pytest.mark.parametrize("cap", [None, 30_000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_the_bar_moves_as_the_part_is_read_and_ends_at_its_size(tmp_path, monkeypatch, name, cap):
    monkeypatch.setattr(documents, "_SHOW_BYTES", 10_000)
    rng = random.Random(0)
    lines = [
        json.dumps({"id": str(i), "text": rng.randbytes(5_000).hex(), "domain": "d"}) for i in range(400)
    ]
    data = "\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    settings = config.Corpus(sources=(f"d={tmp_path / name}",), max_domain_bytes=cap)
    [part] = corpus.parts(settings)
    done = []
    bar: Any = SimpleNamespace(add=lambda amount, note="": done.append((amount, note)))
    documents.write(part, settings, tmp_path / "documents", tmp_path / "removed", Counter(), bar)
    assert sum(amount for amount, _ in done) == pytest.approx(part.n_bytes / 1e6)
    assert all(amount >= 0 for amount, _ in done)
    n_documents = sum(documents.counts(tmp_path / "documents")["documents"].values())
    assert done[-1][1] == f"{part.name}: {n_documents:,} documents"
    if cap is None:
        assert max(amount for amount, _ in done) <= part.n_bytes / 1e6 / 2 and len(done) >= 3
