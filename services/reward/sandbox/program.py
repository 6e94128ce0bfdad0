"""The user's file inside a worker: imported once, its functions called, and what they return checked.

`reward_fn(messages, answer)` gives a number or a dict of named numbers; `interact(messages)`, if the file defines it,
the messages of the tools and the environment, none when the episode is at its end. Both may be `async def`, and are
given what else they name: `state` (a dict kept over the episode), `call` (the same text at every try of this turn),
`answer` (interact). Standard library only: workers load this file by its path.
"""

import json
import linecache
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType, TracebackType

from .channel import ACTED, FAULT, LARGEST_REPORT, SCORED, TAIL

_DECODER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(allow_nan=False, check_circular=False)
_PARTS: Callable[[object, bool], Iterable[str]] = _ENCODER.iterencode
_MAKE = getattr(json.encoder, "c_make_encoder", None)
if _MAKE:  # once: json makes an encoder for every text, which costs a call 60 pages
    _TEXT = json.encoder.encode_basestring_ascii
    _PARTS = _MAKE(None, _ENCODER.default, _TEXT, None, ": ", ", ", False, False, False)
_MOST_OBJECTIVES = 32
_LARGEST_REWARD = 1e30  # sums and squares of batches of them are still numbers
_TAKES_ANY = 0x08  # inspect.CO_VARKEYWORDS
_REHEARSALS = 50  # more than it takes the interpreter to specialize a function


class WrongResult(Exception):
    """A function returned something that it must not."""


def named_rewards(result: object) -> dict[str, float]:
    """Return the rewards by objective: a dict as it is, a bare number as "reward".

    Raises:
        WrongResult: not a number, not finite, or an unusable name.
    """
    if type(result) is float and abs(result) <= _LARGEST_REWARD:
        return {"reward": result}
    items: dict[object, object] = result if isinstance(result, dict) else {"reward": result}
    if not items:
        raise WrongResult("reward_fn returned an empty dict - name at least one objective")
    if len(items) > _MOST_OBJECTIVES:
        raise WrongResult(f"reward_fn returned {len(items)} objectives - at most {_MOST_OBJECTIVES} are kept apart")
    rewards: dict[str, float] = {}
    for name, value in items.items():
        if not isinstance(name, str) or not 0 < len(name) <= 64 or not is_text(name):
            raise WrongResult(f"reward_fn returned the objective name {name!r:.80} - use a text of 1 to 64 characters")
        to_float = getattr(type(value), "__float__", None)
        if to_float is None:
            raise WrongResult(f"reward_fn returned {value!r:.80} for {name!r} - expected a number or a dict of numbers")
        rewards[name] = float(to_float(value))
        if not abs(rewards[name]) <= _LARGEST_REWARD:  # neither is nan
            most = f"finite, and at most {_LARGEST_REWARD:g}"
            raise WrongResult(f"reward_fn returned {rewards[name]} for {name!r} - a reward must be {most}")
    return rewards


def tool_messages(result: object) -> list[dict[str, str]]:
    """Return what `interact` said: a list of {"role": text, "content": text}, none of the assistant's.

    Raises:
        WrongResult: it is anything else.
    """
    if not isinstance(result, list):
        raise WrongResult(f"interact returned {result!r:.80} - expected a list of messages, empty at the end")
    for message in result:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise WrongResult(
                f'interact returned the message {message!r:.80} - expected {{"role": ..., "content": ...}}'
            )
        if not all(isinstance(text, str) for text in message.values()):
            raise WrongResult(f"interact returned the message {message!r:.80} - role and content must be texts")
        if not 0 < len(message["role"]) <= 64:
            raise WrongResult(f"interact returned the role {message['role']!r:.80} - use a text of 1 to 64 characters")
        if not all(map(is_text, message.values())):
            raise WrongResult("interact returned half a surrogate pair, which is no text - replace what is not Unicode")
        if message["role"] == "assistant":
            raise WrongResult("interact returned a message of the assistant - only the model speaks for it")
    return result


