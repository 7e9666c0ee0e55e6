"""Which way of mixing trains the best model? All of them beside the stratified mixture, at the same tokens.

    python benchmarks/members.py --sources FOLDER [--workdir DIR] [--methods NAME ...]

The config is configs/compare_mixing.py. Perplexity is that of the held-out documents, the exponential of the mean NLL of a
domain's tokens, and their average over the domains: differences from the stratified mixture of the same seed, with intervals
of the mean of the seeds (95 %, Student's t). `cost` is what a method trains on in all, in multiples of the final run, DoGE's backward
pass for each domain counted. `uniform x 1.5` is the stratified mixture trained on half as many tokens more: what the proxies
cost. A working directory that holds a part of it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from jaxprune.artifact import Workdir
from jaxprune.settings import load

CONFIG = str(Path(__file__).parents[1] / "configs" / "compare_mixing.py")
# Method -> its settings, and what it trains on besides, in multiples of the final run's cost on nine domains.
METHODS: dict[str, tuple[list[str], float]] = {
    "uniform": ([], 0.0),
    "uniform x 1.5": (["--final.tokens", "900000"], 0.5),
    "natural": (["--mix.method", "natural"], 0.0),
    "unimax": (["--mix.method", "unimax"], 0.0),
    "aioli": (["--mix.method", "aioli"], 0.0),
    "aioli, released form": (
        ["--mix.method", "aioli", "--mix.aioli.estimator", "reference", "--mix.aioli.ema", "0.1", "--mix.aioli.eta", "1",
         "--mix.aioli.floor", "0"], 0.0),
    "aioli-diagonal": (["--mix.method", "aioli", "--mix.aioli.interactions", "diagonal"], 0.0),
    "aioli-static": (["--mix.method", "aioli", "--mix.aioli.rounds", "1", "--mix.aioli.sweeps", "4"], 0.0),
    "odm": (["--mix.method", "odm"], 0.0),
    "ado": (["--mix.method", "ado"], 0.0),
    "skillit": (["--mix.method", "skillit", "--swarm.proxy.tokens", "33000", "--swarm.checkpoints", "2"], 0.5),
    "doremi": (["--mix.method", "doremi"], 0.58),
    # Its step is lr / mu: Muon's learning rate here is 40 times that of AdamW, for which mu 0.01 is meant.
    "doge": (
        ["--mix.method", "doge", "--swarm.proxy.tokens", "300000", "--mix.doge.mu", "0.4"], 0.5 * (1 + 2 * 9) / 3),
    "doremi, then aioli": (["--mix.method", "aioli", "--mix.prior", "doremi", "--mix.prior_share", "0.5"], 0.58),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/members"))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    arguments = parser.parse_args()
    common = ["--corpus.sources", *arguments.sources]
    base = arguments.workdir / "base"
    for command in ("prepare", "train", "score", "select"):
        only = ["--only", "reference"] if command == "train" else []
        jaxprune([command, CONFIG, "--workdir", str(base), *only, *common])
    losses = {}
    for method in dict.fromkeys(("uniform", *arguments.methods)):
        folder = arguments.workdir / method.replace(" ", "_").replace(",", "")
        if not folder.exists():
            shutil.copytree(base, folder.with_name("copying"), dirs_exist_ok=True)
            folder.with_name("copying").rename(folder)
        settings = [*common, *METHODS[method][0]]
        for command in ("mix", "train", "evaluate"):
            only = ["--only", *load(CONFIG, settings).final_runs] if command == "train" else []
            jaxprune([command, CONFIG, "--workdir", str(folder), *only, *settings])
        losses[method] = perplexities(Workdir(folder), load(CONFIG, settings))
        show(losses, method)
    table(losses)


def jaxprune(command: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "jaxprune.cli", *command], check=True)


def perplexities(workdir: Workdir, config: Any) -> dict[str, list[float]]:
    """Of each domain, and their `average`: one for each seed."""
    runs = []
    for name in config.final_runs:
        held_out = json.loads((workdir.evaluate(name) / "summary.json").read_text())
        by_domain = {domain: of["perplexity"] for domain, of in held_out["domains"].items()}
        runs.append(by_domain | {"average": float(np.mean(list(by_domain.values())))})
    return {domain: [run[domain] for run in runs] for domain in runs[0]}


def show(losses: dict[str, dict[str, list[float]]], method: str) -> None:
    print(f"{method}: average perplexity {np.mean(losses[method]['average']):.2f}", flush=True)


def table(losses: dict[str, dict[str, list[float]]]) -> None:
    domains = list(losses["uniform"])
    print("| method | cost | " + " | ".join(domains) + " |")
    print("|---" * (len(domains) + 2) + "|")
    plain = " | ".join(f"{np.mean(losses['uniform'][domain]):.2f}" for domain in domains)
    print(f"| uniform (perplexity) | 1 | {plain} |")
    for method, of in losses.items():
        if method == "uniform":
            continue
        cells = []
        for domain in domains:
            change_S = np.array(of[domain]) - np.array(losses["uniform"][domain])
            n = len(change_S)
            half = float(t.ppf(0.975, n - 1) * change_S.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
            cells.append(f"{change_S.mean():+.2f} ± {half:.2f}")
        print(f"| {method} | {1 + METHODS[method][1]:.2f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
