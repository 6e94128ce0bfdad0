"""Loading a topology: values, origins, paths, kinds, and what it must not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.config_samples import BASE, REGISTRY, Data, Kl, Rollout

from midflight.kernel.config import (
    ConfigError,
    KindError,
    Loaded,
    load_topology,
    parse_resolved,
    service_class,
    topology_hash,
)
from midflight.kernel.spec import ServiceSpec


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds base.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    return tmp_path


def load(text: str = "", *overrides: str, overlays: tuple[str, ...] = ()) -> Loaded:
    """Load exp.yaml, which extends base.yaml by `text`."""
    Path("exp.yaml").write_text("extends: base.yaml\n" + text)
    return load_topology("exp.yaml", overlays, overrides, registry=REGISTRY, environ={})


# --- values


def test_loads_with_defaults() -> None:
    """A slot's kind defaults to its name, and its class's defaults are in the data."""
    loaded = load()
    rollout = loaded.topology.services["rollout"]
    assert isinstance(rollout, Rollout)
    assert (rollout.kind, rollout.replicas, rollout.engine, rollout.restart) == ("rollout", 2, "toy", "permanent")
    assert loaded.data["services"]["rollout"]["engine"] == "toy"
    assert loaded.data["model"]["tokenizer"] == "bytes"


def test_kind_may_differ_from_slot() -> None:
    """Several slots may run one kind."""
    topology = load("services: {eval: {kind: rollout, engine: hf}}").topology
    assert isinstance(topology.services["eval"], Rollout)
    assert topology.start_order().index("rollout") < topology.start_order().index("kl")


def test_data_reads_back() -> None:
    """config.json gives the same topology, through JSON, and the hash stands for it."""
    loaded = load("services: {data: {out: x, many: {a: [y]}}}")
    data = json.loads(json.dumps(loaded.data))
    assert parse_resolved(data, REGISTRY) == loaded.topology
    assert topology_hash(data) == loaded.hash == load("services: {data: {out: x, many: {a: [y]}}}").hash
    assert load("run: other").hash != load().hash
    assert len(loaded.hash) == 32


def test_a_resolved_topology_outlives_its_files() -> None:
    """A kernel that restarts reads config.json back although a file it names has gone since."""
    Path("reward.py").touch()
    loaded = load("services: {data: {code: reward.py}}")
    Path("reward.py").unlink()
    assert parse_resolved(loaded.data, REGISTRY) == loaded.topology


def test_parse_resolved_reports_the_file() -> None:
    """A damaged config.json gives errors, not a traceback."""
    with pytest.raises(ConfigError, match=r"^config.json: version: a required key is missing\n"):
        parse_resolved({}, REGISTRY)


def test_configs_are_frozen_and_quiet() -> None:
    """A config cannot change, and a raw validation error does not print what it was given."""
    spec = load().topology.services["kl"]
    with pytest.raises(ValidationError):
        spec.nice = 3  # type: ignore[misc]
    with pytest.raises(ValidationError) as caught:
        Kl.model_validate({"target": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_interpolated_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment gives text, which a number's field accepts."""
    monkeypatch.setenv("MF_REPLICAS", "4")
    Path("exp.yaml").write_text("extends: base.yaml\nservices: {rollout: {replicas: '${env:MF_REPLICAS}'}}\n")
    assert load_topology("exp.yaml", registry=REGISTRY).topology.services["rollout"].replicas == 4


# --- origins


def test_origins() -> None:
    """Every value says the file and line, the override or the default it came from."""
    Path("over.yaml").write_text("services:\n  kl:\n    beta: 0.1\n")
    loaded = load("services:\n  kl: {target: 0.5}\n", "services.rollout.replicas=3", "seed=7", overlays=("over.yaml",))
    origins = loaded.origins_json()
    assert origins["version"] == "base.yaml:1"
    assert origins["services.kl.target"] == "exp.yaml:3"
    assert origins["services.kl.beta"] == "over.yaml:3"
    assert origins["services.rollout.replicas"] == "argument 1"
    assert origins["seed"] == "argument 2"
    assert origins["services.kl.kind"] == origins["services.kl.env"] == origins["model.dtype"] == "default"
    assert loaded.origins["services", "kl", "beta"] == "over.yaml:3"
    assert [row.key for row in loaded.rows()] == list(origins)


def test_rows_hide_secrets() -> None:
    """What `config show` prints has no secret in it; an empty one may be seen to be empty."""
    rows = {row.key: row.value for row in load("", "services.kl.api_key=hunter2", "services.kl.env.HF_TOKEN=x").rows()}
    assert rows["services.kl.api_key"] == rows["services.kl.env.HF_TOKEN"] == '"***"'
    assert rows["services.kl.target"] == "0.02"
    assert {row.key: row.value for row in load().rows()}["services.kl.api_key"] == '""'


