import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from scoring import CONTEXT, EOD, VOCAB, measured_by, mesh_of, model_on, random_documents, write_store

from jaxprune.config import Ask, Config, Score
from jaxprune.model.sharding import ACT_BT
from jaxprune.progress import meter
from jaxprune.prune.signals import ask_llm

USER = 7
ASK = Ask(prompt="Is <{text}> good?", yes="y", no="nope", max_tokens=40)


class Letters:
    """A token for each printable character of ASCII, and EOD; with `special`, 7 for <|user|>."""

    vocab_size, eod_id = VOCAB, EOD

    def encode(self, texts, special=False):
        if special:
            texts = [text.replace("<|user|>", chr(USER + 31)) for text in texts]
        return [np.array([ord(letter) - 31 for letter in text], np.int32) for text in texts]

    def decode(self, tokens):
        return "".join(chr(token + 31) for token in tokens)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), random_documents(20))


def measured(store, numbers=None, mesh=None, params=None, ask=ASK, vocab_size=VOCAB):
    mesh = mesh or mesh_of(1)
    graphdef, own = model_on(mesh)
    measure = ask_llm.measure_by(
        ask,
        graphdef,
        params or own,
        mesh,
        context=CONTEXT,
        batch_tokens=400,
        vocab_size=vocab_size,
        encoder=Letters(),
        decoder=Letters(),
    )
    return measured_by(measure, store, numbers)


@pytest.fixture(scope="module")
def table(store):
    return measured(store)


def last_hidden(tokens: np.ndarray) -> np.ndarray:
    mesh = mesh_of(1)
    model = nnx.merge(*model_on(mesh))
    with jax.set_mesh(mesh):
        tokens_BT = jax.device_put(tokens[None].astype(np.int32), NamedSharding(mesh, ACT_BT))
        return np.asarray(jax.jit(lambda tokens_BT: model(tokens_BT))(tokens_BT), np.float64)[0, -1]


def prompt(text: np.ndarray) -> np.ndarray:
    return np.concatenate([[EOD], *Letters().encode(["Is <"]), text, *Letters().encode(["> good?"])])


def test_it_is_the_log_odds_of_the_answers_first_tokens(store, table):
    table_DV = np.asarray(nnx.merge(*model_on(mesh_of(1))).unembedding(), np.float64)[:, :VOCAB]
    for number in (0, 2, 8):  # 1, 64 and 350 tokens, of which 40 are shown
        logits_V = last_hidden(prompt(store.stored(number)[1:41])) @ table_DV
        log_p_V = logits_V - np.log(np.exp(logits_V).sum())
        odds = log_p_V[ord("y") - 31] - log_p_V[ord("n") - 31]
        assert table["ask_llm"][number].as_py() == pytest.approx(odds, rel=1e-4, abs=1e-4)
    assert np.array(table["ask_llm"]).std() > 0.1


def test_the_document_that_the_model_says_yes_to_ranks_above(tmp_path):
    """The output rows of yes and no are the states in which the model ends two documents' prompts."""
    rng = np.random.default_rng(0)
    good, bad = (np.append(EOD, rng.integers(1, VOCAB, 30)) for _ in range(2))
    mesh = mesh_of(1)
    params = model_on(mesh)[1]
    table_VD = np.array(params["table_VD"])
    # Neither answer's letter is in the prompts, so that their rows change no state.
    ask = Ask(prompt="Is <{text}> good?", yes="~", no="`")
    for document in (good, bad):
        document[np.isin(document, Letters().encode(["~`"])[0])] = 1
    for answer, document in (("~", good), ("`", bad)):
        table_VD[ord(answer) - 31] = last_hidden(prompt(document[1:]))
    planted = nnx.State({**params, "table_VD": jnp.asarray(table_VD)})
    yes_to_good, yes_to_bad = measured(
        write_store(tmp_path, [good, bad]), mesh=mesh, params=planted, ask=ask
    )["ask_llm"].to_pylist()
    assert yes_to_good > yes_to_bad


