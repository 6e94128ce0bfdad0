"""The documentation is true: generated pages are current, links lead somewhere, shown commands exist and run."""

import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import generate
import pytest
from generator.markdown import prose
from generator.messages import direction, own_parts
from generator.words import WORDS, unit
from pydantic import BaseModel
from support.shipped import YOURS

from midflight.kernel.cli.main import MODULES, VERBS
from midflight.kernel.config import Topology, load_topology, service_class
from midflight.kernel.config.fields import classes_in
from midflight.kernel.config.registry import builtin_registry
from midflight.kernel.spec import ServiceSpec
from midflight.messages.catalogue import CATALOGUE, TOPICS
from midflight.messages.envelope import Envelope
from midflight.services.controllers.constraints import Method
from midflight.services.controllers.kl import ControllerType
from midflight.services.learner.config import AdvantageConfig, Loss, Mask
from midflight.services.learner.training_config import OptimConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPOLOGIES = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA_LINE = "# yaml-language-server: $schema=./topology.schema.json"
HEAVY = ("torch", "transformers", "mlflow", "wandb", "numpy")
MODELS: list[type[BaseModel]] = [Envelope]
for _kinds in TOPICS.values():
    MODELS += [*_kinds, *own_parts(_kinds)]

CHECK = f"""
import json, runpy, sys
sys.path.insert(0, "docs")
sys.argv = ["generate.py", "--check"]
try:
    runpy.run_path("docs/generate.py", run_name="__main__")
except SystemExit as end:
    print(json.dumps([end.code, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def test_generated_pages_are_current_and_need_no_torch() -> None:
    """`docs/generate.py --check` passes on the tree, and loads nothing heavy to find out."""
    ran = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=True)
    code, loaded = json.loads(ran.stdout.splitlines()[-1])
    assert code == 0, ran.stdout
    assert loaded == []


def test_a_stale_page_is_named_with_its_difference(tmp_path: Path) -> None:
    """A page that says something else than the code is found, and the difference shows what."""
    for path in generate.PAGES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    assert generate.stale(tmp_path) == {}
    page = tmp_path / "docs/knobs.md"
    page.write_text(page.read_text().replace("`clip.range`", "`clip.radius`"))
    found = generate.stale(tmp_path)
    assert list(found) == ["docs/knobs.md"]
    assert any("clip.radius" in line for line in found["docs/knobs.md"])


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_topologies_load_and_name_their_schema(path: Path) -> None:
    """Every topology that comes with midflight is valid, and an editor finds its schema by the first line."""
    assert path.read_text().splitlines()[0] == SCHEMA_LINE
    load_topology(str(path), [], YOURS.get(path.stem, []))


def test_every_message_kind_is_documented() -> None:
    """Every kind has a section, and every field of every message and part says what it is."""
    page = (ROOT / "docs/messages.md").read_text()
    assert [kind for kind in CATALOGUE if f"### `{kind}`" not in page] == []
    silent = [
        f"{model.__name__}.{name}"
        for model in MODELS
        for name, info in model.model_fields.items()
        if not info.description and name not in WORDS
    ]
    assert silent == [], "describe the field, or add its name to docs/generator/words.py"


def test_directions_and_units_are_read_off_the_source() -> None:
    """The sender and receiver come out of the docstring's first words, the unit out of the field's name."""
    assert direction("Service to kernel, from its main loop: proof of progress.") == "service to kernel"
    assert direction("Answer to a request that needs no data back.") == "in answer to a request"
    assert (unit("lease_s"), unit("ts"), unit("text_bytes"), unit("stage")) == ("s", "ns", "bytes", "-")


def test_indented_docstring_parts_become_code() -> None:
    """A layout drawn in a docstring keeps its columns on the page."""
    assert prose("One.\n\n    a  b\n    c  d\n\nTwo.") == "One.\n\n```\na  b\nc  d\n```\n\nTwo.\n"


def test_every_configuration_key_is_documented() -> None:
    """Every key of the topology and of every kind has a row, and a description of its own or of its section."""
    page = (ROOT / "docs/configuration.md").read_text()
    classes: list[type[BaseModel]] = [Topology, *(service_class(kind) for kind in builtin_registry())]
    for cls in classes:
        for key, about in _keys(cls):
            assert f"| `{key}` |" in page, f"{cls.__name__}.{key}"
            assert about, f"{cls.__name__}.{key} has no description"


def _keys(cls: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, info in cls.model_fields.items():
        inner = None if name == "services" else next(iter(classes_in(info.annotation)), None)
        inherited = ServiceSpec.model_fields.get(name, info) if issubclass(cls, ServiceSpec) else info
        about = info.description or inherited.description or (inner.__doc__ if inner else "") or ""
        found += [(prefix + name, about), *(_keys(inner, f"{prefix}{name}.") if inner else [])]
    return found


def test_every_verb_is_documented() -> None:
    """Every verb and every option of the command line is in docs/cli.md."""
    page = (ROOT / "docs/cli.md").read_text()
    assert [verb for verb in VERBS if f"## midflight {verb}\n" not in page] == []
    for verb in VERBS:
        source = Path(import_module(f"midflight.kernel.cli.{MODULES.get(verb, verb)}").__file__ or "").read_text()
        for flag in re.findall(r'add_argument\(\s*(?:"-\w", )?"(--[\w-]+)"', source):
            assert flag in page, f"midflight {verb} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Relative links, their anchors, and every path of the tree in backticks exist."""
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        other = (page.parent / target) if target else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(other.read_text()), f"{page.name}: {target}#{anchor}"
    for path in re.findall(
        r"`((?:kernel|messages|services|configs|tests|docs|examples|benchmarks|tui)/[\w./-]*)`", text
    ):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _shown_commands() -> list[str]:
    blocks = [block for page in PAGES for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S)]
    return sorted(
        {line[2:].split("  #")[0].strip() for block in blocks for line in block.splitlines() if line[:2] == "$ "}
    )


