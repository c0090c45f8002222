"""Reads a tokenizer as its files say, where transformers' class for it would put parts of its own in their place.

transformers 5 builds most tokenizers anew from the vocabulary, by their class: a normalizer or pre-tokenizer that
transformers 4 wrote into tokenizer.json is left out, and so is `legacy: false` of a T5. The ids would be other ones than
those that the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow.errors import ModelError
from workflow.files import write_json
from workflow.paths import TOKEN_IDS_NAME

PROBES = (
    "plain text",
    "{x: 1}",
    "\u00c4pfel  and\tpears\n(3,50 \u20ac) ",
    " \u2581 \ufb01 \u00bd\u00a0\u65e5\u672c, e\u0301!",
)
MOST_ADDED = 8
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
OPTIONS = ("model_input_names", "model_max_length", "padding_side", "truncation_side")
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
SETTINGS = (
    (
        "normalizer",
        "BertNormalizer",
        {
            "do_lower_case": "lowercase",
            "strip_accents": "strip_accents",
            "tokenize_chinese_chars": "handle_chinese_chars",
        },
    ),
    ("pre_tokenizer", "ByteLevel", {"add_prefix_space": "add_prefix_space"}),
)
"""What tokenizer_config.json says of these parts, as they call it themselves."""


def as_its_files_say(
    name: str, tokenizer: Any, config: Mapping[str, Any], *, has_file: bool
) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer of a folder or hub model, or one that does what tokenizer.json and `config` (tokenizer_config.json) say.

    `has_file` tells whether there is a tokenizer.json. With a note where ids or texts would be other ones by the class.
    """
    from transformers import TokenizersBackend

    kind = type(tokenizer)
    if not hasattr(tokenizer, "backend_tokenizer") or kind is TokenizersBackend or "__init__" not in kind.__dict__:
        return tokenizer, ()  # it has no such file, or is read as that stands
    if has_file:
        found = _of_file(name, tokenizer, config)
    elif kind.__name__ == "T5Tokenizer" and config.get("legacy") is False:
        found = _not_legacy(tokenizer)
    else:
        return tokenizer, ()
    if _state(found) == _state(tokenizer):
        return tokenizer, ()
    return found, _note(tokenizer, found, "tokenizer.json" if has_file else '"legacy": false of tokenizer_config.json')


def _of_file(name: str, tokenizer: Any, config: Mapping[str, Any]) -> Any:
    """As transformers 4 reads the file: what tokenizer_config.json says of lower case and the like goes before."""
    from transformers import TokenizersBackend

    found = TokenizersBackend.from_pretrained(name, trust_remote_code=False, **_options(tokenizer))
    for part, kind, kinds in SETTINGS:
        component = getattr(found.backend_tokenizer, part)
        if type(component).__name__ == kind:
            for said, attribute in kinds.items():
                if said in config and (config[said] is not None or said == "strip_accents"):
                    setattr(component, attribute, config[said])
            setattr(found.backend_tokenizer, part, component)
    return found


def _not_legacy(tokenizer: Any) -> Any:
    """As transformers 4 converts a sentencepiece model whose blanks are told apart behind added tokens."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from transformers import TokenizersBackend

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    first = [backend.normalizer] if backend.normalizer is not None else []
    blanks = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "\u2581")]
    backend.normalizer = normalizers.Sequence([*first, *blanks])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first")
    backend.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="first")
    named = {str(getattr(tokenizer, token)) for token in NAMED}
    others = [token for token in tokenizer.all_special_tokens if token not in named]
    return TokenizersBackend(tokenizer_object=backend, extra_special_tokens=others, **_options(tokenizer))


def _options(tokenizer: Any) -> dict[str, Any]:
    """What the class says of itself, which a tokenizer without a class does not know."""
    named = {token: getattr(tokenizer, token) for token in NAMED if getattr(tokenizer, token) is not None}
    return named | {option: getattr(tokenizer, option) for option in OPTIONS}


def _state(tokenizer: Any) -> list[Any]:
    """All that ids and texts depend on, but for the scores of the vocabulary, which both have from one file."""
    backend = tokenizer.backend_tokenizer
    parts = [getattr(backend, part) for part in PARTS]
    added = {number: repr(token) for number, token in backend.get_added_tokens_decoder().items()}
    return [
        type(backend.model).__name__,
        backend.get_vocab_size(with_added_tokens=True),
        *(json.loads(part.__getstate__()) if part is not None else None for part in parts),
        added,
    ]


def _note(by_class: Any, found: Any, what: str) -> tuple[str, ...]:
    """What would be read or written otherwise, with an example."""
    for probe in probes(found):
        mine, theirs = (one.backend_tokenizer.encode(probe).ids for one in (found, by_class))
        if mine != theirs or found.decode(mine) != by_class.decode(mine):
            return (
                f"token ids are those of {what}, as the model was trained on them; transformers' {type(by_class).__name__} would "
                f"read or write some texts otherwise, e.g. {probe!r}",
            )
    return ()


def probes(tokenizer: Any) -> list[str]:
    """Texts that show how a tokenizer treats blanks, accents, case, and what stands beside added tokens."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()][-MOST_ADDED:]
    return [*PROBES, *(f"{token}a {token} b. {token}" for token in added)]


def write_ids(folder: Path, tokenizer: Any) -> None:
    """Writes which ids a model is trained on, for some texts."""
    ids = {text: _ids(tokenizer, text) for text in probes(tokenizer)}
    write_json(folder / TOKEN_IDS_NAME, {"schema_version": 1, "ids": ids})


def check_ids(name: str, tokenizer: Any, record: Mapping[str, Any]) -> None:
    """Raises ModelError where a checkpoint's tokenizer gives other ids than the model was trained on, by its `record`."""
    for text, ids in record.get("ids", {}).items():
        if (found := _ids(tokenizer, text)) != ids:
            raise ModelError(
                f"{name}: its tokenizer files give other token ids than the model was trained on, e.g. for {text!r} "
                f"{found[:8]} in place of {ids[:8]}; copy tokenizer.json and tokenizer_config.json again from the run"
            )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids
