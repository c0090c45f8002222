"""`workflow export`.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workflow.commands.parsing import add_mount, command_parser
from workflow.errors import install_command


def export(argv: Sequence[str]) -> int:
    """Writes a run's model for other programs."""
    parser = command_parser(
        "export",
        "Writes a run's model (adapters merged) for other programs, and compares what they compute with it:\n"
        "a copy whose probabilities differ is deleted.",
        "workflow export my_run --to hf --out exported/my_run",
    )
    parser.add_argument("model", metavar="RUN", help="a run's name under mount/models, a folder, or a hub name")
    parser.add_argument(
        "--to",
        required=True,
        choices=("hf", "ctranslate2", "onnx"),
        help="hf: a folder that transformers 4 reads right too; ctranslate2: of a T5, where that package is installed; "
        f"onnx: graphs as optimum reads them ({install_command('onnx')})",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to make (default: export/RUN-TO here)")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="texts to compare with, instead of built-in ones")
    add_mount(parser)
    given = parser.parse_args(argv)
    from workflow.recipe.export import export

    return export(given)
