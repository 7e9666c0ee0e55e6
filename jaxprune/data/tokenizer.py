"""From text to tokens and back: a SentencePiece model trained here, or an existing tokenizer.

A trained model is lossless: decoding gives back every byte of the text. No text, not even the literal
spelling of the end-of-document token (EOD), encodes to EOD.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece

from jaxprune.artifact import write_json
from jaxprune.config import Tokenizer

EOD = "<eod>"
_USUAL_EODS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", EOD)
_TRAINING_THREADS = 2  # part of the result: SentencePiece's sums depend on it
_SENTENCE_CHARACTERS = 1_000  # at most 4,000 bytes, below the length over which SentencePiece drops sentences
_BATCH_CHARACTERS = 1_000_000  # of a Hugging Face batch, whose results take some 100 bytes a token
_SPACE_MARK = "▁"  # stands for a space inside SentencePiece, which therefore reads it as one


class Encoder(Protocol):
    """A tokenizer that is ready to encode."""

    vocab_size: int
    eod_id: int

    def encode(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        """The tokens of each text, int32, without EOD.

        With `special`, for text that its author wrote for a model, tokens such as `<|user|>` that are spelt in it
        become what they name, EOD too, where the tokenizer knows them as special; else they are text.
        """
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens; EOD gives nothing, or its own spelling."""
        ...


def train(texts: Iterable[str], settings: Tokenizer, folder: Path) -> None:
    """Trains a lossless SentencePiece model on `texts` and leaves it in `folder`.

    Raises:
      ValueError: `settings.vocab_size` does not fit the text.
    """
    model = io.BytesIO()
    try:
        _interruptibly(
            lambda: sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
                sentence_iterator=_sentences(texts),
                model_writer=model,
                model_type=settings.kind,
                vocab_size=settings.vocab_size,
                # What makes it lossless: all of it is needed.
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                byte_fallback=True,
                user_defined_symbols=["\n", "\t"],
                # Rarer characters are spelt in bytes.
                character_coverage=0.9995,
                unk_id=0,
                eos_id=1,
                eos_piece=EOD,
                bos_id=-1,
                pad_id=-1,
                max_sentence_length=4 * _SENTENCE_CHARACTERS,
                num_threads=_TRAINING_THREADS,
                minloglevel=2,
            )
        )
    except RuntimeError as error:
        raise _vocabulary_error(str(error), settings) or error from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    _write_meta(
        folder,
        "tokenizer.model",
        trained=True,
        vocab_size=processor.get_piece_size(),
        eod_id=1,
        eod_token=EOD,
    )


