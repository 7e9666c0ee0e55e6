"""What large files hold, told apart by all of their bytes, which are read once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jaxprune import cluster
from jaxprune.artifact import Workdir, write_json
from jaxprune.progress import Meter, meter

_BLOCK_BYTES = 1 << 24  # that are hashed at once


def hashes(paths: Sequence[Path], title: str, workdir: Workdir) -> dict[str, str]:
    """SHA-256 of each file by its name.

    Those of files whose place, size, inode and time of change stayed are taken from `hashes.json`.
    """
    return cluster.alone(lambda: _hashes(paths, title, workdir))


def _hashes(paths: Sequence[Path], title: str, workdir: Workdir) -> dict[str, str]:
    known_at = workdir.root / "hashes.json"
    known = json.loads(known_at.read_text()) if known_at.is_file() else {}
    keys = {path: _key(path) for path in paths}
    missing = [path for path in paths if keys[path] not in known]
    if missing:
        with meter(title, sum(path.stat().st_size for path in missing) / 1e6, "MB") as progress:
            known |= {keys[path]: _hash(path, progress) for path in missing}
        known_at.parent.mkdir(parents=True, exist_ok=True)
        write_json(known_at, known)
    return {path.name: known[keys[path]] for path in paths}


def _key(path: Path) -> str:
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}"


def _hash(path: Path, progress: Meter) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hashed.update(block)
            progress.add(len(block) / 1e6)
    return hashed.hexdigest()
