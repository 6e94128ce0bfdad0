"""Topic samples: tickets out, trajectories in, scores in, batches to the learner. Spoken with the ledger.

One lease protocol serves three stages (generate, score, train). A lease is a pair [sample id, epoch]; the ledger raises
the epoch at every grant and every revocation, so an answer under an old epoch has no effect. Arrays travel as columns:
one buffer a column, the pieces of all samples one after another.

An episode of several turns passes generate and score once a turn, counted from 0. Its conversation travels as JSON
messages: those of the prompt row, and the tail, which is what the model and the tools have said since.
"""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from .base import Bulk, Count, Digest, Epoch, Flat, Lease, Message, Part, SampleId, Text

Stage = Literal["generate", "score", "train"]
MOST_HELD: Final = 16384
"""Leases of one worker in one stage; so many, of whatever ids and epochs, fit a message."""


class Want(Message):
    """Worker to ledger, absolute and idempotent: what I hold, what I have begun, and how much more I take."""

    KIND: ClassVar[str] = "want"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "stage": "generate", "n": 32, "held": [[5, 1], [6, 1]], "begun": 1, "version": 7,
    }  # fmt: skip
    stage: Stage
    n: Annotated[int, Field(ge=0, le=65536, description="MORE samples wanted (train: batches)")]
    held: Annotated[
        list[Lease], Field(max_length=MOST_HELD, description="leases to extend or to claim after a restart")
    ]
    begun: Annotated[
        int, Field(ge=0, le=MOST_HELD, description="so many of `held`, the first ones, may have had an effect")
    ] = 0
    version: Annotated[int, Field(ge=-1, description="policy version loaded; -1: none yet")] = -1
    boot: Annotated[
        str,
        Field(
            max_length=32,
            description="the ledger's start it has heard of; leases of an earlier one that it does not "
            "name never reached it",
        ),
    ] = ""


class WantOk(Message):
    """Ledger to worker: heard. A new `boot` asks for everything unacknowledged again."""

    KIND: ClassVar[str] = "want.ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"boot": "77aa", "version": 7}
    boot: Annotated[str, Field(max_length=32)]
    version: Annotated[int, Field(ge=-1, description="newest policy version")]
    lost: Annotated[list[Lease], Field(max_length=16384, description="leases named by the want that are over")] = []
    evaluating: Annotated[bool, Field(description="an evaluation round is not finished")] = False
    exhausted: Annotated[bool, Field(description="no prompt is left: no further batch will come")] = False


class Ticket(Part):
    """One sample to generate."""

    id: SampleId
    epoch: Epoch
    seed: Annotated[Count, Field(description="sampling seed of this sample")]
    solo: Annotated[bool, Field(description="process it alone: it is suspected of killing its worker")] = False
    split: Literal["train", "eval"] = "train"
    temperature: Annotated[float | None, Field(ge=0, description="None: the rollout's own")] = None
    row_bytes: Annotated[Count, Field(description="length of its JSON row in the column `rows`")]
    turn: Annotated[Count, Field(description="generations this episode has had; above 0: continue it")] = 0
    prefix_tokens: Annotated[Count, Field(description="tokens of its present segment, in the column `prefix`")] = 0
    tail_bytes: Annotated[Count, Field(description="length of its JSON list in the column `tails`")] = 0


class Tickets(Bulk):
    """Ledger to rollout. Column rows |u1: JSON objects {messages, answer, ...} one after another.

    Only where an episode goes on: prefix <i4, the tokens so far, and tails |u1, the messages after the row's own.
    """

    KIND: ClassVar[str] = "tickets"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "tickets": [{"id": 5, "epoch": 1, "seed": 99, "row_bytes": 2}],
        "tensors": [{"name": "rows", "dtype": "|u1", "shape": [2], "frame": 0, "offset": 0}],
    }  # fmt: skip
    tickets: Annotated[list[Ticket], Field(max_length=1024)]


class TrajectoryPart(Part):
    """One finished generation, as far as it is new; its arrays are the next `tokens` elements of each column."""

    id: SampleId
    epoch: Epoch
    tokens: Annotated[Count, Field(description="new ones: prompt, or what the tools said, and completion together")]
    text_bytes: Annotated[Count, Field(description="length of the completion as a JSON message in the column `texts`")]
    stop: Annotated[str, Field(max_length=20, description="stop, length (max_new_tokens) or context (max_length)")]
    version: Annotated[int, Field(ge=-1, description="smallest policy version of its sampled tokens; -1: none")]
    seconds: Annotated[float, Field(ge=0)] = 0.0
    turn: Annotated[Count, Field(description="that of its ticket")] = 0
    segment: Annotated[
        bool, Field(description="the template rewrote earlier turns: this is the conversation anew, apart from before")
    ] = False


