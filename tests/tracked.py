"""What a tracker holds, read by others than us, and what it should hold: the numbers of the two Parquet files."""

import gzip
import json
import math
import numbers
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq


def in_parquet(run: Path, rounded=float) -> Counter:
    """{(name, step, value): 1} of all numbers in the run's rows."""
    found: Counter = Counter()
    for table in ("steps", "metrics"):
        columns = pq.ParquetFile(run / f"{table}.parquet").read().to_pydict()
        for name, values in columns.items():
            for step, value in zip(columns["step"], values, strict=True):
                if isinstance(value, numbers.Real):
                    found[f"{table}/{name}", step, shown(rounded(value))] += 1
    return found


def shown(value: float):
    """NaN equals itself here."""
    return "nan" if math.isnan(value) else float(value)


def in_tensorboard(run: Path) -> Counter:
    """By TensorBoard's own reader, which is another package than the writer."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return Counter((tag, event.step, shown(event.value)) for tag in tags for event in events.Scalars(tag))


def in_mlflow(run: Path) -> Counter:
    """By SQL from the database, where "and" stands for the plus sign that MLflow refuses."""
    with sqlite3.connect(run / "mlflow" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
        rows = database.execute("select key, step, case when is_nan then 'nan' else value end from metrics").fetchall()
    return Counter((key.replace(" and ", "+"), step, value) for key, step, value in rows)


def in_wandb(run: Path) -> Counter:
    """By W&B's own `wandb sync`, which reads the files of all attempts and sends their rows to a server: to this one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.lines = {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": 40 * "0", "WANDB_ERROR_REPORTING": "false"}
        command = [sys.executable, "-m", "wandb", "sync", *map(str, run.glob("wandb/offline-run-*"))]
        done = subprocess.run(command, env=environment, cwd=run, capture_output=True, text=True, check=True)
        assert "ERROR" not in done.stderr, done.stderr
    finally:
        server.shutdown()
        server.server_close()
    found: Counter = Counter()
    rows = [json.loads(server.lines[i]) for i in sorted(server.lines)]  # type: ignore[attr-defined]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    for row in rows:
        found.update(
            (name, row["step"], shown(v)) for name, v in row.items() if name.startswith(("steps/", "metrics/"))
        )
    return found


class Collector(BaseHTTPRequestHandler):
    """As much of W&B's server as `wandb sync` needs: it keeps the lines of the history, {number: line}."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        lines = self.server.lines  # type: ignore[attr-defined]
        answer: dict = {}
        if self.path == "/graphql":
            tails = dict.fromkeys(("historyTail", "eventsTail"), "[]") | {"summaryMetrics": "{}", "config": "{}"}
            counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
            project = {"id": "p", "name": "equipoise", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": "x", "displayName": "x", "project": project, **tails, **counts}
            known = bucket if lines else None
            answer = {"data": {"model": {"bucket": known}, "upsertBucket": {"bucket": bucket, "inserted": not lines}}}
            answer["data"]["createRunFiles"] = {"runID": "b", "uploadHeaders": [], "files": []}
        elif self.path.endswith("/file_stream"):
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            lines.update(enumerate(sent["content"], start=sent["offset"]))
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *args: object) -> None:
        pass
