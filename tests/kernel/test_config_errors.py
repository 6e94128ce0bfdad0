"""Configuration errors: each is one exact line with place, key, reason and remedy, and all come at once."""

from pathlib import Path

import pytest
from support.config_samples import BASE, REGISTRY

from midflight.kernel.config import ConfigError, load_topology
from midflight.kernel.config.errors import is_secret


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds base.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    return tmp_path


def problems(text: str = "", *overrides: str) -> list[str]:
    """The lines of the ConfigError that loading exp.yaml, base.yaml extended by `text`, raises."""
    Path("exp.yaml").write_text("extends: base.yaml\n" + text)
    with pytest.raises(ConfigError) as caught:
        load_topology("exp.yaml", (), overrides, registry=REGISTRY, environ={})
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("services:\n  kl:\n    betta: 1", "4:5: services.kl.betta: unknown key 'betta' - did you mean 'beta'?"),
        ("services:\n  kl: {zzzzzz: 1}", "3:8: services.kl.zzzzzz: unknown key 'zzzzzz'"),
        ("sevices: {}", "2:1: sevices: unknown key 'sevices' - did you mean 'services'?"),
        (
            "services:\n  rollout: {engine: vllm}",
            "3:13: services.rollout.engine: Input should be 'sglang', 'hf' or 'toy' (got 'vllm')",
        ),
        (
            "services:\n  rollout: {replicas: -1}",
            "3:13: services.rollout.replicas: Input should be greater than or equal to 0 (got -1)",
        ),
        (
            "services:\n  rollout: {replicas: 1.5}",
            "3:13: services.rollout.replicas: Input should be a valid integer (got 1.5)",
        ),
        (
            "services:\n  rollout: {replicas: many}",
            "3:13: services.rollout.replicas: Input should be a valid integer (got 'many')",
        ),
        (
            "services:\n  rollout: {replicas: [1]}",
            "3:13: services.rollout.replicas: Input should be a valid integer (got a list)",
        ),
        (
            "services:\n  rollout: {replicas: {a: 1}}",
            "3:13: services.rollout.replicas: Input should be a valid integer (got a mapping)",
        ),
        (
            "services:\n  rollout: {lengths: [1, x]}",
            "3:26: services.rollout.lengths.1: Input should be a valid integer (got 'x')",
        ),
        (
            "services:\n  rollout: {place: {where: local, coers: 2}}",
            "3:35: services.rollout.place.coers: unknown key 'coers' - did you mean 'cores'?",
        ),
        (
            "services:\n  rollout: {place: {where: remote}}",
            "3:13: services.rollout.place.host: a required key is missing",
        ),
        (
            "services:\n  rollout: {env: {A: 1}}",
            "3:19: services.rollout.env.A: Input should be a valid string (got 1) - write it in quotes",
        ),
        (
            "services:\n  rollout: {backoff_s: 9}",
            "3:3: services.rollout: backoff_s (9) must not exceed backoff_max_s (5)",
        ),
        (
            "services:\n  rollout: 3",
            "3:3: services.rollout: Input should be a valid dictionary or instance of ServiceSpec (got 3)",
        ),
        ("services:\n  kl: {target: null}", "3:3: services.kl.target: a required key is missing"),
        ("services:\n  kl: {target: .nan}", "3:8: services.kl.target: not a finite number"),
        ("services:\n  rolout: {}", "3:3: services.rolout.kind: unknown kind 'rolout' - did you mean 'rollout'?"),
        ("services:\n  x: {kind: zzz}", "3:7: services.x.kind: unknown kind 'zzz' - known: data, kl, rollout"),
        (
            f"services:\n  x: {{kind: {'m' * 200}:X}}",
            f"3:7: services.x.kind: kind '{'m' * 40}'... has 202 characters; at most 200 are shown anywhere",
        ),
        ("services:\n  x: {kind: [kl]}", "3:7: services.x.kind: Input should be a valid string (got a list)"),
        (
            "services:\n  Kl: {kind: kl, target: 1}",
            "3:3: services.Kl: a slot name has up to 32 of a-z 0-9 _ - and begins with a letter (got 'Kl')",
        ),
        (
            "services:\n  kl-0: {kind: kl, target: 1}",
            "3:3: services.kl-0: a slot name must not end in a number: NAME-0 is NAME's first replica (got 'kl-0')",
        ),
        (
            "services:\n  kernel: {kind: kl, target: 1}",
            "3:3: services.kernel: 'kernel' is the name of a process of midflight itself (got 'kernel')",
        ),
        ("services:\n  kl: {}\n  kl: {}", "4:3: services: duplicate key 'kl' (first at line 3)"),
        (
            "services:\n  kl: {depends_on: [rolout]}",
            "3:21: services.kl.depends_on.0: unknown slot 'rolout' - did you mean 'rollout'?",
        ),
        ("services:\n  kl: {depends_on: [kl]}", "3:8: services.kl.depends_on: cycle: kl -> kl"),
        ("run: My Run", "2:1: run: String should match pattern '^[a-z0-9][a-z0-9_.-]{0,39}$' (got 'My Run')"),
        ("run: ../x", "2:1: run: String should match pattern '^[a-z0-9][a-z0-9_.-]{0,39}$' (got '../x')"),
        ("run: 2024", "2:1: run: Input should be a valid string (got 2024) - write it in quotes"),
        ("version: 2", "2:1: version: Input should be 1 (got 2)"),
        ("model: {build: null}", "2:1: model: give exactly one of 'path' and 'build'"),
        ("model: {path: .}", "2:1: model: give exactly one of 'path' and 'build'"),
        ("model: {build: {head_dim: 3}}", "2:17: model.build.head_dim: Input should be a multiple of 2 (got 3)"),
        (
            "model: {build: {num_key_value_heads: 3}}",
            "2:9: model.build: num_key_value_heads (3) must divide num_attention_heads (4)",
        ),
        ("model: {tokenizer: byte}", "2:9: model.tokenizer: no such file or folder: {here}/byte (got 'byte')"),
        (
            "services:\n  data: {code: nope}",
            "3:10: services.data.code: no such file or folder: {here}/nope (got 'nope')",
        ),
        (
            "services:\n  data: {out: ''}",
            "3:10: services.data.out: a path must not be empty or contain a NUL character (got '')",
        ),
        ('services:\n  data: {out: "a\\0b"}', "3:10: services.data.out: a NUL character is not allowed"),
        (
            "services:\n  data: {prompts: 3}",
            "3:10: services.data.prompts: Input should be a valid string (got 3) - write it in quotes",
        ),
        (
            "services:\n  kl: {api_key: 5}",
            "3:8: services.kl.api_key: Input should be a valid string (got a hidden value) - write it in quotes",
        ),
        (
            "services:\n  kl: {target: 'http://user:word@host'}",
            "3:8: services.kl.target: Input should be a valid number (got a hidden value)",
        ),
        (
            "services:\n  kl: {target: " + "x" * 99 + "}",
            "3:8: services.kl.target: Input should be a valid number (got '" + "x" * 56 + "...)",
        ),
    ],
)
def test_error_lines(text: str, line: str, folder: Path) -> None:
    """Each mistake is one line with file, line, column, key, reason and, where it helps, a remedy."""
    assert problems(text + "\n") == ["exp.yaml:" + line.replace("{here}", str(folder))]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("services: {rollout: null}\n", "services.kl.depends_on.0: unknown slot 'rollout'"),
        ("services: {rollout: {depends_on: [kl]}}\n", "services.kl.depends_on: cycle: kl -> rollout -> kl"),
    ],
)
def test_default_dependencies(text: str, line: str) -> None:
    """A dependency that is a class's default is checked too, and told where the slot was written."""
    assert problems(text) == ["base.yaml:9:3: " + line]