class Trajectories(Bulk):
    """Rollout to ledger, resent until `ok`.

    Columns: tokens <i4; mask |u1 (1: sampled by the policy); logprobs <f4 (fp32, of the sampled distribution, 0 where
    mask is 0); versions <i4 (-1 where mask is 0); texts |u1 (JSON messages; no bytes where nothing was sampled).
    """

    KIND: ClassVar[str] = "trajectories"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "parts": [{"id": 5, "epoch": 1, "tokens": 2, "text_bytes": 1, "stop": "stop", "version": 7}],
        "tensors": [
            {"name": "tokens", "dtype": "<i4", "shape": [2], "frame": 0, "offset": 0},
            {"name": "mask", "dtype": "|u1", "shape": [2], "frame": 1, "offset": 0},
            {"name": "logprobs", "dtype": "<f4", "shape": [2], "frame": 2, "offset": 0},
            {"name": "versions", "dtype": "<i4", "shape": [2], "frame": 3, "offset": 0},
            {"name": "texts", "dtype": "|u1", "shape": [1], "frame": 4, "offset": 0},
        ],
    }  # fmt: skip
    parts: Annotated[list[TrajectoryPart], Field(max_length=1024)]


class ScoreJob(Part):
    """One trajectory to score."""

    id: SampleId
    epoch: Epoch
    solo: bool = False
    row_bytes: Count
    text_bytes: Count
    turn: Annotated[Count, Field(description="of the generation that ended")] = 0
    interact: Annotated[bool, Field(description="let the tools speak first; rewards only if they say nothing")] = False
    state_bytes: Annotated[Count, Field(description="length of the episode's JSON state in the column `states`")] = 0


class ScoreJobs(Bulk):
    """Ledger to reward server. Columns rows |u1 (JSON prompt rows) and texts |u1 (tails, JSON lists of messages).

    Only where an episode has a state: states |u1 (JSON objects).
    """

    KIND: ClassVar[str] = "score.jobs"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "jobs": [{"id": 5, "epoch": 2, "row_bytes": 2, "text_bytes": 1}],
        "tensors": [
            {"name": "rows", "dtype": "|u1", "shape": [2], "frame": 0, "offset": 0},
            {"name": "texts", "dtype": "|u1", "shape": [1], "frame": 1, "offset": 0},
        ],
    }  # fmt: skip
    jobs: Annotated[list[ScoreJob], Field(max_length=1024)]


class Said(Part):
    """A message of a tool, or of whoever answers the model."""

    role: Annotated[str, Field(min_length=1, max_length=64, description="who speaks, as the chat template calls it")]
    content: Annotated[str, Field(max_length=1 << 17, description="what is said")]


class Score(Part):
    """A verdict (`rewards` by objective), the user's program at fault (`fault`), or tools that spoke (`messages`)."""

    id: SampleId
    epoch: Epoch
    rewards: Annotated[dict[str, float], Field(max_length=32)] = {}
    fault: Annotated[str | None, Field(max_length=2000)] = None
    messages: Annotated[list[Said], Field(max_length=64, description="the episode goes on with them")] = []
    state: Annotated[str, Field(max_length=1 << 17, description="its state from now on, a JSON object")] = ""


class Scores(Message):
    """Reward server to ledger, resent until `ok`."""

    KIND: ClassVar[str] = "scores"
    EXAMPLE: ClassVar[dict[str, Any]] = {"scores": [{"id": 5, "epoch": 2, "rewards": {"reward": 1.0}}]}
    scores: Annotated[list[Score], Field(max_length=1024)]


class GiveBack(Message):
    """Worker to ledger: these leases end without a result through no fault of the sample.

    `failed`: a try was made, and the infrastructure failed it; such tries come to an end. `strike`: what the sample ran
    in went down with it, as when its worker dies.
    """

    KIND: ClassVar[str] = "give.back"
    EXAMPLE: ClassVar[dict[str, Any]] = {"stage": "score", "leases": [[5, 2]], "why": "worker could not start"}
    stage: Stage
    leases: Annotated[list[Lease], Field(max_length=4096)]
    why: Text
    failed: Annotated[bool, Field(description="a try was made, and the infrastructure failed it")] = False
    strike: Annotated[bool, Field(description="what the sample ran in went down with it")] = False


class Refuse(Message):
    """Worker to ledger: this sample can never be done (a prompt too long, a row of the wrong form)."""

    KIND: ClassVar[str] = "sample.refuse"
    EXAMPLE: ClassVar[dict[str, Any]] = {"stage": "generate", "lease": [5, 1], "why": "prompt of 900 tokens > 256"}
    stage: Stage
    lease: Lease
    why: Text


class Ok(Message):
    """Ledger to worker: committed, or of no effect (`stale`); stop resending either way."""

    KIND: ClassVar[str] = "ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"done": [[5, 1]], "stale": []}
    done: Annotated[list[Lease], Field(max_length=16384)]
    stale: Annotated[list[Lease], Field(max_length=16384)]


