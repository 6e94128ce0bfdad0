"""A run as fixed data: events, answers, samples and logs that the TUI's tests, snapshots and pictures show."""

import json
import math
from pathlib import Path
from typing import Any

from midflight.kernel.sample_files import Group, Sample, StepSamples
from midflight.messages.base import Scalar
from midflight.messages.control import ServiceStatus, Status, Wait
from midflight.messages.knobs import KnobDeclaration, Knobs, KnobStatus
from midflight.messages.live import Controllers, ControllerStatus
from midflight.messages.samples import LedgerStatus
from midflight.tui.facts import Fact
from midflight.tui.host import HostSample, ProcessUse

BEGAN = 1_790_000_000_000_000_000
STEPS = 120
CONFIG = {
    "version": 1,
    "run": "demo",
    "services": {
        "ledger": {"kind": "ledger", "prompts_per_rollout": 16, "responses_per_prompt": 8, "max_staleness": 1},
        "rollout": {"kind": "rollout", "replicas": 2, "slots": 128, "temperature": 1.0},
        "reward": {"kind": "reward", "file": "rewards/exact.py"},
        "learner": {"kind": "learner", "steps": 400, "optim": {"lr": 0.0005}},
        "kl": {"kind": "kl", "target_kl": 0.2},
        "tracker": {"kind": "tracker"},
    },
}
ORIGINS = {"services.kl.target_kl": "configs/demo.yaml:61", "services.learner.steps": "command line"}


def at(step: int) -> int:
    """Wall clock of a step."""
    return BEGAN + step * 400_000_000


