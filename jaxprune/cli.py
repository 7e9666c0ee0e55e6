"""The command line: parses, and calls the pipeline."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxprune import __version__
from jaxprune.artifact import StageError
from jaxprune.channel import GONE

if TYPE_CHECKING:
    from jaxprune.artifact import Workdir
    from jaxprune.config import Config

_STAGES = {
    "run": "the main job: every stage below, and a report",
    "prepare": "read, deduplicate, split and tokenise the corpus",
    "train": "train the reference and the final models, or those of --only",
    "score": "score documents with the reference model",
    "select": "decide which documents each arm keeps",
    "mix": "decide the proportions of the domains",
    "mix design": "choose the mixtures that small models, the proxies, are trained on",
    "mix swarm": "train the proxies, and table their held-out losses by domain",
    "evaluate": "evaluate final models on held-out documents, or those of --only",
    "report": "write the report from what is there",
    "audit": "write pages of the documents that each selection kept and removed",
}


_ON_TABLES = {
    "mix fit": "fit a mixing law to a table of runs, and show its coefficients",
    "mix optimum": "the mixture of least predicted loss, and what a second law says of it",
    "mix compare": "errors of all laws on mixtures that they have not seen",
}


class _Absent(StageError):
    """Not all processes came together."""

    status = GONE


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `jaxprune`; returns the exit status."""
    arguments = _joined(list(sys.argv[1:] if arguments is None else arguments))
    parser = _parser()
    without_help = [word for word in arguments if word not in ("--help", "-h")]
    if without_help != arguments and arguments[0] in (*_STAGES, "compile", "config"):
        return _help(parser, without_help)
    commands = (*_STAGES, *_ON_TABLES, "compile", "config", "doctor")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else f": the commands are {', '.join(commands)}"
        parser.error(f"there is no command {arguments[0]}{hint}")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "doctor":
        if rest:
            parser.error(f"doctor takes no {rest[0]}")
        from jaxprune import doctor

        return doctor.run()
    from jaxprune import cluster
    from jaxprune.progress import say

    try:
        if options.command in _ON_TABLES:
            return _on_table(options.command, rest)
        status = _command(options, rest)
        cluster.leave()
        return status
    except KeyboardInterrupt:
        status, message = 130, "interrupted: the same command continues where it was"
    except BrokenPipeError:
        raise
    except Exception as error:
        if options.traceback:
            cluster.fail(traceback.format_exc(), 1)
            raise
        status = error.status if isinstance(error, StageError) else 1
        message = f"error: {_in_a_line(error)}" if status == 1 else str(error)
    cluster.fail(message, status)
    say(message)
    return status


def _joined(arguments: list[str]) -> list[str]:
    """`mix design` as one word: commands that stand behind another are commands like the others."""
    is_two = len(arguments) > 1 and arguments[0] == "mix" and arguments[1].isalpha()
    return [" ".join(arguments[:2]), *arguments[2:]] if is_two else arguments


