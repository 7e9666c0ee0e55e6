"""The stage `mix swarm`: trains a proxy on every mixture of the design, and tables their held-out losses.

Every proxy is an artifact of its own: what is trained is never trained again. The table has the losses that the
proxies took while they trained, all on the same held-out rows.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxprune import cluster
from jaxprune.artifact import Manifest, StageError, Workdir, build, digest, read_manifest, require, wait_for
from jaxprune.config import Config, identity
from jaxprune.data.mixture import Stage
from jaxprune.data.store import TokenStore
from jaxprune.mix import mixtures, proxies
from jaxprune.mix.laws.trees import lightgbm
from jaxprune.model import flops
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import say
from jaxprune.train import layout
from jaxprune.train.log import Diverged
from jaxprune.train.loop import fit
from jaxprune.train.metrics import read
from jaxprune.train.plan import Plan
from jaxprune.train.together import fit_together

_TOGETHER = 8  # proxies that accelerators train at once; not measured yet


@dataclasses.dataclass(frozen=True)
class Proxy:
    """One run of the swarm, and the manifest by which its artifact is known."""

    name: str
    plan: Plan
    wanted: Manifest


def run(config: Config, workdir: Workdir) -> Manifest:
    """Trains the proxies that are not trained yet, and leaves `table.csv`.

    Raises:
      ArtifactMissing: there is no token store, no selection, or no design yet.
      Interrupted: as `loop.fit`.
      StageError: every proxy diverged.
      ValueError: the proxies do not fit the devices.
    """
    design = require(workdir.design, "jaxprune mix design CONFIG")
    check(config)
    swarm = proxies_of(config, workdir)
    together = config.swarm.together
    if cluster.size() > 1:
        together = 1  # fit_together is for one process
    elif together is None:
        together = 1 if jax.default_backend() == "cpu" else _TOGETHER
    train(swarm, workdir, together)
    trained = [proxy for proxy in swarm if is_made(proxy, workdir)]
    if not trained:
        raise StageError("mix swarm: every proxy diverged: lower swarm.proxy.optimizer.peak_lr")

    def make(folder: Path) -> dict[str, Any]:
        path = folder / "table.csv"
        rows = table(trained, workdir)
        with path.open("w", newline="") as file:
            lines = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            lines.writeheader()
            lines.writerows(rows)
        _show(trained, rows, workdir)
        return {"rows": len(rows), "runs": len(trained), "params": "non-embedding"}

    inputs = {
        "design": design.fingerprint,
        "proxies": digest([proxy.wanted.fingerprint for proxy in trained]),
    }
    made = cluster.alone(lambda: build(workdir.table, "mix swarm", {}, inputs, make).fingerprint)
    return wait_for(workdir.table, made)


def check(config: Config) -> None:
    """Raises ValueError: the proxies do not fit the devices, or the law that is to be fitted lacks its library."""
    try:
        layout.check(config.swarm.proxy, make_mesh(config.mesh))
    except ValueError as error:
        raise ValueError(f"swarm.proxy: {error}") from error
    if "trees" in (config.mix.law, config.mix.second):
        lightgbm()


def proxies_of(config: Config, workdir: Workdir) -> list[Proxy]:
    """The runs of the design.

    Raises:
      ArtifactMissing: there is no token store, no selection, or no design yet.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    require(workdir.design, "jaxprune mix design CONFIG")
    store, mesh = TokenStore(workdir.prepare / "tokens"), make_mesh(config.mesh)
    pool = proxies.pool(config, workdir, store)
    settings = config.swarm.proxy
    every = -(-settings.steps // config.swarm.checkpoints)
    settings = dataclasses.replace(settings, validate_every=every)
    swarm = []
    for name, weights in mixtures.read(workdir.design / "mixtures.csv").items():
        plan = Plan(
            title=f"proxy {name}",
            run=settings,
            store=store,
            documents=pool.documents,
            stages=(Stage(start=0, weights=tuple(weights[domain] for domain in store.domains)),),
            seed=int(name.rpartition("-")[2]),
            mesh=mesh,
            backends=config.metrics,
        )
        # What is measured decides the table, though not the training.
        made_by = {
            "run": identity(settings),
            "seed": plan.seed,
            "weights": list(plan.stages[0].weights),
            "validate_every": every,
            "validation_rows": settings.validation_rows,
        }
        inputs = {"prepare": prepare.fingerprint, "documents": pool.digest}
        swarm.append(Proxy(name, plan, Manifest(stage=plan.title, settings=made_by, inputs=inputs)))
    return swarm


def train(swarm: Sequence[Proxy], workdir: Workdir, together: int) -> None:
    """Trains what is not trained yet, so many proxies at once; one that diverges is passed over, and tried again by the
    next call. Raises Interrupted as `loop.fit`."""
    if cluster.size() == 1:
        _hand_out_all(swarm, workdir)
    made = cluster.alone(lambda: [is_made(proxy, workdir) for proxy in swarm])
    waiting = [proxy for proxy, is_made in zip(swarm, made, strict=True) if not is_made]
    done = len(swarm) - len(waiting)
    if done:
        say(f"mix swarm: {done} of {len(swarm)} proxies are trained already")
    for start in range(0, len(waiting), together):
        group = waiting[start : start + together]
        if len(group) > 1:
            say(f"mix swarm: proxies {done + start + 1} to {done + start + len(group)} of {len(swarm)}")
            try:
                _hand_out(_train_group(group, workdir), swarm, workdir)
                continue
            except Diverged as error:
                say(f"{error}; its group is trained one by one")
        for proxy in group:
            say(f"mix swarm: proxy {swarm.index(proxy) + 1} of {len(swarm)}")
            try:
                _train_one(proxy, workdir)
            except Diverged as error:
                say(f"{error}; it is left out of the table")


def _train_one(proxy: Proxy, workdir: Workdir) -> None:
    build(
        workdir.proxy(proxy.name),
        proxy.plan.title,
        proxy.wanted.settings,
        proxy.wanted.inputs,
        lambda folder: fit(proxy.plan, folder),
    )


def _train_group(group: Sequence[Proxy], workdir: Workdir) -> Path:
    """Trains proxies together; returns the artifact that holds them until they are handed out."""
    members = {proxy.name: proxy.wanted.fingerprint for proxy in group}
    title = f"proxies {group[0].name} to {group[-1].name}"
    folder = workdir.proxies_together / digest(members)

    def make(folder: Path) -> dict[str, Any]:
        return fit_together(title, [proxy.plan for proxy in group], folder)

    build(folder, title, {"members": members}, group[0].wanted.inputs, make)
    return folder


def _hand_out(folder: Path, swarm: Sequence[Proxy], workdir: Workdir) -> None:
    """Gives each proxy of a group the artifact that it would have had by itself, and removes the group's.

    Killed anywhere, it is done again.
    """
    manifest = read_manifest(folder)
    members = list(manifest.settings["members"].items()) if manifest is not None else []
    by_fingerprint = {proxy.wanted.fingerprint: proxy for proxy in swarm}
    for number, (_, fingerprint) in enumerate(members):
        proxy = by_fingerprint.get(fingerprint)
        if proxy is None:
            return  # of other settings, which may come back
        if not is_made(proxy, workdir):
            own = folder / str(number)

            def make(partial: Path, proxy: Proxy = proxy, own: Path = own) -> dict[str, Any]:
                shutil.copytree(own, partial, dirs_exist_ok=True)
                return proxy.plan.counts()

            build(
                workdir.proxy(proxy.name), proxy.plan.title, proxy.wanted.settings, proxy.wanted.inputs, make
            )
    shutil.rmtree(folder)


def _hand_out_all(swarm: Sequence[Proxy], workdir: Workdir) -> None:
    """Hands out what an earlier, killed call has trained."""
    if workdir.proxies_together.is_dir():
        for folder in sorted(workdir.proxies_together.iterdir()):
            if ".partial" not in folder.name:
                _hand_out(folder, swarm, workdir)


def is_made(proxy: Proxy, workdir: Workdir) -> bool:
    """Whether the proxy is trained already."""
    present = read_manifest(workdir.proxy(proxy.name))
    return present is not None and present.fingerprint == proxy.wanted.fingerprint


def table(swarm: Sequence[Proxy], workdir: Workdir) -> list[dict[str, Any]]:
    """A row for each checkpoint of each proxy.

    run_id; params (without embeddings); step; tokens (trained on so far); w_<domain>; loss_<domain> (mean
    validation NLL, nats per token).
    """
    rows = []
    for proxy in swarm:
        plan, domains = proxy.plan, proxy.plan.store.domains
        weights = {f"w_{name}": weight for name, weight in zip(domains, plan.stages[0].weights, strict=True)}
        params = flops.n_non_embedding(plan.run.model, plan.store.vocab_size)
        for line in read(workdir.proxy(proxy.name) / "metrics.jsonl"):
            if "heldout" in line and line["step"] > 0:
                at = {"run_id": proxy.name, "params": params, "step": line["step"], "tokens": line["tokens"]}
                rows.append(at | weights | {f"loss_{name}": line[f"heldout/{name}"] for name in domains})
    return rows


def _show(swarm: Sequence[Proxy], rows: Sequence[Mapping[str, Any]], workdir: Workdir) -> None:
    domains = swarm[0].plan.store.domains
    mean = {row["run_id"]: sum(row[f"loss_{name}"] for name in domains) / len(domains) for row in rows}
    best, worst = min(mean, key=lambda name: mean[name]), max(mean, key=lambda name: mean[name])
    say(
        f"mix swarm: {len(swarm)} proxies, {len(rows)} rows in {workdir.table / 'table.csv'}; mean loss of the domains "
        f"at the end from {mean[best]:.3f} ({best}) to {mean[worst]:.3f} ({worst})"
    )
