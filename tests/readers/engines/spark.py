"""Apache Spark with Delta Lake: the reader whose word counts most.

One local session serves the whole life of the server, because starting the JVM takes longer than any test's
reads. Delta's cache of table logs is emptied before each read, so that every answer is a cold reader's:
what a fresh Spark job would see, not what this one remembers.
"""

import atexit
import glob
import os
import shutil
import tempfile

from . import NotOffered

_session = None


def session():
    """The Spark session, started at first use."""
    global _session
    if _session is None:
        _session = _start()
    return _session


def _start():
    jars = _delta_jars()
    scratch = tempfile.mkdtemp(prefix="tidewater-spark-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    from pyspark.sql import SparkSession

    settings = {
        "spark.master": "local[1]",
        "spark.app.name": "tidewater readers",
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.maxResultSize": "0",
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={scratch}",
        "spark.local.dir": scratch,
        "spark.sql.warehouse.dir": os.path.join(scratch, "warehouse"),
        "spark.jars": ",".join(jars),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        # The defaults (200 and 50) are for clusters; on one core they cost seconds per read.
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "2",
    }
    builder = SparkSession.builder
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    atexit.register(spark.stop)
    return spark


def _delta_jars():
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
    found = sorted(glob.glob(os.path.join(root, ".tools", "jars", "*.jar")))
    if not found:
        raise FileNotFoundError("Spark's Delta jars are missing from .tools/jars: run tests/readers/setup.sh")
    return found


def _frame(location):
    if "://" in location.path and not location.path.startswith("file://"):
        raise NotOffered("this Spark has no S3 file system; DuckDB, Polars and delta-rs read tables on S3")
    spark = session()
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    reader = spark.read.format("delta")
    if location.version is not None:
        reader = reader.option("versionAsOf", location.version)
    return reader.load(location.path)


def batches(location, columns):
    frame = _frame(location)
    if columns is not None:
        frame = frame.select([frame[_quote(name)] for name in columns])
    yield from frame.toArrow().to_batches()


def query(location, text):
    _frame(location).createOrReplaceTempView("t")
    yield from session().sql(text).toArrow().to_batches()


def run(location, statements):
    """Runs statements in which the table is called {t}, in order. Not one answers rows: they make the table."""
    spark = session()
    for statement in statements:
        spark.sql(statement.replace("{t}", f"delta.{_quote(location.path)}")).collect()


def _quote(name):
    return "`" + name.replace("`", "``") + "`"


def count(location):
    return _frame(location).count()


def schema(location):
    return [[field.name, field.dataType.simpleString()] for field in _frame(location).schema.fields]


def versions(location):
    _frame(location)
    history = session().sql(f"DESCRIBE HISTORY delta.{_quote(location.path)}")
    rows = history.selectExpr("version", "unix_millis(timestamp) AS at", "operation").collect()
    return [{"version": row.version, "timestamp_ms": row.at, "operation": row.operation} for row in rows]


def maintain(location, task):
    """Works on the table as a colleague would who has Spark at hand."""
    spark, table = session(), f"delta.{_quote(location.path)}"
    log = spark._jvm.org.apache.spark.sql.delta.DeltaLog
    log.clearCache()
    if task == "checkpoint":
        log.forTable(spark._jsparkSession, location.path).checkpoint()
        return
    statements = {
        "optimize": f"OPTIMIZE {table}",
        "vacuum": f"VACUUM {table}",
        "append": f"INSERT INTO {table} SELECT * FROM {table} LIMIT 1",
    }
    spark.sql(statements[task]).collect()
