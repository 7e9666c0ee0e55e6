import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scoring import CONTEXT, VOCAB, mesh_of, model_on, random_documents, scorer_on, write_store

from jaxprune import config
from jaxprune.artifact import Workdir, write_json
from jaxprune.data.store import TRAIN
from jaxprune.model.sharding import ACT_BT, ROWS
from jaxprune.progress import meter
from jaxprune.prune import models, score, shards
from jaxprune.prune.signals import el2n
from jaxprune.train.step import init_state, make_train_step


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), random_documents())


@pytest.fixture(scope="module")
def scorer():
    return scorer_on(mesh_of(1))


@pytest.fixture(scope="module")
def scored(store, scorer):
    return scores(scorer, store)


def scores(scorer, store, numbers=None) -> pa.Table:
    with meter("score", None, "tokens") as progress:
        return scorer(store, np.arange(store.n_documents) if numbers is None else numbers, progress)


def test_every_score_is_that_of_a_dense_computation_of_the_document_alone(store, scorer, scored):
    """Each window by itself, unpadded, with all logits at once and the softmax in float64."""
    model = nnx.merge(*model_on(scorer.mesh))
    hidden_of = jax.jit(lambda tokens_BT: model(tokens_BT))
    for number in (0, 2, 6, 7):  # windows of 1, 64, 100 and 1, twice 100
        stored = np.asarray(store.stored(number), np.int32)
        total = 0.0
        with jax.set_mesh(scorer.mesh):
            for start in range(0, len(stored) - 1, CONTEXT):
                window = stored[start : start + CONTEXT + 1]
                tokens_BT = jax.device_put(window[None, :-1], NamedSharding(scorer.mesh, ACT_BT))
                hidden_TD = np.asarray(hidden_of(tokens_BT), np.float64)[0]
                logits_TV = hidden_TD @ np.asarray(model.unembedding(), np.float64)[:, :VOCAB]
                log_total_T = np.log(np.exp(logits_TV).sum(axis=1))
                total += (log_total_T - logits_TV[np.arange(len(window) - 1), window[1:]]).sum()
        assert scored["nll_sum"][number].as_py() == pytest.approx(total, rel=1e-5)


def test_a_score_is_the_training_loss_of_the_same_row(store, scorer, scored):
    number = 5
    row = np.asarray(store.stored(number), np.int32)
    assert len(row) == CONTEXT + 1
    graphdef, params = model_on(scorer.mesh)
    optimizer = config.Optimizer()
    with jax.set_mesh(scorer.mesh):
        step = make_train_step(graphdef, optimizer, 10, 1)
        batch = jax.device_put(
            (row[None, None], np.zeros((1, 1), np.int32)), NamedSharding(scorer.mesh, P(None, ROWS))
        )
        _, metrics = step(init_state(params, optimizer, 10), *batch)
    assert float(metrics.nll_sum_K[0]) == pytest.approx(scored["nll_sum"][number].as_py(), rel=1e-6)


