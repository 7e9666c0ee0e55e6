"""Exact duplicates: documents whose id, or whose text, an earlier document has.

Ids first: a document whose id has occurred is removed, since splits, selections and tie-breaks go by id.
Of those that stay, one whose text (its MD5, 128 bits) has occurred is removed. Earlier is in corpus order:
by shard, then by row.

The rule is one Ibis expression over columns, run by DuckDB, which spills to disk what does not fit its
memory limit; nothing in the expression is DuckDB's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis import _

DUPLICATE_ID, DUPLICATE_TEXT = "duplicate id", "duplicate text"
_MEMORY, _THREADS = "512MB", 2


def duplicates(documents: ir.Table, *, texts: bool) -> ir.Table:
    """The documents to remove, in corpus order: shard, row, id, domain, source, reason.

    Args:
      documents: shard and row (integers, together unique), id, domain, source, text.
      texts: whether duplicate texts are removed, or only duplicate ids.
    """
    keys = documents.select("shard", "row", "id", "domain", "source", text=_.text.hexdigest("md5"))
    keys = keys.mutate(id_again=_earlier(_.id))
    # Texts are compared among the documents whose id is new.
    keys = keys.mutate(text_again=_earlier(_.text, _.id_again > 0) if texts else ibis.literal(0))
    found = keys.filter((_.id_again > 0) | (_.text_again > 0))
    found = found.mutate(reason=ibis.ifelse(_.id_again > 0, DUPLICATE_ID, DUPLICATE_TEXT))
    return found.select("shard", "row", "id", "domain", "source", "reason").order_by(["shard", "row"])


def write_duplicates(shards: Sequence[Path], path: Path, scratch: Path, *, texts: bool) -> None:
    """Writes `duplicates` of Parquet shards, in their order, to a Parquet file.

    Args:
      shards: with columns id, domain, source, text; named `...-<number>.parquet`, which gives `shard`.
      path: what to write.
      scratch: folder for what does not fit in memory.
      texts: see `duplicates`.
    """
    connection = ibis.duckdb.connect(
        memory_limit=_MEMORY,
        threads=_THREADS,
        temp_directory=str(scratch),
        enable_external_file_cache=False,
    )
    try:
        read = connection.read_parquet([str(shard) for shard in shards], filename=True, file_row_number=True)
        shard = _.filename.re_extract(r"-(\d+)\.parquet$", 1).cast("int64")
        documents = read.mutate(shard=shard, row=_.file_row_number)
        connection.to_parquet(duplicates(documents, texts=texts), path)
    finally:
        connection.disconnect()


def _earlier(*columns: Any) -> ir.IntegerColumn:
    """How many earlier documents have the same values."""
    return ibis.row_number().over(group_by=columns, order_by=[_.shard, _.row])
