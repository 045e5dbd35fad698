"""Counts answers by country with Spark, from the Delta table.

spark-submit --packages io.delta:delta-spark_2.13:4.0.0 spark_lake.py DATA_FOLDER
"""

import pathlib
import sys

from pyspark.sql import SparkSession

spark = (
    SparkSession.builder.appName("weir")
    .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
    .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
table = pathlib.Path(sys.argv[1]).resolve() / "lake" / "rsvps"
spark.read.format("delta").load(str(table)).createOrReplaceTempView("rsvps")
top = spark.sql(
    """
    select country, count(*) as n from rsvps where not is_duplicate
    group by country order by n desc, country nulls last limit 5
    """
)
print(",".join(top.columns))
for row in top.collect():
    print(",".join("" if value is None else str(value) for value in row))
spark.stop()