COMMANDS = _shown_commands()
CHEAP = [
    command
    for command in COMMANDS
    if re.match(r"midflight (config|doctor|--version)|midflight .*--(help|dry-run)|python docs/generate.py", command)
]


def test_console_blocks_show_midflight_commands_that_parse() -> None:
    """Every `midflight` command shown uses a verb and options that exist; `make` targets exist."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert CHEAP
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[0] == "midflight" and words[1] in VERBS:
            text = (ROOT / "docs/cli.md").read_text()
            section = text.partition(f"## midflight {words[1]}\n")[2].partition("\n## ")[0]
            flags = [word for word in words[2:] if word.startswith("-") and word != "--help"]
            assert all(re.search(rf"`[^`]*{re.escape(flag)}\b", section) for flag in flags), command


@pytest.mark.parametrize("command", CHEAP)
def test_cheap_console_commands_run(command: str) -> None:
    """What the README shows and costs little is run here, from the root of the tree."""
    words = shlex.split(command)
    program = [sys.executable, "-m", "midflight.kernel.cli.main"] if words[0] == "midflight" else [sys.executable]
    ran = subprocess.run([*program, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_algorithm_a_topology_can_name_is_explained() -> None:
    """Estimators, losses, masks and laws have a row in docs/algorithms.md; each paper there is named in the code."""
    page = (ROOT / "docs/algorithms.md").read_text()
    for choices in (AdvantageConfig.model_fields["estimator"].annotation, Loss, Mask, Method, ControllerType):
        for name in get_args(choices):
            assert f"`{name}`" in page, name
    folders = ("services/algorithms", "services/controllers")
    code = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    for paper in re.findall(r"arXiv (\d{4}\.\d{5})", page):
        assert paper in code, paper


def test_every_update_rule_is_explained() -> None:
    """`optim.name` has a row for each in docs/optimizers.md, and every schedule is named there."""
    page = (ROOT / "docs/optimizers.md").read_text()
    fields = OptimConfig.model_fields
    assert [name for name in get_args(fields["name"].annotation) if f"| `{name}` |" not in page] == []
    assert [name for name in get_args(fields["schedule"].annotation) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("study", "table"), [("offpolicy", "tables"), ("klcontrol", "table")])
def test_the_studies_show_what_was_recorded(study: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of a table is what the study's command prints of its recorded results."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    lines = [json.loads(line) for line in (ROOT / "benchmarks" / f"{study}.jsonl").read_text().splitlines()]
    page = (ROOT / "docs" / "studies.md").read_text().splitlines()
    shown = getattr(import_module(study), table)(lines).splitlines()
    assert len(shown) > 5
    assert set(shown) <= set(page)
