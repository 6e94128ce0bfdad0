"""`midflight plan` of any config.json: what the learner trains is planned as it runs, all else is refused."""

import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.peaks import TOLERANCE, Tracker, each_time, needs, peak, row
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from midflight.kernel.cli.main import main
from midflight.kernel.mistake import UserMistake
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.offline.config import SftTrainerConfig
from midflight.services.learner.offline.trainer import OfflineTrainer
from midflight.services.learner.planning.pair import fakes
from midflight.services.learner.planning.plan import Plan, Planner
from midflight.services.model.outline import outline

BODY: dict[str, Any] = {
    "vocab_size": 266,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2 = {"vocab_size": 266, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
LATENT = {
    **BODY,
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4},
}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "shared_expert_intermediate_size": 32}
SMALL: dict[str, Any] = {"vocab_size": 266, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LM: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**BODY, **EXPERTS, "head_dim": 16},
    "qwen3_moe, every second layer": {**BODY, **EXPERTS, "head_dim": 16, "decoder_sparse_step": 2},
    "mixtral": {**BODY, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 1, "v_head_dim": 12},
    "gpt2": GPT2,
    "opt": {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64},
}


def saved(folder: Path, kind: str, **fields: Any) -> Path:
    """A config.json and nothing else."""
    CONFIG_MAPPING[kind](**fields).save_pretrained(folder)
    return folder


def planned(folder: Path, longest: int = 64, **fields: Any) -> Plan:
    config = SftTrainerConfig.model_validate({"data": "x", "device": "cpu", "max_length_per_device": 256, **fields})
    planner = Planner({"path": str(folder), "tokenizer": "bytes"}, {"sft": config}, None, longest)
    return planner.plan(planner.trainer)


CASES = [(case, bf16) for case in LM for bf16 in ("off", "on")]
FAST = {("qwen3_moe", "on"), ("deepseek_v3", "off"), ("gpt2", "off")}


@pytest.mark.parametrize(
    ("case", "bf16"), [pytest.param(*one, marks=[] if one in FAST else pytest.mark.slow) for one in CASES]
)
def test_the_peak_of_other_shapes(case: str, bf16: str, tmp_path: Path) -> None:
    """Experts, layers of two kinds, heads of two sizes, stacks of other names: within 5 % of a real step's peak."""
    torch.manual_seed(0)
    folder = saved(tmp_path / "model", case.partition(",")[0], **LM[case])
    config = CONFIG_MAPPING[case.partition(",")[0]].from_pretrained(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    rows, rng = tmp_path / "rows.jsonl", random.Random(0)
    rows.write_text("\n".join(json.dumps(row("sft", rng)) for _ in range(8)))
    given = {"data": str(rows), "evaluation": {"data": str(rows)}, "batch_size": 8, "max_length_per_device": 1060}
    settings = SftTrainerConfig.model_validate({**given, "device": "cpu", "bf16": bf16})
    trainer = OfflineTrainer(settings, {"path": str(folder), "tokenizer": "bytes"}, 0, tmp_path / "checkpoints")
    trainer.read_examples()
    trainer.train_step()
    tracker = Tracker()
    trainer.objective.loss = each_time(tracker, trainer.objective.loss)  # type: ignore[method-assign]
    measured = peak(trainer.train_step, [trainer.module, *trainer.optimizer.rules], tracker)  # type: ignore[list-item]
    found = planned(folder, len(trainer.held_out[0].ids), **settings.model_dump())
    assert found.work.documents > 1
    assert needs(found) == pytest.approx(measured, rel=TOLERANCE)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "qwen3_next": ({**BODY, **EXPERTS, **LINEAR}, "layers of linear_attention"),
    "mamba": ({"vocab_size": 266, "hidden_size": 64, "num_hidden_layers": 2}, "layers of linear_attention"),
    "gpt_oss": ({**BODY, "num_local_experts": 4}, r"does not compute \['sliding_window', 's_aux'\]"),
    "gemma3_text": (BODY, r"does not compute \['sliding_window'\]"),
    "gemma2": (BODY, "has final_logit_softcapping"),
    "bloom": (
        {"vocab_size": 266, "hidden_size": 64, "n_layer": 2, "n_head": 4},
        "attention of its own, which does not tell a pack's documents apart",
    ),
    "bert": ({**SMALL, "intermediate_size": 96}, "BertLMHeadModel has a bias on the output layer"),
    "bart": ({"vocab_size": 266, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2}, "bart, an encoder-decoder"),
    "gemma3": ({"text_config": BODY}, "gemma3, which reads more than text: give the folder of a model of text alone"),
    "vit": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}, "no causal language model of kind"),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_trained_is_refused_by_its_reason(kind: str, device: str, tmp_path: Path) -> None:
    """The same on every device; attention of a GPU refuses what that of a CPU does."""
    fields, why = REFUSED[kind]
    with pytest.raises(UserMistake, match=f"model: .*{why}"):
        planned(saved(tmp_path, kind, **fields), device=device)


