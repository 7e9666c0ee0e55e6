"""Strided windows: every target once, with the context that the stride leaves it."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from scoring import CONTEXT, MODEL, VOCAB, mesh_of, model_on, random_documents, write_store

from jaxprune import config
from jaxprune.artifact import Workdir, write_json
from jaxprune.data.store import TRAIN
from jaxprune.model import flops
from jaxprune.model.sharding import ACT_BT, BATCH
from jaxprune.progress import meter
from jaxprune.prune import score
from jaxprune.prune.score import Scorer
from jaxprune.prune.windows import cut
from jaxprune.train.step import make_score_step

OVERLAP = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), random_documents(20))


def scores(store, overlap, numbers=None):
    mesh = mesh_of(1)
    scorer = Scorer(*model_on(mesh), mesh, context=CONTEXT, batch_tokens=800, overlap=overlap)
    with meter("score", None, "tokens") as progress:
        table = scorer(store, np.arange(store.n_documents) if numbers is None else numbers, progress)
    return table, progress.done


def test_each_target_is_scored_once_with_the_context_that_reaches_it(store):
    """Target i, densely: from the last window that begins a multiple of the stride before it."""
    mesh = mesh_of(1)
    model = nnx.merge(*model_on(mesh))
    hidden_of = jax.jit(lambda tokens_BT: model(tokens_BT))
    table, done = scores(store, OVERLAP)
    assert done == sum(table["n_tokens"].to_pylist())
    stride = CONTEXT - OVERLAP
    for number in (0, 5, 6, 8):  # of 1, 100, 101 and 350 tokens
        stored = np.asarray(store.stored(number), np.int32)
        n = len(stored) - 1
        total = 0.0
        for target in range(1, n + 1):
            begin = max(-(-(target - CONTEXT) // stride), 0) * stride
            window = stored[begin:target]
            assert len(window) == target or len(window) > OVERLAP
            with jax.set_mesh(mesh):
                # Padded on the right to one shape, which a causal model does not see.
                tokens_BT = np.pad(window, (0, CONTEXT - len(window)))[None]
                hidden_BTD = hidden_of(jax.device_put(tokens_BT, NamedSharding(mesh, ACT_BT)))
            hidden_D = np.asarray(hidden_BTD, np.float64)[0, len(window) - 1]
            logits_V = hidden_D @ np.asarray(model.unembedding(), np.float64)[:, :VOCAB]
            total += np.log(np.exp(logits_V).sum()) - logits_V[stored[target]]
        assert table["nll_sum"][number].as_py() == pytest.approx(total, rel=1e-5)
        windows = table["nll_windows"][number].as_py()
        assert len(windows) == 1 + max(-(-(n - CONTEXT) // stride), 0)


def test_the_first_window_is_bitwise_what_it_is_without_overlap(store):
    with_overlap, without = scores(store, OVERLAP)[0], scores(store, 0)[0]
    for ours, theirs in zip(
        with_overlap["nll_windows"].to_pylist(), without["nll_windows"].to_pylist(), strict=True
    ):
        assert ours[:1] == theirs[:1]
    assert with_overlap["nll_sum"] != without["nll_sum"]


def test_batch_mates_change_no_bit(store):
    together, _ = scores(store, OVERLAP)
    order = np.random.default_rng(1).permutation(store.n_documents)
    for part in np.array_split(order, 3):
        assert scores(store, OVERLAP, part)[0].equals(together.take(part))


def test_an_overlap_that_leaves_nothing_new_is_refused(store):
    with pytest.raises(ValueError, match="score.overlap is 100: set less than 100, the context"):
        scores(store, CONTEXT)


def test_without_overlap_a_row_is_scored_as_in_training_runs(store):
    """Bitwise as a step that knows no start."""
    mesh = mesh_of(1)
    graphdef, params = model_on(mesh)
    step = make_score_step(graphdef)
    rows_BS = np.stack([np.resize(store.stored(number), CONTEXT + 1) for number in range(8)]).astype(np.int32)
    length_B = np.arange(93, 101, dtype=np.int32)
    with jax.set_mesh(mesh):
        tokens_BS, length_B, zero_B = jax.device_put(
            (rows_BS, length_B, np.zeros_like(length_B)), NamedSharding(mesh, BATCH)
        )
        np.testing.assert_array_equal(
            step(params, tokens_BS, length_B, zero_B), step(params, tokens_BS, length_B)
        )


def test_the_cost_counts_what_overlaps_again(store, tmp_path, monkeypatch):
    """All targets that windows hold, each at the forward pass's price."""
    workdir = Workdir(tmp_path)
    for folder in (workdir.prepare, workdir.run("reference")):
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {"stage": "any", "settings": {}})
    (workdir.prepare / "tokens").symlink_to(store.folder)
    mesh = mesh_of(1)
    scorer = Scorer(*model_on(mesh), mesh, context=CONTEXT, batch_tokens=800, overlap=OVERLAP)
    monkeypatch.setattr(Scorer, "named", lambda *_: scorer)
    settings = config.Config(
        name="x", score=config.Score(overlap=OVERLAP, shard_documents=5), reference=config.Run(model=MODEL)
    )
    found = score.run(settings, workdir).counts["flops"]
    length_W = cut(store.offsets_N1, store.documents(TRAIN), CONTEXT, OVERLAP).length_W
    assert length_W.sum() > 1.2 * score.run(settings, workdir).counts["tokens"]
    price = flops.train_flops_per_token(MODEL, VOCAB, CONTEXT) / 3
    assert found == pytest.approx(length_W.sum() * price)
