"""Counts answers by country with DuckDB, from Parquet files: duckdb_lake.py DATA_FOLDER [WEIR].

WEIR is the command of Weir with its options, by default `weir`. The system table weir.files lists the
files of the table as of now; a file that a merge has replaced stays for two minutes, so run the query at
once. Needs the Python package duckdb, without any extension.
"""

import csv
import io
import pathlib
import shlex
import subprocess
import sys

import duckdb

data = pathlib.Path(sys.argv[1])
weir = shlex.split(sys.argv[2] if len(sys.argv) > 2 else "weir")
listing = subprocess.run(
    [*weir, "sql", "--output", "csv", "select path from weir.files where \"table\" = 'rsvps'"],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
).stdout
table = data / "lake" / "rsvps"
files = [str(table / row["path"]) for row in csv.DictReader(io.StringIO(listing))]

top = duckdb.execute(
    """
    select country, count(*) as n
    from read_parquet(?, hive_partitioning = true)
    where not is_duplicate
    group by country order by n desc, country limit 5
    """,
    [files],
)
out = csv.writer(sys.stdout, lineterminator="\n")
out.writerow([column[0] for column in top.description])
out.writerows(top.fetchall())