def test_gemma_is_planned_where_it_is_trained(tmp_path: Path) -> None:
    """Without sliding windows; it makes a constant as it is made, which fake tensors do not bear."""
    full = {"layer_types": ["full_attention"] * 4, "sliding_window": None}
    assert planned(saved(tmp_path, "gemma3_text", **BODY, **full)).fits


WRONG: dict[str, tuple[Any, str]] = {
    "null": (None, "it is not a JSON object"),
    "text": ({"hidden_size": "big"}, "hidden_size.* expected int, got str"),
    "a fraction": ({"hidden_size": 64.5}, "hidden_size.* expected int, got float"),
    "nothing": ({"num_hidden_layers": None}, "num_hidden_layers"),
    "few types": ({"layer_types": ["full_attention"]}, "layer"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0: it must be above zero"),
    "below zero": ({"hidden_size": -64}, "hidden_size is -64: it must be above zero"),
    "no tokens": ({"vocab_size": 0}, "vocab_size is 0: it must be above zero"),
    "three pairs": ({"num_key_value_heads": 3}, "has 4 heads, which do not divide by num_key_value_heads 3"),
    "heads of odd size": ({"head_dim": 21}, "RoPE requires an even rotary dimension, but got `head_dim`=21"),
    "three heads": ({"num_attention_heads": 3, "num_key_value_heads": 3}, "not a multiple of the number of attention"),
    "no activation": ({"hidden_act": "none"}, "a llama of its config.json cannot be made"),
    "no hidden_size": ({"hidden_size": ...}, "does not say hidden_size: add what the model has"),
    "no sizes": ({"vocab_size": ..., "num_hidden_layers": ...}, "does not say num_hidden_layers, vocab_size"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_is_a_mistake(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Named with its path or model and the reason, with the exit code of one and no traceback of anybody."""
    changes, why = WRONG[case]
    saved(tmp_path, "llama", **BODY)
    written = json.loads((tmp_path / "config.json").read_text())
    changed = None if changes is None else {k: v for k, v in {**written, **changes}.items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    given = ["model.build=null", f"model.path={tmp_path}", "model.tokenizer=bytes", "--longest-row=64"]
    assert main(["plan", "sft", *given, "--device-memory=80GiB"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    (line,) = (one for one in err.splitlines() if "model: " in one)
    assert re.search(why, line)


def test_what_pytorch_raises_is_a_mistake(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More experts a token than there are, which is found out at work; PyTorch logs no traceback of its own."""
    folder = saved(tmp_path, "mixtral", **BODY, num_local_experts=2, num_experts_per_tok=4)
    with pytest.raises(
        UserMistake, match=r"MixtralForCausalLM does not compute as its config\.json is: k not in range"
    ):
        planned(folder)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(caplog.handler)
    with pytest.raises(UserMistake, match=r"Linear does not .*: Expected inputs of BF16"), fakes(nn.Linear(1, 1)):
        torch._grouped_mm(torch.ones(8, 8), torch.ones(1, 8, 8), torch.ones(1, dtype=torch.int32))
    log.removeHandler(caplog.handler)
    assert not caplog.records


def test_experts_are_not_cut_by_tensor_parallelism(tmp_path: Path) -> None:
    """The learner's own refusal, before any rank is started."""
    with pytest.raises(UserMistake, match=r"Qwen3MoeForCausalLM cannot be cut by tp_size 2: layers\.0\.mlp"):
        planned(saved(tmp_path, "qwen3_moe", **LM["qwen3_moe"]), ranks=2, tp_size=2)


def test_layers_are_found_under_any_name(tmp_path: Path) -> None:
    """As many as the model has, each of them, and the kinds among them."""
    for number, (case, count) in enumerate({"gpt2": 3, "opt": 2, "deepseek_v3": 4}.items()):
        found = outline({"path": str(saved(tmp_path / str(number), case, **LM[case]))})
        assert len(found.layers) == count
        assert found.kinds == ([(1, (0, 0)), (3, (1, 2))] if case == "deepseek_v3" else [(count, (0, 1))])


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_documents_that_would_read_each_other_are_refused(kind: str) -> None:
    """Their attention asks nobody how documents lie in a pack: it reads on into the next one, and says nothing."""
    lm = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="attention of its own"):
        Policy(lm)
