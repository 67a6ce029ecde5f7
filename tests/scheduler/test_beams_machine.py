"""The machine of test_machine.py, with beam searches among the requests."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import invariant, rule

from scheduler.beams import BeamParams, EarlyStopping
from tests.scheduler.conftest import make_prompt
from tests.scheduler.fake_device import FakeSampling
from tests.scheduler.test_machine import SchedulerMachine


class BeamMachine(SchedulerMachine):
    @rule(
        num_shared=st.sampled_from([0, 4, 9]),
        num_own=st.integers(1, 15),
        max_new_tokens=st.integers(1, 12),
        width=st.integers(1, 3),
        num_outputs=st.integers(1, 3),
        priority=st.integers(0, 2),
        early_stopping=st.sampled_from(["true", "false", "never"]),
        stop_token_ids=st.sampled_from([(), (3,), (3, 14, 15, 9)]),
        error_after=st.sampled_from([None, None, None, None, 2]),
        num_possible=st.sampled_from([50, 50, 50, 2, 1]),
        max_seconds=st.sampled_from([None, None, None, 10.0]),
    )
    def add_beams(
        self,
        num_shared: int,
        num_own: int,
        max_new_tokens: int,
        width: int,
        num_outputs: int,
        priority: int,
        early_stopping: EarlyStopping,
        stop_token_ids: tuple[int, ...],
        error_after: int | None,
        num_possible: int,
        max_seconds: float | None,
    ) -> None:
        self.num_requests += 1
        self.harness.add(
            str(self.num_requests),
            make_prompt("shared", num_shared) + make_prompt(str(num_own % 3), num_own),
            max_new_tokens,
            num_outputs=min(num_outputs, width),
            priority=priority,
            sampling=FakeSampling(num_own % 2, error_after=error_after, num_possible=num_possible),
            beam=BeamParams(width, 1.0, early_stopping, stop_token_ids=stop_token_ids),
            max_seconds=max_seconds,
        )

    @invariant()
    def agrees(self) -> None:
        self.harness.scheduler.check_invariants()
        stats = self.harness.scheduler.stats()
        alive = {key[0] for key in self.harness.outputs.keys() - self.harness.ends.keys()}
        searches = [each for each in alive if self.harness.requests[each].beam is not None]
        num_alive = len(self.harness.outputs) - len(self.harness.ends)
        for each in searches:
            num_alive += self.harness.requests[each].num_sequences - self.harness.requests[each].num_outputs
        assert stats.num_running + stats.num_waiting == num_alive
        assert stats.num_running <= self.harness.scheduler.config.max_num_seqs


BeamMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBeamMachine = BeamMachine.TestCase
