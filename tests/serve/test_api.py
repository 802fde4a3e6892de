"""Answers over HTTP are those of the library, and what is wrong is one message."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from mmembed.errors import DatasetError, UsageError
from mmembed.search import Query, Searcher
from mmembed.serve.app import create_app
from mmembed.serve.settings import Settings

TEXT = "three small red stars"


def hits(response: Any) -> list[tuple[str, str, int]]:
    assert response.status_code == 200, response.text
    return [(hit["modality"], hit["id"], hit["segment"]) for hit in response.json()["hits"]]


def expected(searcher: Searcher, query: Query, **options: Any) -> list[tuple[str, str, int]]:
    found = [(hit.modality, hit.id, hit.segment) for hit in searcher.search(query, **options)]
    assert found
    return found


def detail(response: Any, code: int) -> str:
    assert response.status_code == code, response.text
    assert list(response.json()) == ["detail"] and isinstance(response.json()["detail"], str)
    assert "Traceback" not in response.text
    return str(response.json()["detail"])


@pytest.mark.parametrize("to", ["image", "text", "audio", "any"])
def test_a_text_finds_what_the_library_finds(client: TestClient, searcher: Searcher, to: str) -> None:
    response = client.get("/api/search", params={"text": TEXT, "to": to, "k": 7})
    found = searcher.search(Query.of(text=TEXT), to=to, k=7)
    assert hits(response) == [(hit.modality, hit.id, hit.segment) for hit in found]
    for got, hit in zip(response.json()["hits"], found, strict=True):
        assert got["score"] == pytest.approx(hit.score) and got["rank"] == hit.rank
        assert got["media"] == hit.media and got["metadata"] == hit.metadata and tuple(got["span"]) == hit.span
    assert response.json()["milliseconds"] > 0


def test_a_record_finds_others(client: TestClient, searcher: Searcher, records: dict[str, Any]) -> None:
    id = list(records)[3]
    found = hits(client.get("/api/search", params={"id": id, "to": "image"}))
    assert found == expected(searcher, Query.of(id=id), to="image") and id not in {found for _, found, _ in found}


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_file_finds_what_its_path_finds(
    client: TestClient, searcher: Searcher, picture: Path, sound: Path, modality: str
) -> None:
    path = {"image": picture, "audio": sound}[modality]
    response = client.post("/api/search", data={"to": "text"}, files={modality: (path.name, path.read_bytes())})
    assert hits(response) == expected(searcher, Query.of(**{modality: path}), to="text")  # type: ignore[arg-type]


def test_parts_are_added_by_their_weights(client: TestClient, searcher: Searcher, picture: Path) -> None:
    data = {"text": TEXT, "without": "blue", "image_weight": "0.5", "without_weight": "0.3", "to": "image"}
    response = client.post("/api/search", data=data, files={"image": ("a", picture.read_bytes())})
    query = Query.of(text=TEXT) + 0.5 * Query.of(image=picture) + -0.3 * Query.of(text="blue")
    assert hits(response) == expected(searcher, query, to="image")
    assert hits(response) != expected(searcher, Query.of(text=TEXT), to="image")


def test_a_part_that_weighs_nothing_is_none(client: TestClient, searcher: Searcher) -> None:
    response = client.get("/api/search", params={"text": TEXT, "without": "blue", "without_weight": 0})
    assert hits(response) == expected(searcher, Query.of(text=TEXT))


def test_a_filter_holds(client: TestClient) -> None:
    found = client.get("/api/search", params={"text": TEXT, "filter": "color = 'blue'", "to": "image"}).json()["hits"]
    assert found and {hit["metadata"]["color"] for hit in found} == {"blue"}


@pytest.mark.parametrize(
    "params, code, said",
    [
        ({}, 400, "a query needs one of text"),
        ({"text": "a", "text_weight": 0}, 400, "a query needs one of text"),
        ({"text": "a", "to": "video"}, 400, "'video'"),
        ({"id": "nobody"}, 400, "'nobody'"),
        ({"text": "a", "filter": "nokey = 1"}, 400, "nokey"),
        ({"text": "\x00"}, 400, "no visible character"),
        ({"text": "a", "k": 0}, 422, "k: "),
        ({"text": "a", "k": "many"}, 422, "k: "),
        ({"text": "a", "k": 1001}, 422, "k: "),
        ({"text": "a", "segments": "some"}, 422, "segments: "),
        ({"text": "a", "text_weight": "nan"}, 422, "text_weight: "),
        ({"text": "a" * 20_001}, 422, "text: "),
        ({"txt": "a"}, 422, "txt: "),  # a misspelt name would be without effect
    ],
)
def test_what_is_wrong_is_one_message(client: TestClient, params: dict[str, Any], code: int, said: str) -> None:
    message = detail(client.get("/api/search", params=params), code)
    assert said in message and "\n" not in message


def test_what_is_no_picture_is_one_message(client: TestClient, searcher: Searcher) -> None:
    message = detail(client.post("/api/search", files={"image": ("a.jpg", b"no picture")}), 400)
    assert "none of JPEG" in message
    assert str(searcher.dataset.folder) not in detail(client.get("/api/search", params={"id": "x"}), 400)


def test_a_sound_that_lasts_too_long_is_refused(client: TestClient) -> None:
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, np.zeros(8_000 * 601, np.int16), 8_000, format="FLAC")
    assert len(data.getvalue()) < 100_000
    assert "at most 600 seconds, not 601" in detail(client.post("/api/search", files={"audio": ("a", data)}), 400)


def test_an_empty_field_of_a_form_is_none(client: TestClient, searcher: Searcher) -> None:
    response = client.post("/api/search", data={"text": TEXT}, files={"image": ("", b"")})
    assert hits(response) == expected(searcher, Query.of(text=TEXT))


@pytest.mark.parametrize(
    "content, type",
    [(b"{", "application/json"), (b"--x\r\n", "multipart/form-data; boundary=x"), (b"--x", "multipart/form-data")],
)
def test_a_broken_body_is_refused(client: TestClient, content: bytes, type: str) -> None:
    detail(client.post("/api/search", content=content, headers={"Content-Type": type}), 400)


def test_faults_of_the_data_set_and_of_ours_are_told_apart(client: TestClient) -> None:
    with patch.object(Searcher, "search_many", side_effect=DatasetError("index/text.faiss is damaged")):
        assert "is damaged" in detail(client.get("/api/search", params={"text": "a"}), 500)
    with patch.object(Searcher, "search_many", side_effect=ZeroDivisionError("secret")):
        assert "secret" not in detail(client.get("/api/search", params={"text": "a"}), 500)
    assert client.get("/api/search", params={"text": "a"}).status_code == 200


@pytest.mark.parametrize(
    "input, place, told",
    [
        ("/home/ann/set/in.jsonl", "/home/ann/set/in.jsonl", "in.jsonl"),
        ("/home/ann/set/in.jsonl", "/home/ann/set/a/1.jpg", "set/a/1.jpg"),
        ("/home/ann/set", "/home/ann/set/a/1.jpg", "set/a/1.jpg"),
        ("/home/ann/set/*/[ab].jsonl", "/home/ann/set/a/b.jsonl", "set/a/b.jsonl"),
        ("s3://bucket/set/in.csv", "s3://bucket/set/1.jpg", "set/1.jpg"),
        ("/in.jsonl", "/a/b.jpg", "/a/b.jpg"),
        ("", "/a/b.jpg", "/a/b.jpg"),
        ("/home/ann/set/in.jsonl", "{root}/index/a", "out/index/a"),
    ],
)
def test_messages_do_not_say_where_the_data_lie(searcher: Searcher, input: str, place: str, told: str) -> None:
    moved = Searcher(replace(searcher.dataset, input=input), searcher.encoders, searcher.config)
    error = UsageError(f"can't read {place.format(root=searcher.dataset.folder)}: there is none")
    with (
        patch.object(Searcher, "media", side_effect=error),
        TestClient(create_app(moved, Settings()), base_url="http://localhost:8000") as client,
    ):
        assert detail(client.get("/media/image/a"), 404) == f"can't read {told}: there is none"


def test_too_many_that_wait_are_told_to_come_again(client: TestClient) -> None:
    with patch.object(client.app.state.searches, "_most", 0):  # type: ignore[attr-defined]
        response = client.get("/api/search", params={"text": "a"})
    detail(response, 503)
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize("asked", [{"text": TEXT}, {"without": "blue"}, {"text": TEXT, "without": "blue"}])
def test_an_explanation_adds_up(client: TestClient, records: dict[str, Any], asked: dict[str, str]) -> None:
    id = next(id for id, row in records.items() if "image" in row)
    response = client.post("/api/explain", data={**asked, "record": id, "to": "image"})
    assert response.status_code == 200, response.text
    matches = response.json()["matches"]
    assert [match["part"] for match in matches] == list(asked)
    for match in matches:
        assert match["weight"] == (-1 if match["part"] == "without" else 1)
        for side in (match["query"], match["record"]):
            assert sum(part["adds"] for part in side["parts"]) + side["rest"] == pytest.approx(match["score"], abs=1e-4)
        assert match["query"]["content"]["text"] == asked[match["part"]]
        content = match["record"]["content"]
        assert content["picture"].startswith("data:image/webp;base64,") and content["width"] == content["height"] > 0


def test_a_record_and_a_sound_are_explained(client: TestClient, records: dict[str, Any], sound: Path) -> None:
    first, second = [id for id, row in records.items() if {"image", "audio"} <= row.keys()][:2]
    (match,) = client.post("/api/explain", data={"id": first, "record": second, "to": "audio"}).json()["matches"]
    content = match["query"]["content"]
    assert match["query"]["modality"] == "audio" and max(content["peaks"]) == 1 and content["seconds"] > 0
    assert content["seconds"] == match["query"]["parts"][-1]["span"][1]
    response = client.post(
        "/api/explain", data={"record": first, "to": "image"}, files={"audio": ("a", sound.read_bytes())}
    )
    assert [match["part"] for match in response.json()["matches"]] == ["audio"]


def test_an_explanation_reads_no_more_of_the_input_than_the_record_was_in(
    client: TestClient, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = Searcher.record

    def record(self: Searcher, id: str, *, anywhere: bool = True) -> Any:
        asked.append(anywhere)
        return real(self, id, anywhere=anywhere)

    monkeypatch.setattr(Searcher, "record", record)
    assert client.post("/api/explain", data={"text": "a", "record": next(iter(records))}).status_code == 200
    assert asked and not any(asked)


def test_what_can_not_be_explained_is_one_message(client: TestClient, records: dict[str, Any]) -> None:
    assert "record: " in detail(client.post("/api/explain", data={"text": "a"}), 422)
    assert "'nobody'" in detail(client.post("/api/explain", data={"text": "a", "record": "nobody"}), 400)
    assert "'nobody'" in detail(client.post("/api/explain", data={"id": "nobody", "record": next(iter(records))}), 400)


def test_info_says_what_can_be_asked(client: TestClient, searcher: Searcher, records: dict[str, Any]) -> None:
    info = client.get("/api/info").json()
    assert info["records"] == len(records) and info["name"] == searcher.dataset.folder.name
    assert info["targets"] == searcher.targets and info["askable"] == searcher.askable
    (color,) = (key for key in info["keys"] if key["name"] == "color")
    assert set(color["examples"]) <= {row["color"] for row in records.values()} and len(color["examples"]) > 1
    assert {sample["modality"] for sample in info["samples"]} == set(searcher.targets)
    assert {sample["id"] for sample in info["samples"]} <= records.keys()


def test_models_are_loaded_before_the_first_question(searcher: Searcher, connect: Any) -> None:
    with patch.object(Searcher, "search", autospec=True, return_value=[]) as search:
        connect()
    assert len(search.call_args_list) == len(searcher.askable)


def test_metrics_count_what_was_asked(connect: Callable[[], TestClient], searcher: Searcher) -> None:
    client = connect()
    client.get("/api/search", params={"text": TEXT, "without": "blue"})
    client.get("/api/search", params={"text": "a", "k": 0})
    client.get("/no/such/route")
    response = client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found["mmembed_requests_total", "/api/search", "200"] == 1
    assert found["mmembed_requests_total", "/api/search", "422"] == 1
    assert found["mmembed_requests_total", "404", "other"] == 1
    assert found["mmembed_request_seconds_count", "/api/search"] == 2
    assert found["mmembed_queries_total", "text"] == 2
    rows = searcher.dataset.stage("project").summary["segments"]
    assert {name: found["mmembed_index_rows", name] for name in rows} == rows


def test_the_api_is_described_and_its_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/info", "/api/search", "/api/explain", "/metrics", "/healthz"} <= paths.keys()
    assert {"get", "post"} == paths["/api/search"].keys()
    for page in ("/docs", "/"):
        text = client.get(page).text
        assert "://" not in text
        assert "default-src 'none'" in client.get(page).headers["Content-Security-Policy"]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "page.js", "page.css", "recorder.js", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200


def test_the_page_sets_no_html_of_data() -> None:
    page = (Path(__file__).parents[2] / "mmembed/serve/static/page.js").read_text("utf-8")
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in page
    ]
