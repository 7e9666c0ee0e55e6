"""The prepare stage: the store is the corpus, and a killed call ends in the same files."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxprune import config
from jaxprune.artifact import Workdir, read_manifest
from jaxprune.data import documents, prepare, store, tokenizer
from jaxprune.data.store import HELDOUT, SPLITS, TokenStore

DEV_SMALL = Path(__file__).parents[3] / "shared" / "data" / "corpus" / "dev_small"


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(documents, "_GROUP_ROWS", 8)
    monkeypatch.setattr(store, "_COMMIT_BYTES", 2_000)  # of about two row groups


def rows(domain, n, seed=0):
    rng = random.Random(f"{domain} {seed}")
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(50)]
    return [
        {
            "id": f"{domain}-{i}",
            "text": f"{i}:\t" + " ".join(rng.choices(words, k=30)) + "\r\n  é",
            "domain": domain,
        }
        for i in range(n)
    ]


def write_lines(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def corpus(folder):
    """Three files, two domains, one of them in two files; defects and duplicates. Returns the good rows."""
    a, b = rows("a", 30), rows("b", 25)
    folder.mkdir()
    write_lines(folder / "1.jsonl", [*a[:20], {"id": "empty", "text": " ", "domain": "a"}])
    again = [{**a[3], "id": "copy of a-3"}, {**b[4], "text": "the id of b-4 again"}, "{not JSON"]
    write_lines(folder / "2.jsonl", [*b[:20], *again])
    write_lines(folder / "3.jsonl", [*a[20:], {**b[0], "id": "copy of b-0"}, *b[20:]])
    return [*a[:20], *b[:20], *a[20:], *b[20:]]


def settings(*sources, **changes):
    of_corpus = {"heldout": 0.2, "reference": 0.3} | changes
    return config.Config(
        name="test",
        seed=3,
        corpus=config.Corpus(sources=tuple(map(str, sources)), **of_corpus),
        tokenizer=config.Tokenizer(vocab_size=330, train_bytes=4_000, threads=1),
    )


def contents(folder):
    """Every file of an artifact, the manifest without what differs between runs."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    return found, {**manifest, "seconds": 0}


def stored(folder):
    """{id: (domain, split, text)} as the store has it."""
    found, encoder = TokenStore(folder / "tokens"), tokenizer.load(folder / "tokenizer")
    names = found.ids(np.arange(found.n_documents))
    return {
        name: (
            found.domains[found.domain_N[number]],
            SPLITS[found.split_N[number]],
            encoder.decode(found.stored(number)[1:]),
        )
        for number, name in enumerate(names)
    }


def test_the_store_is_the_corpus(tmp_path):
    good = corpus(tmp_path / "c")
    prepare.run(settings(tmp_path / "c"), Workdir(tmp_path / "w"))
    folder = tmp_path / "w" / "prepare"
    found = TokenStore(folder / "tokens")
    encoder = tokenizer.load(folder / "tokenizer")
    assert found.ids(np.arange(found.n_documents)) == [row["id"] for row in good]
    assert found.domains == ("a", "b")
    for number, row in enumerate(good):
        assert found.stored(number).tolist() == [encoder.eod_id, *encoder.encode([row["text"]])[0].tolist()]
        assert found.domains[found.domain_N[number]] == row["domain"]
        assert found.n_bytes_N[number] == len(row["text"].encode())
    assert {name: text for name, (_, _, text) in stored(folder).items()} == {
        row["id"]: row["text"] for row in good
    }
    written = [text for path in sorted((folder / "documents").iterdir()) for text in pq.read_table(path)["text"].to_pylist()]  # fmt: skip
    assert written[:20] == [row["text"] for row in good[:20]]
    assert sorted(path.name for path in folder.iterdir()) == ["documents", "manifest.json", "removed.parquet", "tokenizer", "tokens"]  # fmt: skip


def test_removed_documents_are_listed_and_counted(tmp_path):
    good = corpus(tmp_path / "c")
    manifest = prepare.run(settings(tmp_path / "c"), Workdir(tmp_path / "w"))
    removed = pq.read_table(tmp_path / "w/prepare/removed.parquet").to_pylist()
    assert {row["id"]: row["reason"] for row in removed if row["reason"] != "invalid JSON"} == {
        "empty": "empty",
        "copy of a-3": "duplicate text",
        "b-4": "duplicate id",
        "copy of b-0": "duplicate text",
    }
    assert manifest.counts["removed"] == {
        "empty": 1,
        "duplicate text": 2,
        "duplicate id": 1,
        "invalid JSON": 1,
    }
    for name, value in (("documents", lambda row: 1), ("bytes", lambda row: len(row["text"].encode()))):
        for domain in "ab":
            expected = sum(value(row) for row in good if row["domain"] == domain)
            assert sum(manifest.counts[name][domain].values()) == expected
    assert manifest.counts == read_manifest(tmp_path / "w/prepare").counts


