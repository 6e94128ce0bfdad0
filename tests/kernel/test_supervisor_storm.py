"""The supervisor under random faults in random order, kernel deaths included."""

import signal
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.supervision import Manner, Spec, World

from midflight.kernel.commands import Kill
from midflight.kernel.refusal import Refusal
from midflight.kernel.registry import Greeting
from midflight.kernel.restart import Exit
from midflight.kernel.supervisor import Beat

NAMES = st.sampled_from(["ledger", "learner-0", "learner-1", "rollout-0", "rollout-1", "reward", "tracker"])


class Storm(RuleBasedStateMachine):
    """Random faults in random order, kernel deaths included; `World` checks generations at every command."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        specs = {
            "ledger": Spec(strategy="rest_for_one", intensity=8, period_s=20.0),
            "learner": Spec(depends_on=["ledger"], replicas=2, strategy="one_for_all", intensity=50, period_s=5.0),
            "reward": Spec(depends_on=["ledger"], intensity=2),
            "rollout": Spec(depends_on=["ledger", "reward"], replicas=2, intensity=50),
            "tracker": Spec(restart="transient", intensity=50),
        }
        self.world = World(specs, seed)
        self.world.start()
        self.asked = False

    @rule(dt=st.floats(0.01, 0.9), times=st.integers(1, 12))
    def pass_time(self, dt: float, times: int) -> None:
        for _ in range(times):
            if not self.world.over:
                self.world.step(dt)

    @rule(name=NAMES, ended=st.sampled_from([Exit(code=0), Exit(code=1), Exit(signal=9)]))
    def crash(self, name: str, ended: Exit) -> None:
        if name in self.world.living:
            self.world.die(name, ended)

    @precondition(lambda self: not self.world.over)
    @rule(name=NAMES, back=st.integers(0, 2))
    def hear_an_old_exit_again(self, name: str, back: int) -> None:
        current = self.world.supervisor.registry.owned[name]
        if back or not current.live:
            commands = self.world.supervisor.on_exit(name, current.generation - back, Exit(signal=9), self.world.now)
            self.world.obey(commands)

    @rule(name=NAMES, manner=st.sampled_from(["mute", "hung", "deaf"]))
    def misbehave(self, name: str, manner: Manner) -> None:
        if name in self.world.living:
            self.world.living[name].manner = manner

    @precondition(lambda self: not self.world.over)
    @rule(name=NAMES, generation=st.integers(0, 30))
    def speak_out_of_turn(self, name: str, generation: int) -> None:
        world = self.world
        current = world.supervisor.registry.owned[name]
        if generation >= current.generation:
            return
        greeting = Greeting(name, generation, f"{name}#{generation}", (current.pid or 0,), "b")
        assert isinstance(world.supervisor.on_hello(greeting, world.now)[0], Refusal)
        assert world.supervisor.on_ready(name, generation, world.now) == []
        assert world.supervisor.on_heartbeat(name, generation, Beat(9), world.now) == []
        assert world.supervisor.condemn(name, generation, "x", world.now) == []

    @precondition(lambda self: not self.world.over)
    @rule()
    def kernel_dies(self) -> None:
        pids = {process.pid for process in self.world.living.values()}
        bereaved = bool(self.world.unheard)
        mark = len(self.world.log)
        self.world.kernel_restart()
        kills = [c for _, c in self.world.log[mark:] if isinstance(c, Kill)]
        assert all(c.signal == signal.SIGTERM and (bereaved or self.asked) for c in kills)
        if not kills:
            assert pids <= {process.pid for process in self.world.living.values()}

    @precondition(lambda self: not self.world.over)
    @rule(name=st.sampled_from(["ledger", "learner", "rollout-1", "reward"]))
    def restart(self, name: str) -> None:
        answer = self.world.supervisor.request_restart(name, "asked", self.world.now)
        if not isinstance(answer, Refusal):
            self.world.obey(answer)

    @precondition(lambda self: not self.world.over)
    @rule(gap=st.floats(1.1, 30.0))
    def kernel_sleeps(self, gap: float) -> None:
        self.world.now += gap
        mark = len(self.world.log)
        self.world.obey(self.world.supervisor.on_tick(self.world.now))
        assert not [c for _, c in self.world.log[mark:] if isinstance(c, Kill)]

    @precondition(lambda self: not self.world.over)
    @rule(mode=st.sampled_from(["drain", "stop", "kill"]), rare=st.integers(0, 9))
    def stop(self, mode: Literal["drain", "stop", "kill"], rare: int) -> None:
        if rare == 0 or self.asked:
            self.asked = True
            self.world.obey(self.world.supervisor.request_stop(mode, "test", self.world.now))

    @invariant()
    def the_supervisor_knows_who_lives(self) -> None:
        for name, process in self.world.living.items():
            instance = self.world.supervisor.registry.owned[name]
            assert (instance.generation, instance.live) == (process.generation, True)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        if not self.asked:
            world.run(60.0)
            for child in world.supervisor.roster:
                if child.policy.restart == "permanent" and not child.failed:
                    assert world.state(child.name) == "running", child
            world.obey(world.supervisor.request_stop("drain", "end of test", world.now))
        world.drain_takes_part = False
        begun = world.now
        world.run(200.0)
        assert world.over is not None
        assert world.living == {}
        assert world.now - begun < 3 * (4.0 + 1.0 + 2.0) + 5.0


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)
