"""Tokenizers: lossless where trained here, never EOD for text, and errors that help."""

import json
import sys
import unicodedata

import numpy as np
import pytest
import sentencepiece

from jaxprune.config import Tokenizer
from jaxprune.data import tokenizer

ODD_TEXTS = (
    "def f(x):\n\treturn {'a':  x}\r\n\n\n    # tabs\t\tand   spaces   \n",
    "\r\n\r\n",
    "\n",
    "\t",
    " ",
    "     ",
    " \n \n  ",
    "\u3000\u00a0\u2028\u2029\u200b\ufeff",
    "e\u0301 é ﬁ ① Ⅷ 한국어 日本語 עברית 👩‍👩‍👧‍👦 \U0010ffff",
    "\u2581 \u2581\u2581x\u2581",
    "\u2585\u2047 \x00\x07\x1b[0m\x7f",
    "<eod>a<eod><unk></s><s><0x0A>",
    "x" * 20_000,
)


def some_text():
    lines = (f"line {i}: the quick brown fox, {i * 7919 % 1000} jumps\n\tover = {i}" for i in range(400))
    return "\n".join(lines)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train([some_text(), *ODD_TEXTS], Tokenizer(kind=request.param, vocab_size=420), folder)
    return folder


def test_trained_model_gives_back_every_text(trained):
    encoder = tokenizer.load(trained)
    texts = [*ODD_TEXTS, some_text(), "".join(ODD_TEXTS)]
    for text, tokens in zip(texts, encoder.encode(texts), strict=True):
        assert tokens.dtype == np.int32
        assert encoder.decode(tokens) == text
        assert encoder.eod_id not in tokens
        assert tokens.min() >= 0
        assert tokens.max() < encoder.vocab_size


def test_trained_model_gives_back_every_character(trained):
    encoder = tokenizer.load(trained)
    texts = [
        f"a{chr(i)} " for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)) not in ("Cs", "Cn")
    ]
    texts = texts[::37] + texts[:300]
    assert [encoder.decode(tokens) for tokens in encoder.encode(texts)] == texts


def test_vocabulary_is_what_was_asked_for(trained):
    encoder = tokenizer.load(trained)
    assert encoder.vocab_size == 420
    model = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    assert model.get_piece_size() == 420
    assert model.id_to_piece(encoder.eod_id) == "<eod>"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_again_gives_the_same_model(tmp_path, kind):
    for folder in ("one", "two"):
        tokenizer.train([some_text()], Tokenizer(kind=kind, vocab_size=400), tmp_path / folder)
    assert (tmp_path / "one/tokenizer.model").read_bytes() == (tmp_path / "two/tokenizer.model").read_bytes()


def test_threads_change_nothing(trained):
    texts = [some_text()[i * 50 :] for i in range(20)]
    one, three = (tokenizer.load(trained, threads).encode(texts) for threads in (1, 3))
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("vocab_size", [300, 30_000])
def test_vocabulary_that_does_not_fit_names_one_that_does(tmp_path, vocab_size):
    texts = ["".join(map(chr, range(0x4E00, 0x4E80))) + some_text()]
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size is .* set ") as raised:
        tokenizer.train(texts, Tokenizer(vocab_size=vocab_size), tmp_path)
    number = next(int(word) for word in str(raised.value).split("set ")[1].split() if word.isdigit())
    tokenizer.train(texts, Tokenizer(vocab_size=number), tmp_path)
    assert tokenizer.load(tmp_path).vocab_size == number


# Existing tokenizers.


def adopt(folder, path, **settings):
    tokenizer.adopt(Tokenizer(path=str(path), **settings), folder)
    return tokenizer.load(folder)


