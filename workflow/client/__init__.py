"""Clients of `workflow serve`, synchronous and asynchronous, typed: `from workflow import Client`.

Knows nothing of models; needs neither torch nor the server's modules.

    with Client("http://127.0.0.1:8000") as client:
        print(client.generate("Normalise the date: the 3rd of March 2021", model="quickstart").text)
"""

from __future__ import annotations

from workflow.client.answers import (
    GenerateAnswer,
    GenerateAnswers,
    Generation,
    Health,
    Info,
    Model,
    Piece,
    RankedDocument,
    RerankAnswer,
    Run,
    ScoreAnswer,
    ScoreAnswers,
    ShownToken,
    TokenLogprobs,
    Usage,
)
from workflow.client.asynchronous import AsyncClient
from workflow.client.failures import (
    Busy,
    ClientError,
    KeyRefused,
    NoAnswer,
    NotFound,
    RequestRefused,
    ServerFailed,
    ServiceError,
)
from workflow.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Busy",
    "Client",
    "ClientError",
    "GenerateAnswer",
    "GenerateAnswers",
    "Generation",
    "Health",
    "Info",
    "KeyRefused",
    "Model",
    "NoAnswer",
    "NotFound",
    "Piece",
    "RankedDocument",
    "RequestRefused",
    "RerankAnswer",
    "Run",
    "ScoreAnswer",
    "ScoreAnswers",
    "ServerFailed",
    "ServiceError",
    "ShownToken",
    "TokenLogprobs",
    "Usage",
]
