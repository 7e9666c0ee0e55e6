"""Surprisal of tokens: adds up to the score, and loses no character of the text."""

import random

import numpy as np
import pytest
from scoring import EOD, mesh_of, random_documents, scorer_on, write_store

from jaxprune.config import Tokenizer
from jaxprune.data import tokenizer
from jaxprune.progress import meter
from jaxprune.prune.score import Scorer
from jaxprune.report.surprisal import beginning, pieces, token_nats

CORPUS = ["the cat sat on the mat and the dog sat on the log \n"] * 60
CHARACTERS = "abthe  \n\té漢😀\N{REPLACEMENT CHARACTER}▁\u0301.\u2028"


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level", "dummy prefix"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "sentencepiece":
        tokenizer.train(CORPUS, Tokenizer(vocab_size=300), folder / "made")
        return tokenizer.load(folder / "made")
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE(byte_fallback=request.param == "dummy prefix"))
    if request.param == "byte-level":
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    else:  # as Llama's: a space before the text, which decoding takes away again
        made.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = library.decoders.Sequence(
            [
                library.decoders.Replace("▁", " "),
                library.decoders.ByteFallback(),
                library.decoders.Fuse(),
                library.decoders.Strip(" ", 1, 0),
            ]
        )
        alphabet = []
    special = ["<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    special = special if request.param == "dummy prefix" else special[:1]
    trainer = library.trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS, trainer)
    made.save(str(folder / "tokenizer.json"))
    tokenizer.adopt(Tokenizer(path=str(folder / "tokenizer.json")), folder / "made")
    return tokenizer.load(folder / "made")


def test_pieces_join_to_the_text_and_take_every_token(encoder):
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, 30)))
        (token_P,) = encoder.encode([text])
        found = list(pieces(encoder, token_P))
        assert "".join(piece for piece, _ in found) == encoder.decode(token_P)
        assert sum(n_tokens for _, n_tokens in found) == len(token_P)
        assert min(n_tokens for _, n_tokens in found) >= 1


def test_a_character_in_several_tokens_is_one_piece(encoder):
    (token_P,) = encoder.encode(["the 😀 cat"])
    found = dict(pieces(encoder, token_P))
    assert found["😀"] == 4
    assert all(n_tokens == 1 for piece, n_tokens in found.items() if piece != "😀")


def test_the_beginning_ends_with_the_piece_that_fills_it(encoder):
    (token_P,) = encoder.encode(["the cat sat on the mat" * 20])
    texts, counts = beginning(encoder, token_P, 50)
    assert len("".join(texts[:-1])) < 50 <= len("".join(texts))
    assert encoder.decode(token_P[: sum(counts)]) == "".join(texts)
    texts, counts = beginning(encoder, token_P, 10**6)
    assert "".join(texts) == "the cat sat on the mat" * 20 and sum(counts) == len(token_P)
    assert beginning(encoder, token_P[:0], 50) == ([], [])


def _nats(scorer, store, numbers, first_N):
    with meter("test", None, "tokens") as progress:
        return token_nats(scorer, store.tokens, store.offsets_N1, numbers, first_N, progress)


@pytest.mark.parametrize("overlap", [0, 30])
def test_nats_of_tokens_add_up_to_the_score(tmp_path, overlap):
    store = write_store(tmp_path, [*random_documents(14), np.array([EOD])])
    plain = scorer_on(mesh_of(2))
    scorer = Scorer(
        plain.graphdef, plain.params, plain.mesh, context=plain.context, batch_tokens=800, overlap=overlap
    )
    numbers = np.arange(store.n_documents)[::-1].copy()
    with meter("test", None, "tokens") as progress:
        scored = scorer(store, numbers, progress)
    n_tokens_N = np.array(scored["n_scored"])
    nats = _nats(scorer, store, numbers, n_tokens_N)
    for nats_P, total, n_tokens in zip(nats, scored["nll_sum"].to_pylist(), n_tokens_N, strict=True):
        assert len(nats_P) == n_tokens
        # The score sums n float32 numbers above 0 in float32: at most n roundings of 2^-24 of the sum. Another
        # program computes them, which may round each anew.
        assert nats_P.sum() == pytest.approx(total, rel=(n_tokens + 8) * 2.0**-24)
    # What is not shown is not computed, and does not change what is.
    few = np.minimum(n_tokens_N, 130)
    for all_P, first_P in zip(nats, _nats(scorer, store, numbers, few), strict=True):
        np.testing.assert_allclose(first_P, all_P[: len(first_P)], rtol=2e-5, atol=1e-5)
