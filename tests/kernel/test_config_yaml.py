"""YAML reading: 1.2 core types, exact messages for what is refused, and no text that can do harm."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.kernel.config.tree import plain
from midflight.kernel.config.yaml_nodes import MAX_CHARS, Reader
from midflight.kernel.spec import LocatedStr

ENVIRON = {"NAME": "value", "EMPTY": ""}


def read(text: str) -> tuple[Any, list[str]]:
    """The plain value of a document called f.yaml, and its problems."""
    reader = Reader(ENVIRON)
    tree = reader.read(text, "f.yaml", "/folder")
    return plain(tree), [str(problem) for problem in reader.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5e3", 5000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("9223372036854775807", 2**63 - 1),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("Null", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("[1, a]", [1, "a"]),
        ("${env:NAME}/x", "value/x"),
        ("'${env:EMPTY}'", ""),
        ("${env:ABSENT:-a b}", "a b"),
        ("${env:ABSENT:-}", ""),
        ("$${env:NAME}", "${env:NAME}"),
        ("costs $5", "costs $5"),
    ],
)
def test_core_types(text: str, value: object) -> None:
    """Scalars follow the YAML 1.2 core schema, not PyYAML's 1.1."""
    assert read(f"a: {text}\n") == ({"a": value}, [])
    assert type(read(f"a: {text}\n")[0]["a"]) in (type(value), LocatedStr)


def test_keys_are_strings() -> None:
    """Keys never turn into numbers, booleans or null."""
    assert read("1: a\nno: b\ntrue: c\nnull: d\n") == ({"1": "a", "no": "b", "true": "c", "null": "d"}, [])


def test_strings_remember_their_folder() -> None:
    """A string knows where it was written, so that a path in it can be resolved."""
    assert read("a: x\n")[0]["a"].folder == "/folder"


def test_empty_documents() -> None:
    """No text, or only comments, is null."""
    assert read("") == (None, [])
    assert read("# nothing\n") == (None, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f.yaml:2:1: duplicate key 'a' (first at line 1)"),
        ("a:\n  b: 1\n  b: 2\n", "f.yaml:3:3: a: duplicate key 'b' (first at line 2)"),
        ("a: !!python/object:os.system x", "f.yaml:1:1: a: tag '!!python/object:os.system' is not allowed"),
        (
            "a: !!python/object/apply:os.system [x]",
            "f.yaml:1:1: a: tag '!!python/object/apply:os.system' is not allowed",
        ),
        ("a: !!python/name:os.system", "f.yaml:1:1: a: tag '!!python/name:os.system' is not allowed"),
        ("a: !mine x", "f.yaml:1:1: a: tag '!mine' is not allowed"),
        ("a: !!binary aGk=", "f.yaml:1:1: a: tag '!!binary' is not allowed"),
        ("a: !!set {x}", "f.yaml:1:1: a: tag '!!set' is not allowed"),
        ("\ta: 1", "f.yaml:1:1: found character '\\t' that cannot start any token"),
        ("a:\n\tb: 1", "f.yaml:2:1: found character '\\t' that cannot start any token"),
        ("a: x\0y", "f.yaml:1:5: character 0x00 is not allowed"),
        ('a: "x\\0y"', "f.yaml:1:1: a: a NUL character is not allowed"),
        ('a: "\\ud800"', "f.yaml:1:1: a: half of a surrogate pair is not a character"),
        ('a: "\\UFFFFFFFF"', "f.yaml:1:1: an escape names no character"),
        ('"a\\0": 1', "f.yaml:1:1: a key must be printable text"),
        ("? [a]\n: 1", "f.yaml:1:3: a key must be a plain word"),
        ("a: 1e400", "f.yaml:1:1: a: not a finite number"),
        ("a: .inf", "f.yaml:1:1: a: not a finite number"),
        ("a: -.INF", "f.yaml:1:1: a: not a finite number"),
        ("a: .nan", "f.yaml:1:1: a: not a finite number"),
        ("a: 9223372036854775808", "f.yaml:1:1: a: the integer does not fit 64 bits"),
        ("a: " + "9" * 10_000, "f.yaml:1:1: a: the integer does not fit 64 bits"),
        ("a: !!int x", "f.yaml:1:1: a: not an integer"),
        (
            "x: &x {a: 1}\ny:\n  <<: *x\n",
            "f.yaml:3:3: y: merge keys ('<<') are not YAML 1.2 - use 'extends:' or repeat the alias",
        ),
        ("a: &a [*a]", "f.yaml:1:4: a.0: an alias must not contain itself"),
        ("a: &a {b: *a}", "f.yaml:1:8: a.b: an alias must not contain itself"),
        ("a: *b", "f.yaml:1:4: found undefined alias 'b'"),
        ("a: 1\n---\nb: 1", "f.yaml:2:1: expected a single document in the stream, but found another document"),
        ("a: {b: c", "f.yaml:1:9: expected ',' or '}', but got '<stream end>'"),
        ("[" * 5_000, "f.yaml:1:1: nested too deeply"),
        ("#" * (MAX_CHARS + 1), "f.yaml:1:1: longer than 256 KiB"),
        (
            "a: ${env:ABSENT}",
            "f.yaml:1:1: a: environment variable ABSENT is not set - set it or write ${env:ABSENT:-default}",
        ),
        ("a: ${b.c}", "f.yaml:1:1: a: only ${env:NAME} is replaced - write '$${' for a literal '${'"),
        ("a: ${", "f.yaml:1:1: a: only ${env:NAME} is replaced - write '$${' for a literal '${'"),
    ],
)
def test_refused(text: str, message: str) -> None:
    """Each bad document is refused with its place and the reason."""
    assert read(text)[1] == [message]


def test_first_of_two_keys_wins_after_the_error() -> None:
    """Reading goes on after a duplicate key, so that further mistakes are told too."""
    value, problems = read("a: 1\na: 2\nb: .nan\nb: 3\n")
    assert value == {"a": 1, "b": None}
    assert len(problems) == 3


def test_aliases_are_bounded() -> None:
    """A "billion laughs" document is refused in well under a second of CPU."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{key}: &{key} [{', '.join([f'*{last}'] * 9)}]" for last, key in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    begin = time.process_time()
    value, problems = read("\n".join(lines))
    assert problems == ["f.yaml:1:1: more than 20000 values (an alias counts each time it is used)"]
    assert value is None
    assert time.process_time() - begin < 2


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("a1:- \n\t{}[],&*!#|>'\"%@`?<\\0xe.~$\0\ud800é"), max_size=60))
def test_no_text_crashes(text: str) -> None:
    """Any text is either a value or a problem with a line; never another exception."""
    value, problems = read(text)
    assert all(problem.startswith("f.yaml:") for problem in problems)
    assert problems or value is None or isinstance(value, str | int | float | list | dict)
