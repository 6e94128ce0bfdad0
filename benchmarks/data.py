"""A training set of a million rows, in every format: memory, time to the first prompt, prompts a CPU second.

    python benchmarks/data.py [--rows 1000000] [--drawn 20000] [--formats jsonl json csv parquet arrow saved hub]

Each format is read by a process of its own, as the ledger reads it: opened, its first rows checked, then prompts drawn
in the shuffled order, and a second reader asked for the last of them, as after a restart. Growth of memory is over the
same process before the source is opened, with the libraries that the format needs already imported. `anonymous` is
what the process itself holds; the rest of `peak` are pages of the mapped file, which the system takes back at will.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, show

from midflight.services.ledger.prompts import Prompts

FORMATS = ("jsonl", "json", "csv", "parquet", "arrow", "saved", "hub")
LIBRARY = {"parquet": "pyarrow.parquet", "arrow": "pyarrow", "saved": "datasets", "hub": "datasets"}
CARD = "---\nconfigs:\n- config_name: main\n  data_files: [{split: train, path: data/*.parquet}]\n---\n"
SEED = 7
PIECE = 10_000


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of some 230 bytes as JSON."""
    for n in range(count):
        text = f"Question {n}: what is {n} plus {n + 1}? Think step by step, then give the answer alone. {'pad ' * 16}"
        yield {"messages": [{"role": "user", "content": text}], "answer": str(2 * n + 1), "level": n % 5}


def write(kind: str, folder: Path, count: int) -> Path:
    """The source of a format."""
    path = folder / f"rows.{kind}"
    if kind in ("jsonl", "json"):
        between = ",\n" if kind == "json" else "\n"
        with path.open("w") as file:
            file.write("[" if kind == "json" else "")
            file.writelines((between if n else "") + json.dumps(row) for n, row in enumerate(rows(count)))
            file.write("]\n" if kind == "json" else "\n")
    elif kind == "csv":
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["messages", "answer", "level"])
            table.writerows((json.dumps(row["messages"]), row["answer"], row["level"]) for row in rows(count))
    else:
        return write_arrow(kind, path, count)
    return path


def write_arrow(kind: str, path: Path, count: int) -> Path:
    """An Arrow stream, and what is made of one."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    datasets.disable_progress_bars()
    stream, table = path.with_name("stream.arrow"), None
    source = rows(count)
    with stream.open("wb") as file:
        writer = None
        while piece := [row for _, row in zip(range(PIECE), source, strict=False)]:
            table = pyarrow.Table.from_pylist(piece)
            writer = writer or pyarrow.ipc.new_stream(file, table.schema)
            writer.write_table(table)
        if writer:
            writer.close()
    if kind == "arrow":
        return stream.rename(path)
    if kind == "saved":
        datasets.Dataset.from_file(str(stream)).save_to_disk(path)
        return path
    whole = pyarrow.ipc.open_stream(stream.read_bytes()).read_all()
    if kind == "parquet":
        parquet.write_table(whole, path, row_group_size=count)  # as pandas does: all of it is one group
        return path
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text(CARD)
    for shard in range(4):
        part = whole.slice(shard * count // 4, count // 4)
        parquet.write_table(part, path / "data" / f"{shard}.parquet", row_group_size=1000)
    return path


def memory(field: str) -> int:
    """A line of /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def read(kind: str, source: str, drawn: int) -> dict[str, float]:
    """What one process needs to draw `drawn` prompts."""
    if kind in LIBRARY:
        __import__(LIBRARY[kind])
    before, anonymous = memory("VmRSS"), memory("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    began, cpu = time.perf_counter(), time.process_time()
    prompts = Prompts(source, None, SEED, None)
    first = prompts.of_group(0)
    opened, cpu_opened = time.perf_counter(), time.process_time()
    seen = {prompts.of_group(group).row for group in range(drawn)}
    cpu_drawn = time.process_time() - cpu_opened
    grown = {"peak_mb": memory("VmHWM") - before, "anonymous_mb": memory("RssAnon") - anonymous}
    assert len(seen) == drawn  # no row twice in an epoch
    again = Prompts(source, None, SEED, None)
    assert (again.of_group(drawn - 1), again.of_group(0)) == (prompts.of_group(drawn - 1), first)
    times = {"first_s": opened - began, "first_cpu_s": cpu_opened - cpu, "prompts_per_cpu_s": drawn / cpu_drawn}
    return times | {name: value / 1e6 for name, value in grown.items()} | {"libraries_mb": before / 1e6}


def measure(kind: str, count: int, drawn: int) -> dict[str, float]:
    """Write a source and read it in a process of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        writer = [sys.executable, __file__, "--write", kind, folder, f"--rows={count}"]
        source = subprocess.run(writer, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
        reader = [sys.executable, __file__, "--read", kind, source, f"--drawn={drawn}"]
        environment = os.environ | {"HF_DATASETS_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(reader, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--drawn", type=int, default=20_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(write(options.write[0], Path(options.write[1]), options.rows))
    elif options.read:
        kind, source = options.read
        print(json.dumps(read(kind, source, options.drawn)))
    else:
        about = machine()
        print(f"{about['cpu']}, load {about['load'][0]}; {options.rows} rows, {options.drawn} drawn")
        results = {kind: measure(kind, options.rows, options.drawn) for kind in options.formats}
        head = ("first_s", "first_cpu_s", "prompts_per_cpu_s", "peak_mb", "anonymous_mb", "libraries_mb")
        lines = [(kind, *(f"{result[name]:,.1f}" for name in head)) for kind, result in results.items()]
        show([("format", *head), *lines])
        print(json.dumps({"rows": options.rows, "drawn": options.drawn, "formats": results}))


if __name__ == "__main__":
    main()
