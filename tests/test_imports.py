"""The house: imports run one way."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxprune"
# Lower numbers must not import higher ones; equal ones are the same part, or strangers.
LEVELS = {
    "__init__": 0, "progress": 1, "allocator": 1, "config": 1, "channel": 2, "cluster": 2, "artifact": 3, "settings": 3, "data": 4, "model": 4, "train": 5,
    "prune": 6, "scale": 6, "mix": 7, "evaluate": 8, "report": 9, "pipeline": 10, "doctor": 10, "cli": 11,
}  # fmt: skip
WITHOUT_A_MODEL = (
    "select", "bands", "cuts", "intersection", "criteria", "shards", "texts",
    *(f"signals/{name}" for name in ("blocks", "unigram", "prior", "compression", "joint", "density", "dsir")),
)  # fmt: skip
STRANGERS = {("data", "model"), ("model", "data")}


def _part(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _imports(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _edges() -> list[tuple[Path, str, str]]:
    edges = []
    for file in PACKAGE.rglob("*.py"):
        inside = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in _imports(file):
            if name.split(".")[0] == "jaxprune":
                edges.append((file, inside, _part(name)))
    return edges


def test_imports_run_one_way():
    edges = [(file, a, b) for file, a, b in _edges() if b in LEVELS]
    assert len(edges) > 40  # the walk found the package
    upward = [
        f"{file}: {a} imports {b}" for file, a, b in edges if LEVELS[b] > LEVELS[a] or (a, b) in STRANGERS
    ]
    assert not upward


def test_data_and_selection_do_not_import_jax():
    files = [
        *(PACKAGE / "data").rglob("*.py"),
        *(PACKAGE / "prune" / f"{name}.py" for name in WITHOUT_A_MODEL),
    ]
    users = [file for file in files for name in _imports(file) if name.split(".")[0] in ("jax", "flax")]
    assert not users


def test_the_command_line_answers_without_loading_the_stack():
    loaded = [
        name
        for name in _imports(PACKAGE / "cli.py")
        if name.split(".")[0] in ("jax", "tyro", "numpy", "rich")
    ]
    assert not loaded
