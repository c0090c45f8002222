"""`workflow doctor`.

Knows nothing of what is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflow.commands.parsing import add_mount, command_parser


def doctor(argv: Sequence[str]) -> int:
    """Says what this machine offers, and what is wrong with it."""
    parser = command_parser(
        "doctor",
        "Looks at versions, GPUs, NCCL, shared memory, open files, disks, caches and the mount, and says what to do about what is\n"
        "wrong. Exit code 0 where runs can start here, 1 where something must be mended first.",
        "workflow doctor --json",
    )
    parser.add_argument(
        "--json", action="store_true", help="for programs: {healthy, findings: [{name, found, problem, do, fatal}]}"
    )
    add_mount(parser)
    given = parser.parse_args(argv)
    from workflow.recipe.doctor import doctor as run

    return run(mount=given.mount, as_json=given.json)
