"""Composition: the laws of merging, `extends`, overlays and overrides."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.kernel.config import ConfigError, load_topology
from midflight.kernel.config.compose import MAX_FILES, Composer, compose
from midflight.kernel.config.errors import Origin
from midflight.kernel.config.shipped import shipped
from midflight.kernel.config.tree import Tree, marks, merge, plain
from midflight.kernel.config.yaml_nodes import Reader

scalars = st.one_of(st.booleans(), st.integers(-5, 5), st.sampled_from(["x", "y"]))
keys = st.sampled_from("abcd")


def mappings(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Nested mappings with few keys, so that they overlap."""
    value = st.recursive(
        st.one_of(leaf, st.lists(scalars, max_size=2)),
        lambda inner: st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(keys, value, max_size=3)


full = mappings(scalars)
sparse = mappings(st.one_of(scalars, st.none()))


def tree(value: Any, source: str = "t") -> Tree:
    """A tree of a plain value, all from one source."""
    at = Origin(source)
    if isinstance(value, dict):
        return Tree({key: tree(item, source) for key, item in value.items()}, at)
    if isinstance(value, list):
        return Tree([tree(item, source) for item in value], at)
    return Tree(value, at)


def laid(*values: Any) -> Any:
    """The plain result of laying each value on the ones before."""
    out = tree({})
    for value in values:
        out = merge(out, tree(value))
    return plain(out)


@given(full)
def test_identity(a: dict[str, Any]) -> None:
    """merge(a, {}) == a, origins included, and merge({}, a) == a."""
    assert laid(a, {}) == a
    assert marks(merge(tree(a, "a"), tree({}, "b"))) == marks(tree(a, "a"))


@given(full, full)
def test_last_wins(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Laying the same mapping twice changes nothing, and every leaf of the later one is there."""
    assert laid(a, b, b) == laid(a, b)
    assert laid(a, a) == a

    def within(part: Any, whole: Any) -> bool:
        if not isinstance(part, dict):
            return bool(part == whole)
        return isinstance(whole, dict) and all(k in whole and within(v, whole[k]) for k, v in part.items())

    assert within(b, laid(a, b))


@given(full, full, full)
def test_disjoint_mappings_are_associative(a: Any, b: Any, c: Any) -> None:
    """Mappings without common keys may be merged in any grouping and any order."""
    x, y, z = ({f"{name}{key}": value for key, value in m.items()} for name, m in (("x", a), ("y", b), ("z", c)))
    assert laid(x, y, z) == laid(x, laid(y, z)) == laid(z, y, x) == {**x, **y, **z}


@given(full, full, full)
def test_associative_without_null(a: Any, b: Any, c: Any) -> None:
    """Grouping does not matter as long as nothing is deleted and kinds of value agree."""

    def same_shape(m: Any, depth: int = 0) -> Any:
        return (
            {f"{k}{isinstance(v, dict)}": same_shape(v, depth + 1) for k, v in m.items()} if isinstance(m, dict) else m
        )

    x, y, z = same_shape(a), same_shape(b), same_shape(c)
    assert laid(laid(x, y), z) == laid(x, laid(y, z))


@given(full, sparse)
def test_null_deletes(a: dict[str, Any], b: dict[str, Any]) -> None:
    """A null key is gone from the result, whatever was there, and no null is left in any mapping."""
    out = laid(a, b)

    def nulls(value: Any) -> bool:
        return isinstance(value, dict) and any(item is None or nulls(item) for item in value.values())

    assert not nulls(out)
    assert all(key not in out for key, value in b.items() if value is None)
    assert all(out[key] == value for key, value in a.items() if key not in b)


@given(full, st.lists(scalars, max_size=3), st.lists(scalars, max_size=3))
def test_lists_replace(a: dict[str, Any], old: list[Any], new: list[Any]) -> None:
    """Lists are never joined."""
    assert laid(a, {"z": old}, {"z": new}) == {**a, "z": new}


@given(full, st.lists(st.sampled_from("pqrs"), min_size=1, max_size=4), st.integers(-9, 9))
def test_override_is_an_overlay(a: dict[str, Any], path: list[str], value: int) -> None:
    """`a.b=v` does exactly what a file `{a: {b: v}}` would do."""
    nested: Any = value
    for key in reversed(path):
        nested = {key: nested}
    composer = Composer(Reader({}), tree(a))
    composer.add_override(f"{'.'.join(path)}={value}", 1)
    assert plain(composer.tree) == laid(a, nested)
    assert composer.reader.problems == []


# --- files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, text: str) -> str:
    """Write a file below the working directory."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def run(*files: str, overrides: list[str] | None = None) -> tuple[Any, list[str]]:
    """The composed plain value and the problems."""
    out, problems = compose(list(files), overrides or [], {})
    return plain(out), [str(problem) for problem in problems]


def test_order_of_layers(folder: Path) -> None:
    """Bases left to right, the file, overlays left to right (each after its bases), then overrides."""
    put("one.yaml", "a: 1\nb: 1\nc: 1\nd: 1\ne: 1\nf: 1\n")
    put("two.yaml", "b: 2\nc: 2\nd: 2\ne: 2\nf: 2\n")
    put("top.yaml", "extends: [one.yaml, two.yaml]\nc: 3\nd: 3\ne: 3\nf: 3\n")
    put("under.yaml", "d: 4\ne: 4\nf: 4\n")
    put("over.yaml", "extends: under.yaml\ne: 5\nf: 5\n")
    assert run("top.yaml", "over.yaml", overrides=["f=6"]) == ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}, [])


