import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from scoring import CONTEXT, MODEL, VOCAB, measured_by, mesh_of, model_on, random_documents, write_store

from jaxprune import config
from jaxprune.artifact import Workdir
from jaxprune.model.sharding import ACT_BT
from jaxprune.model.transformer import create
from jaxprune.progress import meter
from jaxprune.prune.signals import vog

CHECKPOINTS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), random_documents(20))


def checkpoints(mesh):
    """The parameters of `model_on`, and what they were after two more moves at random."""
    graphdef, params = model_on(mesh)
    made = [params]
    for seed in range(1, CHECKPOINTS):
        rng = np.random.default_rng(seed)
        made.append(
            jax.tree.map(
                lambda x, rng=rng: jax.device_put(
                    np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32), x.sharding
                ),
                made[-1],
            )
        )
    return graphdef, made


def measured(store, numbers=None, mesh=None, made=None) -> pa.Table:
    mesh = mesh or mesh_of(1)
    graphdef, own = checkpoints(mesh)
    measure = vog.measure_by(graphdef, made or own, mesh, context=CONTEXT, batch_tokens=800)
    return measured_by(measure, store, numbers)


@pytest.fixture(scope="module")
def table(store):
    return measured(store)


def test_it_is_the_deviation_of_the_gradients_of_the_true_logits(store, table):
    """One document at a time, unpadded, each true logit picked from the whole matrix of logits."""
    mesh = mesh_of(1)
    graphdef, made = checkpoints(mesh)

    @jax.jit
    def gradient(params, tokens_BT, target_TV):
        model = nnx.merge(graphdef, params)

        def logit(x_BTD):
            logits_BTV = model.hidden(x_BTD) @ model.unembedding()
            return (logits_BTV * target_TV).sum()

        return jax.grad(logit)(model.embed(tokens_BT))[0]

    for number in (2, 6, 8):  # 64, 101 and 350 tokens
        window = np.asarray(store.stored(number), np.int32)[: CONTEXT + 1]
        onehot_TV = np.eye(len(made[0]["table_VD"]), dtype=np.float32)[window[1:]]
        with jax.set_mesh(mesh):
            tokens_BT = jax.device_put(window[None, :-1], NamedSharding(mesh, ACT_BT))
            g_KTD = np.stack([np.asarray(gradient(params, tokens_BT, onehot_TV)) for params in made])
        assert table["vog"][number].as_py() == pytest.approx(g_KTD.std(axis=0).mean(), rel=2e-5)


def test_the_gradient_is_how_the_true_logits_follow_the_input():
    """Finite differences of the logits, which say it without autodiff."""
    mesh = mesh_of(1)
    graphdef, params = model_on(mesh)
    model = nnx.merge(graphdef, params)
    row = np.random.default_rng(0).integers(1, VOCAB, 9).astype(np.int32)
    direction_TD = np.random.default_rng(1).normal(size=(8, MODEL.d_model)).astype(np.float32)
    with jax.set_mesh(mesh):
        tokens_BS = jax.device_put(row[None], NamedSharding(mesh, ACT_BT))
        x_BTD = model.embed(tokens_BS[:, :-1])

        def logit(step):
            hidden_TD = np.asarray(model.hidden(x_BTD + step * direction_TD), np.float64)[0]
            logits_TV = hidden_TD @ np.asarray(model.unembedding(), np.float64)
            return logits_TV[np.arange(8), row[1:]].sum()

        slope = (logit(0.002) - logit(-0.002)) / 0.004
        gradient = vog.gradient(graphdef, params, tokens_BS, jnp.array([8]))
    assert (np.asarray(gradient)[0] * direction_TD).sum() == pytest.approx(slope, rel=1e-2)


def test_only_what_a_document_holds_can_change_its_score(tmp_path):
    """Two checkpoints that differ in the embedding of one token."""
    mesh = mesh_of(1)
    params = model_on(mesh)[1]
    token = 5
    move_V1 = 0.3 * (np.arange(len(params["table_VD"])) == token)[:, None].astype(np.float32)
    moved = jax.tree.map(lambda x: x + move_V1 if x is params["table_VD"] else x, params)
    rng = np.random.default_rng(0)
    without = [rng.integers(token + 1, VOCAB, 80) for _ in range(3)]
    with_it = [document.copy() for document in without]
    for document in with_it:
        document[rng.integers(1, 80)] = token
    table = measured(write_store(tmp_path, [*without, *with_it]), mesh=mesh, made=[params, moved])
    found = np.array(table["vog"])
    assert (found[:3] == 0).all() and (found[3:] > 0).all()


def test_order_and_batch_mates_change_no_bit_and_devices_only_rounding(store, table):
    order = np.random.default_rng(1).permutation(store.n_documents)
    for part in np.array_split(order, 2):
        assert measured(store, part).equals(table.take(part))
    mesh = mesh_of(8, replica=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(measured(store, mesh=mesh)["vog"], table["vog"], rtol=1e-4)


def test_an_output_matrix_of_its_own_will_do(store):
    model = dataclasses.replace(MODEL, tie_embeddings=False)
    found = []
    for mesh in (mesh_of(1), mesh_of(8, replica=2, fsdp=2, tensor=2)):
        graphdef, first = create(model, VOCAB, 0, mesh)
        second = create(model, VOCAB, 1, mesh)[1]
        measure = vog.measure_by(graphdef, [first, second], mesh, context=CONTEXT, batch_tokens=800)
        with meter("vog", None, "tokens") as progress:
            found.append(np.array(measure(store, np.arange(5), progress)["vog"]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert (found[0] > 0).all()


def test_a_run_of_other_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vog, "saved_steps", lambda run: [12])
    run = config.Run(model=MODEL, tokens=CONTEXT * 12, batch_rows=1)
    settings = config.Config(
        name="x",
        reference=run,
        score=config.Score(vog_checkpoints=3, signals=("vog",)),
        mesh=config.Mesh(fsdp=8),
    )
    with pytest.raises(ValueError, match="after steps 4, 8, 12, and .* keeps 12: run `jaxprune train"):
        vog.load(settings, Workdir(tmp_path))


def test_few_checkpoints_exist_twice(monkeypatch):
    """What is live when the last leaf is stacked, and what a step adds to it."""
    mesh = mesh_of(1)
    graphdef, made = checkpoints(mesh)
    made = [jax.tree.map(np.asarray, params) for params in made]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(made[0]))
    before = sum(x.nbytes for x in jax.live_arrays())
    live = []
    stack = jnp.stack

    def stacked(arrays):
        result = stack(arrays)
        live.append(sum(x.nbytes for x in jax.live_arrays()) - before)
        return result

    monkeypatch.setattr(vog.jnp, "stack", stacked)
    loaded = (jax.tree.map(jnp.asarray, params) for params in made)
    vog.measure_by(graphdef, loaded, mesh, context=CONTEXT, batch_tokens=800)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(made[0]))
    assert CHECKPOINTS * size <= max(live) <= CHECKPOINTS * (size + largest)