def test_only_the_beginning_of_a_long_document_is_shown(tmp_path):
    rng = np.random.default_rng(0)
    first = np.append(EOD, rng.integers(1, VOCAB, 60))
    late, early = first.copy(), first.copy()
    late[41:] = 1
    early[40] = first[40] % 90 + 1
    odds = measured(write_store(tmp_path, [first, late, early]))["ask_llm"].to_pylist()
    assert odds[0] == odds[1] != odds[2]
    # No setting asks for more than the context has room for.
    long = np.append(EOD, rng.integers(1, VOCAB, 500))
    room = CONTEXT - len(prompt(np.zeros(0, int)))
    cut = long[: room + 1]
    ask = Ask(prompt=ASK.prompt, yes="y", no="n")
    odds = measured(write_store(tmp_path / "long", [long, cut, cut[:-1]]), ask=ask)["ask_llm"].to_pylist()
    assert odds[0] == odds[1] != odds[2]


def test_order_and_batch_mates_change_no_bit_and_devices_only_rounding(store, table):
    order = np.random.default_rng(1).permutation(store.n_documents)
    for part in np.array_split(order, 3):
        assert measured(store, part).equals(table.take(part))
    mesh = mesh_of(8, replica=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(measured(store, mesh=mesh)["ask_llm"], table["ask_llm"], rtol=1e-4, atol=1e-4)


def test_special_tokens_are_spelt_in_the_question_only(tmp_path):
    """The document holds the spelling, and the question the token."""
    spelt = Letters().encode(["<|user|>"])[0]
    store = write_store(tmp_path, [np.concatenate([[EOD], spelt])])
    ask = Ask(prompt="<|user|>Is {text}?", yes="y", no="n")
    [odds] = measured(store, ask=ask)["ask_llm"].to_pylist()
    tokens = np.concatenate([[EOD, USER], *Letters().encode(["Is "]), spelt, *Letters().encode(["?"])])
    table_DV = np.asarray(nnx.merge(*model_on(mesh_of(1))).unembedding(), np.float64)
    yes, no = (ord(answer) - 31 for answer in "yn")
    assert odds == pytest.approx(last_hidden(tokens) @ (table_DV[:, yes] - table_DV[:, no]), rel=1e-4)


def test_the_texts_of_a_sequence_are_shown_with_a_blank_line_between(tmp_path):
    class Lines(Letters):
        """With a token for the end of a line, too."""

        def encode(self, texts, special=False):
            return [np.where(tokens < 0, 90, tokens) for tokens in super().encode(texts, special)]

    packed = np.array([EOD, 40, 41, EOD, 42, 43])
    store = write_store(tmp_path, [packed])
    mesh = mesh_of(1)
    graphdef, params = model_on(mesh)
    settings = {"context": CONTEXT, "batch_tokens": 400, "vocab_size": VOCAB, "decoder": Letters()}
    measure = ask_llm.measure_by(ASK, graphdef, params, mesh, encoder=Lines(), **settings)
    with meter("ask", None, "tokens") as progress:
        [odds] = measure(store, np.array([0]), progress)["ask_llm"].to_pylist()
    hidden_D = last_hidden(prompt(np.array([40, 41, 90, 90, 42, 43])))
    table_DV = np.asarray(nnx.merge(graphdef, params).unembedding(), np.float64)
    assert odds == pytest.approx(
        hidden_D @ (table_DV[:, ord("y") - 31] - table_DV[:, ord("n") - 31]), rel=1e-4
    )


@pytest.mark.parametrize(("part", "ask"), [
    ("answers", {"prompt": "{text}", "yes": "y", "no": "n"}),
    ("question", {"prompt": "{text}y", "yes": "A", "no": "B"}),
    ("document", {"prompt": "{text}", "yes": "A", "no": "B"}),
])  # fmt: skip
def test_a_token_that_the_model_does_not_know_is_an_error(tmp_path, part, ask):
    store = write_store(tmp_path, [np.array([EOD, 60 if part == "document" else 1])])
    with pytest.raises(ValueError, match="and the model knows 50: give it the tokenizer"):
        measured(store, ask=Ask(**ask), vocab_size=50)


def test_errors_say_what_to_do(store):
    with pytest.raises(ValueError, match="which begin with the same token 'n'"):
        measured(store, ask=Ask(prompt="{text}?", yes="nay", no="no"))
    with pytest.raises(ValueError, match="score.ask.prompt has 101 tokens, which leave no room"):
        measured(store, ask=Ask(prompt="{text}" + 100 * "?", yes="y", no="n"))
    for wrong in ("Is it good?", "{text} {text}"):
        with pytest.raises(ValueError, match="write {text} once"):
            Ask(prompt=wrong)
    with pytest.raises(ValueError, match=r"needs score\.ask\.model"):
        Config(name="x", score=Score(signals=("ask_llm",)))
