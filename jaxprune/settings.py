"""Reading a config: a Python file with a function `config() -> Config`, and overrides of its fields."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import tyro
from typeguard import TypeCheckError, check_type

from jaxprune.config import Config


def load(path: str, overrides: list[str]) -> Config:
    """The config of a file, with `--dotted.field value` overrides.

    Raises:
      ValueError: one line that says what is wrong and names the nearest thing that is right.
      SystemExit: `--help` was among the overrides.
    """
    config = _call(path)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            config, unknown = tyro.cli(
                Config,
                prog=f"jaxprune COMMAND {path}",
                description="Settings of a config, with the values that this config gives them.",
                default=config,
                args=overrides,
                use_underscores=True,
                return_unknown_args=True,
                config=(tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff),
            )
        except SystemExit as error:
            if error.code == 0:  # --help
                return config
            raise ValueError(_unboxed(printed.getvalue())) from None
    if unknown:
        option = next((word for word in unknown if word.startswith("-")), None)
        if option is None:
            raise ValueError(f"{unknown[0]} is not the value of a setting: write --SETTING VALUE")
        name = option.lstrip("-").split("=")[0]
        raise ValueError(f"there is no setting --{name}{_nearest(name, list(_fields(config)))}")
    _check_types(config)
    return config


def show(config: Config) -> str:
    """The resolved tree, a field a line, in the form that the command line takes."""
    lines = []
    for name, value in _fields(config).items():
        lines.append(f"{name} = {value!r}")
    return "\n".join(lines)


def _call(path: str) -> Config:
    file = Path(path)
    if not file.is_file():
        there = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise ValueError(f"there is no config file {path}{_nearest(path, there)}")
    try:
        names = runpy.run_path(path)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    if "config" not in names:
        raise ValueError(f"{path} has no function `config`: write `def config() -> Config:` in it")
    try:
        config = names["config"]()
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        fields = {name.rsplit(".", 1)[-1] for name in _fields(Config(name=""))}
        raise ValueError(
            f"{path}: there is no setting {unknown[1]}{_nearest(unknown[1], sorted(fields))}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"{path}: config() returned a {type(config).__name__}, not a jaxprune.config.Config")
    _check_types(config)
    return config


def _fields(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every leaf."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            leaves.update(_fields(value, f"{prefix}{field.name}."))
        else:
            leaves[prefix + field.name] = value
    return leaves


def _check_types(settings: Any, prefix: str = "") -> None:
    """A config file is Python, which does not check the types of what it is given."""
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        try:
            check_type(value, hints[field.name])
        except TypeCheckError:
            expected = re.sub(r"\btyping\.|jaxprune\.config\.|<class '(\w+)'>", r"\1", str(hints[field.name]))
            raise ValueError(f"{name} is {value!r}, which is not a {expected}") from None
        if dataclasses.is_dataclass(value):
            _check_types(value, f"{name}.")


def _nearest(name: str, known: list[str]) -> str:
    """`; did you mean X?`: of the same group if there is one, by likeness of the last part."""
    group, _, part = name.rpartition(".")
    siblings = [candidate for candidate in known if candidate.rpartition(".")[0] == group]
    found = [candidate for candidate in siblings if part in candidate.rpartition(".")[2]]
    found = (
        found or difflib.get_close_matches(name, siblings, n=1) or difflib.get_close_matches(name, known, n=1)
    )
    if not found:
        last = {candidate.rpartition(".")[2]: candidate for candidate in known}
        found = [last[close] for close in difflib.get_close_matches(part, last, n=1)]
    return f"; did you mean {found[0]}?" if found else ""


def _unboxed(printed: str) -> str:
    """The message in the box that tyro prints, in one line."""
    return " ".join(_box_lines(printed))


def _box_lines(printed: str) -> Iterator[str]:
    for line in printed.splitlines()[1:]:
        text = line.strip("│╭╰╮╯ ")
        if not text.strip("─"):
            return
        yield text
