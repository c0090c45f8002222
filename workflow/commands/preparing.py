"""`workflow init-model`, `workflow prune`, `workflow data` and `workflow quickstart`.

Knows nothing of models or data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflow.commands.parsing import add_mount, add_quoting, command_parser, output_folder
from workflow.errors import ConfigError, did_you_mean


def init_model(argv: Sequence[str]) -> int:
    """Makes a model from scratch."""
    from workflow.models.shapes import SHAPES_BY_ARCH

    shapes = "; ".join(f"{arch}: {', '.join(shapes)}" for arch, shapes in SHAPES_BY_ARCH.items())
    parser = command_parser(
        "init-model",
        "Makes a T5, BERT or GPT-2 from scratch in a published shape.",
        "workflow init-model --like tiny --data_name data --out mount/models/tiny\n"
        "  workflow init-model --arch bert --like tiny --data_name 1226verifier_ft_all --out mount/models/tiny-bert\n"
        "  workflow init-model --arch gpt2 --like gpt2 --tokenizer mount/models/my-gpt2 --out mount/models/new-gpt2",
    )
    parser.add_argument("--arch", default="t5", choices=list(SHAPES_BY_ARCH), help="the architecture (default: t5)")
    parser.add_argument(
        "--like",
        required=True,
        metavar="SHAPE",
        help=f"the shape; tiny has at most about a million parameters ({shapes})",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="folder to write; a model already made there by the same command is kept",
    )
    parser.add_argument("--data_name", "--data", help="train a vocabulary on the texts of this data set, of any task")
    parser.add_argument(
        "--tokenizer", metavar="DIR|byt5", help="use this tokenizer instead (a folder, or byt5 for bytes, t5 alone)"
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        help="most pieces of a trained vocabulary (default: 32000 for t5, 30522 for bert, 50257 for gpt2; for their tiny shapes 1000, 2000, 2000)",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="WORD",
        help="t5 alone: label words that become single pieces of the trained vocabulary, as yes and no always are",
    )
    parser.add_argument("--seed", type=int, default=0)
    add_quoting(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    if bool(given.data_name) == bool(given.tokenizer):
        raise ConfigError(
            "workflow init-model: pass either --data_name NAME (a vocabulary is trained on it) or --tokenizer DIR|byt5"
        )
    from workflow.recipe.init_model import init_model

    return init_model(given)


def prune(argv: Sequence[str]) -> int:
    """Makes a sparse model."""
    parser = command_parser(
        "prune",
        "Sets the share of each linear map's weights (not of embeddings and head) that are nearest to zero to zero.",
        "workflow prune google/flan-t5-small --sparsity 0.5 --out mount/models/flan-t5-small-half",
    )
    parser.add_argument("model", metavar="MODEL", help="a run's name under mount/models, a folder, or a hub name")
    parser.add_argument("--sparsity", type=float, required=True, metavar="SHARE", help="the share, e.g. 0.5")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="folder to make")
    add_mount(parser)
    given = parser.parse_args(argv)
    from workflow.recipe.prune import prune

    return prune(given)


DATA_COMMANDS = {
    "check": "NAME: what is odd about a data set",
    "list": "[REGISTRY]: the registered data sets",
    "show": "REGISTRY LANGUAGE/TASK/NAME: rows, classes and examples of one of them",
    "make": "REGISTRY LANGUAGE/TASK/NAME... --out NAME: the data file of one or several",
}


def data(argv: Sequence[str]) -> int:
    """`data check|list|show|make`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_data_usage())
        return 0 if argv else 2
    if argv[0] == "check":
        return _check(argv[1:])
    if argv[0] not in DATA_COMMANDS:
        raise ConfigError(
            f"workflow data: no {argv[0]!r}{did_you_mean(argv[0], DATA_COMMANDS)} (there are {', '.join(DATA_COMMANDS)})"
        )
    from workflow.commands.registering import registered_data

    return registered_data(argv[0], argv[1:])


def _data_usage() -> str:
    lines = (f"  workflow data {name} {text}" for name, text in DATA_COMMANDS.items())
    return "\n".join(["usage: workflow data COMMAND ...   (workflow data COMMAND -h for all)", "", *lines])


def _check(argv: Sequence[str]) -> int:
    """`data check NAME`: what is odd about a data set."""
    parser = command_parser(
        "data check",
        "Tells what is odd about a data set.",
        "workflow data check data --model_init_path google/flan-t5-small",
    )
    parser.add_argument("data_name", metavar="NAME", help="a name under mount/data, a path, or hf:NAME")
    parser.add_argument(
        "--model_init_name", help="check lengths and round trips with the tokenizer of this folder under mount/models"
    )
    parser.add_argument("--model_init_path", help="the same, by path or hub name")
    parser.add_argument("--max_source_length", type=int, default=1024)
    parser.add_argument("--max_target_length", type=int, default=512)
    parser.add_argument(
        "--task", choices=("seq2seq", "clf"), help="what the data is for; by default its first row tells"
    )
    parser.add_argument(
        "--problem",
        choices=("auto", "binary", "multiclass", "multilabel", "regression"),
        help="clf: what a target is, as clf.py's --problem",
    )
    parser.add_argument("--labels", nargs="+", help="clf: names of the classes (default: the data's own, else no yes)")
    parser.add_argument(
        "--target_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="clf: bounds of the targets"
    )
    parser.add_argument("--template", metavar="FILE|TEXT", help="clf: wraps each row, with {field} for its keys")
    parser.add_argument("--max_length", type=int, default=1024, help="clf: tokens of an input")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_quoting(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    from workflow.recipe.check_data import check_data

    return check_data(given)


def quickstart(argv: Sequence[str]) -> int:
    """Trains and tries the embedded tiny model."""
    parser = command_parser(
        "quickstart",
        "Trains and tries the embedded tiny model in a few minutes.",
        'workflow quickstart "Normalise the date: the 3rd of March 2021"',
    )
    parser.add_argument("prompt", nargs="?", default="Normalise the date: the 3rd of March 2021")
    given = parser.parse_args(argv)
    from workflow.recipe.quickstart import quickstart

    return quickstart(given.prompt)
