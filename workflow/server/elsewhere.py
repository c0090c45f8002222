"""Routes that other servers have and this one lacks: what is said of them, and which route of ours does the like."""

from __future__ import annotations

import re
from collections.abc import Collection

from workflow.errors import did_you_mean

COMPLETIONS = "POST prompts to /v1/completions"
GENERATE = "POST a prompt to /generate"
SCORE = "POST inputs to /score"
RERANK = "POST a query and documents to /rerank, /v1/rerank or /v2/rerank"
NO_VECTORS = f"runs give texts and scores, no vectors; to compare texts, {SCORE}, or {RERANK}"
USAGE = "the field usage of every answer counts tokens; /v1/completions takes token ids"
INFO = "GET /info"
MODELS = "GET /v1/models"
LIVE = "GET /health, and /ready"
TRAIN = "a server trains nothing; runs are made by seq2seq.py and clf.py"

ADVICE: tuple[tuple[str, str], ...] = (
    (r"(/v1)?/chat/completions(/.*)?|/v[12]/chat|/chat|/api/chat|/v1/messages", f"there are no chats; {COMPLETIONS}"),
    (r"(/v1)?/responses(/.*)?", f"there are no conversations; {COMPLETIONS}"),
    (r"/(v1/)?engines/[^/]+/completions|/(api/)?completions?|/v1/edits|/infill|/v1/complete", COMPLETIONS),
    (r"/api/generate|/v1/generate|/invocations|/generate_text|/v1/generate_stream|/v2/models/[^/]+/generate(_stream)?", GENERATE),
    (r"(/v[12])?/(embed|embeddings)|/embed_all|/embed_sparse|/api/(embed|embeddings)|/v1/engines/[^/]+/embeddings", NO_VECTORS),
    (r"/similarity|/pooling", NO_VECTORS),
    (r"/predict|/v1/score|(/v1)?/(classify|moderations|predictions)(/[^/]+)?|/v2/models/[^/]+/infer", SCORE),
    (r"/(v[12]/)?reranking|/api/rerank|/v1/rerankers?", RERANK),
    (r"(/v1)?/(tokenize|detokenize|tokenizer_info|decode|encode)", USAGE),
    (r"/models|/api/(tags|models)|/v1/model/list", MODELS),
    (r"/(version|server_info|get_model_info|get_server_info|stats|load|props|api/version|v1/info)", INFO),
    (r"/(healthz|livez|readyz|ping|health_generate|v1/health(/live|/ready)?|v2/health/(live|ready))", LIVE),
    (r"/v1/(files|uploads|batches|fine_tuning|fine-tunes)(/.*)?|/v1/load_lora_adapter", TRAIN),
    (r"/v1/(audio|images|assistants|threads|vector_stores|realtime|videos|containers|evals)(/.*)?", "runs read and write texts alone"),
)  # fmt: skip


def told_of_route(path: str, known: Collection[str]) -> str:
    """A sentence about a path that is no route, and the route to use."""
    shown = ascii(path[:100])
    bare = path.rstrip("/")
    if bare in known:
        return f"no route {shown}: leave out the slash at the end"
    for pattern, advice in ADVICE:
        if re.fullmatch(pattern, bare):
            return f"no route {shown}: {advice}"
    inside = max((route for route in known if len(route) > 1 and bare.endswith(route)), key=len, default=None)
    hint = f'; did you mean "{inside}"?' if inside else did_you_mean(path[:100], known)
    return f"no route {shown}{hint}; GET /docs tells of all"
