"""The one place where errors become exit codes: 0 done, 2 the user's input is wrong, 1 the run failed, 75 the same command goes on (130 after Ctrl-C).

Knows nothing of commands. One line on stderr, a traceback only with WORKFLOW_TRACEBACK=1 or --debug, or for a bug.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from workflow.caches import settle_caches
from workflow.errors import BackendError, RankLost, StartAgain, Stopped, WorkflowError
from workflow.runtime import RANK_LOST, START_AGAIN, exit_process, note_for_launcher, own_ranks
from workflow.threads import settle_threads

INTERRUPTED = 130
OUT_OF_MEMORY_ADVICE = (
    "lower --micro_batch_tokens (no number changes by it) or --eval_batch_size, add --gradient_checkpointing, "
    "or use --deepspeed zero3; the same command with these continues the run"
)


def run_main(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Runs a command and exits with its code, or its error's."""
    note = ""
    if told := settle_caches():
        print(f"note: {told}", file=sys.stderr)
    if not {"-h", "--help", "--version"} & {*argv}:
        settle_threads()
    try:
        code = command(argv)
    except WorkflowError as error:
        code = error.exit_code
        note = START_AGAIN if isinstance(error, StartAgain) else RANK_LOST if isinstance(error, RankLost) else ""
        _tell(error, argv)
    except KeyboardInterrupt:
        code = INTERRUPTED
        print("interrupted", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        code = 1
        _tell(BackendError(f"out of GPU memory: {OUT_OF_MEMORY_ADVICE}"), argv)
    except OSError as error:  # a full disk, a folder that cannot be written
        code = 1
        _tell(WorkflowError(str(error)), argv)
    note_for_launcher(note or (str(code) if code else ""))
    exit_process(code)


def _tell(error: WorkflowError, argv: Sequence[str]) -> None:
    ranks = own_ranks()
    if ranks and not ranks.is_first and error.known_to_all:
        return
    if os.environ.get("WORKFLOW_TRACEBACK") == "1" or "--debug" in argv:
        traceback.print_exception(error)
    who = f"rank {ranks.rank}: " if ranks and not ranks.is_first else ""
    kind = "notice" if isinstance(error, StartAgain | Stopped) else "error"
    print(f"{kind}: {who}{error}", file=sys.stderr)
