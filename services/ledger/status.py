"""The balance as people ask for it: of a living ledger, or of the store of a run that is over."""

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from midflight.messages.base import Scalar
from midflight.messages.samples import LedgerStatus
from midflight.messages.wire import MAX_BODY

from .balance import balance
from .changes import Snapshot
from .payload import tail_of
from .states import Split
from .store import Store

LIFE_LINES = 1000
REASONS = 20
SAID = 256
SAID_CHARS = 1000
"""Of a message, for people."""
LINES_BYTES = MAX_BODY // 3
"""Of a life, and of what was said: so that both fit a message."""


def status(snapshot: Snapshot, store: Store, sample: int | None, stats: Mapping[str, Any]) -> LedgerStatus:
    """Counts by state, what does not add up, and one sample's life if asked for."""
    sums = balance(snapshot)
    saved = cast(dict[str, Any], snapshot.meta.get("book", {}))
    newest = saved.get("policy", [None])[0]
    events = store.life(sample)[-LIFE_LINES:] if sample is not None else []
    life: list[dict[str, Scalar]] = [
        {"at_ns": e.at_ns, "state": e.state, "epoch": e.epoch, "who": e.who, "why": e.why} for e in events
    ]
    reasons, newest_of = _most_common(sums.reasons), store.newest_by_reason()
    return LedgerStatus(
        issued=sums.issued.get(Split.TRAIN, 0),
        states={state: n for state, n in sums.states[Split.TRAIN].items() if n},
        eval_states={state: n for state, n in sums.states[Split.EVAL].items() if n},
        problems=sums.problems()[:100],
        step=sums.step,
        committed=sums.committed,
        version=-1 if newest is None else int(newest),
        life=_newest(life),
        said=_newest(_said(store, sample)) if sample is not None else [],
        reasons=reasons,
        examples={why: newest_of[why] for why in reasons if why in newest_of},
        stats=dict(stats),
    )


def offline(path: Path, sample: int | None) -> LedgerStatus:
    """The status of a run that is over."""
    store = Store(path)
    try:
        return status(store.load(), store, sample, {"live": False})
    finally:
        store.close()


def _said(store: Store, sample: int) -> list[dict[str, Scalar]]:
    """The newest messages of the model and the tools, each with its turn and its beginning; none when not stored."""
    try:
        messages = json.loads(tail_of(store.payload(sample)))
    except KeyError:
        return []
    turns = accumulate(one["role"] == "assistant" for one in messages)
    said = [
        {"turn": max(0, turn - 1), "role": str(one["role"]), "content": str(one["content"])[:SAID_CHARS]}
        for turn, one in zip(turns, messages, strict=True)
    ]
    return said[-SAID:]


def _newest(lines: list[dict[str, Scalar]]) -> list[dict[str, Scalar]]:
    """The last of them that fit; as JSON with everything escaped they are not shorter than on the wire."""
    sizes = accumulate(len(json.dumps(line)) for line in reversed(lines))
    return lines[len(lines) - sum(size <= LINES_BYTES for size in sizes) :]


def _most_common(reasons: Mapping[str, int]) -> dict[str, int]:
    """The REASONS most frequent ones, and the rest together."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    shown = dict(ordered[:REASONS])
    if rest := sum(n for _, n in ordered[REASONS:]):
        shown[f"{len(ordered) - REASONS} other reasons"] = rest
    return shown