def test_overlay_deletes_below_its_own_base(folder: Path) -> None:
    """A null in an overlay also deletes what the topology has, though the overlay extends a file itself."""
    put("top.yaml", "a: {x: 1, y: 2}\n")
    put("under.yaml", "b: 1\n")
    put("over.yaml", "extends: under.yaml\na: {x: null}\n")
    assert run("top.yaml", "over.yaml") == ({"a": {"y": 2}, "b": 1}, [])


def test_extends_is_relative_to_its_file(folder: Path) -> None:
    """Bases are looked up beside the file that names them; a diamond is no cycle."""
    put("lib/base.yaml", "a: 1\n")
    put("lib/left.yaml", "extends: base.yaml\nb: 2\n")
    put("lib/right.yaml", "extends: ./base.yaml\nc: 3\n")
    put("top.yaml", "extends: [lib/left.yaml, lib/right.yaml]\n")
    assert run("top.yaml") == ({"a": 1, "b": 2, "c": 3}, [])


def test_extends_cycle(folder: Path) -> None:
    """A file that extends itself, also through others, is refused and the ring is shown."""
    put("a.yaml", "extends: b.yaml\n")
    put("b.yaml", "x: 1\nextends: [c.yaml]\n")
    put("c.yaml", "extends: a.yaml\n")
    assert run("a.yaml")[1] == ["c.yaml:1:1: extends: cycle: a.yaml -> b.yaml -> c.yaml -> a.yaml"]
    put("self.yaml", "extends: self.yaml\n")
    assert run("self.yaml")[1] == ["self.yaml:1:1: extends: cycle: self.yaml -> self.yaml"]


def test_extends_explosion(folder: Path) -> None:
    """Thirty files that each extend the last one twice are refused, not read a billion times."""
    put("f0.yaml", "a: 1\n")
    for i in range(1, 31):
        put(f"f{i}.yaml", f"extends: [f{i - 1}.yaml, f{i - 1}.yaml]\n")
    problems = run("f30.yaml")[1]
    assert len(problems) == 1
    assert problems[0].endswith(f": extends: more than {MAX_FILES} files")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: bas.yaml\n",
            "top.yaml:1:1: extends: cannot read 'bas.yaml': No such file or directory - did you mean 'base.yaml'?",
        ),
        ("a: 1\nextends: [base.yaml, zzz]\n", "top.yaml:2:22: extends: cannot read 'zzz': No such file or directory"),
        ("extends: {a: 1}\n", "top.yaml:1:1: extends: want a file name or a list of file names"),
        ("extends: [1]\n", "top.yaml:1:1: extends: want a file name or a list of file names"),
        ("extends: .\n", "top.yaml:1:1: extends: cannot read '.': not a regular file"),
        ("extends: latin.yaml\n", "top.yaml:1:1: extends: 'latin.yaml' is not UTF-8 text (byte 3)"),
        ("extends: /dev/zero\n", "top.yaml:1:1: extends: cannot read '/dev/zero': not a regular file"),
        ("- 1\n", "top.yaml:1:1: want a mapping of keys at the top"),
        (
            "services: {kl: }\n",
            "top.yaml:1:12: services.kl: null deletes a slot, and there is none - write {} for a default service",
        ),
    ],
)
def test_bad_files(folder: Path, text: str, message: str) -> None:
    """Each unusable file is named where it is asked for."""
    put("base.yaml", "a: 1\n")
    Path("latin.yaml").write_bytes(b"a: \xe9\n")
    put("top.yaml", text)
    assert run("top.yaml")[1] == [message]


def test_missing_topology(folder: Path) -> None:
    """A missing file on the command line has no line number, but a suggestion."""
    put("toy-cpu.yaml", "a: 1\n")
    assert run("toy_cpu.yaml")[1] == [
        "toy_cpu.yaml: cannot read 'toy_cpu.yaml': No such file or directory - did you mean 'toy-cpu.yaml'?"
    ]