def test_dedup_none_keeps_duplicate_texts(tmp_path):
    good = corpus(tmp_path / "c")
    prepare.run(settings(tmp_path / "c", dedup="none"), Workdir(tmp_path / "w"))
    expected = {row["id"] for row in good} | {"copy of a-3", "copy of b-0"}
    assert set(stored(tmp_path / "w/prepare")) == expected


def test_a_file_of_nothing_but_copies_leaves_nothing(tmp_path):
    a = rows("a", 30)
    write_lines(tmp_path / "1.jsonl", a)
    write_lines(tmp_path / "2.jsonl", [{**row, "id": f"copy of {row['id']}"} for row in a])
    write_lines(tmp_path / "3.jsonl", rows("b", 30))
    manifest = prepare.run(settings(tmp_path), Workdir(tmp_path / "w"))
    assert manifest.counts["removed"] == {"duplicate text": 30}
    assert set(stored(tmp_path / "w/prepare")) == {row["id"] for row in [*a, *rows("b", 30)]}


def test_a_second_call_does_nothing_and_a_changed_input_does_all(tmp_path):
    corpus(tmp_path / "c")
    workdir = Workdir(tmp_path / "w")
    first = prepare.run(settings(tmp_path / "c"), workdir)
    written = (workdir.prepare / "tokens" / "tokens").stat().st_mtime_ns
    assert prepare.run(settings(tmp_path / "c"), workdir) == first
    assert (workdir.prepare / "tokens" / "tokens").stat().st_mtime_ns == written
    write_lines(tmp_path / "c" / "4.jsonl", rows("c", 20))
    assert "c" in prepare.run(settings(tmp_path / "c"), workdir).counts["documents"]


def test_threads_and_row_groups_change_no_token(tmp_path, monkeypatch):
    corpus(tmp_path / "c")
    one = settings(tmp_path / "c")
    prepare.run(one, Workdir(tmp_path / "one"))
    three = dataclasses.replace(one, tokenizer=dataclasses.replace(one.tokenizer, threads=3))
    prepare.run(three, Workdir(tmp_path / "three"))
    assert contents(tmp_path / "one/prepare") == contents(tmp_path / "three/prepare")
    monkeypatch.setattr(documents, "_GROUP_ROWS", 5)
    prepare.run(one, Workdir(tmp_path / "groups"))
    assert stored(tmp_path / "groups/prepare") == stored(tmp_path / "one/prepare")


def test_order_and_files_change_no_split(tmp_path):
    good = corpus(tmp_path / "c")
    prepare.run(settings(tmp_path / "c"), Workdir(tmp_path / "one"))
    (tmp_path / "d").mkdir()
    random.Random(0).shuffle(good)
    write_lines(tmp_path / "d" / "all.jsonl", good)
    prepare.run(settings(tmp_path / "d"), Workdir(tmp_path / "two"))
    splits = [
        {name: row[:2] for name, row in stored(tmp_path / f"{w}/prepare").items()} for w in ("one", "two")
    ]
    assert splits[0] == splits[1]


def test_a_group_is_not_split_and_an_id_is_not_cut(tmp_path, monkeypatch):
    lines = [{**row, "id": f"file#{number}"} for number, row in enumerate(rows("a", 90))]
    write_lines(tmp_path / "a.jsonl", lines)
    prepare.run(settings(tmp_path / "a.jsonl"), Workdir(tmp_path / "ids"))
    assert {row[1] for row in stored(tmp_path / "ids/prepare").values()} == set(SPLITS)
    original = documents.corpus.read

    def grouped(part, *rest):
        for item in original(part, *rest):
            yield dataclasses.replace(item, group=f"group {int(item.id.split('#')[1]) // 3}")

    monkeypatch.setattr(documents.corpus, "read", grouped)
    prepare.run(settings(tmp_path / "a.jsonl"), Workdir(tmp_path / "groups"))
    found = [row[1] for row in stored(tmp_path / "groups/prepare").values()]
    assert found[0::3] == found[1::3] == found[2::3] and set(found) == set(SPLITS)


def commit_points(monkeypatch, kill_at=None):
    """Counts what makes a step's work stand, and dies just before or just after one of them."""
    done = Counter()
    for target, name in (
        (Path, "replace"),
        (Path, "rename"),
        (prepare.shutil, "rmtree"),
        (store.os, "fsync"),
    ):
        original = getattr(target, name)

        def watched(*args, original=original, **kwargs):
            done["points"] += 1
            if done["points"] * 2 == kill_at:
                raise Killed
            result = original(*args, **kwargs)
            if done["points"] * 2 + 1 == kill_at:
                raise Killed
            return result

        monkeypatch.setattr(target, name, watched)
    return done


