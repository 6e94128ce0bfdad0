"""The recipe by which a server takes new weights in mid-generation, and what makes each step of it necessary.

    pause -> (begin) -> update, flushing the prefix cache -> (end) -> weight_version read back -> continue

retract: running requests go back to the queue and their keys and values are computed anew, so that each token is wholly
of one version and exact. in_place: they go on with the old keys and values; the prefix cache cannot be flushed then
(SGLang answers no, and has changed the weights all the same), so requests carry their version as a cache key. abort:
they come back as they are, and what is missing is asked for again. Begin and end are needed around tensors that are
sent, not around a folder. Whatever fails, the server has unknown weights and must not be used again.
"""

import asyncio
import base64
import pickle  # SGLang's wire format for tensors: written here, never read
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from .client import Client, Gone, Refused
from .group import Group
from .offered import Offered
from .reply import BadReply

Pause = Literal["retract", "in_place", "abort"]
Transfer = Literal["disk", "tensor", "distributed"]
TAKE_OVER_S = 30.0


class UpdateFailed(RuntimeError):
    """The server's weights are unknown from here on."""


async def update(
    client: Client,
    offered: Offered,
    pause: Pause,
    transfer: Transfer,
    limit_s: float,
    *,
    answer_s: float,
    group: Group | None,
    ranks: int,
) -> None:
    """Bring one server to `offered`, requests in flight included. group: with transfer distributed.

    limit_s: longest time of the transfer. answer_s: of everything else, during which no response is taken in.

    Raises UpdateFailed, and then the server must be discarded.
    """
    version = str(offered.version)
    common = {"flush_cache": pause != "in_place", "weight_version": version}
    try:
        await client.post("/pause_generation", {"mode": pause}, answer_s)
        if transfer == "disk":
            body = {"model_path": str(offered.folder), "load_format": "auto", **common}
            await client.post("/update_weights_from_disk", body, limit_s)
        elif transfer == "tensor":
            body = {"serialized_named_tensors": [packed(offered.tensors)] * ranks, **common}
            await _session(client, limit_s, lambda: client.post("/update_weights_from_tensor", body, limit_s))
        else:
            assert group is not None
            await _session(client, limit_s, lambda: _broadcast(client, group, offered.tensors, common, limit_s))
        said = await client.weight_version(answer_s)
        if said != version:
            raise UpdateFailed(f"{client.url} says weight_version {said!r} after an update to {version}")
        await client.post("/continue_generation", {}, answer_s)
    except UpdateFailed:
        raise
    except (Gone, Refused, BadReply, OSError, RuntimeError) as error:  # RuntimeError: what torch says of a lost group
        raise UpdateFailed(f"update to version {version}: {error}") from error


async def take_over(client: Client) -> None:
    """Of a server that somebody used before: let it go on if it stands still, and end what it still generates."""
    await client.post("/continue_generation", {}, TAKE_OVER_S)
    await client.post("/abort_request", {"abort_all": True}, TAKE_OVER_S)


def packed(tensors: Mapping[str, Tensor]) -> str:
    """The names and tensors as SGLang's `/update_weights_from_tensor` reads them, bytes inline."""
    named = [(name, tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()]
    return base64.b64encode(pickle.dumps(named)).decode()


async def _session(client: Client, limit_s: float, send: Callable[[], Awaitable[Any]]) -> None:
    await client.post("/begin_weight_update", {"selector": "all"}, limit_s)
    await send()
    await client.post("/end_weight_update", {}, limit_s)


async def _broadcast(
    client: Client, group: Group, tensors: Mapping[str, Tensor], common: Mapping[str, Any], limit_s: float
) -> None:
    """The server waits for what rank 0, which is this process, broadcasts in the order it was told."""
    body = {
        "names": list(tensors),
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
        "group_name": group.name,
        **common,
    }
    receive = asyncio.ensure_future(client.post("/update_weights_from_distributed", body, limit_s))
    send = asyncio.get_running_loop().run_in_executor(None, group.broadcast, list(tensors.values()))
    await asyncio.wait({receive, send}, return_when=asyncio.FIRST_EXCEPTION, timeout=limit_s)
    if not receive.done():
        receive.cancel()
        raise TimeoutError("the server did not take the broadcast")
    receive.result()
    await asyncio.wait_for(send, limit_s)