# --- paths


def test_paths_are_relative_to_their_file(folder: Path) -> None:
    """A path is resolved against the file it was written in; an override's against the working directory."""
    Path("lib").mkdir()
    Path("lib/data.yaml").write_text("services:\n  data: {out: ../x, many: {a: [y, /z]}}\npython_path: [code]\n")
    loaded = load("", "services.data.sink=here", overlays=("lib/data.yaml",))
    data = loaded.topology.services["data"]
    assert isinstance(data, Data)
    assert (data.out, data.sink) == (f"{folder}/x", f"{folder}/here")
    assert data.many == {"a": [f"{folder}/lib/y", "/z"]}
    assert loaded.topology.python_path == [f"{folder}/lib/code"]
    assert type(data.out) is str


@pytest.mark.parametrize("value", ["task:toy", "hf://org/set", "https://x/y"])
def test_references_are_left_alone(value: str) -> None:
    """Where a field allows it, `task:` and URLs are no paths."""
    data = load("", f"services.data.prompts='{value}'").topology.services["data"]
    assert isinstance(data, Data)
    assert data.prompts == value


def test_kept_words_and_schemes(folder: Path) -> None:
    """A field may name its own words and prefixes that are no paths."""
    sinks = [
        load("", f"services.data.sink='{value}'").data["services"]["data"]["sink"]
        for value in ("off", "sqlite:x", "offf")
    ]
    assert sinks == ["off", "sqlite:x", f"{folder}/offf"]


def test_model_from_disk(folder: Path) -> None:
    """A model's folder must exist, and is its tokenizer's folder unless another one is given."""
    Path("weights").mkdir()
    text = "version: 1\nrun: r\nmodel: {path: weights}\nservices: {rollout: {}}\n"
    Path("disk.yaml").write_text(text)
    model = load_topology("disk.yaml", registry=REGISTRY).topology.model
    assert (model.path, model.tokenizer) == (f"{folder}/weights", f"{folder}/weights")
    model = load_topology("disk.yaml", (), ["model.tokenizer=bytes"], registry=REGISTRY).topology.model
    assert model.tokenizer == "bytes"


# --- kinds and imports


def test_registry_by_import_path() -> None:
    """A kind's class may be named by its import path; a wrong path says what is wrong with it."""
    assert service_class("base", {"base": "midflight.kernel.spec:ServiceSpec"}) is ServiceSpec
    with pytest.raises(KindError, match=r"^kind 'a': cannot load 'no_such:Thing': ModuleNotFoundError: No module"):
        service_class("a", {"a": "no_such:Thing"})
    with pytest.raises(KindError, match=r"^kind 'a': 'json:loads' is not a subclass of midflight.kernel.spec.Serv"):
        service_class("a", {"a": "json:loads"})


def test_a_kind_may_be_an_import_path() -> None:
    """`package.module:ConfigClass` needs no registry, and a wrong path says what is wrong with it."""
    assert service_class("midflight.kernel.spec:ServiceSpec") is ServiceSpec
    with pytest.raises(KindError, match=r"^kind 'no_such:Thing': cannot load 'no_such:Thing': ModuleNotFoundError"):
        service_class("no_such:Thing")


def test_entry_points_add_kinds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package adds a kind, and cannot take over a built-in one."""
    from midflight.kernel.config import default_registry

    info = folder / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[midflight.services]\nplug = plug_config:Plug\nledger = plug_config:Evil\n")
    (folder / "plug_config.py").write_text(
        "from midflight.kernel.spec import ServiceSpec\nclass Plug(ServiceSpec):\n    kind: str = 'plug'\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    default_registry.cache_clear()
    try:
        assert service_class("plug").__name__ == "Plug"
        assert default_registry()["ledger"] == "midflight.services.ledger.config:LedgerConfig"
    finally:
        default_registry.cache_clear()


def test_loading_imports_and_executes_nothing(folder: Path) -> None:
    """Checking a topology imports neither torch nor zmq nor the user's code, and runs no tag or path in it."""
    Path("code").mkdir()
    Path("code/sitecustomize.py").write_text("raise SystemExit('executed')\n")
    Path("code/user_code.py").write_text("raise SystemExit('executed')\n")
    script = (
        "import sys\n"
        "from midflight.kernel.config import load_topology\n"
        "from midflight.kernel.spec import ServiceSpec\n"
        "load_topology('base.yaml', (), ['python_path=[code]', 'services={rollout: {}, kl: null}'],"
        " registry={'rollout': ServiceSpec, 'kl': ServiceSpec})\n"
        "heavy = {'torch', 'zmq', 'transformers', 'mlflow', 'numpy', 'user_code', 'midflight.services'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    here = Path(__file__).parents[2] / ".pkg"
    out = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (out.stdout, out.stderr) == ("[]\n", "")