def _in_a_line(error: Exception) -> str:
    """What a user can mend, as it was written; of anything else the first line, and how to see more."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
    if isinstance(error, (StageError, OSError)) or (isinstance(error, ValueError) and ours):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first} (--traceback shows where)"


def _command(options: argparse.Namespace, rest: list[str]) -> int:
    from jaxprune.progress import say
    from jaxprune.scale.topology import GPU_SHARE
    from jaxprune.settings import load, notes, show

    path, overrides = _config_of(options, rest)
    if getattr(options, "strategy", None) is not None:
        if any(word.partition("=")[0] == "--mix.method" for word in overrides):
            raise ValueError(f"--strategy {options.strategy} and --mix.method are the same setting: give one")
        overrides = [*overrides, "--mix.method", options.strategy]
    config = load(path, overrides)
    # Quiet the libraries' own chatter; errors still come through.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Of each GPU, for XLA; NCCL and cuDNN take theirs from the rest. JAX's own is 0.75.
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its name of before, which is refused beside it
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(GPU_SHARE))
    if options.command in ("run", "train", "score", "evaluate", "audit", "mix swarm"):
        from jaxprune.allocator import keep_freed_memory

        keep_freed_memory()
    if options.command not in ("config", "compile"):
        _join(options, config)
    for note in notes(config):
        say(note)
    if options.command == "config":
        print(show(config))
        return 0
    from jaxprune import cluster, pipeline
    from jaxprune.artifact import Workdir, locked

    workdir = Workdir(Path(options.workdir or Path("runs") / config.name))
    if "://" in str(options.workdir):
        raise ValueError(
            f"--workdir is {options.workdir}, a bucket: artifacts need a folder of a file system that all processes share"
        )
    if options.command == "compile":
        return _compile(options, config, workdir)
    with locked(workdir):
        if options.command in ("train", "evaluate"):
            known = (*config.scorers, *config.final_runs)
            for name in options.only:
                if name not in known:
                    raise ValueError(f"there is no run {name}: this config has {', '.join(known)}")
            getattr(pipeline, options.command)(config, workdir, tuple(options.only))
        else:
            getattr(pipeline, options.command.replace(" ", "_"))(config, workdir)
    if cluster.is_first() and options.command in ("run", "report"):
        _say_headline(workdir)
        say(f"report: {(workdir.report / 'index.html').resolve()}")
    if options.command == "audit":
        say(f"audit: {(workdir.audit / 'index.html').resolve()}")
    return 0


def _compile(options: argparse.Namespace, config: Config, workdir: Workdir) -> int:
    from jaxprune.scale import command

    for name in options.only or ():
        if name not in command.NAMES:
            raise ValueError(f"there is no step {name}: name some of {', '.join(command.NAMES)}")
    if options.suggest is not None and options.suggest < 1:
        raise ValueError(f"--suggest is {options.suggest}: give the number of layouts to find, 1 or more")
    return command.run(
        config,
        workdir,
        options.topology,
        only=options.only,
        suggest=options.suggest or 0,
        file=None if options.json is None else Path(options.json),
    )


def _on_table(command: str, rest: list[str]) -> int:
    from jaxprune.mix import command as on_table

    return on_table.main(command.removeprefix("mix "), rest, _ON_TABLES[command])


def _join(options: argparse.Namespace, config: Config) -> None:
    """Joins the processes that the options speak of.

    Raises:
      ValueError: options are missing or contradict each other; as `cluster.join`.
      OSError: as `cluster.join`.
    """
    given = {"processes": options.processes, "process": options.process, "coordinator": options.coordinator}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given) and not options.distributed:
        return
    from jaxprune import channel, cluster
    from jaxprune.artifact import digest

    if options.distributed and len(missing) < len(given):
        raise ValueError(
            "--distributed asks the launcher: leave --processes, --process and --coordinator out"
        )
    if missing and not options.distributed:
        raise ValueError(
            f"of --processes, --process and --coordinator all three are needed: add {' and '.join(missing)}"
        )
    asked = {name: str(value) for name, value in vars(options).items() if name != "process"}
    place = (
        channel.from_launcher(options.timeout, options.start_timeout)
        if options.distributed
        else channel.Place(**given, timeout=options.timeout, start_timeout=options.start_timeout)
    )
    try:
        cluster.join(place, digest([asked, dataclasses.asdict(config)]))
    except TimeoutError as error:
        raise _Absent(f"error: {error}") from None


def _config_of(options: argparse.Namespace, rest: list[str]) -> tuple[str, list[str]]:
    """CONFIG and the settings behind it, from what argparse left: it would take any setting's value for CONFIG.

    Raises:
      ValueError: there is no CONFIG before the settings.
    """
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    for option in ("only", "topology"):
        *names, last = getattr(options, option, None) or [""]
        if names and last.endswith(".py"):  # --only NAME CONFIG
            setattr(options, option, names)
            return last, rest
    raise ValueError(f"there is no CONFIG: write `jaxprune {options.command} CONFIG`, and settings behind it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxprune",
        description="Which documents are worth training on, and in what proportions?",
        epilog="`jaxprune COMMAND CONFIG --help` explains every setting of a config.",
    )
    parser.add_argument("--version", action="version", version=f"jaxprune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _STAGES.items():
        stage = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        _add_config(stage)
        stage.add_argument(
            "--workdir", metavar="DIR", help="where artifacts go (default: runs/NAME OF THE CONFIG)"
        )
        if name in ("train", "evaluate"):
            stage.add_argument(
                "--only",
                nargs="+",
                default=[],
                metavar="NAME",
                help="`reference`, `second` or `ARM-SEED` (default: all)",
            )
        if name == "mix":
            stage.add_argument("--strategy", metavar="NAME", help="the same as --mix.method NAME")
        _add_cluster(stage)
    for name, text in _ON_TABLES.items():
        command = commands.add_parser(name, help=text, add_help=False, allow_abbrev=False)
        command.add_argument("--traceback", action="store_true")
    _add_compile(commands)
    shown = commands.add_parser("config", help="print the resolved settings of a config", allow_abbrev=False)
    _add_config(shown)
    commands.add_parser("doctor", help="versions, devices, and what is missing")
    return parser


def _add_compile(commands: Any) -> None:
    text = "compile a config's steps for chips that are not here: do they fit, how fast can they be at best?"
    command = commands.add_parser("compile", help=text, description=text, allow_abbrev=False)
    _add_config(command)
    command.usage = f"{command.prog} CONFIG --topology NAME [...] [--SETTING VALUE ...]"
    command.add_argument(
        "--workdir", metavar="DIR", help="whose prepared corpus says how large the vocabulary is"
    )
    command.add_argument(
        "--topology",
        nargs="+",
        required=True,
        metavar="NAME",
        help="as clouds name them: v5e-256, v5p-128, v6e-256, h100-8, h200-1; 4xv5e-256: four slices, 4xh100-8: four nodes",
    )
    command.add_argument(
        "--only",
        nargs="+",
        metavar="STEP",
        help="of train, evaluate, score and train-reference (default: all that the config has; train alone takes half of the time)",
    )
    command.add_argument(
        "--suggest",
        nargs="?",
        type=int,
        const=3,
        metavar="N",
        help="instead: search meshes, microbatches and recomputation until N (default: 3) training steps fit",
    )
    command.add_argument("--json", metavar="FILE", help="write the reports there, too")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    command.usage = f"{command.prog} CONFIG [--workdir DIR] [--SETTING VALUE ...]"
    command.epilog = "CONFIG is a Python file such as configs/quickstart.py"


def _add_cluster(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "several processes",
        "run the same command in every process, on one host or many that share their files",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="the host of process 0, and a free port of it"
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="instead of these three: as SLURM, Open MPI, Kubernetes or a TPU pod says",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="how long to wait for a process that is silent (default: 180)",
    )
    group.add_argument(
        "--start-timeout",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="how long to wait until all have started (default: 900)",
    )


def _help(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Help of a command, followed by that of the config's settings when a config is named."""
    with contextlib.suppress(SystemExit):
        parser.parse_args([arguments[0], "--help"])
    if len(arguments) == 1:  # no config is named
        return 0
    options, rest = parser.parse_known_args(arguments)
    try:
        path, _ = _config_of(options, rest)
    except ValueError:  # no config is named
        return 0
    from jaxprune.progress import say
    from jaxprune.settings import load

    try:
        load(path, ["--help"])
    except ValueError as error:
        say(f"error: {error}")
        return 1
    return 0


