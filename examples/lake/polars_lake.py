"""Counts answers by country with Polars, from the Delta table: polars_lake.py DATA_FOLDER.

Needs the Python packages polars and deltalake. Only the columns that the query names are read.
"""

import pathlib
import sys

import polars as pl

data = pathlib.Path(sys.argv[1])
answers = pl.scan_delta(str(data / "lake" / "rsvps"))
top = (
    answers.filter(~pl.col("is_duplicate"))
    .group_by("country")
    .agg(pl.len().alias("n"))
    .sort(["n", "country"], descending=[True, False], nulls_last=True)
    .limit(5)
    .collect()
)
sys.stdout.write(top.write_csv())

# An entity table: each member once, in the newest version.
members = pl.scan_delta(str(data / "lake" / "rsvps.members"))
count, ids = members.select(pl.len(), pl.col("member_id").n_unique()).collect().row(0)
print(f"{count} members, {ids} different", file=sys.stderr)
