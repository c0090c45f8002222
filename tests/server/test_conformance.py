"""The server keeps what its OpenAPI document says, for bodies good and bad that schemathesis makes from it."""

from __future__ import annotations

from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from tests.server.conftest import FakeLoader, serving, settings_of, write_checkpoint

pytestmark = pytest.mark.slow

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
)


@pytest.fixture(scope="module")
def live(tmp_path_factory, vocabulary):
    models = tmp_path_factory.mktemp("served") / "models"
    write_checkpoint(models / "quickstart" / "checkpoint-best-ckpt")
    with serving(settings_of(models, default_model="quickstart"), FakeLoader(vocabulary)) as found:
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_conforms(live, mode):
    chosen = [check for check in checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(chosen) == len(CHECKS)
    document = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 15
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def conforms(case):
            case.call_and_validate(checks=chosen)

        with suppress(Unsatisfiable):  # what takes no input has no bad input
            conforms()
