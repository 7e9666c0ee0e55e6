import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from scoring import CONTEXT, EOD, VOCAB, mesh_of, model_on, random_documents, write_store

from jaxprune.model.loss import next_token_error
from jaxprune.model.sharding import ACT_BT
from jaxprune.progress import meter
from jaxprune.prune.score import Scorer
from jaxprune.prune.signals import el2n


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), random_documents(25))


def sharp_model_on(mesh):
    """Predictions that are far from uniform: error vectors of all lengths."""
    graphdef, params = model_on(mesh)
    return graphdef, nnx.State({**params, "table_VD": params["table_VD"] * 4})


def measured(store, numbers=None, mesh=None, params=None, **settings):
    mesh = mesh or mesh_of(1)
    graphdef, own = sharp_model_on(mesh)
    scorer = Scorer(
        graphdef, params or own, mesh, context=CONTEXT, batch_tokens=800, of=next_token_error, **settings
    )
    numbers = np.arange(store.n_documents) if numbers is None else numbers
    with meter("el2n", None, "tokens") as progress:
        table = el2n.measure_by(scorer)(store, numbers, progress)
    assert progress.done == sum(table["el2n_tokens"].to_pylist())
    return table


@pytest.fixture(scope="module")
def table(store):
    return measured(store)


def probabilities(tokens: np.ndarray) -> np.ndarray:
    """Of the next token behind each of at most CONTEXT tokens: all logits at once, the softmax in float64."""
    mesh = mesh_of(1)
    model = nnx.merge(*sharp_model_on(mesh))
    with jax.set_mesh(mesh):
        tokens_BT = jax.device_put(tokens[None].astype(np.int32), NamedSharding(mesh, ACT_BT))
        hidden_TD = np.asarray(jax.jit(lambda tokens_BT: model(tokens_BT))(tokens_BT), np.float64)[0]
    logits_TV = hidden_TD @ np.asarray(model.unembedding(), np.float64)[:, :VOCAB]
    p_TV = np.exp(logits_TV - logits_TV.max(axis=1, keepdims=True))
    return p_TV / p_TV.sum(axis=1, keepdims=True)


def test_it_is_the_length_of_the_error_vectors(store, table):
    for number in (0, 2, 6, 8):  # windows of 1, 64, 100 and 1, three of 100 and one of 50
        stored = np.asarray(store.stored(number), np.int32)
        total = 0.0
        for start in range(0, len(stored) - 1, CONTEXT):
            window = stored[start : start + CONTEXT + 1]
            error_TV = probabilities(window[:-1]) - np.eye(VOCAB)[window[1:]]
            total += np.linalg.norm(error_TV, axis=1).sum()
        assert table["el2n_sum"][number].as_py() == pytest.approx(total, rel=1e-5)
        assert table["el2n_tokens"][number].as_py() == len(stored) - 1
    mean = np.array(table["el2n_sum"]) / np.array(table["el2n_tokens"])
    assert (mean > 0).all() and (mean < np.sqrt(2)).all() and mean.std() > 0.01


def test_what_the_model_expects_ranks_under_what_it_does_not(tmp_path):
    expected = np.array([EOD])
    unexpected = np.array([EOD])
    for _ in range(20):
        expected = np.append(expected, probabilities(expected)[-1].argmax())
        unexpected = np.append(unexpected, probabilities(unexpected)[-1].argmin())
    random = np.append(EOD, np.random.default_rng(0).integers(1, VOCAB, 20))
    store = write_store(tmp_path, [unexpected, expected, random])
    table = measured(store)
    assert np.argsort(np.array(table["el2n_sum"])).tolist() == [1, 2, 0]


def test_order_and_batch_mates_change_no_bit(store, table):
    order = np.random.default_rng(1).permutation(store.n_documents)
    for part in np.array_split(order, 3):
        assert measured(store, part).equals(table.take(part))


def test_a_vocabulary_that_is_cut_and_padded_changes_nothing_but_rounding(store, table):
    mesh = mesh_of(8, replica=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(measured(store, mesh=mesh)["el2n_sum"], table["el2n_sum"], rtol=2e-6)
    mesh = mesh_of(1)
    params = sharp_model_on(mesh)[1]
    loud_VD = np.array(params["table_VD"])
    assert len(loud_VD) > VOCAB
    loud_VD[VOCAB:] = 100.0
    loud = nnx.State({**params, "table_VD": jnp.asarray(loud_VD)})
    assert measured(store, mesh=mesh, params=loud).equals(table)


def test_windows_may_overlap(store, table):
    overlapping = measured(store, overlap=60)
    long = np.array(table["el2n_tokens"]) > CONTEXT
    same = np.array(overlapping["el2n_sum"]) == np.array(table["el2n_sum"])
    assert (same == ~long).all()