def test_all_sources_are_told_together(folder: Path) -> None:
    """Mistakes of several files and overrides come in one list."""
    put("base.yaml", "a: .nan\n")
    put("top.yaml", "extends: base.yaml\nb: 1\nb: 2\n")
    put("over.yaml", "c: !x 1\n")
    assert run("top.yaml", "over.yaml", overrides=["d"])[1] == [
        "top.yaml:3:1: duplicate key 'b' (first at line 2)",
        "base.yaml:1:1: a: not a finite number",
        "over.yaml:1:1: c: tag '!x' is not allowed",
        "argument 1: 'd': want key.path=value",
    ]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a.x=2", {"a": {"x": 2, "l": [1, 2]}}),
        ("a.y=1e-3", {"a": {"x": 1, "l": [1, 2], "y": 1e-3}}),
        ("a.x=", {"a": {"l": [1, 2]}}),
        ("a.x=null", {"a": {"l": [1, 2]}}),
        ('a.x=""', {"a": {"x": "", "l": [1, 2]}}),
        ("a={x: 3}", {"a": {"x": 3, "l": [1, 2]}}),
        ("a.l=[9]", {"a": {"x": 1, "l": [9]}}),
        ("b.c.d=no", {"a": {"x": 1, "l": [1, 2]}, "b": {"c": {"d": "no"}}}),
        ("a.x=u=v", {"a": {"x": "u=v", "l": [1, 2]}}),
    ],
)
def test_overrides(folder: Path, override: str, value: object) -> None:
    """Values are YAML; nothing or null deletes; mappings merge; lists replace."""
    put("top.yaml", "a: {x: 1, l: [1, 2]}\n")
    assert run("top.yaml", overrides=[override]) == (value, [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "argument 1: 'a': want key.path=value"),
        ("=1", "argument 1: '': want key.path=value"),
        ("a..b=1", "argument 1: 'a..b': want key.path=value"),
        (".".join("a" * 40) + "=1", "argument 1: '" + ("a." * 40)[:60] + "': want key.path=value"),
        ("a.x.y=1", "argument 1: a.x: is not a mapping, so it has no key 'y'"),
        ("a.l.0=1", "argument 1: a.l: is a list and has no keys - give the whole list"),
        ("a.x=[1", "argument 1: a.x: expected ',' or ']', but got '<stream end>'"),
        ("a.x=1e999", "argument 1: a.x: not a finite number"),
        ("a.x={p: {q: !y z}}", "argument 1: a.x.p.q: tag '!y' is not allowed"),
        ("a.x=#fff", "argument 1: a.x: '#' begins a comment - put the value in quotes"),
        ("services.kll=", "argument 1: services.kll: null deletes a slot, and there is none - did you mean 'kl'?"),
    ],
)
def test_bad_overrides(folder: Path, override: str, message: str) -> None:
    """A bad override is told by its number; the value is never part of the text."""
    put("top.yaml", "a: {x: 1, l: [1, 2]}\nservices: {kl: {}}\n")
    assert run("top.yaml", overrides=[override])[1] == [message]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["services.sft.steps=3"], "argument 1: services.sft: this topology has no service 'sft'; it has dpo, tracker"),
        (
            ["seed=1", "services.learner.steps=3"],
            "argument 2: services.learner: this topology has no service 'learner'",
        ),
        (["services.nothing.x=3"], "argument 1: services.nothing: this topology has no service 'nothing'; it has dpo"),
        (["services.dqo.steps=3"], "it has dpo, tracker - did you mean 'dpo'?"),
        (["services.sft.steps=3", "services.sft.epochs=2"], "argument 1: services.sft: this topology has no service"),
    ],
)
def test_an_override_of_a_service_that_is_not_there(overrides: list[str], said: str) -> None:
    """It is taken for a slip, not for a new service that lacks the rest."""
    with pytest.raises(ConfigError) as caught:
        load_topology(shipped()["dpo"], (), overrides)
    assert len(caught.value.problems) == 1
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["services.clip.kind=clip"],
        ["services.mine.rate=2", "services.mine.kind=clip"],
        ["services.clip={}", "services.clip.rate=2"],
        ["services.constraints.limits={one: {metric: kl, at_most: 0.1, knob: entropy.coef}}", "services.kl=null"],
    ],
)
def test_an_override_may_bring_a_service(overrides: list[str]) -> None:
    """By its kind, whole, or with all that a kind cannot do without."""
    slot = overrides[0].split(".")[1].partition("=")[0]
    assert slot in load_topology(shipped()["demo"], (), overrides).topology.services


def test_extends_by_the_name_of_a_shipped_topology(tmp_path: Path) -> None:
    """`extends: demo` is the demo; a file of that very name comes first."""
    (tmp_path / "mine.yaml").write_text("extends: demo\nrun: mine\n")
    loaded = load_topology(tmp_path / "mine.yaml")
    assert loaded.topology.run == "mine"
    assert "learner" in loaded.topology.services
    (tmp_path / "demo").write_text("version: 1\nrun: own\nmodel: {path: .}\nservices: {tracker: {}}\n")
    assert set(load_topology(tmp_path / "mine.yaml").topology.services) == {"tracker"}
