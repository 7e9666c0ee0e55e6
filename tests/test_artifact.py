"""Artifacts are whole or not there, skipped when current, and say why they are made again."""

import pytest

from jaxprune import artifact


def _make(log, text="x", fail=False):
    def make(folder):
        log.append(sorted(path.name for path in folder.iterdir()))
        (folder / "part").write_text(text)
        if fail:
            raise KeyboardInterrupt
        return {"n": 1}

    return make


def test_a_current_artifact_is_skipped(tmp_path):
    log = []
    for _ in range(2):
        manifest = artifact.build(tmp_path / "a", "a", {"x": 1}, {"in": "f"}, _make(log))
    assert len(log) == 1
    assert manifest.counts == {"n": 1}
    assert artifact.read_manifest(tmp_path / "a") == manifest


def test_a_changed_input_is_named_and_the_artifact_made_again(tmp_path, capsys):
    log = []
    artifact.build(tmp_path / "a", "a", {"x": {"y": 1}}, {"in": "f"}, _make(log, "old"))
    artifact.build(tmp_path / "a", "a", {"x": {"y": 2}}, {"in": "f"}, _make(log, "new"))
    assert "made again, because settings.x.y: 1 -> 2" in capsys.readouterr().err
    assert (tmp_path / "a" / "part").read_text() == "new"
    assert log[1] == ["started.json"]  # nothing of the old one is seen by the new


def test_settings_that_change_alike_are_said_once(tmp_path, capsys):
    log = []
    rules = {name: {"rule": {"rate": 0.5, "low": 1}} for name in ("pruned", "random-0", "random-1")}
    artifact.build(tmp_path / "a", "a", rules, {}, _make(log))
    changed = {name: {"rule": {"rate": 0.3, "low": 2}} for name in rules} | {"none": {"rule": {"rate": 1}}}
    artifact.build(tmp_path / "a", "a", changed, {}, _make(log))
    said = "settings.pruned.rule.rate: 0.5 -> 0.3; settings.pruned.rule.low: 1 -> 2; settings.none is new\n"
    assert said in capsys.readouterr().err


def test_an_interrupted_build_is_handed_back_and_a_foreign_one_is_not(tmp_path):
    log = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            artifact.build(tmp_path / "a", "a", {"x": 1}, {}, _make(log, fail=True))
        assert not (tmp_path / "a").exists()
    assert log[1] == ["part", "started.json"]
    artifact.build(tmp_path / "a", "a", {"x": 2}, {}, _make(log))
    assert log[2] == ["started.json"]


def test_what_was_begun_with_other_settings_is_kept_and_taken_up_again(tmp_path, capsys):
    log = []
    with pytest.raises(KeyboardInterrupt):
        artifact.build(tmp_path / "a", "a", {"x": 1}, {}, _make(log, fail=True))
    with pytest.raises(KeyboardInterrupt):
        artifact.build(tmp_path / "a", "a", {"x": 2}, {}, _make(log, fail=True))
    assert "what was begun before (settings.x: 1 -> 2) is kept in" in capsys.readouterr().err
    artifact.build(tmp_path / "a", "a", {"x": 1}, {}, _make(log))
    assert log == [["started.json"], ["started.json"], ["part", "started.json"]]


def test_a_stage_that_refuses_before_it_makes_anything_leaves_nothing(tmp_path):
    def refuse(folder):
        raise ValueError

    with pytest.raises(ValueError):
        artifact.build(tmp_path / "a", "a", {"x": 1}, {}, refuse)
    assert not list(tmp_path.iterdir())


def test_a_kill_before_the_manifest_loses_nothing(tmp_path, monkeypatch):
    log = []
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_versions", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            artifact.build(tmp_path / "a", "a", {"x": 1}, {}, _make(log))
    artifact.build(tmp_path / "a", "a", {"x": 1}, {}, _make(log))
    assert log[1] == ["part", "started.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["manifest.json", "part"]


def test_a_kill_between_manifest_and_rename_is_finished(tmp_path, monkeypatch):
    log = []
    artifact.build(tmp_path / "a", "a", {"x": 1}, {}, _make(log, "old"))
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_finish_rename", lambda folder, partial: None)
        artifact.build(tmp_path / "a", "a", {"x": 2}, {}, _make(log, "new"))
    assert (tmp_path / "a" / "part").read_text() == "old"
    artifact.build(tmp_path / "a", "a", {"x": 2}, {}, _make(log, "never"))
    assert (tmp_path / "a" / "part").read_text() == "new"
    assert len(log) == 2


def test_neutral_settings_do_not_change_the_identity():
    from jaxprune.config import Run, identity

    assert identity(Run(log_every=7, microbatches=2)) == identity(Run())
    assert identity(Run(tokens=7)) != identity(Run())
