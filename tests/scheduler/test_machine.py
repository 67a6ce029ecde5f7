"""Random requests, aborts, steps and failures, with every invariant checked after each."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler import FinishReason
from tests.scheduler.conftest import Harness, make_prompt, new_harness
from tests.scheduler.fake_device import FakeSampling


class SchedulerMachine(RuleBasedStateMachine):
    """Harness and FakeDevice check tokens, budgets, rows, blocks and that nothing follows an end."""

    harness: Harness

    @initialize(
        num_blocks=st.integers(10, 24),
        windows=st.sampled_from([(None,), (5,), (None, 3)]),
        prefix_caching=st.booleans(),
        max_num_seqs=st.integers(3, 5),
        spare_budget=st.integers(0, 12),
        policy=st.sampled_from(["fcfs", "priority"]),
        in_flight=st.integers(1, 3),
    )
    def start(
        self,
        num_blocks: int,
        windows: tuple[int | None, ...],
        prefix_caching: bool,
        max_num_seqs: int,
        spare_budget: int,
        policy: str,
        in_flight: int,
    ) -> None:
        self.num_requests = 0
        self.harness = new_harness(
            num_blocks * len(windows),
            windows=windows,
            prefix_caching=prefix_caching,
            max_num_seqs=max_num_seqs,
            budget=max_num_seqs + spare_budget,
            policy=policy,
            in_flight=in_flight,
        )

    @rule(
        num_shared=st.sampled_from([0, 4, 9]),
        num_own=st.integers(1, 15),
        max_new_tokens=st.integers(1, 12),
        num_outputs=st.integers(1, 3),
        priority=st.integers(0, 2),
        stop_token_ids=st.sampled_from([(), (3, 14, 15, 9, 26)]),
        error_after=st.sampled_from([None, None, None, 2]),
    )
    def add(
        self,
        num_shared: int,
        num_own: int,
        max_new_tokens: int,
        num_outputs: int,
        priority: int,
        stop_token_ids: tuple[int, ...],
        error_after: int | None,
    ) -> None:
        self.num_requests += 1
        self.harness.add(
            str(self.num_requests),
            make_prompt("shared", num_shared) + make_prompt(str(num_own % 3), num_own),
            max_new_tokens,
            num_outputs=num_outputs,
            priority=priority,
            sampling=FakeSampling(num_own % 2, stop_token_ids, error_after),
        )

    @rule(index=st.integers(0, 10**6), reason=st.sampled_from([FinishReason.ABORT, FinishReason.DEADLINE]))
    def abort(self, index: int, reason: FinishReason) -> None:
        request_id = str(index % (self.num_requests + 1))
        alive = any(key[0] == request_id and key not in self.harness.ends for key in self.harness.outputs)
        assert self.harness.scheduler.abort(request_id, reason) == alive

    @rule(index=st.integers(0, 10**6), output_index=st.integers(0, 2))
    def finish(self, index: int, output_index: int) -> None:
        key = (str(index % (self.num_requests + 1)), output_index)
        alive = key in self.harness.outputs and key not in self.harness.ends
        assert self.harness.scheduler.finish(*key) == alive

    @precondition(lambda self: len(self.harness.in_flight) < self.harness.device.max_steps_in_flight)
    @rule(failure=st.sampled_from([""] * 8 + ["fail_launch", "fail_result"]))
    def launch(self, failure: str) -> None:
        step_id = self.harness.scheduler.stats().num_steps
        if failure:
            getattr(self.harness.device, failure)[step_id] = RuntimeError("out of luck")
        self.harness.launch()
        self.harness.take(self.harness.scheduler.take_outputs())

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def read(self) -> None:
        self.harness.read()

    @rule(num_steps=st.integers(1, 6))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.harness.step()

    @invariant()
    def agrees(self) -> None:
        self.harness.scheduler.check_invariants()
        stats = self.harness.scheduler.stats()
        num_alive = len(self.harness.outputs) - len(self.harness.ends)
        assert stats.num_running + stats.num_waiting == num_alive
        assert stats.num_running <= self.harness.scheduler.config.max_num_seqs

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.drain()
            self.harness.check_all_done()


SchedulerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
