"""Reading a config: a Python file with a function `config() -> Config`, and overrides of its fields."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import runpy
import shlex
import traceback
from pathlib import Path
from typing import Any, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import jaxprune.config
from jaxprune.config import Config, MixStage
from jaxprune.config.mix import LEARNT, ONLINE

_OF_SIGNALS = {
    "score.second": ("ratio", "excess"),
    "score.vog_checkpoints": ("vog",),
    "score.target": ("dsir",),
    "score.zip.": ("zip",),
    "score.density.": ("density",),
    "score.ask.": ("ask_llm",),
}  # settings -> the signals, one of which they need


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
                registry=_REGISTRY,
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
        nearest = _nearest(name, list(_fields(config))).replace("mean ", "mean --")
        raise ValueError(f"there is no setting --{name}{nearest}")
    return config


def show(config: Config) -> str:
    """The resolved tree, a setting a line, as the command line takes it."""
    return "\n".join(shlex.join([f"--{name}", *_words(value)]) for name, value in _fields(config).items())


def notes(config: Config) -> list[str]:
    """What a config asks for in vain, a line each: settings without effect, an arm that repeats another."""
    given, method, online = config.tokenizer.path is not None, config.mix.offline, config.mix.is_online
    rule, signals = config.select, " ".join(config.select.signals)
    by, designed = f"select.criterion is {rule.criterion}", f"swarm.design is {config.swarm.design}"
    trained = ("tokenizer.kind", "tokenizer.vocab_size", "tokenizer.train_bytes")
    unused = (
        (given, "tokenizer.path is given", trained),
        (not given, "tokenizer.path is not given", ("tokenizer.eod_token",)),
        (method != "temperature", f"mix.method is {method}", ("mix.temperature",)),
        (method != "law", f"mix.method is {method}", ("mix.law", "mix.second", "mix.extrapolate")),
        (method != "entropy", f"mix.method is {method}", ("mix.entropy",)),
        (not online, f"mix.method is {method}", ("mix.prior", "mix.prior_share", "mix.rows")),
        (
            config.mix.method in ("aioli", "skillit") and config.mix.prior_share == 0,
            "mix.prior_share is 0",
            ("mix.prior",),
        ),
        (rule.criterion != "proportional", by, ("select.temperature",)),
        (rule.criterion != "threshold", by, ("select.low", "select.high")),
        (rule.criterion == "threshold", by, ("select.rate", "select.rates", "select.scope")),
        ("information" not in rule.signals, f"select.signals is {signals}", ("select.information_per",)),
        (config.swarm.design != "dirichlet", designed, ("swarm.strengths", "swarm.power")),
        (config.swarm.design != "maximin", designed, ("swarm.floor",)),
        (True, "swarm.checkpoints says when", ("swarm.proxy.validate_every",)),
        (len(rule.signals) == 1, f"select.signals is {signals}", ("select.combine",)),
    )
    values, usual = _fields(config), _fields(Config(name=""))
    of = {
        prefix: tuple(name for name in values if name.startswith(prefix))
        for prefix in ("second.", *_OF_SIGNALS, *(f"mix.{name}." for name in (*ONLINE, *LEARNT)))
    }
    unused = (
        *unused,
        ("second" not in config.models, "nothing reads the model second", of["second."]),
        *(
            (set(signals).isdisjoint(config.signals), f"no signal is {' or '.join(signals)}", of[prefix])
            for prefix, signals in _OF_SIGNALS.items()
        ),
        *(
            (
                name not in (config.mix.method, method),
                f"mix.method is {config.mix.method}",
                of[f"mix.{name}."],
            )
            for name in (*ONLINE, *LEARNT)
        ),
    )
    lines = []
    for holds, reason, names in unused:
        changed = [name for name in names if values[name] != usual[name]]
        if holds and changed:
            lines.append(f"without effect, because {reason}: {', '.join(changed)}")
    if config.select.criterion == "random" and {"pruned", "random"} <= set(config.arms):
        lines.append("select.criterion is random, which makes the arm pruned one more random arm")
    return lines


def _call(path: str) -> Config:
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        there = sorted(str(p) for p in Path("configs").glob("*.py"))
        what = "there is no config file" if not file.exists() else "a config is a Python file, which is not"
        raise ValueError(f"{what} {path}{_nearest(path, there)}")
    try:
        make = runpy.run_path(path).get("config")
        config = make() if make else None
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a user's program raises
        raise ValueError(_located(path, error)) from error
    if not make:
        raise ValueError(f"{path} has no function `config`: write `def config() -> Config:` in it")
    if not isinstance(config, Config):
        raise ValueError(f"{path}: config() returned a {type(config).__name__}, not a jaxprune.config.Config")
    return config


def _located(path: str, error: Exception) -> str:
    """Where in the config file, what, and the name that may have been meant."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    misspelt = re.search(r"(?:keyword argument|name) '(\w+)'", what)
    fields = (name.rpartition(".")[2] for name in _fields(Config(name="")))
    known = sorted({*fields, *jaxprune.config.__all__})
    return f"{where}: {what}{_nearest(misspelt[1], known) if misspelt else ''}"


