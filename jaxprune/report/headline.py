"""The first lines of the report: what was pruned, what it gained, and what mixture was used, in words.

A gain is claimed only where the 95 % interval excludes zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxprune.config.mix import ONLINE
from jaxprune.report.numbers import count, decimals, percent, score, short, signed

Verdict = Literal["better", "worse", "no difference", "no interval"]

ARMS = {
    "none": "no pruning",
    "random": "random pruning",
    "pruned": "pruning",
    "reweighted": "random pruning, re-weighted",
    "within_domain": "pruning inside each domain",
}


_LISTED = 12  # domains in a sentence


def verdict(change: Mapping[str, Any]) -> Verdict:
    """What a difference of losses shows: its interval must exclude zero to be better or worse."""
    if change["low"] is None:
        return "no interval"
    if change["high"] < 0:
        return "better"
    return "worse" if change["low"] > 0 else "no difference"


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Sentences: `pruned`, `gains` (one for each baseline of `pruned`), `mixture`, `controls`, `caution`, and
    what the charts and the documents show of the selection: `density`, `examples`."""
    against = {(entry["arm"], entry["base"]): entry for entry in figures["comparisons"]}
    return {
        "pruned": pruned(figures["pruning"]),
        "gains": [
            {
                "base": base,
                "claims": [
                    {"where": where, "verdict": verdict(change), "title": _title(change, figures)}
                    for place, where in (("mean", "mean over domains"), ("all", "natural mix"))
                    for change in [entry["bits_per_byte"][place]]
                ],
                "sentence": f"Against {ARMS[base]}, in the mean over domains, pruning "
                f"{result(entry, 'mean', figures)}; on the natural mix of the corpus it {result(entry, 'all', figures)}.",
            }
            for base in ("none", "random")
            if (entry := against.get(("pruned", base))) is not None
        ],
        "mixture": _mixture(figures),
        "controls": _controls(figures, against),
        "caution": (
            "Held-out loss does not settle it: in the pruning paper, perplexity on the original mix became worse "
            "under pruning while downstream tasks became better"
        ),
        "density": _density(figures["pruning"]),
        "examples": _examples(figures["pruning"]),
    }


def result(entry: Mapping[str, Any], place: str, figures: Mapping[str, Any]) -> str:
    """What one comparison shows at one place (`mean` or `all`), as the end of a sentence: `gained 0.012 bits per byte ...`."""
    bits, nats = entry["bits_per_byte"][place], entry["nll"][place]
    match verdict(bits):
        case "better":
            return f"gained {_measured(bits, nats, -1, decimals)}"
        case "worse":
            return f"made it worse by {_measured(bits, nats, 1, decimals)}"
        case "no difference":
            return f"made no difference that {_seeds(figures)} can show: {_measured(bits, nats, 1, signed)}"
        case "no interval":
            why = "one seed" if len(figures["seeds"]) == 1 else "one held-out document in a domain"
            sign, word = (-1, "better") if bits["value"] < 0 else (1, "worse")
            return (
                f"came out {word} by {_measured(bits, nats, sign, decimals)}, which may be chance: "
                f"with {why} there is no interval"
            )


def _measured(
    bits: Mapping[str, Any], nats: Mapping[str, Any], sign: int, write: Callable[[float], str]
) -> str:
    """Both measures of a difference, times `sign`, with their intervals."""
    said = []
    for change, unit in ((bits, "bits per byte"), (nats, "nats per token")):
        amount = f"{write(sign * change['value'])} {unit}"
        if change["low"] is not None:
            low, high = sorted((sign * change["low"], sign * change["high"]))
            amount += f" ({'' if said else '95 % interval '}{write(low)} to {write(high)})"
        said.append(amount)
    return ", ".join(said)


