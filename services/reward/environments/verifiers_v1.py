"""verifiers (0.4, its interface `verifiers.v1`): a taskset, its rewards, and its tools or its `Env`, as a reward file.

    rows        one a task: system prompt, tools and prompt as messages, the task's data as the answer
    reward_fn   the task's rewards by name, each times its weight, on a trace made of the conversation
    interact    the tools that the model called in its last turn, each with the episode's state; or the next message of
                the package's own `Env`, which is played again from its beginning with the model's turns so far

The model calls a tool as Qwen and Hermes do: <tool_call>{"name": ..., "arguments": {...}}</tool_call>. Not for tasks
that need a runtime (a box to work in), for several agents, or for an `Env` that does not repeat itself.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from inspect import Parameter, signature
from typing import Any

Message = dict[str, str]

CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
ENDLESS = 256
"""Rows of a taskset without end, when nobody says how many."""
STATE = "verifiers"
"""Where the episode's state has that of the tools."""
HOW_TO_CALL = (
    "You may call these functions:\n{tools}\n"
    'To call one, write <tool_call>{{"name": NAME, "arguments": {{...}}}}</tool_call> and wait for its answer.'
)


def load(name: str, arguments: dict[str, Any]) -> "Environment":
    """The taskset package `name`; `arguments` are the fields of its config. Raises ImportError, ValueError."""
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise ImportError(f"verifiers 0.4 is needed: pip install 'midflight[verifiers]' ({error})") from error
    return Environment(vf, name, arguments)


