"""A taskset of verifiers: a sum whose numbers have to be asked for; a tool that counts its calls, three rewards."""

from collections.abc import Iterator

import verifiers.v1 as vf


class Data(vf.TaskData):
    table: dict[str, int] = {}


class Seen(vf.State):
    asked: list[str] = []


class Book(vf.Toolset[vf.ToolsetConfig, Seen]):
    TOOL_PREFIX = None

    async def setup_task(self, task: Data) -> None:
        self.table = task.table

    @vf.tool
    def look_up(self, name: str) -> str:
        """The number of a name."""
        self.state.asked = [*self.state.asked, name]
        return str(self.table[name])


class Sum(vf.Task[Data, Seen, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Book(vf.ToolsetConfig())]

    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(sum(self.data.table.values())))

    @vf.reward
    async def asked(self, trace: vf.Trace) -> float:
        return len(set(trace.state.asked)) / len(self.data.table)

    @vf.reward
    async def turns(self, trace: vf.Trace) -> dict[str, float]:
        calls = sum(len(one.tool_calls or []) for one in trace.assistant_messages)
        return {"calls": -0.1 * calls, "spoke": float(trace.num_turns)}


class Config(vf.TasksetConfig):
    count: int = 3


class Sums(vf.Taskset[Sum, Config]):
    def load(self) -> Iterator[Sum]:
        for n in range(self.config.count):
            data = Data(prompt=f"a{n} + b{n}", system_prompt="Add.", table={f"a{n}": n, f"b{n}": 10 * n})
            yield Sum(data, self.config.task)


__all__ = ["Sums"]