def is_text(text: str) -> bool:
    """Whether a message can hold it: half a surrogate pair has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Program:
    """The user's file, imported once, with its `reward_fn` and, if it has one, its `interact`.

    Raises:
        WrongResult: no `reward_fn` in it, or an `interact` that cannot be called. Whatever importing it raises.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        module = ModuleType("midflight_reward")
        module.__file__ = path
        sys.modules[module.__name__] = module
        exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - importing the user's file is the purpose
        self._reward = getattr(module, "reward_fn", None)
        self._interact = getattr(module, "interact", None)
        if not callable(self._reward):
            raise WrongResult(f"{path}:1: no function reward_fn(messages, answer) in this file")
        if self._interact is not None and not callable(self._interact):
            raise WrongResult(f"{path}:1: interact is not a function interact(messages)")
        self._named = {self._reward: _keywords(self._reward, 2)}
        if self._interact is not None:
            self._named[self._interact] = _keywords(self._interact, 1)
        self._run: Callable[[object], object] | None = None

    @property
    def interacts(self) -> bool:
        """Whether the file defines `interact`."""
        return self._interact is not None

    def reward(self, job: dict[str, object]) -> object:
        """Call `reward_fn` on a job, and run it to its end if it is an `async def`."""
        assert self._reward is not None
        return self._call(self._reward, (job["messages"], job["answer"]), job)

    def interact(self, job: dict[str, object]) -> object:
        """Call `interact` on a job, in the same way."""
        assert self._interact is not None
        return self._call(self._interact, (job["messages"],), job)

    def _call(self, function: Callable[..., object], positional: tuple[object, ...], job: dict[str, object]) -> object:
        if named := self._named[function]:
            result = function(*positional, **{name: job[name] for name in named if name in job})
        else:
            result = function(*positional)
        if hasattr(result, "__await__"):
            if self._run is None:
                import asyncio  # costs 40 ms, and few reward functions need it

                self._run = asyncio.Runner().run  # type: ignore[assignment]
            result = self._run(result)  # type: ignore[misc]
        return result

    def tail(self, error: BaseException) -> str:
        """Format an exception from the user's file downwards."""
        trace: TracebackType | None = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != self.path:
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace))[-TAIL:]


def _keywords(function: Callable[..., object], positional: int) -> tuple[str, ...]:
    """What a function wants beyond its `positional` arguments: the names after them that we can give."""
    offered = ("state", "call") if positional == 2 else ("state", "call", "answer")
    if type(function) is FunctionType and not function.__dict__:  # undecorated
        code = function.__code__
        if code.co_argcount == positional and not code.co_kwonlyargcount and not code.co_flags & _TAKES_ANY:
            return ()
    import inspect  # what is imported makes the fork of every call dearer

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin, or a class without a signature
        return ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    by_place = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    taken = {one.name for one in by_place[:positional]}
    return tuple(one.name for one in parameters if one.name in offered and one.name not in taken)


def where(path: str, error: BaseException) -> str:
    """Return file:line of the deepest place in the user's file that an import error passed through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return f"{path}:{lines[-1] if lines else 1}"


def outcome(program: Program, body: bytes) -> tuple[bytes, bytes]:
    """Run one job: the kind of frame and its JSON.

    SCORED with {rewards, state, seconds}, ACTED with {messages, state, seconds} or FAULT with {blame, why, tail,
    seconds}.
    """
    began = time.perf_counter()
    running, tail = "reward_fn", ""
    try:
        job = _DECODER.raw_decode(body.decode())[0]
        messages: list[dict[str, str]] = []
        if job["interact"] and program.interacts:
            running = "interact"
            messages = tool_messages(program.interact(job))
        if messages:
            return ACTED, _report(running, job, messages=messages, seconds=time.perf_counter() - began)
        running = "reward_fn"
        rewards = named_rewards(program.reward(job))
        return SCORED, _report(running, job, rewards=rewards, seconds=time.perf_counter() - began)
    except WrongResult as error:
        blame, why = "returned", str(error)
    except MemoryError as error:
        traceback.clear_frames(error.__traceback__)  # frees what the function held, so that the report fits
        blame, why, tail = "memory", f"{running} ran out of memory", program.tail(error)
    except BaseException as error:
        blame = "unreachable" if isinstance(error, ConnectionError) else "raised"
        why, tail = f"{running} raised {type(error).__name__}: {error!s:.300}", program.tail(error)
    fault = {"blame": blame, "why": why, "tail": tail, "seconds": time.perf_counter() - began}
    return FAULT, json.dumps(fault).encode()


def _report(running: str, job: dict[str, object], **found: object) -> bytes:
    """Encode what a function returned, with the state it leaves. Raises WrongResult if that is no JSON, or too long."""
    try:
        body = "".join(_PARTS({**found, "state": job["state"]}, False)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongResult(f"{running} left a state that is not JSON: {error!s:.200}") from None
    if not isinstance(job["state"], dict):
        raise WrongResult(f"{running} left the state {job['state']!r:.80} - it must stay a dict")
    if len(body) > LARGEST_REPORT:
        raise WrongResult(f"{running} returned {len(body)} bytes with its state; at most {LARGEST_REPORT} fit")
    return body


def rehearse() -> None:
    """Run our own part of a job until the interpreter has specialized it, before the user's file is imported."""
    path = "<rehearsal>"
    program = Program(path, "def reward_fn(messages, answer): return 1.0")
    body = json.dumps({"messages": [], "answer": None, "interact": False, "state": {}, "call": ""}).encode()
    for _ in range(_REHEARSALS):
        outcome(program, body)
    del linecache.cache[path]
