"""Who works is found at work; who waits costs nothing."""

import threading
import time

from benchmarks.thread_profile import Sampler

NUM_SECONDS = 0.3  # of work, by the thread's own clock


def work() -> None:
    end = time.thread_time() + NUM_SECONDS
    while time.thread_time() < end:
        sum(range(100))


def test_cpu_time_goes_to_the_thread_and_the_function_that_used_it() -> None:
    ended = threading.Event()

    def work_and_wait() -> None:
        work()
        worked.set()
        ended.wait()

    worked = threading.Event()
    busy = threading.Thread(target=work_and_wait, name="busy-1")
    idle = threading.Thread(target=ended.wait, name="idle")
    sampler = Sampler(interval=0.002)
    sampler.start()
    for thread in (busy, idle):
        thread.start()
    worked.wait()
    profile = sampler.stop()
    ended.set()
    for thread in (busy, idle):
        thread.join()
    shares = {thread.name: thread for thread in profile.threads}
    assert NUM_SECONDS <= shares["busy"].seconds <= profile.cpu
    assert shares["idle"].seconds < NUM_SECONDS / 10
    assert shares["busy"].own[f"{__name__}.work"] > 0.5
    assert shares["busy"].within[f"{__name__}.work"] > 0.5
    assert any(line.startswith("busy ") for line in profile.lines(5))
