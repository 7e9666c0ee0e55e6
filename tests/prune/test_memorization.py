import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from scoring import CONTEXT, EOD, VOCAB, measured_by, mesh_of, model_on, random_documents, write_store

from jaxprune.model.sharding import ACT_BT
from jaxprune.progress import meter
from jaxprune.prune.signals import memorization
from jaxprune.prune.signals.memorization import CONTINUATION, LENGTH, PROMPT


@pytest.fixture(scope="module")
def likeliest():
    """The likeliest next token behind every one of at most LENGTH tokens, one row at a time."""
    mesh = mesh_of(1)
    model = nnx.merge(*model_on(mesh))
    table_DV = np.asarray(model.unembedding(), np.float64)[:, :VOCAB]
    hidden_of = jax.jit(lambda tokens_BT: model(tokens_BT))

    def of(tokens: np.ndarray) -> np.ndarray:
        padded = np.pad(tokens, (0, LENGTH - len(tokens))).astype(np.int32)
        with jax.set_mesh(mesh):
            hidden_BTD = hidden_of(jax.device_put(padded[None], NamedSharding(mesh, ACT_BT)))
        return (np.asarray(hidden_BTD, np.float64)[0] @ table_DV).argmax(axis=1)[: len(tokens)]

    return of


@pytest.fixture(scope="module")
def planted(likeliest):
    """What the model says after five prompts of its own choice, with 0, 1, 7, 20 and 32 places changed."""
    rng = np.random.default_rng(0)
    documents = []
    for n_changed in (0, 1, 7, 20, 32):
        tokens = np.append(EOD, rng.integers(1, VOCAB, PROMPT))
        for _ in range(CONTINUATION):
            tokens = np.append(tokens, likeliest(tokens)[-1])
        places = PROMPT + 1 + rng.choice(CONTINUATION, n_changed, replace=False)
        tokens[places] = (tokens[places] + 1) % VOCAB
        documents.append(np.append(tokens, rng.integers(1, VOCAB, 30)))
    return documents


@pytest.fixture(scope="module")
def store(planted, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), [*planted, *random_documents(20)])


def measured(store, numbers=None, mesh=None) -> pa.Table:
    mesh = mesh or mesh_of(1)
    measure = memorization.measure_by(*model_on(mesh), mesh, context=CONTEXT, batch_tokens=400)
    return measured_by(measure, store, numbers)


@pytest.fixture(scope="module")
def table(store):
    return measured(store)


def test_it_is_the_share_of_the_continuation_that_the_model_says_itself(store, table, planted, likeliest):
    """The model goes on from what it has said, not from what the document says."""
    found = table["memorization"].to_pylist()
    assert found[:5] == [1 - n_changed / CONTINUATION for n_changed in (0, 1, 7, 20, 32)]
    read_along = [
        (likeliest(document[:LENGTH])[PROMPT:] == document[PROMPT + 1 : LENGTH + 1]).mean()
        for document in planted[:4]
    ]
    assert read_along[0] == 1 and read_along[3] != found[3]
    assert max(share for share in found[5:] if share is not None) < 0.5


def test_documents_that_are_too_short_have_none(store, table):
    n_tokens_N = np.diff(store.offsets_N1) - 1
    assert {63, 64} <= set(n_tokens_N.tolist())
    assert (np.array(table["memorization"].is_null()) == (n_tokens_N < LENGTH)).all()


def test_order_batch_mates_and_devices_change_nothing(store, table):
    order = np.random.default_rng(1).permutation(store.n_documents)
    for part in np.array_split(order, 3):
        assert measured(store, part).equals(table.take(part))
    assert measured(store, mesh=mesh_of(8, replica=2, fsdp=2, tensor=2)).equals(table)


def test_a_model_of_a_short_context_is_refused():
    with pytest.raises(ValueError, match="reads 64 tokens, more than the model's context of 63"):
        memorization.measure_by(*model_on(mesh_of(1)), mesh_of(1), context=63, batch_tokens=400)


def test_a_model_whose_logits_are_no_numbers_knows_nothing(store):
    """Not a share of 0, which would be kept before all others."""
    graphdef, params = model_on(mesh_of(1))
    params = jax.tree.map(lambda x: x * jnp.nan, params)
    measure = memorization.measure_by(graphdef, params, mesh_of(1), context=CONTEXT, batch_tokens=400)
    with meter("memorization", None, "tokens") as progress:
        assert np.isnan(measure(store, np.arange(2), progress)["memorization"].to_numpy()).all()
