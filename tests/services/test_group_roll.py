"""Who comes to a group from other hosts: places, spares, refusals, and what is missed."""

from midflight.messages.group import GroupHost, RankEnd
from midflight.services.learner.group.roll import SILENCE_S, Roll


def said(host: str, **more: object) -> GroupHost:
    """What a host tells."""
    return GroupHost.model_validate({"host": host, "version": "1", "torch": "2", **more})


def roll(world: int = 8, here: int = 2, share: int = 2, by_torchrun: bool = False) -> Roll:
    """Of a first host with `here` ranks."""
    return Roll("aa", world, here, share, "1", "2", by_torchrun)


def places(of: Roll) -> dict[str, tuple[int | None, int]]:
    """Guest -> its first rank, and how many."""
    return {name: (guest.first, guest.count) for name, guest in of.guests.items()}


def test_places_are_given_once_when_enough_have_come() -> None:
    """Machines in the order of their names, so that a host keeps its ranks from group to group; the rest are spares."""
    here = roll()
    for at, name in enumerate(("c", "a")):
        assert here.hear(name, said(name), at) == ""
        assert (here.whole, here.lacking) == (False, 4 - 2 * at)
    assert here.hear("b", said("b"), 2.0) == ""
    assert here.whole
    assert here.hear("d", said("d"), 3.0) == ""
    assert places(here) == {"c": (6, 2), "a": (2, 2), "b": (4, 2), "d": (None, 0)}
    assert here.living() == {2: "a", 3: "a", 4: "b", 5: "b", 6: "c", 7: "c"}
    assert here.ends() == {}


def test_a_host_may_bring_its_ranks_one_by_one() -> None:
    """As torchrun starts them there: those of one machine stay together."""
    here = roll(world=5, here=1, share=2)
    for rank, name in ((1, "b"), (0, "a"), (0, "b"), (1, "a")):
        here.hear(f"{name}{rank}", said(name, offers=1, rank=rank, world=2), 0.0)
    assert places(here) == {"a0": (1, 1), "a1": (2, 1), "b0": (3, 1), "b1": (4, 1)}


def test_torchruns_ranks_keep_their_numbers() -> None:
    """A process that came twice under one number counts once."""
    here = roll(world=3, here=1, share=3, by_torchrun=True)
    here.hear("x", said("b", offers=1, rank=2, world=3), 0.0)
    here.hear("y", said("b", offers=1, rank=2, world=3), 0.1)
    assert here.lacking == 1
    here.hear("z", said("a", offers=1, rank=1, world=3), 0.2)
    assert places(here) == {"x": (2, 1), "y": (None, 0), "z": (1, 1)}


def test_what_does_not_fit_is_refused_with_what_to_do() -> None:
    """Too many ranks, another version, another torchrun, none."""
    assert "leave out --ranks" in roll().hear("a", said("a", offers=7), 0.0)
    assert "install the same" in roll().hear("a", said("a").model_copy(update={"version": "2"}), 0.0)
    by_torchrun = roll(by_torchrun=True)
    assert "rank 1 of 4, and this group has 8" in by_torchrun.hear("a", said("a", offers=1, rank=1, world=4), 0.0)
    assert "by it there, too" in by_torchrun.hear("a", said("a"), 0.0)
    assert by_torchrun.guests == {}


def test_the_end_of_a_rank_a_silent_host_and_one_that_leaves_are_told() -> None:
    """By rank; ends of an older group mean nothing."""
    here = roll(world=6)
    for name in ("a", "b"):
        here.hear(name, said(name), 0.0)
    here.hear("a", said("a", generation="99", ended=[{"rank": 2, "how": "long ago"}]), 1.0)
    assert here.ends() == {}
    here.hear("a", said("a", generation="aa", ended=[RankEnd(rank=3, how="exit code 1")]), SILENCE_S + 1)
    assert here.living() == {2: "a", 4: "b", 5: "b"}
    here.tick(SILENCE_S + 2)
    ends = here.ends()
    assert ends[3] == "rank 3 of the learner's 6, on host a, is gone (exit code 1)"
    assert ends[4] == "host b has not been heard of for 10 s"
    here.hear("a", said("a", leaving="stopped by SIGTERM"), SILENCE_S + 3)
    assert here.ends()[2] == "host a leaves: stopped by SIGTERM"


def test_before_the_group_is_whole_who_goes_is_replaced() -> None:
    """Nothing has begun, so nothing ends."""
    here = roll(world=4)
    here.hear("a", said("a", offers=1), 0.0)
    here.tick(SILENCE_S + 1)
    here.hear("b", said("b"), SILENCE_S + 1)
    assert (here.whole, here.ends()) == (True, {})