def adopt(settings: Tokenizer, folder: Path) -> None:
    """Copies the existing tokenizer `settings.path` into `folder` and finds its EOD.

    Raises:
      ValueError: it cannot be read, or has no EOD.
    """
    path = _existing(settings)
    name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
    find, vocab_size, usual = _open_json(path) if name == "tokenizer.json" else _open_model(path)
    names = usual if settings.eod_token is None else (settings.eod_token,)
    eod = next(((token, found) for token in names if (found := find(token)) is not None), None)
    if eod is None:
        raise ValueError(
            f"tokenizer {path} has none of the end-of-document tokens {', '.join(names)}: "
            "set tokenizer.eod_token to a token of its vocabulary that no text becomes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / name)
    _write_meta(folder, name, trained=False, vocab_size=vocab_size, eod_id=eod[1], eod_token=eod[0])


def vocab_size(settings: Tokenizer) -> int:
    """Entries of the tokenizer that the settings speak of, before it is made.

    Raises:
      ValueError: it exists already, and cannot be read.
    """
    if settings.path is None:
        return settings.vocab_size
    path = _existing(settings)
    return (_open_json(path) if path.suffix == ".json" else _open_model(path))[1]


def check_lossless(texts: Iterable[str], folder: Path) -> bool:
    """Whether decoding gives every one of `texts` back; where it does not, `meta.json` says so from now on."""
    encoder = load(folder)
    is_lossless = all(encoder.decode(encoder.encode([text])[0]) == text for text in texts)
    if not is_lossless:
        write_json(folder / "meta.json", {**read_meta(folder), "lossless": False})
    return is_lossless


def fingerprint(settings: Tokenizer) -> str:
    """A digest of the content of the existing tokenizer `settings.path`."""
    return hashlib.sha256(_existing(settings).read_bytes()).hexdigest()[:16]


def load(folder: Path, threads: int = 1) -> Encoder:
    """The tokenizer that `train` or `adopt` left in `folder`, encoding with `threads` threads."""
    meta = read_meta(folder)
    if meta["file"] == "tokenizer.json":
        return _HuggingFace(folder / "tokenizer.json", meta, threads)
    return _SentencePiece(folder / "tokenizer.model", meta, threads)


def of_model(folder: Path, threads: int = 1) -> Encoder:
    """The tokenizer.json of a Hugging Face model.

    Raises:
      ValueError: as `meta_of_model`.
    """
    return _HuggingFace(folder / "tokenizer.json", meta_of_model(folder), threads)


def meta_of_model(folder: Path) -> dict[str, Any]:
    """vocab_size, eod_id and eod_token of a Hugging Face model: EOD is what begins its texts, else what ends them.

    Raises:
      ValueError: there is none, it cannot be read, or none of the files says what begins or ends a text.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json: save the model's (fast) tokenizer in it")
    find, vocab_size, _ = _open_json(path)
    names, numbers = (
        json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "config.json")
    )
    named = [names.get(key) for key in ("bos_token", "eos_token")]
    tokens = [token["content"] if isinstance(token, dict) else token for token in named if token]
    spelt = {number: token for token in tokens if (number := find(token)) is not None}
    if not spelt:
        ids = [numbers.get(key) for key in ("bos_token_id", "eos_token_id")]
        flat = [
            i
            for number in ids
            if number is not None
            for i in (number if isinstance(number, list) else [number])
        ]
        spell = _tokenizers().Tokenizer.from_file(str(path)).id_to_token
        spelt = {number: token for number in flat if (token := spell(number)) is not None}
    if not spelt:
        raise ValueError(
            f"{folder} does not say which token begins or ends a text: give it a tokenizer_config.json with "
            "bos_token or eos_token"
        )
    eod_id, eod_token = next(iter(spelt.items()))
    return {"vocab_size": vocab_size, "eod_id": eod_id, "eod_token": eod_token}


def read_meta(folder: Path) -> dict[str, Any]:
    """`meta.json`: file, trained, vocab_size, eod_id, eod_token, digest of the file and, where text does not come
    back from tokens, lossless (False)."""
    return json.loads((folder / "meta.json").read_text())


class _SentencePiece:
    def __init__(self, path: Path, meta: Mapping[str, Any], threads: int) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._threads = threads
        self.vocab_size, self.eod_id = meta["vocab_size"], meta["eod_id"]
        if meta["trained"]:
            # EOD is a control piece, which no text becomes; the space mark has to be spelt in bytes.
            self._cut = lambda text: text.split(_SPACE_MARK)
            names = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode()]
            self._joint = np.array([self._model.piece_to_id(name) for name in names], np.int32)
        else:
            self._cut = _cut_inside(meta["eod_token"])
            self._joint = np.zeros(0, np.int32)

    def encode(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        # Of its control pieces, SentencePiece finds none in text: `special` is the same.
        return _by_segment(texts, self._cut, self._joint, self._encode)

    def _encode(self, segments: list[str]) -> list[np.ndarray]:
        # The numpy results come without Python lists and with the GIL released.
        return self._model.encode(segments, return_type="numpy", num_threads=self._threads)

    def decode(self, tokens: np.ndarray) -> str:
        return self._model.decode(np.asarray(tokens).tolist())


class _HuggingFace:
    def __init__(self, path: Path, meta: Mapping[str, Any], threads: int) -> None:
        self._threads = threads
        self._tokenizer = _tokenizers().Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True  # spelt in a text, they are text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size, self.eod_id = meta["vocab_size"], meta["eod_id"]
        # Tokens that were added without being special are found in text all the same.
        self._cut = _cut_inside(meta["eod_token"])

    def encode(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        if not special:
            return _by_segment(texts, self._cut, np.zeros(0, np.int32), self._encode)
        self._tokenizer.encode_special_tokens = False
        try:
            return self._encode(list(texts))
        finally:
            self._tokenizer.encode_special_tokens = True

    def _encode(self, segments: list[str]) -> list[np.ndarray]:
        # The library's thread pool is made once in a process, at its first batch.
        os.environ.setdefault("RAYON_NUM_THREADS", str(self._threads))
        tokens: list[np.ndarray] = []
        begin = size = 0
        for end, segment in enumerate(segments, start=1):
            size += len(segment)
            if size >= _BATCH_CHARACTERS or end == len(segments):
                batch = self._tokenizer.encode_batch_fast(segments[begin:end], add_special_tokens=False)
                tokens += [np.array(encoding.ids, np.int32) for encoding in batch]
                begin, size = end, 0
        return tokens

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)


def _by_segment(
    texts: Sequence[str],
    cut: Callable[[str], list[str]],
    joint: np.ndarray,
    encode: Callable[[list[str]], list[np.ndarray]],
) -> list[np.ndarray]:
    """Encodes each text as what `cut` makes of it (mostly the text itself), with `joint` between."""
    segments = [cut(text) for text in texts]
    encoded = iter(encode([segment for parts in segments for segment in parts]))
    tokens = []
    for parts in segments:
        joined = [next(encoded)]
        for _ in parts[1:]:
            joined += [joint, next(encoded)]
        tokens.append(joined[0] if len(joined) == 1 else np.concatenate(joined))
    return tokens


def _cut_inside(token: str) -> Callable[[str], list[str]]:
    """Cuts a text inside every literal `token`, after its first character."""
    first, rest = token[:1], token[1:]

    def cut(text: str) -> list[str]:
        parts = text.split(token)
        heads = [""] + [rest] * (len(parts) - 1)
        tails = [first] * (len(parts) - 1) + [""]
        return [head + part + tail for head, part, tail in zip(heads, parts, tails, strict=True)]

    return cut


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for begin in range(0, len(line), _SENTENCE_CHARACTERS):
                yield line[begin : begin + _SENTENCE_CHARACTERS]


def _interruptibly(work: Callable[[], None]) -> None:
    """Runs one long call into C++ in a thread: in the main thread it would not hear Ctrl-C."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    future.result()


def _vocabulary_error(message: str, settings: Tokenizer) -> ValueError | None:
    """What SentencePiece says about a vocabulary that does not fit, in the words of the settings."""
    if found := re.search(r"too high .* <= (\d+)", message):
        return ValueError(
            f"tokenizer.vocab_size is {settings.vocab_size}, more than the corpus has pieces for: set "
            f"{found[1]} or less, or give it more text (a larger corpus or tokenizer.train_bytes)"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return ValueError(
            f"tokenizer.vocab_size is {settings.vocab_size}, fewer than the corpus's characters and the 256 "
            f"bytes: set at least {found[1]}"
        )
    return None


def _existing(settings: Tokenizer) -> Path:
    path = Path(settings.path or "").expanduser()
    if not path.is_file():
        raise ValueError(
            f"tokenizer.path is {settings.path}, which is not a file: name a SentencePiece .model or a "
            "Hugging Face tokenizer.json, or leave it out to train one"
        )
    return path


def _open_model(path: Path) -> tuple[Callable[[str], int | None], int, tuple[str, ...]]:
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"tokenizer.path is {path}, which is not a SentencePiece model: {error}") from None

    def find(token: str) -> int | None:
        number = model.piece_to_id(token)
        return number if model.id_to_piece(number) == token else None

    own = (model.id_to_piece(model.eos_id()),) if model.eos_id() >= 0 else ()
    return find, model.get_piece_size(), tuple(dict.fromkeys([*own, *_USUAL_EODS]))


def _open_json(path: Path) -> tuple[Callable[[str], int | None], int, tuple[str, ...]]:
    library = _tokenizers()
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
    # Not the number of entries: ids may have gaps.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return tokenizer.token_to_id, vocab_size, _USUAL_EODS


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ValueError(
            "a Hugging Face tokenizer.json needs the tokenizers library: pip install 'jaxprune[huggingface]'"
        ) from None
    return tokenizers


def _write_meta(folder: Path, file: str, **meta: Any) -> None:
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()[:16]
    write_json(folder / "meta.json", {"file": file, **meta, "digest": digest})
