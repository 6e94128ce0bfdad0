"""Datasets of the hub by name, and folders laid out like them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from pydantic import TypeAdapter
from support.hub_server import hub_server

from midflight.kernel.spec import LocatedStr
from midflight.services.data import DataError
from midflight.services.data.raw import RawRow, each
from midflight.services.data.readers import Place, open_source
from midflight.services.data.source import Source

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
- config_name: half
  data_files: [{split: train, path: data/train-0-*}]
---
"""
READ = """
import json, sys
from midflight.services.data import DataError, prompt_rows
for source in sys.argv[1:]:
    try:
        print(json.dumps([row.answer for row in prompt_rows(source)]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def dataset(folder: Path) -> Path:
    """Two shards of three rows and a test split of one, in two configurations."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for number, shard in enumerate(("train-0-of-2", "train-1-of-2", "test-0-of-1")):
        rows = [
            {"messages": [{"role": "user", "content": "q"}], "answer": f"{number}{n}"}
            for n in range(3 - 2 * (number == 2))
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{shard}.parquet")
    return folder


def answers(source: str) -> list[object]:
    """What the rows of a source say."""
    return [row.fields["answer"] for row in each(open_source(source)) if isinstance(row, RawRow)]


def test_a_folder_like_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card says what its splits and configurations are; shards come in their order."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = dataset(tmp_path / "folder")
    assert answers(f"{folder}:main") == ["00", "01", "02", "10", "11", "12"]
    assert answers(f"test@{folder}:main") == ["20"]
    assert answers(f"{folder}:half") == ["00", "01", "02"]
    for source, said in ((str(folder), "Config name is missing"), (f"dev@{folder}:main", "Unknown split")):
        with pytest.raises(DataError, match=said):
            open_source(source)


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists as written is a path; a colon means a configuration of a folder or of a name, nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("a:b").mkdir()
    assert Place.of("owner/name") == Place("owner/name")
    assert Place.of("train[:10%]@owner/name:main") == Place("owner/name", "train[:10%]", "main")
    assert Place.of("test@folder:x") == Place("folder", "test", "x")
    assert Place.of("a:b") == Place("a:b")
    for written, found in (
        ("test@folder:x", f"test@{tmp_path}/folder:x"),
        ("o/n:x", "o/n:x"),
        ("a:b", f"{tmp_path}/a:b"),
    ):
        assert TypeAdapter(Source).validate_python(LocatedStr(written, str(tmp_path))) == found
    assert Place.of("/no/such/dir:x.jsonl") == Place("/no/such/dir:x.jsonl")
    with pytest.raises(DataError, match=r"expected a file ending in .* or a folder"):
        open_source("no/such/folder")


@pytest.mark.slow
def test_a_dataset_of_the_hub_by_its_name(tmp_path: Path) -> None:
    """Downloaded once by the real library over HTTP; without a network it is read from where it was put."""
    folder = dataset(tmp_path / "hub")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with hub_server("owner/demo", folder) as url:
        first, second, missing = read(
            tmp_path, home | {"HF_ENDPOINT": url}, "test@owner/demo:main", "owner/demo:half", "owner/none"
        )
    assert (first, second) == (["20"], ["00", "01", "02"])
    assert str(missing).startswith("owner/none: `datasets` cannot load it")
    assert read(tmp_path, home | {"HF_HUB_OFFLINE": "1"}, "owner/demo:half") == [["00", "01", "02"]]


def read(folder: Path, variables: dict[str, str], *sources: str) -> list[list[str] | str]:
    """Answers of each source, or why there are none, as a process with these variables finds them."""
    run = [sys.executable, "-c", READ, *sources]
    done = subprocess.run(run, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
