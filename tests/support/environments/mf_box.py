"""A taskset of verifiers that cannot be played here: its reward wants a runtime."""

from collections.abc import Iterator

import verifiers.v1 as vf


class Boxed(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def works(self, runtime: vf.Runtime) -> float:
        return float(runtime is not None)


class Boxes(vf.Taskset[Boxed, vf.TasksetConfig]):
    def load(self) -> Iterator[Boxed]:
        yield Boxed(vf.TaskData(prompt="Do it."), self.config.task)


__all__ = ["Boxes"]