class Environment:
    """One taskset with what answers its agent."""

    def __init__(self, vf: Any, name: str, arguments: dict[str, Any]) -> None:
        self.vf, self.name = vf, name
        config = vf.taskset_config_type(name).model_validate({**arguments, "id": name})
        self.taskset = vf.load_taskset(config)
        self.task_type = type(self.taskset).task_type()
        self.env = None
        if vf.environment_class(name) is not vf.SingleAgentEnv:
            self.env = vf.load_environment(vf.env_config_type(name).model_validate({"taskset": config}))
        overridden = [
            hook for hook in ("setup", "finalize") if getattr(self.task_type, hook) is not getattr(vf.Task, hook)
        ]
        if self.task_type.NEEDS_CONTAINER or overridden:
            raise ValueError(
                f"verifiers:{name} works in a runtime ({', '.join(overridden) or 'a container'}), as no tool here"
            )

    def rows(self, count: int | None = None) -> Iterator[dict[str, Any]]:
        """Prompt rows of the first tasks; when None of all, or of 256 of a taskset without end."""
        if count is None and not self.taskset.bounded:
            count = ENDLESS
        for task in itertools.islice(self.taskset, count):
            self._fits(task)
            yield {
                "messages": asyncio.run(self._opening(task)),
                "answer": task.data.model_dump(mode="json", exclude_defaults=True),
            }

    async def interact(self, messages: list[Message], state: dict[str, Any], answer: dict[str, Any]) -> list[Message]:
        """What the tools or the `Env` say to the model's last turn; nothing when neither has anything to say."""
        task = self._task(answer)
        if self.env is not None:
            play = await Play(self, task, messages, final=False).run()
            return [] if play.asks is None else [{"role": "user", "content": play.asks}]
        trace = self._trace(task, messages, state)
        for stop in task.hooks("stop"):
            if await stop(trace=trace):
                return []
        calls = CALL.findall(messages[-1]["content"])
        tools = await self._tools(task, state) if calls else {}
        return [{"role": "tool", "content": await answered(tools, call)} for call in calls]

    async def reward_fn(
        self, messages: list[Message], answer: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, float]:
        """Each named reward times its weight. Raises ValueError for one that was not scored."""
        task = self._task(answer)
        if self.env is not None:
            trace = (await Play(self, task, messages, final=True).run()).trace
        else:
            trace = self._trace(task, messages, state)
            await task.score(trace)
        missing = [name for name, reward in trace.rewards.items() if reward is None]
        if missing or not trace.rewards:
            raise ValueError(f"verifiers:{self.name} gave no reward {', '.join(missing)}".rstrip())
        return {name: reward.value for name, reward in trace.rewards.items()}

    def _task(self, answer: dict[str, Any]) -> Any:
        """The task of a row, as it was."""
        task = self.task_type(self.task_type.data_type().model_validate(answer), self.taskset.config.task)
        self._fits(task)
        return task

    def _fits(self, task: Any) -> None:
        """Raise ValueError for a task whose functions want what there is not here."""
        for kind in ("reward", "metric", "stop"):
            for function in task.hooks(kind):
                known = {"trace"} if kind == "stop" else {"task", "trace"}
                wanted = [p.name for p in signature(function).parameters.values() if p.default is Parameter.empty]
                if lacking := set(wanted) - known:
                    text = f"verifiers:{self.name}: {kind} {function.__name__} wants {', '.join(sorted(lacking))}"
                    raise ValueError(f"{text}; there is only {', '.join(sorted(known))} here")

    async def _opening(self, task: Any) -> list[Message]:
        data, tools = task.data, await self._tools(task, {})
        described = [json.dumps({"name": name, **about}) for name, (_, _, about) in tools.items()]
        system = [data.system_prompt or "", HOW_TO_CALL.format(tools="\n".join(described)) if tools else ""]
        messages = [{"role": "system", "content": "\n\n".join(filter(None, system))}] if any(system) else []
        prompt = data.prompt if not isinstance(data.prompt, str) else [self.vf.UserMessage(content=data.prompt)]
        messages += [{"role": one.role, "content": text_of(one.content)} for one in prompt or []]
        if prompt is None and self.env is not None:
            opened = await Play(self, task, [], final=False).run()
            messages.append({"role": "user", "content": opened.asks or ""})
        return messages

    def trace(self, task: Any, state: Any = None) -> Any:
        """A trace of `task` without messages."""
        vf = self.vf
        seed = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        more = {} if state is None else {"state": state}
        return vf.Trace(task=seed, agent=vf.AgentInfo(config=vf.AgentConfig()), ok=True, is_completed=True, **more)

    def note(self, trace: Any, role: str, content: str) -> None:
        """Append a message to a trace; the assistant's with the calls in it."""
        vf, node = self.vf, len(trace.nodes)
        made = {"system": vf.SystemMessage, "user": vf.UserMessage}.get(role)
        if role == "assistant":
            calls = [read_call(call) for call in CALL.findall(content)]
            asked = [
                vf.ToolCall(id=f"{node}.{at}", name=call[0], arguments=json.dumps(call[1]))
                for at, call in enumerate(calls)
                if call
            ]
            message = vf.AssistantMessage(content=content, tool_calls=asked or None)
        else:
            message = made(content=content) if made else vf.ToolMessage(tool_call_id=f"{node}", content=content)
        sampled = role == "assistant"
        trace.nodes.append(vf.MessageNode(parent=node - 1 if node else None, message=message, sampled=sampled))

    def _trace(self, task: Any, messages: list[Message], state: dict[str, Any]) -> Any:
        from verifiers.v1.state import state_cls

        trace = self.trace(task, state_cls(type(task)).model_validate(state.get(STATE, {})))
        for message in messages:
            self.note(trace, message["role"], message["content"])
        return trace

    async def _tools(self, task: Any, state: dict[str, Any]) -> dict[str, tuple[Any, str, dict[str, Any]]]:
        """Tools by the name the model knows: its server, its name there, what it takes. They share the state."""
        from mcp.server.mcpserver import MCPServer

        found: dict[str, tuple[Any, str, dict[str, Any]]] = {}
        shared = self.taskset.toolsets(self.taskset.config)
        for toolset in (*shared, *type(task).toolsets(task.config)):
            await toolset.setup()
            if toolset not in shared:
                await toolset.setup_task(task.data)
            bind(toolset, state)
            server = MCPServer(toolset.server_name or "tools")
            toolset.register(server)
            prefix = f"{toolset.server_name}_" if toolset.server_name else ""
            for tool in await server.list_tools():
                about = {"description": tool.description or "", "parameters": tool.input_schema}
                found[prefix + tool.name] = (server, tool.name, about)
        return found