class Story:
    """Numbers events as they are told."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def tell(self, topic: str, source: str, body: dict[str, Scalar], step: int | None = None, when: int = 0) -> None:
        """The next event."""
        self.facts.append(Fact(len(self.facts) + 1, at(when or step or 0), source, topic, step, body))


def story(steps: int = STEPS) -> list[Fact]:
    """A run with a shadow, a promotion, a change by hand, a death and a swap."""
    told = Story()
    for name in ("ledger", "rollout-0", "rollout-1", "reward", "learner", "kl", "tracker"):
        body: dict[str, Scalar] = {
            "name": name,
            "slot": name.partition("-")[0],
            "generation": 1,
            "state": "running",
            "pid": 100,
        }
        told.tell("service.state", "kernel", {**body, "restarts": 0, "cause": ""})
    told.tell("knob.granted", "kernel", {"knob": "kl.coef", "owner": "kl#1", "epoch": 1})
    coef = 0.001
    for step in range(1, steps + 1):
        coef = _one_step(told, step, coef)
    return told.facts


def _one_step(told: Story, step: int, coef: float) -> float:
    reward = 0.35 + 0.55 * (1 - math.exp(-step / 40)) + 0.03 * math.sin(step * 1.7)
    kl = 0.02 + 0.15 * (1 - math.exp(-step / 60)) + 0.01 * math.cos(step)
    body = {"reward_mean": reward, "loss": -0.001 * math.sin(step / 3), "kl": kl, "entropy": 0.5 * math.exp(-step / 50),
            "lag_mean": 1.0, "lag_max": 2.0, "grad_norm": 0.2 + 0.05 * math.sin(step / 5), "train_s": 0.06,
            "wait_s": 0.004, "lr": 5e-4, "sequences": 128.0, "version": step}  # fmt: skip
    told.tell("metrics", "learner#1", dict(body), step)
    if step % 5 == 0:
        for name, rate in (("rollout-0", 4100.0), ("rollout-1", 4090.0)):
            told.tell(
                "throughput", f"{name}#1", {"tokens_per_s": rate + step, "busy": 0.4, "version": step}, None, step
            )
    new = max(0.0001, coef * (1.0 + 0.02 * math.sin(step / 4)))
    told.tell("controller", "kl#1", {"slot": "kl", "standing": "active", "knob": "kl.coef", "at_step": step, "kl": kl,
              "value/kl.coef": new, "state": "{}", "schema": "kl/1", "reason": f"kl {kl:.3f}, target 0.2"},
              step)  # fmt: skip
    if step > 40:
        told.tell("controller", "bang#1", {"slot": "kl", "standing": "shadow", "knob": "kl.coef", "at_step": step,
                  "kl": kl, "value/kl.coef": 0.0005 if kl < 0.1 else 0.002, "state": "{}", "schema": "bang/1",
                  "reason": "below" if kl < 0.1 else "above"}, step)  # fmt: skip
    told.tell("knob", "kernel", {"knob": "kl.coef", "value": new, "old": coef, "version": step, "author": "kl#1",
              "reason": f"kl {kl:.3f} at step {step}, target 0.2"}, None, step)  # fmt: skip
    _special(told, step)
    return new


def _special(told: Story, step: int) -> None:
    if step % 20 == 0:
        told.tell("evaluation", "ledger#1", {"eval/reward": 0.4 + step / 300, "version": step, "n": 256}, step)
        told.tell("checkpoint", "learner#1", {"step": step, "stage": "rl"}, None, step)
    if step == 40:
        told.tell(
            "controller.attached",
            "kernel",
            {"slot": "kl", "name": "bang", "from": "", "to": "bang#1", "reason": "as a shadow"},
            None,
            step,
        )
    if step == 60:
        told.tell("knob", "kernel", {"knob": "optim.lr", "value": 3e-4, "old": 5e-4, "version": 1, "author": "operator",
                  "reason": "smaller steps"}, None, step)  # fmt: skip
    if step == 80:
        cause = "killed by signal 9 (SIGKILL), perhaps out of memory"
        exit_body: dict[str, Scalar] = {"name": "rollout-1", "generation": 1, "pid": 101, "code": -9, "signal": 9}
        exit_body |= {"asked": False, "cause": cause}
        told.tell("service.exit", "kernel", dict(exit_body), None, step)
        told.tell("service.state", "kernel", {"name": "rollout-1", "slot": "rollout", "generation": 2, "pid": 111,
                  "state": "running", "restarts": 1, "cause": cause}, None, step)  # fmt: skip
    if step == 100:
        told.tell("swap", "kernel", {"slot": "reward", "number": 1, "stage": "done", "name": "reward", "why": ""}, None,
                  step)  # fmt: skip


def status() -> Status:
    """What the kernel says."""
    stats: dict[str, dict[str, Scalar]] = {
        "ledger": {"step": 120, "version": 120, "running": 96, "generated": 20, "scoring": 24, "ready": 230},
        "rollout-0": {"active": 60, "queued": 2, "version": 120},
        "rollout-1": {"active": 36, "version": 119},
        "learner": {"step": 120, "reward": 0.8712},
        "kl": {"kl.coef": 0.00098, "kl": 0.151},
        "reward": {"held": 24, "faults": 0},
        "bang": {"kl.coef": 0.002},
        "tracker": {"seq": 600, "dropped": 0},
    }
    services = [_service(name, {**found}) for name, found in stats.items()]
    return Status(run_id="demo-1a2b3c4d", boot="9f2c", kernel_pid=90, warden_pid=89, seq=600, up_s=63.0, stopping=None,
                  services=services)  # fmt: skip


def _service(name: str, stats: dict[str, Scalar]) -> ServiceStatus:
    slot = "kl" if name == "bang" else name.partition("-")[0]
    second = name == "rollout-1"
    return ServiceStatus(
        name=name, generation=2 if second else 1, kind="bang.py" if name == "bang" else slot,
        state="backoff" if name == "reward" else "running", pid=100, up_s=12.0 if second else 62.5, seen_s=0.2,
        restarts=3 if name == "reward" else int(second), progress=812, phase="train" if name == "learner" else None,
        waits=[Wait(name="tickets", left_s=None)] if slot == "rollout" else [], stats=stats,
        cause="reward_fn failed to load: no module named 'exakt'" if name == "reward" else None, slot=slot,
        role="shadow" if name == "bang" else "active", paused=name == "tracker", attached=name == "bang",
    )  # fmt: skip


def _knob(name: str, value: float, low: float, high: float, owner: str | None = None, unit: str = "") -> KnobStatus:
    spec = KnobDeclaration(name=name, kind="float", unit=unit, default=value, low=low, high=high,
                           description=f"What {name} does.")  # fmt: skip
    return KnobStatus(declaration=spec, applies="learner", value=value, version=7, owner=owner, epoch=1 if owner else 0,
                      applied_step=120, author=owner or "", reason="kl 0.151 at step 120" if owner else "")  # fmt: skip


def knobs() -> Knobs:
    """The knob table."""
    return Knobs(
        knobs=[
            _knob("kl.coef", 0.00098, 0.0, 100.0, "kl#1", "loss per nat"),
            _knob("clip.range", 0.2, 0.0, 1.0, None, "ratio"),
            _knob("optim.lr", 3e-4, 0.0, 1.0, "operator"),
            _knob("kl.target_kl", 0.2, 0.001, 10.0, None, "nats"),
            _knob("bang.low", 0.0005, 0.0, 1.0, None),
        ]
    )


def controllers() -> Controllers:
    """Who steers and who would."""
    return Controllers(
        controllers=[
            ControllerStatus(name="kl", generation=1, slot="kl", standing="active", kind="kl", holds=["kl.coef"],
                             attached=False, decisions=120, stats={"kl": 0.151}),
            ControllerStatus(name="bang", generation=1, slot="kl", standing="shadow", kind="bang.py", holds=["kl.coef"],
                             attached=True, decisions=80),
            ControllerStatus(name="pid", generation=2, slot="kl", standing="previous", kind="kl", holds=["kl.coef"],
                             attached=False, decisions=20),
        ],
        locked=["objectives"],
    )  # fmt: skip


def ledger(sample: int | None = None) -> LedgerStatus:
    """The balance, or a life."""
    life: list[dict[str, Scalar]] = []
    if sample == 700:
        for number, (state, who, why) in enumerate(
            (("issued", "ledger", ""), ("running", "rollout-0#1", ""), ("generated", "rollout-0#1", ""),
             ("scoring", "reward#1", ""), ("ready", "reward#1", ""), ("leased", "learner#1", ""),
             ("trained", "learner#1", "step 6"))
        ):  # fmt: skip
            life.append({"at_ns": at(6) + number * 5_000_000, "state": state, "epoch": 1, "who": who, "why": why})
    return LedgerStatus(
        issued=15_730, states={"running": 96, "generated": 20, "scoring": 24, "ready": 230, "trained": 15_232,
                               "filtered": 120, "refused": 8},
        eval_states={"evaluated": 1536}, problems=[], step=120, committed=120, version=120,
        reasons={"lag 9 > 8": 120, "reward_fn raised ValueError": 8}, life=life,
    )  # fmt: skip


def host() -> HostSample:
    """One look at the machine."""
    mib = 1 << 20
    sizes = {"learner": 910, "rollout-0": 640, "rollout-1": 644, "reward": 80, "ledger": 120, "kl": 50, "tracker": 150,
             "kernel": 60, "warden": 18, "this tui": 90}  # fmt: skip
    uses = {
        name: ProcessUse(100 + at, size * mib, 20 + at, 4, 3.0 * at) for at, (name, size) in enumerate(sizes.items())
    }
    disk = {"journal.bin": 12 * mib, "ledger.sqlite": 40 * mib, "checkpoints": 22 * mib, "logs": 1 * mib}
    return HostSample(at(120), uses, 16_384 * mib, 9_000 * mib, 6 * mib, 8_000 * mib, disk, 70_000 * mib)


def samples(step: int) -> StepSamples:
    """Two groups of a step; one with a conversation of several turns and a tool call."""
    plain = [_sample(700 + n, "olleh" if n != 1 else "oleh", float(n != 1), step) for n in range(4)]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "You reverse words. Answer with the word alone."},
        {"role": "user", "content": "Reverse: world"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "reverse", "arguments": "world"}}]},
        {"role": "tool", "content": "dlrow"},
        {"role": "user", "content": "So what is it?"},
    ]
    folded = [_sample(710 + n, "dlrow" if n % 2 else "drlow\nno: dlrow", n % 2 / 1.0, step) for n in range(4)]
    groups = [Group(88, "Reverse: hello", [{"role": "user", "content": "Reverse: hello"}], plain)]
    return StepSamples(step, step, [*groups, Group(89, "Reverse: world", turns, folded)])


def _sample(number: int, text: str, reward: float, step: int) -> Sample:
    tokens = [*text, "<end>"]
    many = len(tokens)
    wave = [math.sin(number + at) for at in range(many)]
    columns = {
        "advantage": [(reward - 0.75) * (1 + 0.1 * w) for w in wave],
        "entropy": [abs(w) * 0.8 for w in wave],
        "logprob": [-abs(w) for w in wave],
        "behaviour": [-abs(w) * 0.9 for w in wave],
        "gap": [0.1 * w for w in wave],
        "mask": [1.0] * (many - 1) + [0.0],
        "version": [float(step - 1)] * (many // 2) + [float(step)] * (many - many // 2),
    }
    answer = "olleh" if number < 710 else "dlrow"
    return Sample(number, text, answer, reward, {"exact": reward}, reward - 0.75, "stop", 1, tokens, columns)


def write_logs(folder: Path) -> Path:
    """Logs of three services, and a dead one's last output."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[tuple[str, str, dict[str, Scalar]]]] = {
        "learner": [("info", "learner loaded", {"stage": "rl"}), ("warning", "grad norm above 10", {"norm": 12.5})],
        "rollout-0": [("info", "weights", {"version": 120})],
        "reward": [("error", "reward_fn failed to load", {"exception": "ModuleNotFoundError: exakt"})],
    }
    for at_line, (service, records) in enumerate(lines.items()):
        with (folder / f"{service}.jsonl").open("w") as file:
            for number, (level, event, rest) in enumerate(records):
                when = f"2026-11-27T03:48:{10 * number + at_line:02d}.000000Z"
                record = {"timestamp": when, "level": level, "event": event, "service": service, "run": "demo", **rest}
                file.write(json.dumps(record) + "\n")
    (folder / "reward.3.out").write_text("Traceback (most recent call last):\nModuleNotFoundError: exakt\n")
    return folder
