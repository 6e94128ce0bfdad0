"""An OpenEnv environment (`openenv.core`, 0.3 and later) as a reward file: its class, made and stepped in the worker.

    rows        one a seed: the instructions, and what `reset(seed)` shows
    interact    what the step with the model's last turn as the action shows; nothing once the episode is done
    reward_fn   the steps' rewards added up, as "reward"; with `objectives: [...]`, of those rubrics by their names

NAME is `package.module:Class`. A worker keeps nothing between two calls, so the episode is played again from its seed
with the actions so far, and must then show what it showed before. Not for environments that do not repeat themselves,
nor for those that are served: their sessions end with their connection.
"""

import json
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from typing import Any, get_type_hints

Message = dict[str, str]
HIDDEN = frozenset({"done", "reward", "metadata"})


def load(name: str, arguments: dict[str, Any]) -> "Environment":
    """The class `package.module:Class`. Raises ImportError, AttributeError, TypeError, ValueError."""
    return Environment(name, **arguments)


class Environment:
    """Episodes of one class.

    arguments: of its constructor. instructions: what the model is told first. action_field: the field of the action
    that its words are, the only one without a default when omitted; "" when they are a JSON object of all fields.
    shows: the field of an observation that is shown, a JSON object of all when omitted. objectives: rubrics by name.
    """

    def __init__(
        self,
        name: str,
        *,
        arguments: dict[str, Any] | None = None,
        instructions: str = "",
        action_field: str | None = None,
        shows: str | None = None,
        objectives: list[str] | None = None,
    ) -> None:
        module, _, attribute = name.partition(":")
        self.name, self.make = name, getattr(import_module(module), attribute)
        self.arguments, self.instructions, self.shows = arguments or {}, instructions, shows
        self.objectives = objectives or []
        self.action = get_type_hints(self.make.step).get(list(signature(self.make.step).parameters)[1])
        if not hasattr(self.action, "model_fields"):
            raise TypeError(f"openenv:{name}: step does not say which action it takes")
        self.field = self._field() if action_field is None else action_field

    def _field(self) -> str:
        needed: list[str] = [name for name, field in self.action.model_fields.items() if field.is_required()]  # type: ignore[union-attr]
        if len(needed) != 1:
            text = f"openenv:{self.name}: an action has the fields {', '.join(needed) or 'none'}"
            raise ValueError(f'{text} - say action_field, "" for a JSON object of all')
        return needed[0]

    def rows(self, count: int | None = None) -> Iterator[dict[str, Any]]:
        """Prompt rows of the seeds from 0 on; 256 when None."""
        for seed in range(256 if count is None else count):
            told = [self.instructions, self._told(self._reset(self.make(**self.arguments), seed))]
            yield {"messages": [{"role": "user", "content": "\n".join(filter(None, told))}], "answer": {"seed": seed}}

    def interact(self, messages: list[Message], answer: dict[str, Any]) -> list[Message]:
        """What the environment shows next; nothing when it is done."""
        _, _, shown = self._play(messages, answer)
        return [] if shown is None else [{"role": "user", "content": shown}]

    def reward_fn(self, messages: list[Message], answer: dict[str, Any]) -> dict[str, float]:
        """By name, added up over the steps."""
        total, by_name, _ = self._play(messages, answer)
        return by_name if self.objectives else {"reward": total}

    def _play(self, messages: list[Message], answer: dict[str, Any]) -> tuple[float, dict[str, float], str | None]:
        """The episode again: rewards, those of the rubrics, and what is shown next, None when it is done.

        Raises RuntimeError if it was shown something else before.
        """
        env = self.make(**self.arguments)
        last = self._reset(env, answer["seed"])
        total, by_name = 0.0, dict.fromkeys(self.objectives, 0.0)
        first = next(at for at, one in enumerate(messages) if one["role"] == "assistant")
        shown = ""
        for said in messages[first:]:
            if said["role"] != "assistant":
                if shown != said["content"]:
                    raise RuntimeError(f"openenv:{self.name} did not repeat itself: it now shows {shown[:80]!r}")
                continue
            try:
                action = self._action(said["content"])
            except ValueError as error:  # the model's mistake, of which it is told
                shown = f"error: {error!s:.200}"
                continue
            last = env.step(action)
            shown = self._told(last)
            total += float(last.reward or 0.0)
            for name in self.objectives:
                by_name[name] += float(env.rubric.get_rubric(name).last_score or 0.0)
        env.close()
        return total, by_name, None if last.done else shown

    def _action(self, words: str) -> Any:
        return self.action(**({self.field: words} if self.field else json.loads(words)))  # type: ignore[misc]

    def _reset(self, env: Any, seed: int) -> Any:
        return env.reset(seed=seed) if "seed" in signature(env.reset).parameters else env.reset()

    def _told(self, observation: Any) -> str:
        if self.shows is not None:
            return str(getattr(observation, self.shows))
        return json.dumps(observation.model_dump(mode="json", exclude=HIDDEN), ensure_ascii=False)