def _words(value: Any) -> list[str]:
    """The value of a setting as the command line takes it."""
    if isinstance(value, dict):
        return [str(word) for pair in value.items() for word in pair]
    if isinstance(value, tuple) and value and isinstance(value[0], MixStage):
        return [word for stage in value for word in (str(stage.at), *_words(stage.weights))]
    return [str(word) for word in value] if isinstance(value, tuple) else [str(value)]


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """A dict is written as pairs; tyro would only let the keys of the default be set."""
    if get_origin(info.type) is not dict:
        return None

    def read(words: list[str]) -> dict[str, float]:
        if len(words) % 2:
            raise ValueError("write pairs of a domain and a number, such as code 0.2 web 0.9")
        return {name: float(weight) for name, weight in zip(words[::2], words[1::2], strict=True)}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[DOMAIN NUMBER ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=_words,
    )


@_REGISTRY.primitive_rule
def _stages(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[MixStage, ...]] | None:
    """Stages are written one behind the other: when they begin, and pairs."""
    if info.type != tuple[MixStage, ...]:
        return None

    def read(words: list[str]) -> tuple[MixStage, ...]:
        stages: list[tuple[float, dict[str, float]]] = []
        name = None
        for word in words:
            if name is not None:
                stages[-1][1][name], name = float(word), None
            elif _is_number(word):
                stages.append((float(word), {}))
            elif stages:
                name = word
            else:
                raise ValueError(f"{word} stands before the first stage: {_STAGES_AS}")
        if name is not None:
            raise ValueError(f"{name} has no weight: {_STAGES_AS}")
        return tuple(MixStage(at=at, weights=weights) for at, weights in stages)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[AT DOMAIN NUMBER ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=_words,
    )


_STAGES_AS = (
    "write when each stage begins and pairs of a domain and a number, such as 0 code 1 web 3 0.7 code 1 web 1"
)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


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
    """The message in the box that tyro prints (title, message, rule, advice), in one line."""
    lines = [line.strip("│╭╰╮╯ ") for line in printed.splitlines()[1:]]
    lines = list(itertools.dropwhile(lambda line: not line.strip("─-"), lines))
    message = " ".join(itertools.takewhile(lambda line: line.strip("─-"), lines))
    # The messages of `config` name the field themselves.
    message = re.sub(r"^Error parsing [\w.]+: ", "", message)
    number = re.match(
        r"Error parsing (--[\w.]+): (?:invalid literal for (int)\(\).*|could not convert .*?): '(.*?)'",
        message,
    )
    if number:
        kind = "whole number" if number[2] else "number"
        return f"{number[1]} is {number[3]!r}: give a {kind}"
    choice = re.match(r"invalid choice '(.*?)' for argument '(--[\w.]+)'.*?\((.*?)\)", message)
    if choice:
        kinds = [kind.strip(" '") for kind in choice[3].split(",")]
        return f"{choice[2]} is {choice[1]!r}: choose one of {', '.join(kinds)}"
    return message
