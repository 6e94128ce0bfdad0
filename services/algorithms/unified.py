"""`compute_advantages_unified`: every estimator behind one call, for those who hold trajectories and not tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from .estimators import (
    Bootstrap,
    Estimate,
    clipped_is,
    gae,
    multistep,
    reinforce,
    retrace,
    td_lambda,
    vtrace,
)
from .steps import Steps
from .tokens import Actions

Method = Literal["gae", "reinforce", "vtrace", "retrace", "td_lambda", "clipped_is", "multistep"]
Data = Mapping[str, Any]
COLUMNS: Final = ("values", "next_values", "log_probs", "behaviour_log_probs")
KEYS: Final = {"rewards", "action_mask", "next_value", "terminated", "dones", "truncated", *COLUMNS}
LAMDA: Final = {"vtrace": 1.0}
"""Methods whose lambda is not 0.95 when none is given."""


def compute_advantages_unified(
    data_list: Sequence[Data],
    method: Method = "gae",
    *,
    gamma: float = 0.99,
    lamda: float | None = None,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    clip_ratio: float = 0.2,
    n_steps: int | None = 5,
    bootstrap_method: Bootstrap = "gae",
) -> list[Estimate]:
    """Advantages and returns of trajectories, in the order of `data_list`; each field float [T], 0 on masked tokens.

    A trajectory is a mapping; sequences of T numbers or tensors [T]:

        rewards              what each step earned; needed
        values               V(s_t); zeros when left out, which only `reinforce` and `multistep` with `mc` make sense of
        next_value           V behind the last step, when the trajectory was cut off; 0 when left out
        next_values          V of every true next state, where it is not V of the next step: at resets inside
        terminated, dones    true ends (bool [T], or one bool for the last step); the last step, when nothing is said
                             of ends or next values
        truncated            steps cut off by a limit (the same)
        action_mask          false on tokens that the policy did not draw: they are no steps
        log_probs, behaviour_log_probs   of the actions under the policy to improve, and under that which drew them;
                             needed by `vtrace`, `retrace`, `clipped_is`

    lamda: 0.95 when left out, 1 for `vtrace`. `reinforce` returns reward to go, less `values` or, without them, less
    the mean over all steps of the call. Raises ValueError for a method, key or length that does not fit, naming the
    trajectory.
    """
    chosen = LAMDA.get(method, 0.95) if lamda is None else lamda
    estimators: dict[str, Callable[[Steps], Estimate]] = {
        "gae": lambda steps: gae(steps, gamma, chosen),
        "reinforce": lambda steps: reinforce(steps, gamma),
        "vtrace": lambda steps: vtrace(steps, gamma, chosen, rho_bar, c_bar),
        "retrace": lambda steps: retrace(steps, gamma, chosen),
        "td_lambda": lambda steps: td_lambda(steps, gamma, chosen),
        "clipped_is": lambda steps: clipped_is(steps, gamma, chosen, clip_ratio),
        "multistep": lambda steps: multistep(steps, gamma, chosen, n_steps, bootstrap_method),
    }
    if method not in estimators:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(estimators)}")
    if bootstrap_method not in get_args(Bootstrap):
        raise ValueError(f"unknown bootstrap_method {bootstrap_method!r}: use one of {', '.join(get_args(Bootstrap))}")
    if isinstance(data_list, Mapping):
        raise ValueError("data_list is one trajectory: put it into a list")
    for name, number in (("gamma", gamma), ("lamda", chosen), ("clip_ratio", clip_ratio)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}")
    off_policy = method in ("vtrace", "retrace", "clipped_is")
    out: list[tuple[Estimate, Actions]] = []
    for number, data in enumerate(data_list):
        try:
            actions = _actions(data)
            out.append((estimators[method](_steps(data, actions, off_policy)), actions))
        except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            raise ValueError(f"trajectory {number}: {error}") from error
    if method == "reinforce" and out and not any("values" in data for data in data_list):
        mean = torch.cat([estimate.returns for estimate, _ in out]).mean()
        out = [(Estimate(estimate.advantages - mean, estimate.returns), actions) for estimate, actions in out]
    return [Estimate(*(actions.put(x)[0] for x in estimate)) for estimate, actions in out]


def _actions(data: Data) -> Actions:
    unknown = sorted(map(str, set(data) - KEYS))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}: use {', '.join(sorted(KEYS))}")
    if "rewards" not in data or not len(data["rewards"]):
        raise ValueError("rewards are missing")
    mask = torch.as_tensor(data.get("action_mask", [True] * len(data["rewards"]))).bool()
    if mask.shape != (len(data["rewards"]),):
        raise ValueError(f"action_mask has shape {tuple(mask.shape)}, there are {len(data['rewards'])} rewards")
    return Actions.padded(mask.unsqueeze(0))


def _steps(data: Data, actions: Actions, off_policy: bool) -> Steps:
    """The transitions at action tokens; a reward or an end elsewhere goes to the action before it."""
    rewards = actions.rewards(_column(data, "rewards", actions))
    columns = {name: actions.take(_column(data, name, actions)).to(rewards) for name in COLUMNS if name in data}
    values = columns.get("values", torch.zeros_like(rewards))
    last = torch.as_tensor(data.get("next_value", 0.0)).to(rewards).reshape(1)
    after = columns.get("next_values", torch.cat([values[1:], last])[: len(values)])
    ratio = None
    if off_policy:
        missing = [name for name in ("log_probs", "behaviour_log_probs") if name not in columns]
        if missing:
            raise ValueError(f"{missing[0]} are missing, which this method needs")
        ratio = columns["log_probs"] - columns["behaviour_log_probs"]
    if "truncated" in data and not {"next_value", "next_values"} & set(data):
        raise ValueError("truncated needs next_value, V behind the last step, or next_values")
    terminated = _flags(data, "terminated" if "terminated" in data else "dones", actions)
    if terminated is None:
        terminated = torch.zeros_like(rewards, dtype=torch.bool)
        terminated[-1:] = not ({"next_value", "next_values", "truncated"} & set(data))
    return Steps.of(rewards, values, after, terminated, _flags(data, "truncated", actions), ratio)


def _column(data: Data, name: str, actions: Actions) -> Tensor:
    column = torch.as_tensor(data[name]).unsqueeze(0)
    if column.shape != actions.shape:
        raise ValueError(f"{name} has shape {tuple(column.shape[1:])}, there are {actions.shape[1]} rewards")
    return column if column.is_floating_point() else column.float()


def _flags(data: Data, name: str, actions: Actions) -> Tensor | None:
    """Flags [A]; a single flag is that of the last action."""
    if name not in data:
        return None
    flags = torch.as_tensor(data[name])
    if flags.dim() == 0:
        return actions.last & bool(flags)
    return actions.rewards(_column({name: flags.float()}, name, actions)) > 0


def compute_gae(
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    next_value: Tensor,
    gamma: float = 0.99,
    lamda: float = 0.95,
    *,
    truncated: Tensor | None = None,
    final_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GAE of vectorised environments -> (advantages, returns), all [..., T] with time last.

    There is no padding: every slot is a step. dones: true ends. next_value [...]: V behind the last step. truncated:
    steps ended by a limit, whose next state has the value in final_values [..., T] (before the environment was reset);
    without it, V of the next step.
    """
    following = torch.cat([values[..., 1:], next_value.unsqueeze(-1)], dim=-1)
    if truncated is not None and final_values is not None:
        following = torch.where(truncated.bool(), final_values, following)
    return gae(Steps.of(rewards, values, following, dones, truncated), gamma, lamda)
