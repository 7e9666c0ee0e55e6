"""Artifacts: what a stage leaves behind, whole or not at all.

A stage builds in `<folder>.partial/` and the folder is renamed when it is whole, so that what stands
under its own name is always complete. `manifest.json` inside says what it was made from; a stage
whose manifest matches is skipped, and one that does not match says which input changed. A partial
folder that was made from the same inputs is handed back to the stage, which resumes in it. Of several
processes (cluster.py) all call a stage, and process 0 decides and writes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxprune import cluster
from jaxprune.progress import say

_STARTED = "started.json"
_LIBRARIES = (
    "jaxprune",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "numpy",
    "pyarrow",
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact was made from, and what came out.

    `settings` and `inputs` decide the result and give the `fingerprint`; the rest is a record.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)  # name of an input -> its fingerprint
    counts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # of the process that finished it; earlier, killed processes not included

    @property
    def fingerprint(self) -> str:
        return digest({"stage": self.stage, "settings": self.settings, "inputs": self.inputs})


@dataclass(frozen=True)
class Workdir:
    """Where the artifacts of one `jaxprune run` stand."""

    root: Path

    @property
    def prepare(self) -> Path:
        """Documents, tokenizer and token store."""
        return self.root / "prepare"

    def run(self, name: str) -> Path:
        """A training run: `reference`, or `<arm>-<seed>`."""
        return self.root / "train" / name

    @property
    def score(self) -> Path:
        """The reference's NLL of every document that may be pruned."""
        return self.root / "score"

    def signal(self, name: str) -> Path:
        """A further signal of every document that may be pruned."""
        return self.root / "signals" / name

    @property
    def select(self) -> Path:
        """Kept and removed documents of each selection."""
        return self.root / "select"

    @property
    def mix(self) -> Path:
        """Mixture weights of each final run."""
        return self.root / "mix"

    @property
    def design(self) -> Path:
        """Mixtures that proxies are trained on."""
        return self.root / "swarm" / "design"

    def proxy(self, name: str) -> Path:
        """The training run of a proxy: `<mixture>-<seed>`."""
        return self.root / "swarm" / "proxies" / name

    @property
    def proxies_together(self) -> Path:
        """Proxies that are trained at once, until each has its own artifact."""
        return self.root / "swarm" / "together"

    @property
    def table(self) -> Path:
        """Losses of the proxies by mixture, domain and tokens."""
        return self.root / "swarm" / "table"

    def evaluate(self, name: str) -> Path:
        """Held-out NLL of a training run."""
        return self.root / "evaluate" / name

    @property
    def audit(self) -> Path:
        """The page of what was kept and removed."""
        return self.root / "audit"

    @property
    def report(self) -> Path:
        """The report and its figures."""
        return self.root / "report"


class StageError(Exception):
    """A stage stopped, and its message says why and what to do; `status` is the exit status."""

    status = 1


class ArtifactMissing(StageError):
    """An artifact that a stage reads is not there; the message says which command makes it."""


@contextmanager
def locked(workdir: Workdir) -> Iterator[None]:
    """Keeps other commands out of the working directory while the block runs.

    Raises:
      StageError: another command works in it.
      FileNotFoundError: not all processes of this one see it.
    """
    with ExitStack() as stack:
        cluster.alone(lambda: _lock(workdir.root, stack))
        cluster.check_shared(workdir.root)
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((folder / ".lock").open("a"))
    except OSError as error:
        raise StageError(f"nothing can be written to --workdir {folder}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StageError(
            f"another jaxprune works in {folder}: wait for it, or give another --workdir"
        ) from None


def digest(data: Any) -> str:
    """Sixteen hex digits that stand for plain JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, data: Any) -> None:
    """Writes JSON so that the file is either as before or complete."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a whole artifact, or None where there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    return Manifest(**json.loads(path.read_text()))


