"""A taskset of verifiers with an `Env` of its own: guess a number, be told higher or lower, be judged by the env."""

import random
from collections.abc import Iterator

import verifiers.v1 as vf


class Data(vf.TaskData):
    seed: int = 0


class Guess(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward
    async def short(self, trace: vf.Trace) -> float:
        return float(1.0 / trace.num_turns)


class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task: Guess, agents: vf.Agents) -> None:
        number = random.Random(task.data.seed).randint(1, 9)
        found = 0.0
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                if segment.last_reply == str(number):
                    found = 1.0
                    break
                low = not segment.last_reply.isdecimal() or int(segment.last_reply) < number
                segment = await interaction.turn("higher" if low else "lower")
        interaction.trace.record_reward("found", found)

    async def finalize(self, task: Guess, episode: vf.Episode) -> None:
        episode.traces[0].record_reward("judged", 0.5)


class Config(vf.TasksetConfig):
    pass


class Guesses(vf.Taskset[Guess, Config]):
    INFINITE = True

    def load(self) -> Iterator[Guess]:
        seed = 0
        while True:
            yield Guess(Data(prompt="Guess.", seed=seed), self.config.task)
            seed += 1


__all__ = ["GuessEnv", "Guesses"]