def _title(change: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    amount = f"{decimals(abs(change['value']))} bits per byte"
    match verdict(change):
        case "better":
            return f"Gained {amount}"
        case "worse":
            return f"Made it worse by {amount}"
        case "no difference":
            return f"No difference that {_seeds(figures)} can show"
        case "no interval":
            return "Too little to tell"


def _seeds(figures: Mapping[str, Any]) -> str:
    number = len(figures["seeds"])
    return f"{ {2: 'two', 3: 'three', 4: 'four', 5: 'five'}.get(number, number) } seeds"


def pruned(pruning: Mapping[str, Any]) -> str:
    """What a selection kept, and by which rule, from its rule, signals in words and the unit of the first, its
    sizes before and after, and its thresholds."""
    before, after, rule, signal = pruning["before"], pruning["after"], pruning["rule"], pruning["signals"][0]
    if rule is None:
        return f"Nothing was pruned: all {count(before['documents'])} documents were kept."
    share = rule["rate"]
    if rule["criterion"] == "threshold" or rule["rates"]:  # the share follows from something else
        share = after[rule["weight"]] / max(before[rule["weight"]], 1)
    kept = (
        f"Pruning kept {percent(share)} of the {rule['weight']}, {_kind(pruning)}: "
        f"{count(after['documents'])} of {count(before['documents'])} documents and "
        f"{short(after['tokens'])} of {short(before['tokens'])} tokens ({percent(after['tokens'] / before['tokens'])})"
    )
    if rule["criterion"] == "threshold":
        return f"{kept}, with the same thresholds in every domain."
    how = "" if rule["criterion"] in ("random", "proportional") else "ranked "
    if rule["scope"] == "domain":
        return f"{kept}, {how}inside each domain{_rates(pruning)}."
    band = _band(pruning)
    return f"{kept}, {f'of {signal} {band}, ' if band else ''}{how}over the whole corpus."


def _kind(pruning: Mapping[str, Any]) -> str:
    """Which documents a rule keeps."""
    rule, signals = pruning["rule"], pruning["signals"]
    joined = _listed(signals)
    if len(signals) > 1 and rule["combine"] == "product":
        joined = f"product of the ranks of {joined}"
    match rule["criterion"]:
        case "random":
            return "chosen at random"
        case "proportional":
            temperature = f"{rule['temperature']:g}".replace("-", "−")
            exponent = "log-perplexity" if pruning["unit"] is None else joined
            return f"drawn in proportion to exp({exponent} / {temperature})"
        case "threshold":
            return f"those of {joined} {_band(pruning)}"
        case criterion:
            band = {"low": "lowest", "medium": "medium", "high": "highest"}[criterion]
            together = " at once" if len(signals) > 1 and rule["combine"] == "intersection" else ""
            return f"those of {band} {joined}{together}"


def _band(pruning: Mapping[str, Any]) -> str:
    """The thresholds, which are those of every domain: `from 20.1 to 54.3`; empty where there are none."""
    edges = next(iter(pruning["thresholds"].values()))
    words = {"low": "from", "high": "up to" if edges["low"] is None else "to"}
    ends = ((words[end], value) for end, value in edges.items() if value is not None)
    return " ".join(f"{word} {score(value, pruning['unit'])}" for word, value in ends)


def _rates(pruning: Mapping[str, Any]) -> str:
    """The shares that are kept of domains, where they are not one for all."""
    rates, usual = pruning["rule"]["rates"], pruning["rule"]["rate"]
    if not rates:
        return ""
    said = [f"{domain} {percent(rate)}" for domain, rate in list(rates.items())[:_LISTED]]
    if len(rates) > _LISTED:
        said.append(f"{len(rates) - _LISTED} more")
    if set(pruning["thresholds"]) - set(rates):
        said.append(f"of each other domain {percent(usual)}")
    return f" ({', '.join(said)})"


def _density(pruning: Mapping[str, Any]) -> str:
    """What the dark part of the densities is."""
    rule, signal, *further = pruning["rule"], *pruning["signals"]
    shown = f"Density of documents over {signal} in each domain: "
    if rule is None:
        return f"{shown}all of it was kept."
    if _is_bounded(pruning):
        if further:
            return (
                f"{shown}the dark part was kept, dashed lines are the thresholds of {signal}, and what is light "
                f"between them was removed by {_listed(further)}."
            )
        if rule["scope"] == "domain" and rule["criterion"] != "threshold":
            return f"{shown}the dark band was kept, dashed lines are its thresholds, which each domain has for itself."
        return (
            f"{shown}the dark band was kept, dashed lines are its thresholds, and a domain that lies outside of it "
            "loses most of its documents."
        )
    match rule["criterion"]:
        case "random":
            return f"{shown}the dark part was kept, a random draw that does not look at {signal}."
        case "proportional":
            preferred = "high" if rule["temperature"] > 0 else "low"
            return f"{shown}the dark part was kept, a random draw that prefers {preferred} {signal}."
        case _ if further and rule["combine"] == "product":
            return (
                f"{shown}the dark part was kept. The band is one of the product of the ranks of "
                f"{_listed(pruning['signals'])}, so that {signal} alone has no thresholds."
            )
        case _:
            return f"{shown}the dark part was kept, and no threshold of {signal} cuts it."


def _examples(pruning: Mapping[str, Any]) -> str:
    """Which documents are shown."""
    at_ends = f"The documents of lowest and highest {pruning['signals'][0]} in each domain"
    if not _is_bounded(pruning):
        return f"{at_ends}."
    return f"{at_ends} and, on both sides of each threshold, those that were just kept and just removed."


def _is_bounded(pruning: Mapping[str, Any]) -> bool:
    return any(value is not None for edges in pruning["thresholds"].values() for value in edges.values())


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _mixture(figures: Mapping[str, Any]) -> str:
    mixture = figures["mixture"]
    arm = "pruned" if "pruned" in figures["arms"] else figures["arms"][0]
    weights = sorted(((e["weight"], d) for d, e in mixture["arms"][arm].items()), reverse=True)
    shown = weights if len(weights) <= _LISTED else weights[: _LISTED - 1]
    listed = [f"{domain} {percent(weight)}" for weight, domain in shown]
    rest = f" and {len(weights) - len(shown)} more domains" if len(weights) > len(shown) else ""
    method = {
        "natural": "each domain in proportion to its kept tokens",
        "uniform": "every domain alike",
        "temperature": f"the kept tokens of each domain to the power 1/{mixture['temperature']}",
        "fixed": "fixed weights",
        "law": "where a mixing law puts the least loss",
        "entropy": "in proportion to the exponential of the entropy of its text",
        "stages": "weights that change at given times, here their average",
        "unimax": "as uniform as the epochs allow",
        "best": "the mixture of the best of the proxies",
        "doremi": "where a proxy lagged behind a reference",
        "doge": "where a proxy's gradients agreed with the others'",
        **dict.fromkeys(ONLINE, "decided while it was trained, here what it drew in all"),
    }[mixture["method"]]
    return (
        f"Arm {arm} trained on {', '.join(listed)}{rest} ({mixture['method']}: {method}); every arm on "
        f"{short(figures['training_tokens'])} tokens."
    )


def _controls(figures: Mapping[str, Any], against: Mapping[tuple[str, str], Any]) -> list[str]:
    """What the control arms say about where a gain comes from, or that they were not run."""
    rule = figures["pruning"]["rule"]
    questions = {
        (
            "reweighted",
            "random",
        ): "The change of mixture alone (random pruning re-weighted to the mixture of pruning, "
        "against random pruning)",
        (
            "pruned",
            "reweighted",
        ): "The choice of documents alone (pruning against that re-weighted random pruning)",
        (
            "within_domain",
            "random",
        ): "Pruning inside each domain, which leaves the mixture as it was (against random pruning)",
    }
    said = [
        f"{question} {result(against[pair], 'mean', figures)}."
        for pair, question in questions.items()
        if pair in against
    ]
    follows = figures["mixture"]["method"] in ("natural", "temperature")  # weights follow what is kept
    if rule is None or "pruned" not in figures["arms"] or not follows:
        return said
    if rule["rates"] and rule["criterion"] != "threshold":
        said.append(
            "The rates of the domains also change their mixture, so what looks like a gain over no pruning may be a "
            "gain of re-mixing; random pruning has the same rates."
        )
    missing = [arm for arm in ("reweighted", "within_domain") if arm not in figures["arms"]]
    is_remixed = {"random": False, "threshold": True}.get(rule["criterion"], rule["scope"] == "global")
    if is_remixed and missing:
        arms = f"arms {missing[0]} and {missing[1]} were" if len(missing) > 1 else f"arm {missing[0]} was"
        done = {"threshold": "cutting", "proportional": "drawing from"}.get(rule["criterion"], "ranking")
        said.append(
            f"The control {arms} not run: {done} the whole corpus also changes the mixture of domains, so what "
            "looks like a gain of pruning may be a gain of re-mixing."
        )
    return said