def test_the_table_describes_the_documents(store, scored):
    assert scored.schema.equals(
        pa.schema(
            {
                "number": pa.int64(),
                "id": pa.string(),
                "hash": pa.int64(),
                "domain": pa.string(),
                "n_tokens": pa.int64(),
                "n_bytes": pa.int64(),
                "n_scored": pa.int64(),
                "nll_sum": pa.float64(),
                "nll_windows": pa.list_(pa.float64()),
            }
        )
    )
    index = pq.read_table(store.folder / "index.parquet").drop(["split"])
    assert scored.select(index.column_names).equals(index)
    assert scored["n_scored"] == scored["n_tokens"]
    assert len(set(scored["hash"].to_pylist())) == len(scored)
    for row in scored.to_pylist():
        assert len(row["nll_windows"]) == -(-row["n_tokens"] // CONTEXT)
        assert sum(row["nll_windows"]) == row["nll_sum"]
        assert row["nll_sum"] / row["n_tokens"] == pytest.approx(np.log(VOCAB), rel=1.0)


@pytest.mark.parametrize("devices", [1, 8])
def test_order_and_batch_mates_change_no_bit(store, devices):
    scorer = scorer_on(mesh_of(devices))
    together = scores(scorer, store)
    order = np.random.default_rng(1).permutation(store.n_documents)
    shuffled = scores(scorer, store, order).sort_by("number")
    assert shuffled.equals(together)
    for part in np.array_split(order, 7):
        few = scores(scorer, store, part)
        assert few.equals(together.take(part))


def test_batch_size_and_devices_change_scores_by_rounding_only(store, scored):
    others = [
        scorer_on(mesh_of(1), batch_tokens=3000),
        scorer_on(mesh_of(8)),
        scorer_on(mesh_of(8, replica=2, fsdp=2, tensor=2)),
    ]
    for other in others:
        np.testing.assert_allclose(
            scores(other, store)["nll_sum"].to_numpy(), scored["nll_sum"].to_numpy(), rtol=2e-6
        )


def test_a_long_document_is_the_sum_of_its_windows_scored_alone(store, scorer, scored, tmp_path):
    number = 8
    stored = np.asarray(store.stored(number))
    windows = [stored[start : start + CONTEXT + 1] for start in range(0, len(stored) - 1, CONTEXT)]
    assert len(windows) == 4
    alone = scores(scorer, write_store(tmp_path / "windows", windows))["nll_sum"].to_pylist()
    assert scored["nll_windows"][number].as_py() == alone
    assert scored["nll_sum"][number].as_py() == sum(alone)


def test_a_number_that_is_not_finite_is_an_error_that_names_document_and_signal(store, tmp_path):
    broken = scorer_on(mesh_of(1))
    broken.params = jax.tree.map(lambda x: x * jnp.nan, broken.params)
    for load, column in ((broken, "nll_sum"), (el2n.measure_by(broken), "el2n_sum")):
        said = rf"score: x: {column} of document document 3 is nan \(and of 1 others not finite\): so it is"
        with pytest.raises(ValueError, match=said):
            shards.fill(
                tmp_path, "score: x", store, np.array([3, 4]), 9, lambda _, load=load: load, "so it is"
            )
    assert not list(tmp_path.glob("part-*"))
    shards.check_finite(pa.table({"number": [3], "x": pa.array([None], pa.float64())}), "x", store)
    with pytest.raises(ValueError, match="x of document document 4 is inf"):
        shards.check_finite(pa.table({"number": [3, 4], "x": [1.0, np.inf]}), "x", store)


def test_only_training_here_is_blamed_for_training():
    assert "lower second.optimizer.peak_lr and train it again" in models.fault("second")
    assert "peak_lr" not in models.fault("/somewhere/llama")


class Killed(BaseException):
    pass


class Counting:
    """A scorer that counts the documents that it has scored, and dies after some batches."""

    def __init__(self, scorer, batches: float = np.inf) -> None:
        self.scorer, self.batches, self.documents = scorer, batches, 0

    def __call__(self, store, numbers, progress):
        add = progress.add

        def add_or_die(amount, note=""):
            self.batches -= 1
            if self.batches < 0:
                raise Killed
            add(amount, note)

        progress.add = add_or_die
        table = self.scorer(store, numbers, progress)
        progress.add = add
        self.documents += len(numbers)
        return table


def fill(folder: Path, store, scorer, shard_documents: int = 9) -> None:
    folder.mkdir(exist_ok=True)
    shards.fill(folder, "score", store, store.documents(TRAIN), shard_documents, lambda _: scorer)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(store, scorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    counting = Counting(scorer)
    fill(folder, store, counting)
    assert counting.documents == len(store.documents(TRAIN)) == 36
    assert len(list(folder.glob("part-*.parquet"))) == 4
    return contents(folder)


def test_killed_after_any_batch_it_goes_on_to_the_same_files(store, scorer, undisturbed, tmp_path):
    killed = 0
    for batches in range(0, 1000):
        folder = tmp_path / str(batches)
        first, second = Counting(scorer, batches), Counting(scorer)
        try:
            fill(folder, store, first)
        except Killed:
            killed += 1
        else:
            break
        whole = 9 * len(list(folder.glob("part-*.parquet")))
        assert first.documents in (whole, whole + 9)  # a shard is on disk as soon as it is scored
        fill(folder, store, second)
        assert second.documents == 36 - whole  # nothing twice, nothing lost
        assert contents(folder) == undisturbed
    assert killed > 12  # in all four shards, at their edges and between


@pytest.mark.parametrize("moment", ["write_table", "checksum", "rename"])
def test_killed_while_a_shard_is_written_it_goes_on_to_the_same_files(
    store, scorer, undisturbed, tmp_path, monkeypatch, moment
):
    module, name = {
        "write_table": (shards.pq, "write_table"),
        "checksum": (shards, "_checksum"),
        "rename": (Path, "replace"),
    }[moment]
    real = getattr(module, name)
    calls_left = 0

    def die_at_last(*args, **kwargs):
        nonlocal calls_left
        calls_left -= 1
        if calls_left == 0:
            raise Killed
        return real(*args, **kwargs)

    for shard in range(4):
        folder = tmp_path / str(shard)
        calls_left = shard + 1 + (moment == "rename")  # shards.json is renamed too, before the first shard
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, die_at_last)
            fill(folder, store, scorer)
        assert len(list(folder.glob("part-*.parquet"))) == shard
        fill(folder, store, scorer)
        assert contents(folder) == undisturbed


@pytest.mark.parametrize("damage", ["flip", "truncate", "no checksum", "missing"])
def test_a_damaged_shard_is_scored_again(store, scorer, undisturbed, tmp_path, capsys, damage):
    folder = tmp_path / "score"
    fill(folder, store, scorer)
    path = folder / "part-00002.parquet"
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "no checksum":
        path.with_name(path.name + ".sha256").unlink()
    else:
        path.unlink()
    again = Counting(scorer)
    fill(folder, store, again)
    assert again.documents == 9
    assert contents(folder) == undisturbed
    assert ("part-00002.parquet is damaged" in capsys.readouterr().err) == (damage != "missing")


def test_a_run_that_goes_on_keeps_the_size_of_shards_it_began_with(store, scorer, undisturbed, tmp_path):
    with pytest.raises(Killed):
        fill(tmp_path, store, Counting(scorer, 5))
    fill(tmp_path, store, scorer, shard_documents=20)
    assert contents(tmp_path) == undisturbed


def test_the_stage_scores_the_train_split_and_repairs_itself(store, scorer, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    for folder, name in ((workdir.prepare, "prepare"), (workdir.run("reference"), "train reference")):
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {"stage": name, "settings": {}})
    (workdir.prepare / "tokens").symlink_to(store.folder)
    loads = []
    monkeypatch.setattr(score.Scorer, "named", lambda name, *_: loads.append(name) or scorer)
    hashed, checksum = [], shards._checksum
    monkeypatch.setattr(shards, "_checksum", lambda path, name: hashed.append(name) or checksum(path, name))
    settings = config.Config(name="x", score=config.Score(shard_documents=10))
    manifest = score.run(settings, workdir)
    tables = [pq.read_table(path) for path in sorted(workdir.score.glob("part-*.parquet"))]
    assert [len(table) for table in tables] == [10, 10, 10, 6]
    assert pa.concat_tables(tables)["number"].to_pylist() == store.documents(TRAIN).tolist()
    assert manifest.counts["documents"] == 36
    assert manifest.counts["tokens"] == sum(pa.concat_tables(tables)["n_tokens"].to_pylist())
    before = contents(workdir.score)
    assert len(hashed) == 4  # each shard when it was written, and not again

    assert score.run(settings, workdir) == manifest and len(loads) == 1
    assert len(hashed) == 8  # what stood there, once
    (workdir.score / "part-00001.parquet").write_bytes(b"not a table")
    assert score.run(settings, workdir) == manifest and len(loads) == 2
    assert contents(workdir.score) == before
    assert json.loads((workdir.score / "shards.json").read_text()) == {"shard_documents": 10}
