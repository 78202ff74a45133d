"""Takes one mend of a fault away at a time and runs the machines that have to find the fault: `make faults`.

    python -m tests.faults [--long] [NAME ...]

Prints each fault and what found it. Ends with 1 if a machine that `mends` names for a fault does not find it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tests.faults.mends import MACHINES, MENDS
from tests.faults.undone import FAULT

FAILED = 1
"""Exit status of pytest if tests failed; any other one means that they could not be run."""


def finds(machine: str, fault: str, *, long: bool) -> bool:
    """True if the machine fails without the mend of the fault; "" leaves all mends in place."""
    which = MACHINES[machine]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.faults.undone", "-p", "no:cacheprovider"]
    command += ["-m", "slow or not slow" if long else "not slow", *which]
    run = subprocess.run(command, env={**os.environ, FAULT: fault}, capture_output=True, text=True, check=False)
    if run.returncode not in (0, FAILED):
        raise SystemExit(f"{machine} could not be run without the mend of {fault!r}:\n{run.stdout}{run.stderr}")
    return run.returncode == FAILED


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the faults; all by default")
    parser.add_argument("--long", action="store_true", help="the machines at length: minutes for each fault")
    given = parser.parse_args()
    missed = 0
    for name in given.names or MENDS:
        for machine in MENDS[name].found_by:
            began = time.monotonic()
            found = finds(machine, name, long=given.long)
            missed += not found
            verdict = "found" if found else "MISSED"
            print(f"{verdict:6} {name:32} {machine:8} {time.monotonic() - began:5.0f} s", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