class BatchPart(Part):
    """One sample of a batch; its arrays are the next `tokens` elements of each column."""

    id: SampleId
    epoch: Epoch
    group: Count
    tokens: Count
    version: Annotated[int, Field(ge=-1)]
    rewards: dict[str, float]
    text_bytes: Count = 0
    segments: Annotated[
        list[Count], Field(max_length=1024, description="tokens of each, where there are several: read apart")
    ] = []
    turns: Annotated[Count, Field(description="times the model spoke")] = 1
    ended: Annotated[
        str, Field(max_length=20, description="stop, length, context or max_turns; empty when it is not known")
    ] = ""


class Batch(Bulk):
    """Ledger to learner: a whole batch under lease, in `pieces` messages. Columns as in `trajectories`."""

    KIND: ClassVar[str] = "batch"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "batch": 41, "piece": 0, "pieces": 1,
        "parts": [{"id": 5, "epoch": 3, "group": 0, "tokens": 2, "version": 7, "rewards": {"reward": 1.0}}],
        "tensors": [
            {"name": "tokens", "dtype": "<i4", "shape": [2], "frame": 0, "offset": 0},
            {"name": "mask", "dtype": "|u1", "shape": [2], "frame": 1, "offset": 0},
            {"name": "logprobs", "dtype": "<f4", "shape": [2], "frame": 2, "offset": 0},
            {"name": "versions", "dtype": "<i4", "shape": [2], "frame": 3, "offset": 0},
        ],
    }  # fmt: skip
    batch: Count
    piece: Count
    pieces: Annotated[int, Field(ge=1, le=4096)]
    parts: Annotated[list[BatchPart], Field(max_length=4096)]


class Trained(Message):
    """Learner to ledger: step `step` consumed these leases. Provisional until a commit reaches the step."""

    KIND: ClassVar[str] = "trained"
    EXAMPLE: ClassVar[dict[str, Any]] = {"step": 41, "leases": [[5, 3]]}
    step: Count
    leases: Annotated[list[Lease], Field(max_length=16384)]


class Commit(Message):
    """Learner to ledger: a verified checkpoint holds everything up to `step`; payloads up to it may go."""

    KIND: ClassVar[str] = "commit"
    EXAMPLE: ClassVar[dict[str, Any]] = {"step": 40, "digest": "0" * 32}
    step: Count
    digest: Digest


class Committed(Message):
    """Ledger to learner: what was trained up to `step` is closed for good."""

    KIND: ClassVar[str] = "committed"
    EXAMPLE: ClassVar[dict[str, Any]] = {"step": 40}
    step: Count


class Restore(Bulk):
    """Learner to ledger at its start: I stand at `step`; re-open what was trained later.

    Columns samples <i8 and steps <i8: what the checkpoint says was trained at which step since its last commit, so that
    a `trained` which never arrived is known all the same.
    """

    KIND: ClassVar[str] = "restore"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "step": 40,
        "tensors": [
            {"name": "samples", "dtype": "<i8", "shape": [1], "frame": 0, "offset": 0},
            {"name": "steps", "dtype": "<i8", "shape": [1], "frame": 1, "offset": 0},
        ],
    }  # fmt: skip
    step: Count
    longest: Annotated[
        int | None, Field(ge=1, description="positions a sample may have to be trained here; None: any number")
    ] = None


class Restored(Message):
    """Ledger to learner: re-opened so many; publish your weights above `version`."""

    KIND: ClassVar[str] = "restored"
    EXAMPLE: ClassVar[dict[str, Any]] = {"step": 40, "reopened": 128, "version": 47, "steps": [[46, 45], [47, 46]]}
    step: Count
    reopened: Count
    version: Annotated[int, Field(ge=-1)]
    steps: Annotated[list[Lease], Field(max_length=1024, description="[version, the step it was published at]")] = []


class LedgerGet(Message):
    """Client to ledger: the balance, or one sample's whole life."""

    KIND: ClassVar[str] = "ledger.get"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sample": 5}
    sample: SampleId | None = None


class LedgerStatus(Message):
    """Ledger to client: counts by state, what does not balance, and a sample's life if asked."""

    KIND: ClassVar[str] = "ledger"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "issued": 256, "states": {"ready": 128, "trained": 128}, "eval_states": {}, "problems": [], "step": 2,
        "committed": 0, "version": 3, "life": [], "stats": {"bad_rows": 0},
    }  # fmt: skip
    issued: Count
    states: dict[str, int]
    eval_states: dict[str, int]
    problems: Annotated[list[Text], Field(max_length=100)]
    step: Count
    committed: Count
    version: Annotated[int, Field(ge=-1)]
    reasons: Annotated[dict[str, int], Field(description="why samples were filtered or refused, and how many")] = {}
    examples: Annotated[dict[str, SampleId], Field(description="by reason, the newest sample it befell")] = {}
    life: Annotated[list[Flat], Field(max_length=1000)] = []
    said: Annotated[list[Flat], Field(max_length=256, description="what is stored of its conversation")] = []
    stats: Flat = {}


KINDS = (
    Want, WantOk, Tickets, Trajectories, ScoreJobs, Scores, GiveBack, Refuse, Ok, Batch, Trained, Commit, Committed,
    Restore, Restored, LedgerGet, LedgerStatus,
)  # fmt: skip
