"""The service over HTTP: what it answers, and what it refuses without saying too much."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.errors import UserError
from pipeline.inference.served_limits import MAX_WAITING_MIB
from pipeline.serving.app import PAGE, build_app
from pipeline.serving.calls import Away, Busy, TooLate
from pipeline.serving.config import MAX_IMAGE_MIB, MAX_LABELS, ServiceConfig
from pipeline.serving.gate import KEY, BodyReader, api_key
from pipeline.serving.limits import limits_of
from pipeline.serving.local import LocalBackend
from pipeline.serving.openapi import described
from tests.pipeline.serving.conftest import LIMITS, png
from tests.support.tiny_checkpoint import TRAINED

LABELS = ["grass", "sky", "red car", "dog"]


def form(client: TestClient, image: bytes | None = None, **fields: object):
    files = {"image": ("x.png", png() if image is None else image)}
    return client.post("/v1/segment", data=fields, files=files)


def expected(champion, labels, other="none") -> np.ndarray:
    network = champion.current.network
    question = network.question({"labels": labels, "other": other})
    image = network.decode("image", png())
    return network.label_ids(network.see(image, question)[None], image.shape[:2], question)[0]


def decoded(answer: dict) -> np.ndarray:
    runs = np.array(answer["runs"]).reshape(-1, 2)
    return np.repeat(runs[:, 0], runs[:, 1]).reshape(answer["height"], answer["width"])


def test_a_form_and_json_get_the_networks_answer(client, champion):
    ids = expected(champion, LABELS, "other")
    assert len(np.unique(ids)) > 1  # else any answer would do
    in_form = form(client, labels=["grass, sky", "red car", "dog"], other="other", mask="true")
    image = base64.b64encode(png()).decode()
    body = {"image": image, "labels": LABELS, "other": "other", "mask": True}
    for response in (in_form, client.post("/v1/segment", json=body)):
        assert response.status_code == 200, response.text
        answer = response.json()
        np.testing.assert_array_equal(decoded(answer), ids)
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
        np.testing.assert_array_equal(mask, np.where(ids < 0, 255, ids))
        assert answer["labels"] == LABELS
        assert answer["shares"] == [round(float((ids == i).mean()), 6) for i in range(4)]
        assert answer["no_label_share"] == round(float((ids < 0).mean()), 6)
        assert answer["model"] == response.headers["LSeg-Model"] == "step_00000003"


def test_answers_as_png_and_as_probabilities(client, champion):
    ids = expected(champion, LABELS)
    mask = form(client, labels=LABELS, answer="png")
    assert mask.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask.content))), ids)
    assert json.loads(mask.headers["LSeg-Labels"]) == LABELS
    soft = form(client, labels=LABELS, other="other", answer="probabilities")
    found = np.load(io.BytesIO(soft.content), allow_pickle=False)
    assert found.shape == (5, 40, 64)
    assert abs(found.astype(np.float32).sum(0) - 1).max() < 0.01
    found = np.load(io.BytesIO(form(client, labels=LABELS, answer="probabilities").content))
    assert (found.argmax(0) == ids).mean() > 0.99


def test_pixel_vectors_have_length_one(client):
    response = client.post("/v1/embed", files={"image": ("x", png())})
    vectors = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert (vectors.shape[0], vectors.dtype) == (512, np.float16)
    assert abs(np.linalg.norm(vectors.astype(np.float32), axis=0) - 1).max() < 0.01


def test_pixel_vectors_need_no_labels_and_no_text(champion, engine, monkeypatch):
    """Imported weights bring no labels."""
    lseg = champion.current.network.lseg
    monkeypatch.setattr(lseg, "labels", ())
    monkeypatch.setattr(type(lseg), "embed_text", lambda *args: pytest.fail("text was encoded"))
    client = TestClient(build_app(LocalBackend(champion, engine), LIMITS), base_url="http://[::1]")
    response = client.post("/v1/embed", files={"image": ("x", png())}, data={"base_px": "48"})
    assert response.status_code == 200, response.text
    response = client.post("/v1/embed", files={"image": ("x", png())}, data={"view": "best"})
    assert "view=best: must be" in response.json()["error"]["message"]
    assert "name some" in form(client).json()["error"]["message"]


def test_an_answer_that_would_be_too_large_is_refused_before_the_work(client, monkeypatch):
    monkeypatch.setattr("pipeline.serving.engine.MAX_ARRAY_MIB", 0.5)
    small = {"files": {"image": ("x", png())}, "data": {"base_px": "32"}}
    assert client.post("/v1/embed", **small).status_code == 200
    large = {"files": {"image": ("x", png())}, "data": {"base_px": "1024"}}
    soft = {"labels": [f"word {i}" for i in range(200)], "answer": "probabilities"}
    for response in (client.post("/v1/embed", **large), form(client, **soft)):
        assert response.status_code == 413
        assert "must be at most 0.5" in response.json()["error"]["message"]


def test_without_labels_the_trained_ones_are_asked(client):
    assert form(client).json()["labels"] == list(TRAINED)
    about = client.get("/v1/labels").json()
    assert about["labels"] == list(TRAINED)
    assert about["limits"]["max_labels"] == LIMITS.max_labels


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"labels": ["dog", "dog"]}, 400, "labels[1]='dog': is named twice"),
        ({"labels": ["Road", "road"]}, 400, "are the same to the text encoder"),
        ({"labels": ["x" * 300]}, 400, "300 characters"),
        ({"labels": [f"w{i}" for i in range(400)]}, 400, "400 given: must be at most 300"),
        ({"other": "1.5"}, 400, "other=1.5: must be a probability"),
        ({"view": "best"}, 400, "view=best: must be single, published or whole"),
        ({"base_px": "-3"}, 400, "base_px=-3: must be a whole number"),
        ({"base_px": "4096"}, 400, "base_px=4096: must be 8 to 2048"),
        ({"answer": "jpg"}, 400, "answer=jpg: must be json, png, probabilities"),
        ({"lables": "dog"}, 400, "lables: no such parameter"),
        ({"mask": "maybe"}, 400, "mask=maybe: must be true or false"),
        ({"mask": "true", "answer": "png"}, 400, "mask: answer=png has no place for it"),
        ({"image": b"no image"}, 400, "image: "),
        ({"image": b""}, 400, "image: is an empty file"),
        ({"image": png(1, 120, 120)}, 413, "0.01 megapixels"),
        ({"image": b"\0" * 60_000}, 413, "0.1 MiB: must be at most 0.05"),
        ({"image": b"\0" * 2_000_000}, 413, "must be at most 0.05 MiB"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(client, fields, status, said):
    image = fields.pop("image", None) if "image" in fields else None
    response = form(client, image, **fields)
    error = response.json()["error"]
    assert response.status_code == error["status"] == status
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert not re.search(r"Traceback|/tmp|/home|\.py", response.text)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"[1]", "must be an object"),
        (b"{}", "image: must be the bytes"),
        (b'{"image": "http://elsewhere/x.png"}', "paths and addresses are not read"),
        (b'{"image": "/etc/passwd"}', "image: "),
        (b'{"image": "AAAA", "labels": 3}', "labels: must be a list"),
        (b'{"image": "AAAA", "labels": [3]}', "labels[0]=3: must be a text"),
        (b'{"image": "AAAA", "labels": ["\\ud800"]}', "holds half a character"),
        (b'{"image": "AAAA", "base_px": true}', "base_px: must be a whole number"),
        (b'{"image": "AAAA", "base_px": 1e3}', "base_px=1000.0: must be a whole number"),
        (b'{"image": "AAAA", "other": ["x"]}', "must be a text"),
        (b'{"image": "AAAA", "answer": {}}', "answer={}: must be"),
    ],
)
def test_wrong_json_is_refused_in_one_line(client, body, said):
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/segment", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("", b"", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=a", b"--b\r\nnothing", 400),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data\r\n\r\n', 400),
        ("multipart/form-data; boundary=\xff", b"x", 400),
    ],
)  # fmt: skip
def test_bodies_of_another_kind_are_refused(client, kind, body, status):
    headers = {"Content-Type": kind.encode("latin-1")}
    response = client.post("/v1/segment", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


def test_paths_that_do_not_exist_and_other_methods(client):
    assert client.get("/v1/segment").status_code == 405
    for path in ("/nothing", "/page/../app.py", "/page/..%2fapp.py", "/examples/7", "/examples/-1"):
        response = client.get(path)
        assert response.status_code == 404, path
        assert response.json()["error"]["status"] == 404


@pytest.mark.parametrize(("error", "status"), [(Busy(), 429), (TooLate(), 503), (Away(), 503)])
def test_a_busy_service_says_when_to_come_back(champion, engine, error, status):
    backend = LocalBackend(champion, engine)

    async def ask(call):
        raise error

    backend.ask = ask
    client = TestClient(build_app(backend, LIMITS), base_url="http://localhost")
    response = form(client)
    assert response.status_code == status
    assert int(response.headers["Retry-After"]) >= 1


def test_a_service_that_nothing_answers_for_says_so(champion, engine):
    backend = LocalBackend(champion, engine)

    async def about():
        raise Away

    backend.about = about
    client = TestClient(build_app(backend, LIMITS), base_url="http://localhost")
    for path in ("/healthz", "/v1/labels"):
        response = client.get(path)
        assert response.status_code == 503
        assert response.json()["error"]["message"].startswith("no replica answers")
        assert int(response.headers["Retry-After"]) >= 1
    metrics = client.get("/metrics")
    assert metrics.status_code == 200
    assert "model_info" not in metrics.text


def test_the_largest_settings_leave_a_call_that_can_be_answered(champion, engine):
    config = ServiceConfig(checkpoint="x", max_image_mib=MAX_IMAGE_MIB, max_labels=MAX_LABELS)
    limits = limits_of(config)
    assert BodyReader(limits).most < MAX_WAITING_MIB * 2**20
    for name, most in (("max_image_mib", MAX_IMAGE_MIB), ("max_labels", MAX_LABELS)):
        with pytest.raises(UserError, match=f"{name}={most + 1}: must be .*{most}"):
            replace(config, **{name: most + 1})
    client = TestClient(build_app(LocalBackend(champion, engine), limits), base_url="http://[::1]")
    response = form(client, labels=[f"w{number}" for number in range(MAX_LABELS)], view="best")
    assert "labels: 2000 given: must be at most 300" in response.json()["error"]["message"]


def test_a_defect_is_not_shown(client, champion, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("secret /tmp/path")

    monkeypatch.setattr(type(champion.current.network), "label_ids", broken)
    response = form(client)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_the_page_asks_for_nothing_from_elsewhere(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert set(re.findall(r"-src ([^;]+)", policy)) <= {
        "'none'", "'self'", "'self' blob: data:"}  # fmt: skip
    for path in PAGE.iterdir():
        text = path.read_text("utf-8")
        assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text) == [], path
        address = "/" if path.name == "index.html" else f"/page/{path.name}"
        assert client.get(address).text == text
    assert client.get("/examples").json() == [{"name": "one", "words": ["dog"]}]
    assert client.get("/examples/0").content == png()


def test_the_description_holds_every_route_and_every_parameter(client):
    document = client.get("/openapi.json").json()
    assert document == described(LIMITS)
    for path in document["paths"]:
        for method in document["paths"][path]:
            assert client.request(method, path).status_code in (200, 415), path
    for_people = {"/", "/page/{name}", "/examples", "/examples/{number}", "/docs", "/openapi.json"}
    routes = {route.path.replace(":int", "") for route in client.app.routes}
    assert set(document["paths"]) == routes - for_people
    for method in ("segment", "embed"):
        told = set(document["paths"][f"/v1/{method}"]["post"]["responses"])
        assert told == {"200", "400", "401", "403", "413", "415", "429", "500", "503"}
    page = client.get("/docs").text
    assert "<script" not in page
    properties = document["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
    for name in properties["application/json"]["schema"]["properties"]:
        assert f"<code>{name}</code>" in page
    answer = form(client, mask="true").json()
    assert set(document["components"]["schemas"]["Segments"]["properties"]) == set(answer)


def test_metrics_count_calls_by_status(client):
    form(client)
    form(client, b"x")
    text = client.get("/metrics").text
    for status in (200, 400):
        assert re.search(rf'^lseg_serve_calls_total{{status="{status}"}} [1-9]', text, re.M)
    assert 'lseg_serve_model_info{model="step_00000003"} 1' in text


def test_a_key_is_asked_for_where_there_is_one(champion, engine):
    key = "k" * 24
    app = build_app(LocalBackend(champion, engine), LIMITS, key)
    client = TestClient(app, base_url="http://somewhere.example")
    assert form(client).status_code == 401
    for path in ("/v1/labels", "/metrics"):
        assert client.get(path).status_code == 401
        for wrong in ("", "x", f"{key}x", "\xff".encode("latin-1")):
            assert client.get(path, headers={"X-API-Key": wrong}).status_code == 401
        assert client.get(path, headers={"X-API-Key": key}).status_code == 200
        assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert client.get("/examples/0").status_code == 401
    assert client.get("/examples/0", headers={"X-API-Key": key}).status_code == 404
    for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/page.js"):
        assert client.get(path).status_code == 200


def test_without_a_key_only_pages_of_this_machine_may_call(client):
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/healthz", headers={"Host": "["}).status_code == 403
    assert client.get("/healthz", headers={"Origin": "https://evil.example"}).status_code == 403
    for wrong in ("null", "http://[", "http://[x", "//["):
        assert client.get("/healthz", headers={"Origin": wrong}).status_code == 403
    assert client.get("/healthz", headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200
    assert client.get("/healthz", headers={"Host": "[::1]:7860"}).status_code == 200


def test_the_key_of_the_environment(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    assert api_key("127.0.0.1") == ""
    with pytest.raises(UserError, match=f"host=0.0.0.0: others can reach it, so {KEY}"):
        api_key("0.0.0.0")
    for wrong in ("short", "with a space in it, long", "ümlaut" * 5):
        monkeypatch.setenv(KEY, wrong)
        with pytest.raises(UserError, match="at least 16 letters") as error:
            api_key("127.0.0.1")
        assert wrong not in str(error.value)
    monkeypatch.setenv(KEY, "k" * 16)
    assert api_key("0.0.0.0") == "k" * 16


def test_a_body_without_end_is_not_read(champion, engine):
    limits = replace(LIMITS, max_call_s=0.2)
    client = TestClient(build_app(LocalBackend(champion, engine), limits), base_url="http://[::1]")
    read = 0

    def parts():
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 100_000

    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/segment", content=parts(), headers=headers)
    assert response.status_code == 413