def train_existing(path, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(some_text().split("\n")),
        model_prefix=str(path.with_suffix("")),
        vocab_size=300,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return path


def hugging_face(path, special):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    names = ["<|endoftext|>", "<|user|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=names if special else [],
        show_progress=False,
    )
    model.train_from_iterator([some_text()], trainer)
    if not special:
        model.add_tokens([tokenizers.AddedToken(name, special=False) for name in names])
    model.enable_truncation(5)  # of a model that was exported with it: must not cut documents
    model.enable_padding(length=50)
    model.save(str(path))
    return path


@pytest.mark.parametrize("special", [True, False])
def test_hugging_face_tokenizer(tmp_path, special):
    encoder = adopt(tmp_path / "out", hugging_face(tmp_path / "tokenizer.json", special))
    texts = [some_text(), "a<|endoftext|>", "<|endoftext|><|endoftext|>b", "é\t\r\n  x", *["short"] * 50]
    tokens = encoder.encode(texts)
    assert [encoder.decode(document) for document in tokens] == texts
    assert encoder.decode(np.array([encoder.eod_id])) == "<|endoftext|>"
    assert all(encoder.eod_id not in document for document in tokens)
    assert max(document.max() for document in tokens) < encoder.vocab_size
    assert encoder.vocab_size > encoder.eod_id


def test_hugging_face_special_tokens_in_text_are_text(tmp_path):
    encoder = adopt(tmp_path / "out", hugging_face(tmp_path / "tokenizer.json", special=True))
    [tokens] = encoder.encode(["<|user|>"])
    assert len(tokens) > 1


def test_special_tokens_of_a_prompt_are_special(tmp_path):
    encoder = adopt(tmp_path / "out", hugging_face(tmp_path / "tokenizer.json", special=True))
    prompt, text = "<|user|>the fox<|endoftext|>", "<|user|>"
    [tokens] = encoder.encode([prompt], special=True)
    assert tokens[-1] == encoder.eod_id and encoder.decode(tokens) == prompt
    assert tokens[1:-1].tolist() == encoder.encode(["the fox"])[0].tolist()
    assert tokens[0] not in encoder.encode([text])[0]  # they are text again


def test_a_tokenizer_that_changes_texts_is_found_out(tmp_path):
    adopt(tmp_path / "out", hugging_face(tmp_path / "tokenizer.json", special=True))
    assert tokenizer.check_lossless(["The  fox\n", "ﬁve"], tmp_path / "out")
    assert "lossless" not in tokenizer.read_meta(tmp_path / "out")
    adopt(tmp_path / "other", train_existing(tmp_path / "own.model", normalization_rule_name="nmt_nfkc"))
    before = tokenizer.read_meta(tmp_path / "other")
    assert not tokenizer.check_lossless(["the fox", "two  spaces", "ﬁve"], tmp_path / "other")
    assert tokenizer.read_meta(tmp_path / "other") == {**before, "lossless": False}


def test_sentencepiece_model_of_others(tmp_path):
    encoder = adopt(tmp_path / "out", train_existing(tmp_path / "own.model"))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "own.model"))
    texts = [some_text(), "the  fox\n"]
    assert [tokens.tolist() for tokens in encoder.encode(texts)] == [reference.encode(text) for text in texts]
    assert encoder.eod_id == reference.eos_id() == 2


def test_eod_that_is_found_in_text_is_cut(tmp_path):
    path = train_existing(tmp_path / "own.model", user_defined_symbols=["<|endoftext|>"], eos_id=-1)
    encoder = adopt(tmp_path / "out", path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert encoder.eod_id == reference.piece_to_id("<|endoftext|>")
    text = "the fox<|endoftext|>"
    assert encoder.eod_id in reference.encode(text)
    [tokens] = encoder.encode([text])
    assert encoder.eod_id not in tokens


def test_eod_can_be_named(tmp_path):
    path = train_existing(tmp_path / "own.model", control_symbols=["<sep>"])
    encoder = adopt(tmp_path / "out", path, eod_token="<sep>")
    assert encoder.eod_id == sentencepiece.SentencePieceProcessor(model_file=str(path)).piece_to_id("<sep>")


def broken(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda folder: folder / "absent.model", {}, "absent.model, which is not a file"),
        (lambda folder: broken(folder, "t.model", "x"), {}, "not a SentencePiece model"),
        (lambda folder: broken(folder, "t.json", "{}"), {}, "not a Hugging Face tokenizer.json"),
        (lambda folder: train_existing(folder / "t.model", eos_id=-1), {}, "set tokenizer.eod_token"),
        (
            lambda folder: train_existing(folder / "t.model"),
            {"eod_token": "<none>"},
            "<none>.*set tokenizer.eod_token",
        ),
    ],
)
def test_unusable_tokenizer_is_one_helpful_error(tmp_path, make, settings, message):
    if message.startswith("not a Hugging"):
        pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=message) as raised:
        adopt(tmp_path / "out", make(tmp_path), **settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_missing_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxprune\[huggingface\]'"):
        adopt(tmp_path / "out", broken(tmp_path, "t.json", json.dumps({})))


def test_fingerprint_is_of_the_content(tmp_path):
    one, two = broken(tmp_path, "1.json", "x"), broken(tmp_path, "2.json", "x")
    prints = [tokenizer.fingerprint(Tokenizer(path=str(path))) for path in (one, two)]
    assert prints[0] == prints[1]
    two.write_text("y")
    assert tokenizer.fingerprint(Tokenizer(path=str(two))) != prints[0]