def require(folder: Path, command: str) -> Manifest:
    """The manifest of an artifact that another stage needs.

    Raises:
      ArtifactMissing: there is none yet; the message names `command`, which makes it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactMissing(f"{folder} is not there yet: run `{command}` first")
    return manifest


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What changed between two trees of plain data, a line for each leaf; one for a branch that is new or gone."""
    if isinstance(old, dict) or isinstance(new, dict):
        if name and (old is None or new is None):
            return [f"{name} is {'new' if old is None else 'gone'}"]
        before, after = (tree if isinstance(tree, dict) else {} for tree in (old, new))
        return [
            line
            for key in dict.fromkeys([*before, *after])
            for line in differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(value)


def build(
    folder: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    make: Callable[[Path], dict[str, Any]],
) -> Manifest:
    """Makes an artifact unless it is there already, made from the same settings and inputs.

    Args:
      folder: where the artifact goes.
      stage: its name, for messages.
      settings: plain JSON data that decides the result (`config.identity`).
      inputs: the fingerprint of each artifact or file that it reads.
      make: fills the folder that it is given, which may hold what an earlier, killed call with the
        same inputs left, and returns counts for the manifest. Every process calls it, and process 0 writes.
    """
    wanted = Manifest(stage=stage, settings=dict(settings), inputs=dict(inputs))
    partial = folder.with_name(folder.name + ".partial")
    if not cluster.alone(lambda: _begin(folder, partial, wanted)):
        cluster.until_seen(partial, partial.is_dir)
        begin = time.monotonic()
        try:
            counts = make(partial)
        except ValueError:
            if cluster.is_first() and not _made(partial):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        cluster.alone(lambda: _finish(folder, partial, wanted, counts, time.monotonic() - begin))
    return wait_for(folder, wanted.fingerprint)


def wait_for(folder: Path, fingerprint: str) -> Manifest:
    """The manifest of an artifact that process 0 has made, when this process sees it.

    Raises:
      FileNotFoundError: as `cluster.until_seen`.
    """

    def is_there() -> bool:
        found = read_manifest(folder)
        return found is not None and found.fingerprint == fingerprint

    cluster.until_seen(folder, is_there)
    return require(folder, "jaxprune run CONFIG")


def _begin(folder: Path, partial: Path, wanted: Manifest) -> bool:
    """Whether the artifact is there already; else `partial` is made ready to build in."""
    _finish_rename(folder, partial)
    present = read_manifest(folder)
    if present is not None:
        if present.fingerprint == wanted.fingerprint:
            say(f"{wanted.stage}: up to date")
            return True
        say(f"{wanted.stage}: made again, because {_changes(present, wanted)}")
    _open_partial(partial, wanted)
    return False


def _finish(folder: Path, partial: Path, wanted: Manifest, counts: dict[str, Any], seconds: float) -> None:
    manifest = dataclasses.replace(wanted, counts=counts, versions=_versions(), seconds=round(seconds, 3))
    write_json(partial / "manifest.json", dataclasses.asdict(manifest))
    _finish_rename(folder, partial)


def _open_partial(partial: Path, wanted: Manifest) -> None:
    """Leaves `partial` empty, or with what an earlier call for the same manifest left in it.

    What was left for another manifest (days of training, perhaps) is set aside under its fingerprint,
    and taken up again when its settings come back.
    """
    started = partial / _STARTED
    if started.is_file():
        found = Manifest(**json.loads(started.read_text()))
        if found.fingerprint == wanted.fingerprint:
            say(f"{wanted.stage}: continuing")
            return
        if _made(partial):
            aside = partial.with_name(f"{partial.name}-{found.fingerprint}")
            partial.rename(aside)
            say(
                f"{wanted.stage}: what was begun before ({_changes(found, wanted)}) is kept in {aside}; "
                "delete it if it is not needed"
            )
        else:
            shutil.rmtree(partial)  # nothing was made yet
    elif partial.exists():
        shutil.rmtree(partial)  # killed before it was begun: nothing is in it
    earlier = partial.with_name(f"{partial.name}-{wanted.fingerprint}")
    if earlier.exists():
        earlier.rename(partial)
        say(f"{wanted.stage}: continuing")
        return
    partial.mkdir(parents=True)
    write_json(started, dataclasses.asdict(wanted))


def _made(partial: Path) -> bool:
    """Whether a stage has left anything in its folder yet."""
    return any(path.is_file() and path.name != _STARTED for path in partial.rglob("*"))


def _changes(old: Manifest, new: Manifest) -> str:
    """What differs, short enough for a line: settings that changed alike in several places are said once."""
    lines = differences(
        {"settings": old.settings, "inputs": old.inputs}, {"settings": new.settings, "inputs": new.inputs}
    )
    said: dict[str, str] = {}  # last part of a name, and what it became -> where first
    for line in lines:
        name, _, change = line.partition(" ")
        said.setdefault(f"{name.rpartition('.')[2]} {change}", line)
    changed = [*said.values()]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more


def _finish_rename(folder: Path, partial: Path) -> None:
    """Puts a whole partial folder in place; safe to be killed in and called again."""
    if read_manifest(partial) is None:
        return
    (partial / _STARTED).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _versions() -> dict[str, str]:
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions
