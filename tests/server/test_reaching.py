"""Ways in: HEAD, compressed bodies, a path of a proxy's, and keys that change while the server runs."""

from __future__ import annotations

import gzip
import json
import re
import zlib

import pytest

from tests.server.conftest import error_of
from workflow.server.inflating import inflate

ASKED = {"model": "echo", "prompt": "red green"}
JSON_TYPE = {"content-type": "application/json"}


def test_head_on_every_get_route(live):
    paths = [path for path, item in live.client.get("/openapi.json").json()["paths"].items() if "get" in item]
    assert {"/", "/health", "/ready", "/metrics", "/info", "/docs", "/v1/models"} <= {*paths}
    for path in [*(re.sub(r"\{.*?\}", "echo", path) for path in paths), "/openapi.json"]:
        asked, headed = live.client.get(path), live.client.head(path)
        assert (headed.status_code, headed.content) == (asked.status_code, b""), path
        assert headed.headers["content-type"] == asked.headers["content-type"]
        if path not in ("/metrics", "/info"):  # whose bodies change
            assert headed.headers["content-length"] == str(len(asked.content))
    assert live.client.head("/nowhere").status_code == 404
    assert live.client.head("/score").status_code == 405
    assert live.metric("workflow:http_responses_total", route="/health", status="200") >= 2


def test_head_needs_a_key_where_get_does(serve, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    live = serve(api_key_file=str(tmp_path / "keys"))
    assert [live.client.head(path).status_code for path in ("/health", "/info")] == [200, 401]


# ---- compressed bodies


def packed(way: str, body=None) -> bytes:
    raw = json.dumps(ASKED if body is None else body).encode()
    return {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[way](raw)


@pytest.mark.parametrize("way", ["gzip", "x-gzip", "GZIP", "deflate", "identity"])
@pytest.mark.parametrize("route", ["/generate", "/v1/completions"])
def test_compressed_bodies(live, way, route):
    headers = {**JSON_TYPE, "content-encoding": way}
    response = live.client.post(route, content=packed(way.lower()), headers=headers)
    assert response.status_code == 200
    assert "red green" in response.text


@pytest.mark.parametrize("way", ["br", "zstd", "gzip, gzip", "\u00e9"])
def test_other_encodings_are_a_clear_415(live, way):
    headers = {**JSON_TYPE, "content-encoding": way.encode("latin-1")}
    response = live.client.post("/generate", content=b"anything", headers=headers)
    error = error_of(response, 415)
    assert "gzip" in error["message"]
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "body",
    [b"plain", gzip.compress(b"{}", mtime=0)[:-5], gzip.compress(b"{}", mtime=0) + b"garbage"],
    ids=["plain", "cut", "garbage behind"],
)
def test_what_is_not_compressed_as_it_says(live, body):
    error_of(live.client.post("/generate", content=body, headers={**JSON_TYPE, "content-encoding": "gzip"}), 400)


def test_a_bomb_is_not_inflated(serve):
    live = serve(max_body_bytes=1000)
    bomb = gzip.compress(b" " * 900_000)
    assert len(bomb) < 1000
    error = error_of(
        live.client.post("/generate", content=bomb, headers={**JSON_TYPE, "content-encoding": "gzip"}), 413
    )
    assert "inflated" in error["message"]


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001])
def test_the_bound_is_exact(size):
    found = inflate(gzip.compress(b"x" * (size // 2)) + gzip.compress(b"x" * (size - size // 2)), "gzip", 1000)
    assert found == (b"x" * size if size <= 1000 else None)


# ---- under a path


@pytest.mark.parametrize("prefix", ["/models", "models/", "/a/b"])
@pytest.mark.parametrize("strips", [False, True])
def test_under_a_path(serve, prefix, strips):
    """Whether the proxy strips the path or not."""
    live = serve(root_path=prefix)
    base = "" if strips else "/" + prefix.strip("/")
    shown = "/" + prefix.strip("/")
    live.post(f"{base}/generate", ASKED).raise_for_status()
    assert live.client.get(f"{base}/").status_code == 200
    assert live.client.get(f"{base}/openapi.json").json()["servers"] == [{"url": shown}]
    assert f"curl localhost:8000{shown}/generate" in live.client.get(f"{base}/docs").text
    assert live.client.get(f"{base}/nowhere").status_code == 404
    moved = live.client.get(shown)
    assert (moved.status_code, moved.headers["location"]) == (308, shown + "/")


def test_a_path_that_begins_as_a_route_does(serve):
    live = serve(root_path="/v1")
    assert live.client.get("/v1/v1/models").status_code == 200
    assert live.client.get("/v1/health").status_code == 200
    assert live.client.get("/v1", params={"theme": "dark"}).headers["location"] == "/v1/?theme=dark"


def test_a_path_that_only_begins_alike_is_not_stripped(serve):
    live = serve(root_path="/models")
    assert live.client.get("/modelshealth").status_code == 404


def test_keys_are_asked_for_under_a_path_too(serve, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    live = serve(root_path="/models", api_key_file=str(tmp_path / "keys"))
    assert live.client.get("/models/health").status_code == 200
    assert live.client.get("/models/info").status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_name_nothing_by_a_path_from_the_root(live, path):
    """So that they work under any path of a proxy that strips it, which the server need not know."""
    text = live.client.get(path).text
    assert not re.findall(r"(?:href|src|action)=[\"']?/", text)
    assert not re.findall(r"fetch\(\s*['\"`]/", text)


# ---- keys


def test_keys_are_read_again_when_their_file_changes(serve, tmp_path):
    file = tmp_path / "keys"
    file.write_text("first\n")
    live = serve(api_key_file=str(file))

    def status(key):
        return live.client.get("/info", headers={"authorization": f"Bearer {key}"}).status_code

    assert (status("first"), status("second")) == (200, 401)
    file.write_text("second one\nfirst\n")
    assert (status("first"), status("second one")) == (200, 200)
    (tmp_path / "next").write_text("third\n")
    (tmp_path / "next").replace(file)
    assert (status("first"), status("third")) == (401, 200)
    file.write_text("# none\n")
    assert (status("third"), status("#")) == (200, 401), "a file without keys changes nothing"
    file.unlink()
    assert (status("third"), status("first")) == (200, 401)
    file.write_text("fourth\n")
    assert (status("third"), status("fourth")) == (401, 200)


def test_keys_behind_a_link_that_is_turned(serve, tmp_path):
    """As Kubernetes changes a mounted secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(f"{name}\n")
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "one")
    live = serve(api_key_file=str(link / "keys"))
    assert live.client.get("/info", headers={"authorization": "Bearer one"}).status_code == 200
    (tmp_path / "turned").symlink_to(tmp_path / "two")
    (tmp_path / "turned").replace(link)
    assert live.client.get("/info", headers={"authorization": "Bearer one"}).status_code == 401
    assert live.client.get("/info", headers={"authorization": "Bearer two"}).status_code == 200
