"""Where the CPU time of this process goes: by thread, native ones too, and by Python function.

A thread samples the stacks of the others and weighs each by the CPU time that its thread has used since the
sample before, by the kernel's clock of that thread (man 2 clock_getres: a clock of each thread id), so that
waiting counts nothing; but what a thread used right before it began to wait may count for where it waits. The
sampler needs the interpreter's lock as everybody else does: functions that let go of it are met a little more
often than they deserve. What extensions in C do counts for the Python function that called them: the whole of
uvloop and gRPC for the function that runs the event loop. Threads without Python are named by the kernel.
"""

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import FrameType

_TASKS = Path("/proc/self/task")
_SWITCH_SECONDS = 0.0002  # as usual the sampler would mostly get its turn where another thread waits anyway
_TRUNK = 0.9  # of a thread: functions that so much happens within tell nothing
_PER_THREAD, _SCHED = 4, 2  # bits of a clock id, beside the complement of the thread id


@dataclass(frozen=True, slots=True)
class ThreadShare:
    """CPU seconds of the threads of one name. own: by function, while in it; within: in what it called too.

    Both are fractions of what was sampled; empty for native threads.
    """

    name: str
    seconds: float
    own: dict[str, float]
    within: dict[str, float]


@dataclass(frozen=True, slots=True)
class Profile:
    """wall, cpu: seconds; cpu of all threads together. threads: the busiest first."""

    wall: float
    cpu: float
    num_samples: int
    threads: tuple[ThreadShare, ...]

    def lines(self, num_functions: int) -> Iterator[str]:
        """A table of threads, then the functions of those that ran Python."""
        yield f"{'thread':24}{'CPU s':>8}{'of a core':>11}{'of process':>12}"
        for thread in self.threads:
            if thread.seconds >= 0.005 * self.cpu:
                core, share = thread.seconds / self.wall, thread.seconds / self.cpu
                yield f"{thread.name:24}{thread.seconds:8.2f}{core:11.1%}{share:12.1%}"
        yield f"{'together':24}{self.cpu:8.2f}{self.cpu / self.wall:11.1%}"
        for thread in self.threads:
            if thread.own and thread.seconds >= 0.02 * self.cpu:
                yield from self._functions(thread, num_functions)

    def _functions(self, thread: ThreadShare, number: int) -> Iterator[str]:
        share = thread.seconds / self.cpu
        yield f"\n{thread.name}: % of the process in the function itself | with all that it called"
        own = Counter(thread.own).most_common(number)
        within = Counter({name: part for name, part in thread.within.items() if part < _TRUNK})
        for (left, left_part), (right, right_part) in zip_longest(
            own, within.most_common(number), fillvalue=("", 0.0)
        ):
            yield f"  {_cell(left, left_part * share):65} | {_cell(right, right_part * share)}".rstrip(" |")


class Sampler:
    """Samples from `start` to `stop`."""

    def __init__(self, interval: float = 0.005) -> None:
        """interval: seconds between samples."""
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profile", daemon=True)
        # CPU seconds by thread and function
        self._own: dict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._within: dict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._num_samples = 0
        self._before: dict[int, float] = {}
        self._names: dict[int, str] = {}
        self._started = (0.0, 0.0)

    def start(self) -> None:
        self._before = _cpu_seconds(_task_ids())
        self._started = (time.perf_counter(), time.process_time())
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._thread.start()

    def stop(self) -> Profile:
        after = _cpu_seconds(_task_ids())
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self._stopping.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_interval)
        seconds: defaultdict[str, float] = defaultdict(float)
        for task, used in after.items():
            seconds[self._name(task)] += used - self._before.get(task, 0.0)
        if (lost := cpu - sum(seconds.values())) > 0:
            seconds["threads that ended"] = lost
        threads = (
            self._share(name, used) for name, used in sorted(seconds.items(), key=lambda item: -item[1])
        )
        return Profile(wall, cpu, self._num_samples, tuple(threads))

    def _share(self, name: str, seconds: float) -> ThreadShare:
        sampled = sum(self._own[name].values())
        own = {function: weight / sampled for function, weight in self._own[name].items()}
        within = {function: weight / sampled for function, weight in self._within[name].items()}
        return ThreadShare(name, seconds, own, within)

    def _run(self) -> None:
        last = dict(self._before)
        while not self._stopping.wait(self._interval):
            frames = sys._current_frames()
            python = {thread.native_id: thread for thread in threading.enumerate()}
            python.pop(threading.get_native_id(), None)
            now = _cpu_seconds(task for task in python if task is not None)
            for task, used in now.items():
                thread = python[task]
                frame = frames.get(thread.ident or 0)
                self._names[task] = _base(thread.name)
                if frame is not None and (weight := used - last.get(task, used)) > 0:
                    self._count(self._names[task], frame, weight)
            last |= now
            self._num_samples += 1

    def _count(self, name: str, frame: FrameType, weight: float) -> None:
        self._own[name][_function(frame)] += weight
        stack, above = {_function(frame)}, frame.f_back
        while above is not None:
            stack.add(_function(above))
            above = above.f_back
        for function in stack:
            self._within[name][function] += weight

    def _name(self, task: int) -> str:
        if task == self._thread.native_id:
            return "the profile itself"
        if task in self._names:
            return self._names[task]
        try:
            return f"native: {_base((_TASKS / str(task) / 'comm').read_text().strip())}"
        except OSError:
            return "threads that ended"


def _cell(function: str, share: float) -> str:
    return f"{share:6.1%} {function[-58:]}" if function else ""


def _task_ids() -> list[int]:
    return [int(path.name) for path in _TASKS.iterdir()]


def _cpu_seconds(tasks: Iterable[int]) -> dict[int, float]:
    """Of threads of this process, by thread id; of those that have ended none."""
    found = {}
    for task in tasks:
        try:
            found[task] = time.clock_gettime((~task << 3) | _PER_THREAD | _SCHED)
        except OSError:
            continue
    return found


def _base(name: str) -> str:
    """Without a number at the end: the threads of a pool count together."""
    return name.rstrip("0123456789").rstrip("_-") or name


def _function(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"