def _say_headline(workdir: Workdir) -> None:
    from jaxprune.progress import say

    headline = json.loads((workdir.report / "report.json").read_text())["headline"]
    gains = [gain["sentence"] for gain in headline["gains"]]
    for sentence in (headline["pruned"], *gains, headline["mixture"]):
        say(sentence)


def entry() -> NoReturn:
    """`main` as a process of its own.

    After a signal it ends at once: threads that prefetch, compile or save crash when the interpreter is
    taken down around them, and what they were doing is safe to leave. SIGTERM is taken by a handler also where
    nothing has to be saved: the first process of a container has no default.
    """
    # `compile` has nothing to save, and inside the compiler Python hears of no signal for minutes.
    is_compile = sys.argv[1:2] == ["compile"]
    signal.signal(signal.SIGINT, signal.SIG_DFL if is_compile else _interrupt_once)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if is_compile else _end)
    try:
        status = main()
    except BrokenPipeError:  # whoever read the output has enough
        status = 141
    if status >= 128:
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _end(number: int, frame: Any) -> NoReturn:
    with contextlib.suppress(BrokenPipeError):
        os.write(2, b"stopped: the same command continues where it was\n")
    os._exit(128 + number)


def _interrupt_once(number: int, frame: Any) -> None:
    """Raises as Python does, and lets nothing interrupt what follows."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    entry()
