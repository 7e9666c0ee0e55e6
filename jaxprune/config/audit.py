"""What is shown of a selection."""

from __future__ import annotations

from dataclasses import dataclass

from jaxprune.config.base import Settings, check


@dataclass(frozen=True, kw_only=True)
class Audit(Settings):
    """What the audit shows of each selection."""

    selection: str | None = None
    """Selection that the first page shows; None: `pruned`, or the first that removes anything."""
    domains: int = 30
    """Domains with charts and documents, those that lose most tokens; tables and audit.json have all."""
    documents: int = 2
    """Documents of a domain on each side of each threshold, at each end, and in each random sample."""
    characters: int = 600
    """Characters of a document's text that are shown."""

    def check_values(self) -> None:
        for name in ("domains", "documents", "characters"):
            value = getattr(self, name)
            check(value > 0, f"audit.{name} is {value}: set a number above 0")
