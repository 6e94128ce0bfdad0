"""What the screens are made of: logs, turns, tokens, the topology, the header, words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text
from support import tui_data as data

from midflight.kernel.sample_files import Group, Sample
from midflight.tui.facts import Batch
from midflight.tui.flow import flow, stages
from midflight.tui.header import View, header
from midflight.tui.logbook import PIECE, LogBook
from midflight.tui.model import RunModel
from midflight.tui.sample_rows import ending, side_by_side, sorted_samples, versions
from midflight.tui.tokens import legend, styles, token_facts, token_lines
from midflight.tui.turns import turn_lines, turns_of, wrap
from midflight.tui.widgets.slider import moved, place
from midflight.tui.words import ASCII, UNICODE, bar, count, duration, glyphs_of, number, size


def test_logs_are_merged_by_time_and_read_on(tmp_path: Path) -> None:
    """Torn last lines wait; a rotated file is not read twice."""
    book = LogBook(data.write_logs(tmp_path))
    assert [record.service for record in book.read()] == ["learner", "rollout-0", "reward", "learner"]
    with (tmp_path / "learner.jsonl").open("a") as file:
        file.write('{"timestamp": "2026-11-27T04:00:00Z", "event": "on", "n": 1}\nnot json\n{"event": "to')
    assert [(record.text, record.level) for record in book.read()] == [("not json", "info"), ("on n=1", "info")]
    with (tmp_path / "learner.jsonl").open("a") as file:
        file.write('rn"}\n')
    (tmp_path / "learner.jsonl").rename(tmp_path / "learner.1.jsonl")
    assert [record.text for record in book.read()] == ["torn"]
    assert book.read() == []


def test_of_a_long_log_the_newest_are_shown(tmp_path: Path) -> None:
    """And the torn line at the beginning of what is read is left out."""
    lines = [json.dumps({"event": f"line {n}", "timestamp": f"{n:09d}", "pad": "x" * 100}) for n in range(12_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    records = LogBook(tmp_path).read()
    assert records[-1].text.startswith("line 11999")
    assert all(record.text.startswith("line ") for record in records)
    assert len(records) < PIECE / 100


def test_the_last_words_are_those_of_the_newest_generation_that_spoke(tmp_path: Path) -> None:
    """Generation 10 is newer than 9; an empty one said nothing."""
    for generation, text in ((9, "old"), (10, "new\x1b[31m"), (11, "")):
        (tmp_path / f"reward.{generation}.out").write_text(text)
    assert LogBook(tmp_path).last_words("reward") == ["new\\x1b[31m"]
    assert LogBook(tmp_path).last_words("learner") == []
    assert LogBook(None).read() == []


def test_tool_calls_and_their_results_begin_folded() -> None:
    """Everything else is open; enter flips one."""
    group = data.samples(5).groups[1]
    turns = turns_of(group, group.samples[0])
    assert [turn.role for turn in turns] == ["system", "user", "tool call", "tool", "user", "answer"]
    lines = turn_lines(turns, frozenset(), 60, ASCII)
    heads = [line.plain[0] for _, line in lines if not line.plain.startswith("  ")]
    assert heads == ["+", "-", "+", "+", "-", "-"]
    opened = [line.plain for at, line in turn_lines(turns, {2}, 60, ASCII) if at == 2]
    assert opened[1].strip() == 'reverse "world"'


def test_a_prompt_without_messages_is_one_turn() -> None:
    """As the model read it."""
    sample = data.samples(5).groups[0].samples[0]
    assert [turn.role for turn in turns_of(Group(1, "Q: ", [], [sample]), sample)] == ["prompt", "answer"]


@pytest.mark.parametrize("text", ["", "a", "many words in a line that is long", "x" * 100, "one\n\ntwo", "tab\there"])
def test_wrapping_loses_nothing(text: str) -> None:
    """Lines fit, and hold every letter."""
    lines = wrap(text, 12)
    assert all(len(line) <= 12 for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())


def sample(**columns: list[float]) -> Sample:
    """Three tokens, of which the second breaks the line."""
    return Sample(1, "ab\nc", "", 1.0, {}, 0.0, "stop", 0, ["ab", "\n", "c"], columns)


@pytest.mark.parametrize("colours", [True, False])
def test_tokens_differ_as_their_numbers_do(colours: bool) -> None:
    """Sign and size for a gap; with no colours size alone; a mask strikes; versions differ."""
    gap = styles(sample(gap=[-1.0, 0.0, 1.0]), "gap", colours)
    assert gap[1] == ""
    assert gap[0]
    assert gap[2]
    assert (gap[0] != gap[2]) is colours
    assert styles(sample(mask=[1.0, 0.0, 1.0]), "mask", colours) == ["", "dim strike", ""]
    version = styles(sample(version=[3.0, 3.0, 4.0]), "version", colours)
    assert version[0] == version[1] != version[2]
    assert styles(sample(), "kl", colours) == ["", "", ""]
    assert styles(sample(entropy=[0.0, 0.0, 0.0]), "entropy", colours) == [""] * 3


def test_token_lines_show_breaks_and_the_cursor() -> None:
    """The break is seen, and made."""
    lines = token_lines(sample(gap=[1.0, 1.0, 1.0]), "gap", 40, 2, True)
    assert [line.plain for line in lines] == ["ab\\n", "c"]
    assert "reverse" in str(lines[1].spans[0].style)
    assert "gap 1" in token_facts(sample(gap=[1.0, 1.0, 1.0]), 0).plain
    assert "no tokens" in token_facts(sample(), 5).plain
    assert "not kept" in legend(sample(), "kl").plain
    assert "v3, v4" in legend(sample(version=[3.0, 3.0, 4.0]), "version").plain


def test_a_group_side_by_side_holds_the_chosen_one() -> None:
    """Even when not all fit."""
    group = data.samples(5).groups[0]
    for one in group.samples:
        lines = side_by_side(group, one.id, 60, 8)
        assert any(f"{one.id}:" in line.plain for line in lines)
        assert all(line.cell_len <= 60 for line in lines[-3:])
        assert "2 of 4 samples" in lines[0].plain
    pairs = [(group, one) for one in group.samples]
    assert [one.reward for _, one in sorted_samples(pairs, "reward")] == [1.0, 1.0, 1.0, 0.0]
    assert versions(group.samples[0]) == "v4-5"
    assert versions(sample(version=[-1.0, -1.0, -1.0])) == "-"
    assert ending(group.samples[0]) == group.samples[0].finish
    assert ending(replace(group.samples[0], turns=3, finish="max_turns")) == "3 turns, max_turns"


def full() -> RunModel:
    """The story."""
    model = RunModel()
    model.fold(Batch(data.story(), data.status(), data.knobs(), data.controllers()))
    return model


def test_the_topology_tells_depth_capacity_and_the_slowest() -> None:
    """From the ledger's heartbeat and the configuration."""
    found = {stage.kind: (stage.waiting, stage.capacity, stage.busy) for stage in stages(full(), data.CONFIG)}
    assert found == {"rollout": (96, 256, False), "reward": (44, 256, False), "learner": (230, 256, True)}
    text = Text("\n").join(flow(full(), data.CONFIG, ASCII, 160)).plain
    assert "[tickets 96/256 ###.....] --> rolloutx2 --> [samples 44/256" in text
    assert "bottleneck learner" in text
    assert "kl * kl.coef=0.00098" in text
    assert "bang o" in text
    assert text.isascii()
    narrow = flow(full(), data.CONFIG, ASCII, 80)
    assert len(narrow) == 5
    assert max(line.cell_len for line in narrow) < 80


