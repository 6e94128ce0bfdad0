import json
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

from midflight.services.data import BadRow, DataError
from midflight.services.data.raw import RawRow, each
from midflight.services.data.readers import open_source

ROW: dict[str, object] = {"messages": [{"role": "user", "content": "rev ab"}], "answer": "ba"}


def _read(path: Path | str) -> list[RawRow | BadRow]:
    return list(each(open_source(str(path))))


def test_jsonl_yields_lines_and_refuses_bad_ones_in_place(tmp_path: Path) -> None:
    """A bad line costs exactly itself, keeps its line number and says why; blank lines are no rows."""
    file = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(ROW).encode(),
        b"",
        b'{"a": ',
        b"[1]",
        b'{"a": NaN}',
        b'{"a": "\xff"}',
        json.dumps(ROW).encode(),
    ]
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    first, *bad, last = _read(file)
    assert first == RawRow(f"{file}:1", ROW)
    assert last == RawRow(f"{file}:7", ROW)
    assert [(row.origin.rpartition(":")[2], row.reason) for row in bad if isinstance(row, BadRow)] == [
        ("3", "not JSON at column 6: Expecting value"),
        ("4", "a row must be an object with named fields, not list"),
        ("5", "not JSON: NaN is not a JSON number"),
        ("6", "not UTF-8 at byte 8 of the line"),
    ]


def test_json_is_a_list_or_lines(tmp_path: Path) -> None:
    """Both shapes of a .json file give the same rows."""
    listed, lined = tmp_path / "list.json", tmp_path / "lines.json"
    listed.write_text(json.dumps([ROW, 3, ROW], indent=1))
    lined.write_text(f"{json.dumps(ROW)}\n3\n{json.dumps(ROW)}\n")
    for file in (listed, lined):
        good, bad, again = _read(file)
        assert good == RawRow(f"{file}:1", ROW)
        assert again == RawRow(f"{file}:3", ROW)
        assert bad == BadRow(f"{file}:2", "a row must be an object with named fields, not int")


def test_csv_counts_lines_and_parses_messages(tmp_path: Path) -> None:
    """Cells may span lines; a row is named by its first line; `messages` is JSON; ragged rows are refused."""
    file = tmp_path / "rows.csv"
    cell = json.dumps(ROW["messages"]).replace('"', '""')
    file.write_bytes(
        b'prompt,answer,messages\n"two\nlines",x,"%b"\nonly,two\n\xff,y,[]\nq,z,[oops\n"open' % cell.encode()
    )
    good, *bad = _read(file)
    assert good == RawRow(f"{file}:2", {"prompt": "two\nlines", "answer": "x", "messages": ROW["messages"]})
    assert [(row.origin.rpartition(":")[2], row.reason[:36]) for row in bad if isinstance(row, BadRow)] == [
        ("4", "2 cells where the header has 3 colum"),
        ("5", "prompt: not UTF-8"),
        ("6", "messages: a CSV cell of messages mus"),
        ("7", "not CSV: unexpected end of data"),
    ]


@pytest.mark.parametrize("kind", ["rows.parquet", "file.arrow", "stream.arrow"])
def test_arrow_formats_round_trip(tmp_path: Path, kind: str) -> None:
    """Parquet and both Arrow IPC formats give the rows that were written, numbered from 1."""
    table, file = pyarrow.Table.from_pylist([ROW, ROW, ROW]), tmp_path / kind
    if kind.endswith("parquet"):
        parquet.write_table(table, file, row_group_size=2)
    else:
        new = pyarrow.ipc.new_file if kind.startswith("file") else pyarrow.ipc.new_stream
        with new(str(file), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    assert _read(file) == [RawRow(f"{file}:{n}", ROW) for n in (1, 2, 3)]
    file.write_bytes(b"ARROW1 and then rubbish")
    with pytest.raises(DataError, match="not a readable"):
        _read(file)


def test_datasets_folder(tmp_path: Path) -> None:
    """A folder written by `datasets` is read, and its splits are named when the wrong one is asked for."""
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 2)
    data = datasets.load_dataset(
        "json", data_files=f"{tmp_path}/rows.jsonl", split="train", cache_dir=tmp_path / "cache"
    )
    datasets.DatasetDict({"dev": data}).save_to_disk(tmp_path / "saved")
    assert _read(f"dev@{tmp_path}/saved") == [RawRow(f"{tmp_path}/saved:{n}", ROW) for n in (1, 2)]
    with pytest.raises(DataError, match="no split 'train'; it has dev - write 'SPLIT@"):
        _read(tmp_path / "saved")


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow or datasets the error says which pip command brings them."""
    file = tmp_path / "rows.parquet"
    file.touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (file, tmp_path, "owner/some-dataset"):
        with pytest.raises(DataError, match=r'needs (pyarrow|datasets) - pip install "midflight\[data\]"'):
            _read(source)


def test_unreadable_sources_say_what_to_do(tmp_path: Path) -> None:
    """A source that cannot be read at all raises one clear line."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.json").write_text("[1,\n 2")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for source, text in [
        ("none.jsonl", "no such file"),
        ("empty.jsonl", "no rows in it"),
        ("notes.txt", "expected a file ending in .jsonl"),
        ("broken.json", r"broken.json:2:3: not JSON"),
        ("twice.csv", "appears twice"),
    ]:
        with pytest.raises(DataError, match=text):
            _read(tmp_path / source)
    with pytest.raises(DataError, match="only the split 'train', not 'test'"):
        _read(f"test@{tmp_path}/rows.jsonl")
    assert len(_read(f"train@{tmp_path}/rows.jsonl")) == 1


def test_an_existing_path_with_an_at_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a@b.jsonl` is split `a` of `b.jsonl` only when no file of that name is there."""
    monkeypatch.chdir(tmp_path)
    Path("a@b.jsonl").write_text("{}\n")
    assert _read("a@b.jsonl") == [RawRow("a@b.jsonl:1", {})]
