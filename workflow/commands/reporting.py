"""`workflow report`.

Knows nothing of what a page shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflow.commands.parsing import add_mount, command_parser, output_file


def report(argv: Sequence[str]) -> int:
    """Writes a page about runs."""
    parser = command_parser(
        "report",
        "Writes one HTML file about a run, or about several side by side: curves, metrics, samples, worst rows, settings.\n"
        "It opens from the file and asks no server for anything. Runs that are unfinished are shown as far as they came.",
        "workflow report my_run other_run --out compared.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name under mount/models, or its folder")
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="file to write (default: report.html here; - is standard output; the run itself keeps its own)",
    )
    add_mount(parser)
    given = parser.parse_args(argv)
    from workflow.pages.report_page import write_pages

    return write_pages(given)