def test_killed_anywhere_it_continues_to_the_same_files(tmp_path, monkeypatch):
    corpus(tmp_path / "c")
    config_ = settings(tmp_path / "c")
    with monkeypatch.context() as patch:
        points = commit_points(patch)
        prepare.run(config_, Workdir(tmp_path / "whole"))
    expected = contents(tmp_path / "whole/prepare")
    assert points["points"] > 20
    survivor = Workdir(tmp_path / "killed")
    for kill_at in range(2, 2 * points["points"] + 2, 5):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            commit_points(patch, kill_at)
            prepare.run(config_, Workdir(tmp_path / str(kill_at)))
        prepare.run(config_, Workdir(tmp_path / str(kill_at)))
        assert contents(tmp_path / str(kill_at) / "prepare") == expected, kill_at
    # And killed again and again in the same place.
    for kill_at in (2, 7, 4, 9, 8, 12, 5, 20):
        with monkeypatch.context() as patch:
            commit_points(patch, kill_at)
            try:
                prepare.run(config_, survivor)
            except Killed:
                continue
            break
    prepare.run(config_, survivor)
    assert contents(survivor.prepare) == expected


def test_completed_parts_and_batches_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_COMMIT_BYTES", 1)
    corpus(tmp_path / "c")
    config_ = settings(tmp_path / "c")
    total = Counter()

    def die_after(patch, target, name, limit):
        original, calls = getattr(target, name), 0

        def counted(*args, **kwargs):
            nonlocal calls
            if calls == limit:
                raise Killed
            calls += 1
            total[name] += 1
            return original(*args, **kwargs)

        patch.setattr(target, name, counted)

    for limits in ({"write": 2}, {"append": 3}, {"append": 2}, {}):
        with monkeypatch.context() as patch:
            die_after(patch, documents, "write", limits.get("write"))
            die_after(patch, store.Writer, "append", limits.get("append"))
            try:
                prepare.run(config_, Workdir(tmp_path / "w"))
                assert not limits
            except Killed:
                assert limits
    n_groups = sum(
        pq.ParquetFile(path).num_row_groups for path in (tmp_path / "w/prepare/documents").iterdir()
    )
    assert total == {"write": 3, "append": n_groups}


def test_a_domain_stops_at_its_cap(tmp_path):
    corpus(tmp_path / "c")
    size = len(rows("a", 30)[0]["text"].encode())
    manifest = prepare.run(settings(tmp_path / "c", max_domain_bytes=12 * size), Workdir(tmp_path / "w"))
    n_documents = sum(manifest.counts["documents"]["a"].values())
    read = rows("a", 30)[:n_documents]
    sizes = [len(row["text"].encode()) for row in read]
    assert sum(sizes[:-1]) < 12 * size <= sum(sizes)
    assert manifest.counts["over_cap"]["a"] == 31 - n_documents  # one is a copy
    expected = [row["id"] for row in read]
    assert [name for name in stored(tmp_path / "w/prepare") if name.startswith("a-")] == expected