def test_a_run_of_other_services_has_no_flow() -> None:
    """It says so."""
    model = RunModel()
    assert "waiting" in flow(model, {}, ASCII, 160)[0].plain
    status = data.status()
    model.fold(Batch(status=status.model_copy(update={"services": [status.services[-1]]})))
    assert "no samples flow" in flow(model, {}, ASCII, 160)[0].plain


@pytest.mark.parametrize(
    ("silent", "armed", "said"),
    [(0.2, None, "RO | 0.2s"), (4.0, float("inf"), "RW | 4.0s"), (None, 299.0, "RW 4:59 | no link")],
)
def test_the_header_always_tells(silent: float | None, armed: float | None, said: str) -> None:
    """Run, step, version, rate, staleness, reward, alarms, power, link."""
    model = full()
    model.silent_s = silent
    text = header(model, View("overview", "demo", ASCII, armed)).plain
    assert text.startswith(
        "OVERVIEW | run demo | step 120 | policy v120 | 8.4k tok/s | stale 1.0/2 | reward 0.879 ^0.0"
    )
    assert text.endswith(said)
    narrow = header(model, View("overview", "demo", ASCII, armed, frozen=True, width=80)).plain
    assert narrow.count("\n") == 1
    assert "FROZEN" in narrow
    assert header(RunModel(reading=True), View("overview", "demo", ASCII)).plain.endswith("reading")


def test_a_silent_kernel_turns_red() -> None:
    """After three seconds."""
    for silent, red in ((2.9, False), (3.1, True)):
        text = header(RunModel(silent_s=silent), View("overview", "demo", ASCII))
        assert any("bold red" in str(span.style) for span in text.spans if span.end == len(text)) is red


def test_words() -> None:
    """Short, and never wrong by a unit."""
    assert [count(n) for n in (0, 950, 8200, 1.5e6, 2e9)] == ["0", "950", "8.2k", "1.5M", "2.0G"]
    assert [size(n) for n in (0, 512, 2048, 61 << 30)] == ["0B", "512B", "2.0K", "61G"]
    assert [duration(s) for s in (0.21, 12.3, 245, 10_920)] == ["0.2s", "12s", "4m05s", "3h02m"]
    assert [number(v) for v in (None, True, 3, 0.000123, "x")] == ["-", "true", "3", "0.000123", "x"]
    assert bar(1, 2, 4, ASCII) == "##.."
    assert bar(9, 2, 4, ASCII) == "####"
    assert bar(1, 0, 4, ASCII) == "...."


@pytest.mark.parametrize(
    ("environ", "plain"),
    [
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "C"}, True),
        ({"TERM": "linux", "LANG": "de_DE.utf8"}, True),
        ({"MIDFLIGHT_ASCII": "1"}, True),
        ({"MIDFLIGHT_ASCII": "0", "LANG": "C"}, False),
        ({}, False),
    ],
)
def test_plain_characters_where_others_would_not_show(environ: dict[str, str], plain: bool) -> None:
    """By locale, terminal, or wish."""
    assert glyphs_of(environ) == (ASCII if plain else UNICODE)
    assert all(glyph.isascii() for glyph in ASCII)


def test_the_slider_stays_within_bounds_and_reaches_them() -> None:
    """In equal steps, in decades, in whole numbers."""
    for low, high, whole in ((0.0, 1.0, False), (0.0, 100.0, False), (1e-6, 100.0, False), (1.0, 4096.0, True)):
        value = high / 2
        for _ in range(400):
            value = moved(value, low, high, -1, whole)
        assert value == low
        for _ in range(400):
            before, value = value, moved(value, low, high, 1, whole)
            assert value > before or value == high
        assert value == high
        assert (place(low, low, high), place(high, low, high)) == (0.0, 1.0)
    assert place(1.0, 2.0, 2.0) == 0.0
