"""A running system whose rollout moves from the embedded engine to a server and back, losing no sample."""

from pathlib import Path

from support.e2e_run import Up, is_step, midflight, nothing_left, records, samples, tiny

PROBATION = ("--timeout", "900")


def test_the_rollout_moves_to_a_server_and_back(python: str, tmp_path: Path) -> None:
    """Each is swapped for the other while steps go on; what the servers wrote agrees with the learner."""
    over = ("device=cpu", f"python={python}", "slots=32", "max_length=48", "max_new_tokens=12")
    with Up(tmp_path, tiny(tmp_path, steps=1_000_000), "services.learner.checkpoint_every=100") as up:
        where = ("--run", str(up.path), *PROBATION)
        up.step(2)
        done = midflight(tmp_path, "swap", "rollout", "--with", "sglang", *over, *where, timeout_s=1000.0)
        assert done.code == 0, done
        kinds = {one["name"]: one["kind"] for one in shown(tmp_path, up.path)["services"]}
        assert kinds["rollout"] == "sglang"
        first = newest(up.path) + 3
        last = up.step(first + 3)["step"]
        back = midflight(tmp_path, "swap", "rollout", "--with", "topology", *where, timeout_s=1000.0)
        assert back.code == 0, back
        up.step(newest(up.path) + 4)
        run_id = up.run_id()
        assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
        assert up.wait(600.0) == 0, up.output
    steps = [record for record in records(up.path) if is_step(record)]
    by_server = [one["values"] for one in steps if first <= one["step"] <= last]
    assert max(values["logprob_gap/max"] for values in by_server if "logprob_gap/max" in values) < 1e-4
    assert (up.path / "logs" / "rollout.server-0.log").exists()
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    assert (balance.code, balance.json["problems"]) == (0, [])
    assert {one["state"] for one in samples(up.path)} <= {"trained", "issued", "ready", "generated"}
    assert list(nothing_left(up.path, run_id)) == []


def newest(run: Path) -> int:
    """The last step so far."""
    return max(int(record["step"]) for record in records(run) if is_step(record))


def shown(folder: Path, run: Path) -> dict[str, list[dict[str, str]]]:
    """What `ps` says."""
    said: dict[str, list[dict[str, str]]] = midflight(folder, "ps", "--json", "--run", str(run)).json
    return said