def test_a_full_domain_is_read_no_further(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_lines(tmp_path / f"{name}.jsonl", rows(name, 40))
    sources = [f"{name}={tmp_path / name}.jsonl" for name in ("a", "b")]
    read = Counter()
    original = documents.corpus.read

    def counted(part, *rest):
        for item in original(part, *rest):
            read[part.domain] += 1
            yield item

    monkeypatch.setattr(documents.corpus, "read", counted)
    manifest = prepare.run(settings(*sources, max_domain_bytes=1500), Workdir(tmp_path / "w"))
    assert manifest.counts["unread_parts"] == {"a": 1, "b": 1}
    for name in ("a", "b"):
        assert read[name] == sum(manifest.counts["documents"][name].values()) + 1 < 40


def test_the_tokenizer_sees_no_held_out_text_and_every_domain_evenly(tmp_path, monkeypatch):
    write_lines(tmp_path / "a.jsonl", rows("a", 200))
    write_lines(tmp_path / "b.jsonl", rows("b", 20))
    seen = []
    train = tokenizer.train
    monkeypatch.setattr(tokenizer, "train", lambda texts, *rest: train(seen.extend(texts) or seen, *rest))
    config_ = settings(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    manifest = prepare.run(config_, Workdir(tmp_path / "w"))
    documents_ = stored(tmp_path / "w/prepare")
    domain_of = {text: (domain, split) for domain, split, text in documents_.values()}
    n_bytes = Counter()
    for text in seen:
        domain, split = next(value for whole, value in domain_of.items() if whole.startswith(text))
        assert split != "heldout"
        n_bytes[domain] += len(text.encode())
    assert n_bytes.total() <= config_.tokenizer.train_bytes
    available = sum(manifest.counts["bytes"]["b"].values())
    assert n_bytes["a"] > 0.7 * (4_000 - min(available, 2_000))
    assert n_bytes["b"] > 0.7 * min(available, 2_000)


def test_even_budgets_give_what_small_domains_lack_to_the_others():
    assert documents.even_budgets({"a": 10, "b": 100, "c": 1000}, 90) == {"a": 10, "b": 40, "c": 40}
    assert documents.even_budgets({"a": 10, "b": 20}, 90) == {"a": 10, "b": 20}


def test_every_domain_has_held_out_documents(tmp_path):
    for name, n_documents in zip("abcd", (6, 12, 32, 50), strict=True):
        write_lines(tmp_path / f"{name}.jsonl", rows(name, n_documents))
    prepare.run(settings(tmp_path, heldout=1e-6), Workdir(tmp_path / "w"))
    found = TokenStore(tmp_path / "w/prepare/tokens")
    assert np.bincount(found.domain_N[found.documents(HELDOUT)]).tolist() == [1, 3, 8, 8]


def errors(tmp_path):
    a = rows("a", 30)
    write_lines(tmp_path / "good.jsonl", a)
    write_lines(tmp_path / "twice.jsonl", [*a, {**a[0], "text": "another"}])
    write_lines(tmp_path / "bad.jsonl", [{"id": str(i), "text": " ", "domain": "a"} for i in range(3)])
    write_lines(tmp_path / "one.jsonl", rows("single", 1))
    for total in ("all", "mean"):
        write_lines(tmp_path / f"{total}.jsonl", rows(total, 30))
    good = tmp_path / "good.jsonl"
    return [
        (settings(tmp_path / "twice.jsonl", on_defect="error"), "'a-0' occurs again .*corpus.on_defect"),
        (settings(good, tmp_path / "bad.jsonl"), "no document is left of .*bad.jsonl"),
        (settings(good, tmp_path / "one.jsonl"), "'single'"),
        (settings(good, tmp_path / "all.jsonl"), "a domain is called all, .*corpus.domain_field"),
        (settings(good, tmp_path / "mean.jsonl"), "a domain is called mean, .*corpus.domain_field"),
        (
            dataclasses.replace(settings(good), tokenizer=config.Tokenizer(vocab_size=32_000)),
            "tokenizer.vocab_size is 32000",
        ),
        (
            dataclasses.replace(settings(good), tokenizer=config.Tokenizer(path="absent.model")),
            "absent.model, which is not a file",
        ),
    ]


@pytest.mark.parametrize("case", range(7))
def test_what_is_wrong_is_one_helpful_error(tmp_path, case):
    settings_, message = errors(tmp_path)[case]
    with pytest.raises(ValueError, match=message) as raised:
        prepare.run(settings_, Workdir(tmp_path / "w"))
    assert "\n" not in str(raised.value)


def test_real_text_of_nine_domains(tmp_path, monkeypatch):
    if not DEV_SMALL.is_dir():
        pytest.skip("the real text that this test reads, ../shared/data/corpus/dev_small, is not here")
    monkeypatch.undo()
    config_ = config.Config(
        name="dev_small",
        corpus=config.Corpus(sources=(str(DEV_SMALL),)),
        tokenizer=config.Tokenizer(vocab_size=2_000, train_bytes=500_000),
    )
    manifest = prepare.run(config_, Workdir(tmp_path))
    assert len(manifest.counts["documents"]) == 9
    texts = {
        row["id"]: row["text"]
        for path in (tmp_path / "prepare" / "documents").iterdir()
        for row in pq.read_table(path, columns=["id", "text"]).to_pylist()
    }
    assert {name: text for name, (_, _, text) in stored(tmp_path / "prepare").items()} == texts


def test_a_tokenizer_that_changes_texts_is_said_to(tmp_path, capsys):
    """What reads texts asks for it (prune/texts.py); one that gives them back is not marked."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    corpus(tmp_path / "corpus")
    for name, normalizer in (("nfd", normalizers.NFD()), ("whole", None)):
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        if normalizer is not None:
            model.normalizer = normalizer
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eod>"], show_progress=False)  # fmt: skip
        model.train_from_iterator(["the words"], trainer)
        model.save(str(tmp_path / f"{name}.json"))
        own = dataclasses.replace(
            settings(tmp_path / "corpus"), tokenizer=config.Tokenizer(path=str(tmp_path / f"{name}.json"))
        )
        prepare.run(own, Workdir(tmp_path / name))
        is_marked = tokenizer.read_meta(tmp_path / name / "prepare" / "tokenizer").get("lossless") is False
        said = "nfd.json changes texts" in " ".join(capsys.readouterr().err.split())
        assert is_marked == said == (name == "nfd")
