"""Episodes of several turns from the engine to the learner: token for token, with the log-probs the engine drew at."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from support.learner_toys import tiny_lm

from midflight.messages.samples import Batch, Ticket, Trajectories
from midflight.messages.tensors import CAST, Column
from midflight.services.learner.batches import cut
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.packs.packing import Document, pack
from midflight.services.ledger import outgoing, payload
from midflight.services.ledger.grants import Grant
from midflight.services.ledger.row import Row
from midflight.services.ledger.states import Split
from midflight.services.model.chat import continued, decode, prompt_ids, raw
from midflight.services.model.tokenizer import Tokenizer, byte_tokenizer
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.request import Completion, Request
from midflight.services.rollout.trajectories import Finished, Prompt
from midflight.services.rollout.trajectories import pack as packed

TURNS = 4
FORGETS = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' and loop.index > 3 %}{{ message['content'][-1:] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Leaves of every answer but the first its last character, as soon as somebody has answered it."""


def views(columns: Iterable[Column]) -> dict[str, "memoryview[Any]"]:
    """Columns as their receiver sees them."""
    return {name: memoryview(data).cast(CAST[dtype]) for name, dtype, data in columns}


class Episode:
    """One sample on its way through the parts of the real rollout and ledger, without the sockets between them."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sample: int) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.row = {"messages": [{"role": "user", "content": f"question {sample % 2}"}]}
        self.sample, self.turn, self.blob = sample, 0, b""
        self.drawn: list[float] = []
        self.anew = 0

    def prompt(self) -> Prompt:
        """What the model is to read now."""
        if not self.turn:
            return Prompt(prompt_ids(self.tokenizer, self.row["messages"]))
        prefix = memoryview(payload.prefix_of(self.blob)).cast("i").tolist()
        messages = self.row["messages"] + json.loads(payload.tail_of(self.blob))
        more = continued(self.tokenizer, prefix, messages)
        self.anew += more.anew
        known = [] if more.anew else prefix
        return Prompt([*known, *more.ids], len(known), more.anew)

    def finish(self, prompt: Prompt, done: Completion) -> None:
        """A turn to its columns, into the stored trajectory, and the tools' answer behind it."""
        self.drawn += done.logprobs
        ticket = Ticket(id=self.sample, epoch=2 * self.turn + 1, seed=0, row_bytes=0, turn=self.turn)
        one = Finished(ticket, prompt, done, "stop", decode(self.tokenizer, done.tokens), 0.0)
        ((message, columns),) = packed([one])
        assert isinstance(message, Trajectories)
        ((part, new),) = payload.cut(message, views(columns))
        self.blob = payload.extended(self.blob, new, apart=part.segment) if self.turn else new
        said = json.dumps({"role": "tool", "content": f"said {self.turn} ab"}).encode()
        self.turn += 1
        if self.turn < TURNS:
            self.blob = payload.answered(self.blob, said, b'{"n": 1}')


def played(tokenizer: Tokenizer, model: Any, samples: int = 3) -> list[Episode]:
    """Episodes played side by side, the turns of one behind each other, with a change of weights in each."""
    engine = Engine(model, slots=samples, max_length=400, decode=lambda ids: raw(tokenizer, ids))
    episodes = [Episode(engine, tokenizer, sample) for sample in range(samples)]
    for turn in range(TURNS):
        asked = {episode.sample: (episode, episode.prompt()) for episode in episodes}
        for id_, (_, prompt) in asked.items():
            engine.add(Request(id_, prompt.ids, 12, 1.0, 100 * id_ + turn, stop=("a", "é")))
        while engine.active:
            for done in engine.step():
                asked[done.id][0].finish(asked[done.id][1], done)
    return episodes


def batch(episodes: list[Episode]) -> list[Document]:
    """What a learner makes of the stored trajectories."""
    rows = [Row(e.sample, 0, Split.TRAIN, rewards='{"reward": 1.0}', min_version=0) for e in episodes]
    grant = Grant("learner#1", "train", [(e.sample, 9) for e in episodes], batch=0)
    blobs = {e.sample: e.blob for e in episodes}
    ((message, columns),) = outgoing.batch(grant, rows, blobs.__getitem__, TURNS)
    assert isinstance(message, Batch)
    return [document for _, document in cut(message, views(columns))]


@pytest.mark.parametrize("template", ["", FORGETS], ids=["one segment", "several segments"])
def test_a_replay_finds_the_log_probs_of_every_turn(template: str) -> None:
    """The learner's policy, at the weights that sampled, gives each sampled token what the engine drew it at."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    model = tiny_lm(3, torch.float32, vocab_size=266)
    episodes = played(tokenizer, model)
    documents = batch(episodes)
    for episode, document in zip(episodes, documents, strict=True):
        assert [lp for lp, on in zip(document.behaviour_logp, document.action_mask, strict=True) if on] == episode.drawn
        assert len(document.segments) == (episode.anew + 1 if episode.anew else 0)
    counts = [episode.anew for episode in episodes]
    assert min(counts) >= 2 if template else 0 in counts, "a template that forgets tells turns 2 and 3 anew"
    together = pack(documents, range(len(documents)))
    assert together.documents == len(documents)
    actions = together.actions()
    scored = Policy(model).score(together, actions)[0].detach()
    assert len(scored) == sum(len(episode.drawn) for episode in episodes)
    assert float((scored - actions.behaviour_logp).abs().max()) <= 1e-4
    owners = [str(episode.sample) for episode in episodes for _ in episode.drawn]
    assert [documents[i].name for i in actions.sequence.tolist()] == owners


def test_segments_are_read_apart() -> None:
    """Positions begin at 0 in each; a token of the first changes nothing in the second; both are of one sample."""
    ids, mask = [3, 10, 11, 3, 12, 13], [False, False, True, False, False, True]
    policy = Policy(tiny_lm(1, torch.float64))
    found = []
    for first in (10, 14):
        document = Document("7", [3, first, *ids[2:]], mask, [0.0] * 6, [0] * 6, segments=[3, 3])
        one = pack([document], [0])
        assert one.position_ids.tolist() == [[0, 1, 0, 1]]
        assert one.cu_seqlens.tolist() == [0, 2, 4]
        assert (one.documents, document.positions, one.sequence.tolist()) == (1, 4, [[0] * 4])
        found.append(policy.score(one, one.actions())[0].tolist())
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("segments", [[6, 1], [5, 1], [3, 2]])
def test_segments_that_do_not_fit_are_refused(segments: list[int]) -> None:
    with pytest.raises(ValueError, match="sample 7: segments of"):
        Document("7", [1] * 6, [False, *[True] * 5], segments=segments)
