"""How long a newcomer waits: `make demo` in a fresh clone, the first time and the second.

    python -m benchmarks.fresh_clone

Clones the committed state of this repository into a temporary folder, so only commits count.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for run, limit in (("first", 180), ("second", 20)):
            begin = time.perf_counter()
            done = subprocess.run(["make", "demo"], cwd=clone, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - begin
            aim = f"aim: under {limit} s"
            print(f"make demo, {run} run: {seconds:6.1f} s ({aim}), exit status {done.returncode}")
            if done.returncode:
                print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