def test_plain_union() -> None:
    """A value that fits no member of a plain union says so for each, without pydantic's member names."""
    assert problems("services:\n  rollout: {limit: [1]}\n") == [
        "exp.yaml:3:13: services.rollout.limit: Input should be a valid integer (got a list)",
        "exp.yaml:3:13: services.rollout.limit: Input should be a valid string (got a list)",
    ]


def test_override_errors() -> None:
    """A mistake on the command line is told by the number of the override."""
    assert problems("", "services.rollout.replicas=-1", "services.kl.betta=2") == [
        "argument 1: services.rollout.replicas: Input should be greater than or equal to 0 (got -1)",
        "argument 2: services.kl.betta: unknown key 'betta' - did you mean 'beta'?",
    ]


def test_missing_top_level_keys() -> None:
    """What a topology must have is told of the file as a whole."""
    Path("empty.yaml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_topology("empty.yaml", registry=REGISTRY)
    assert caught.value.problems == [
        f"empty.yaml: {key}: a required key is missing" for key in ("version", "run", "model", "services")
    ]


def test_every_mistake_at_once() -> None:
    """Mistakes of reading, of values and of dependencies come in one error."""
    lines = problems(
        "run: X\nservices:\n  rollout: {replicas: x, nice: .inf}\n  kl: {target: '${env:T}', depends_on: [q]}\n"
    )
    assert lines == [
        "exp.yaml:4:26: services.rollout.nice: not a finite number",
        "exp.yaml:5:8: services.kl.target: environment variable T is not set - set it or write ${env:T:-default}",
        "exp.yaml:2:1: run: String should match pattern '^[a-z0-9][a-z0-9_.-]{0,39}$' (got 'X')",
        "exp.yaml:4:13: services.rollout.replicas: Input should be a valid integer (got 'x')",
        "exp.yaml:5:41: services.kl.depends_on.0: unknown slot 'q'",
    ]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api_key", True),
        ("HF_TOKEN", True),
        ("wandbApiKey", True),
        ("db-password", True),
        ("key", True),
        ("tokenizer", False),
        ("max_tokens", False),
        ("num_key_value_heads", False),
        ("keyboard", False),
    ],
)
def test_secret_names(name: str, secret: bool) -> None:
    """Names that look like credentials hide their values; look-alikes do not."""
    assert is_secret(("services", "x", name)) is secret


def test_a_run_in_place_of_its_model_is_told(folder: Path) -> None:
    """Where its model is, or how it is had."""
    run = folder / "runs" / "sft"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    text = "model: {build: null, path: runs/sft}"
    said = "exp.yaml:2:22: model.path: that is a run; "
    remedy = "`midflight models export runs/sft --out FOLDER` makes a folder of its model"
    assert problems(text) == [f"{said}{remedy} (got 'runs/sft')"]
    (run / "model").mkdir()
    assert problems(text) == [f"{said}its model is runs/sft/model (got 'runs/sft')"]