def bind(toolset: Any, state: dict[str, Any]) -> None:
    """Let a toolset's state be the episode's: verifiers carries it over HTTP, which a worker has none of."""

    async def pull() -> Any:
        """The state before a tool is called."""
        held.append(toolset._state_adapter.validate_python(state.get(STATE, {})))
        return held[-1]

    async def push(before: bytes) -> None:
        """Keep it as the tool left it."""
        state[STATE] = {**state.get(STATE, {}), **held[-1].model_dump(mode="json")}

    held: list[Any] = []
    toolset._pull_state, toolset._push_state = pull, push


def read_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a call; None when it is not one."""
    try:
        call = json.loads(text)
    except ValueError:
        return None
    arguments = call.get("arguments", {}) if isinstance(call, dict) else None
    return (str(call["name"]), arguments) if isinstance(arguments, dict) and "name" in call else None


async def answered(tools: dict[str, tuple[Any, str, dict[str, Any]]], text: str) -> str:
    """A tool's answer to a call; to one that cannot be made, why not: the model may try again."""
    call = read_call(text)
    if call is None:
        return 'error: no call; want {"name": NAME, "arguments": {...}}'
    if call[0] not in tools:
        return f"error: no function {call[0]!r}; there are {', '.join(sorted(tools))}"
    server, name, _ = tools[call[0]]
    try:
        result = await server.call_tool(name, call[1])
    except Exception as error:
        return f"error: {error}"
    return "\n".join(getattr(block, "text", str(block)) for block in getattr(result, "content", result))


def text_of(content: Any) -> str:
    """The text of a prompt's message. Raises ValueError for anything but text."""
    if isinstance(content, str):
        return content
    if any(part.type != "text" for part in content or []):
        raise ValueError("this environment shows pictures, which no model here can see")
    return "".join(part.text for part in content or [])


class Waits(BaseException):
    """The `Env` wants a turn that the model has not had; no `except Exception` of it must catch this."""


class Play:
    """An `Env` from its beginning, with the model's turns so far. `asks`: what it says to the last; None at its end.

    final: nothing more will come, so that the exchange is over where another turn would be. Raises RuntimeError if
    what it says now differs from what it said before.
    """

    def __init__(self, made: Environment, task: Any, messages: list[Message], *, final: bool) -> None:
        self.made, self.task, self.final = made, task, final
        first = next((at for at, one in enumerate(messages) if one["role"] == "assistant"), len(messages))
        self.opening, self.rest = messages[:first], messages[first:]
        self.asks: str | None = None
        self.trace: Any = None

    async def run(self) -> "Play":
        """Play it."""
        try:
            await self.made.env.run(self.task, self)  # type: ignore[union-attr]
        except Waits:
            return self
        if self.final:
            await self._finalize()
        return self

    async def _finalize(self) -> None:
        vf, env, task = self.made.vf, self.made.env, self.task
        seed = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        await env.finalize(task, vf.Episode(env=vf.EnvInfo(id=self.made.name), task=seed, traces=[self.trace], ok=True))  # type: ignore[union-attr]

    def __getattr__(self, role: str) -> "Play":
        """`agents.ROLE`: there is one agent."""
        if role.startswith("_"):
            raise AttributeError(role)
        return self

    @asynccontextmanager
    async def interaction(self, task: Any) -> AsyncIterator["Play"]:
        """The exchange; its end is scored, as verifiers does."""
        if self.trace is not None:
            raise ValueError(f"verifiers:{self.made.name} lets a second agent play, and one is trained here")
        self.trace = self.made.trace(task)
        for message in self.opening:
            self.made.note(self.trace, message["role"], message["content"])
        self._prompted = task.data.prompt is not None
        yield self
        await task.score(self.trace)

    async def turn(self, message: str | None = None) -> Any:
        """The model's answer to `message`, from before; the end, or the wait for one, when there is none."""
        vf = self.made.vf
        if message is not None and self._prompted:
            if self.rest and (self.rest[0]["role"] == "assistant" or self.rest.pop(0)["content"] != message):
                raise RuntimeError(f"verifiers:{self.made.name} did not repeat itself: it now says {message[:80]!r}")
            self.made.note(self.trace, "user", message)
        self._prompted = True
        if not self.rest:
            if self.final:
                return vf.Segment(messages=[], terminated=True)
            self.asks = message or ""
            raise Waits
        reply = self.rest.pop(0)["content"]
        self.made.note(self.trace, "assistant", reply)
        return vf.Segment(messages=[vf.AssistantMessage(content=reply)], root_reply=reply)
