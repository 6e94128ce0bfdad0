"""An environment of OpenEnv: climb by the digits that are said; a rubric of two. `Careless` does not repeat itself."""

import os
import random
from typing import Any

from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from openenv.core.rubrics.base import Rubric


class Step(Action):
    words: str


class Seen(Observation):
    height: int = 0


class Up(Rubric):
    def forward(self, action: Step, observation: Seen) -> float:
        return float(action.words.isdecimal())


class Both(Rubric):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.brief = Up(), Brief()

    def forward(self, action: Step, observation: Seen) -> float:
        return float(self.up(action, observation) + self.brief(action, observation))


class Brief(Rubric):
    def forward(self, action: Step, observation: Seen) -> float:
        return -0.25 * len(action.words)


class Stairs(Environment[Step, Seen, State]):
    def __init__(self, top: int = 5) -> None:
        super().__init__(rubric=Both())
        self.top, self.height = top, 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Seen:
        self.height = random.Random(seed).randint(0, 2)
        return Seen(height=self.height)

    def step(self, action: Step, timeout_s: float | None = None, **more: Any) -> Seen:
        self.height += int(action.words) if action.words.isdecimal() else 0
        seen = Seen(height=self.height, done=self.height >= self.top)
        seen.reward = self._apply_rubric(action, seen)
        return seen

    @property
    def state(self) -> State:
        return State()


class Careless(Stairs):
    def step(self, action: Step, timeout_s: float | None = None, **more: Any) -> Seen:
        self.height = int.from_bytes(os.urandom(4), "big")
        return Seen(height=self.height)
