"""`python -m workflow.torchrun ...`: torchrun with all its flags and variables, that ends with the exit code of its ranks.

Knows nothing of what the ranks run. torchrun itself ends with 1 for every failure, so that a scheduler could not tell a run that was
stopped (75: start it again) from one whose input is wrong (2: do not).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from workflow.errors import Stopped
from workflow.exits import run_main
from workflow.threads import forget_chosen


def main() -> None:
    """The program."""
    run_main(run, sys.argv[1:])


def run(argv: Sequence[str]) -> int:
    """Runs torchrun here, and gives the exit code of the rank that failed first, 0 where none did, 75 where torchrun was told to stop."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    forget_chosen(os.environ)  # its ranks choose for themselves
    try:
        torchrun.run(torchrun.parse_args(list(argv)))  # type: ignore[no-untyped-call]
    except ChildFailedError as failed:
        print(failed, file=sys.stderr)
        return max(1, failed.get_first_failure()[1].exitcode)
    except SignalException as told:
        return Stopped.code_of(int(told.sigval))
    return 0


if __name__ == "__main__":
    main()
