"""Tools and a judge that are coroutines, with a state they count in and two objectives."""

import asyncio


async def interact(messages: list[dict[str, str]], state: dict[str, int]) -> list[dict[str, str]]:
    await asyncio.sleep(0)
    state["seen"] = state.get("seen", 0) + 1
    return [{"role": "tool", "content": f"={state['seen']}="}]


async def reward_fn(messages: list[dict[str, str]], answer: str, *, state: dict[str, int]) -> dict[str, float]:
    await asyncio.sleep(0)
    text = "".join(message["content"] for message in messages if message["role"] == "assistant")
    return {"seen": float(state.get("seen", 0)), "letters": sum(letter in "abcdefghij" for letter in text) / 16}
