"""The pyfunc: what it answers, what it refuses, and that a clean process needs nothing else."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image
from starlette.testclient import TestClient

from model.lseg import LSeg
from model.sliding import SlidingConfig, sliding_label_ids
from pipeline.errors import UserError
from pipeline.inference import served_network
from pipeline.inference.segmenter import seen_image
from pipeline.inference.served_limits import Limits
from pipeline.inference.served_model import SegmentationModel, requirements, save_served
from pipeline.inference.served_network import ServedNetwork
from pipeline.registry.registry import CHAMPION, Registry
from tests.support.jpeg_scans import with_scans
from tests.support.mlflow_process import mlflow_is
from tests.support.mlflow_server import MlflowServer
from tests.support.tiny_checkpoint import TRAINED, tiny_checkpoint

SLIDING = SlidingConfig(base_px=60, window_px=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny network whose answers vary over an image."""
    folder = tmp_path_factory.mktemp("served") / "step_00000003"
    return tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory) -> Path:
    """The folder of the pyfunc."""
    folder = tmp_path_factory.mktemp("pyfunc") / "model"
    save_served(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def served(saved) -> mlflow.pyfunc.PyFuncModel:
    """Loaded by MLflow, with smaller limits than the shipped ones."""
    limits = {"max_images": 3, "max_image_mib": 0.05, "max_image_mpx": 0.01, "max_labels": 300}
    limits |= {"max_call_mib": 0.06, "max_call_mpx": 0.015}
    return mlflow.pyfunc.load_model(str(saved), model_config={"device": "cpu", **limits})


def picture(seed: int, height: int = 40, width: int = 64) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def table(*files: object) -> pd.DataFrame:
    return pd.DataFrame({"image": list(files)})


def mask_of(answer: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))


def expected_ids(checkpoint: Path, image: np.ndarray, texts: tuple[str, ...]) -> np.ndarray:
    lseg = LSeg.load(checkpoint)
    with torch.no_grad():
        batch = lseg.normalize(torch.from_numpy(seen_image(image, SLIDING))[None])
        text = lseg.embed_text(texts)
        return sliding_label_ids(lseg, batch, text, SLIDING, image.shape[:2])[0].numpy()


def test_the_description_names_no_folder_of_the_machine_that_wrote_it(saved):
    text = (saved / "MLmodel").read_text()
    assert "model_code_path: served_entry.py" in text
    assert re.findall(r".*/(?:tmp|root|home)/.*|.*lseg-serve.*", text) == []
    assert str(Path(__file__).parents[3]) not in text


def test_labels_of_the_call_decide(served, checkpoint):
    labels = ("grass", "sky", "red car", "dog")
    images = [picture(1), picture(2, 24, 80)]
    answers = served.predict(table(*map(encoded, images)), params={"labels": list(labels)})
    for image, answer in zip(images, answers, strict=True):
        ids = expected_ids(checkpoint, image, labels)
        assert len(np.unique(ids)) > 1  # else any mask would do
        np.testing.assert_array_equal(mask_of(answer), ids)
        assert answer["labels"] == list(labels)
        assert answer["shares"] == [round(float((ids == i).mean()), 6) for i in range(4)]
        assert answer["no_label_share"] == 0
        assert (answer["height"], answer["width"]) == image.shape[:2]


def test_without_labels_the_trained_ones_are_asked(served, checkpoint):
    (answer,) = served.predict(table(encoded(picture(1))))
    assert answer["labels"] == list(TRAINED)
    np.testing.assert_array_equal(mask_of(answer), expected_ids(checkpoint, picture(1), TRAINED))


def test_other_takes_its_pixels_from_the_labels(served, checkpoint):
    labels = ("grass", "sky", "red car")
    ids = expected_ids(checkpoint, picture(1), (*labels, "dog", "road"))
    assert 0 < (ids >= 3).mean() < 1
    params = {"labels": list(labels), "other": "dog, road"}
    (answer,) = served.predict(table(encoded(picture(1))), params=params)
    np.testing.assert_array_equal(mask_of(answer), np.where(ids >= 3, 255, ids))
    assert answer["no_label_share"] == pytest.approx((ids >= 3).mean(), abs=1e-6)
    assert answer["no_label_id"] == 255
    (sure,) = served.predict(table(encoded(picture(1))), params={**params, "other": "0.999"})
    assert sure["no_label_share"] > 0.5


def test_many_labels_make_a_mask_of_16_bits(served, checkpoint):
    labels = tuple(f"thing {number}" for number in range(280))
    (answer,) = served.predict(table(encoded(picture(3))), params={"labels": list(labels)})
    np.testing.assert_array_equal(mask_of(answer), expected_ids(checkpoint, picture(3), labels))
    assert answer["no_label_id"] == 65_535


def test_geometry_and_other_formats(served):
    data = table(encoded(picture(1), "JPEG"))
    masks = [
        mask_of(served.predict(data, params={"labels": ["sky", "dog"], **params})[0])
        for params in ({}, {"view": "whole"}, {"view": "published"}, {"base_px": 32})
    ]
    assert {mask.shape for mask in masks} == {(40, 64)}
    assert not np.array_equal(masks[0], masks[3])


def test_arrays_are_for_python_callers(served, checkpoint):
    model = served.unwrap_python_model()
    ids = model.segment(picture(2), ["grass", "sky", "dog"])
    np.testing.assert_array_equal(
        ids, expected_ids(checkpoint, picture(2), ("grass", "sky", "dog"))
    )


PNG = encoded(picture(1))
LARGE = encoded(np.zeros((80, 100, 3), np.uint8))
PADDED = PNG + bytes(40_000)
SCANS = with_scans(encoded(picture(1), "JPEG"), 60)


@pytest.mark.parametrize(
    ("files", "params", "message"),
    [
        ([PNG] * 4, {}, r"image: 4 rows: must be 1 to 3"),
        ([PNG, b"no image"], {}, r"image\[1\]: .*must be a JPEG, PNG"),
        ([PNG[:-40]], {}, r"image\[0\]: "),
        ([b""], {}, r"image\[0\]: must be the bytes"),
        ([b"/etc/passwd"], {}, r"image\[0\]: .*must be a JPEG, PNG"),
        ([b"s3://bucket/a.png"], {}, r"image\[0\]: .*must be a JPEG, PNG"),
        ([PNG + bytes(60_000)], {}, r"image\[0\]: 0\.1 MiB: must be at most 0\.05 MiB"),
        ([encoded(np.zeros((120, 100, 3), np.uint8))], {}, r"image\[0\]: .*0\.01 megapixels"),
        ([PNG], {"labels": ["dog", " dog "]}, r"labels\[1\]='dog': is named twice"),
        ([PNG], {"labels": ["Road", "sky", "road"]}, r"'Road' and 'road' are the same to the text"),
        ([PNG], {"labels": ["dog"], "other": "Dog"}, r"other=Dog: is the same"),
        ([PNG], {"base_px": 2**40}, r"base_px=1099511627776: must be 8 to 2048"),
        ([LARGE, LARGE, LARGE], {}, r"image: 0\.0 megapixels in 3 rows: must be at most 0\.015"),
        ([PADDED, PADDED], {}, r"image: 0\.1 MiB in 2 rows: must be at most 0\.06 MiB"),
        ([SCANS], {}, r"image\[0\]: .*more than 50 scans"),
        ([PNG], {"labels": ["dog", "  "]}, r"labels\[1\]: 0 characters"),
        ([PNG], {"labels": ["x" * 201]}, r"labels\[0\]: 201 characters"),
        ([PNG], {"labels": [f"{i}" for i in range(301)]}, r"labels: 301 given"),
        ([PNG], {"labels": ["dog"], "other": "dog"}, r"other=dog: is one of the labels"),
        ([PNG], {"other": "1.5"}, r"other=1\.5: must be a probability"),
        ([PNG], {"other": "x" * 201}, r"other: must be at most 300 texts of 200"),
        ([PNG], {"view": "sideways"}, r"view=sideways: must be single, published or whole"),
        ([PNG], {"base_px": 100_000}, r"base_px=100000: must be 8 to 2048"),
        ([PNG], {"base_px": 2048, "view": "whole"}, r"base_px=2048: must be 8 to 1024"),
    ],
)
def test_what_is_refused_and_how_it_is_told(served, files, params, message):
    with pytest.raises(MlflowException, match=message) as caught:
        served.predict(table(*files), params=params)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_pictures_are_decoded_one_after_the_other(served, monkeypatch):
    """The second is decoded when the first is segmented and gone."""
    model = served.unwrap_python_model()
    alive: list[weakref.ref[np.ndarray]] = []
    most = []
    decode = type(model)._decode

    def watched(self: Any, number: int, data: bytes) -> np.ndarray:
        most.append(sum(ref() is not None for ref in alive))
        image = decode(self, number, data)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(type(model), "_decode", watched)
    assert len(model.predict(None, table(*[encoded(picture(n)) for n in range(3)]))) == 3
    assert most == [0, 0, 0]


@pytest.fixture(scope="module")
def client(served) -> Iterator[TestClient]:
    """MLflow's own scoring server around the model."""
    with TestClient(scoring_server.init(served), raise_server_exceptions=False) as client:
        yield client
    scoring_server.invocations = scoring_server.invocations.guards
    scoring_server.init = scoring_server.init.guards


def posted(client: TestClient, content: Any, kind: str | None = "application/json") -> Any:
    headers = {"content-type": kind} if kind else {}
    return client.post("/invocations", content=content, headers=headers)


def request_of(**params: Any) -> str:
    row = [base64.b64encode(PNG).decode()]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [row]}, "params": params})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"dataframe_split":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        (request_of(labels=["dog", "\ud800"]), "labels[1]="),
        (request_of(labels=["dog", None]), "labels[1]=None: must be a text"),
        (request_of(other="\udfff"), "half a character"),
        (request_of(base_px=None), "base_px=None: must be a whole number"),
        (request_of(view=None), "view=None: must be a text"),
        (request_of(labels=[["dog"]]), "labels"),
        (b"\xff\xfe", "JSON"),
        ("null", "JSON"),
        ('{"dataframe_split": 5}', "dictionary"),
        (" " * 3_000_000, "MiB"),
        ('{"dataframe_split": ' + "9" * 5000 + "}", "thousands of digits"),
        # Tables of which pandas makes the square.
        (json.dumps({"dataframe_records": [{f"a{n}": n} for n in range(5000)]}), "table is too"),
        (json.dumps({"inputs": [{f"a{n}": n for n in range(5000)}]}), "table is too"),
        ('{"instances": [' + "{}," * 5000 + "{}]}", "table is too"),
        ('{"dataframe_split": {"data": 1, "index": [' + "0," * 5000 + "0]}}", "table is too"),
        ('{"params": [' + "[]," * 160_000 + "[]]}", "too many values"),
    ],
)
def test_no_request_gets_a_traceback(client, content, words):
    answer = posted(client, content)
    assert 400 <= answer.status_code < 500, answer.text
    assert words in answer.json()["message"]
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    assert str(Path(__file__).parents[3]) not in answer.text
    assert len(answer.text) < 3000


@pytest.mark.parametrize(
    "kind", ["text/csv", "application/vnd.apache.parquet", "text/html; x=\x1b[2J", ""]
)
def test_only_json_is_read(client, kind):
    """A Parquet file of a few bytes may unpack to any size."""
    answer = posted(client, request_of(), kind=kind)
    assert answer.status_code == 400
    assert "must be application/json" in answer.json()["message"]
    assert "\x1b" not in answer.text
    assert posted(client, request_of(), kind="Application/JSON; charset=utf-8").status_code == 200


def test_a_defect_is_told_in_the_log_alone(client, served, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(type(served.unwrap_python_model()), "_asked", broken)
    answer = posted(client, request_of())
    assert answer.status_code == 400
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "secret of the house" in caplog.text
    assert posted(client, request_of(), kind=None).status_code == 400


def test_a_call_ends_when_its_time_is_over(client, served, monkeypatch):
    model = served.unwrap_python_model()
    assert posted(client, request_of()).status_code == 200
    monkeypatch.setattr(model._turns, "_limits", replace(model._limits, max_call_s=1e-9))
    answer = posted(client, request_of())
    assert answer.status_code == 504
    assert "longer than" in answer.json()["message"]
    # A caller in Python waits as long as it takes.
    assert len(served.predict(table(PNG))) == 1


def test_a_string_is_no_picture_for_python_callers_either(served):
    with pytest.raises(MlflowException, match=r"image\[0\]: must be the bytes of an image"):
        served.predict(table("/etc/passwd"))


def test_texts_are_counted_with_their_names_and_templates(checkpoint):
    network = ServedNetwork(checkpoint, "cpu", Limits(max_texts=12))
    config = network.lseg.config
    text = replace(config.text, templates="a {}\nthe {}\n{}", synonyms="mean")
    network.lseg.config = replace(config, text=text)
    assert network.read({"labels": ["a, b", "c", "d"]}).labels == ("a, b", "c", "d")
    with pytest.raises(UserError, match=r"labels: 15 texts with their names .* at most 12"):
        network.read({"labels": ["a, b", "c", "d", "e"]})
    with pytest.raises(UserError, match="labels: 15 texts"):
        network.read({"labels": ["a", "b", "c"], "other": "d, e"})


def test_kept_vectors_are_bounded_by_their_memory(checkpoint, monkeypatch):
    network = ServedNetwork(checkpoint, "cpu", Limits())
    row_mib = 512 * 4 / 2**20
    monkeypatch.setattr(served_network, "MAX_KEPT_MIB", 5 * row_mib)
    monkeypatch.setattr(type(network.lseg._text_encoder), "max_kept_mib", 5 * row_mib)
    for number in range(4):
        network.question({"labels": [f"{number}", "x"]})
    assert [key[0][0] for key in network._kept] == ["2", "3"]
    assert len(network.lseg._text_encoder._cache) == 2
    network.question({"labels": ["2", "x"]})
    network.question({"labels": ["4", "x"]})
    assert [key[0][0] for key in network._kept] == ["2", "4"]  # What was not used for longest goes.
    large = network.question({"labels": [f"{number}" for number in range(20)]})
    assert len(network._kept) == 1
    assert network.read({"labels": large.labels}).vectors is large.vectors


def test_a_misspelt_limit_ends_the_loading(checkpoint):
    context = PythonModelContext({"checkpoint": str(checkpoint)}, {"max_pictures": 3})
    with pytest.raises(TypeError, match="max_pictures"):
        SegmentationModel().load_context(context)


SESSION = """
import json, sys, mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model("models:/lseg/1")
answer, = model.predict(pd.DataFrame({"image": [open("a.png", "rb").read()]}),
                        params={"labels": ["grass", "sky", "dog"]})
import pipeline
print(json.dumps({"answer": answer, "pipeline": pipeline.__file__,
    "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.mark.slow
def test_clean_processes_segment_with_the_labels_of_the_call(checkpoint, tmp_path):
    """A real server; two new processes outside the repository that do not know it.

    Slow: a server and two processes that import torch and MLflow.
    """
    server = MlflowServer(tmp_path)
    server.start()
    try:
        with mlflow_is(server.uri):
            registry = Registry(server.uri)
            experiment = MlflowClient(server.uri).create_experiment("lseg")
            run_id = MlflowClient(server.uri).create_run(experiment).info.run_id
            version = registry.register(checkpoint, run_id=run_id, metrics={"val/miou": 0.5})
            registry.set_alias(CHAMPION, version)
            assert version.metrics == {"val/miou": 0.5}
            # Through the server's artifact store, as another machine would.
            assert LSeg.load("models:/lseg@champion").labels == TRAINED
        check_clean_processes(server.uri, checkpoint, tmp_path)
    finally:
        server.kill()


def check_clean_processes(uri: str, checkpoint: Path, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["MLFLOW_TRACKING_URI"] = uri
    work = tmp_path / "elsewhere"
    work.mkdir()
    (work / "a.png").write_bytes(encoded(picture(1)))
    labels = ("grass", "sky", "dog")
    ids = expected_ids(checkpoint, picture(1), labels)

    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_array_equal(mask_of(told["answer"]), ids)
    assert Path(told["pipeline"]).parents[1].name == "code", "not the code of the version"
    assert not {"ray", "pytest"} & set(told["loaded"])
    assert_required(set(told["loaded"]))

    request = {
        "dataframe_split": {
            "columns": ["image"],
            "data": [[base64.b64encode(encoded(picture(1))).decode()]],
        },
        "params": {"labels": list(labels)},
    }
    (work / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", "models:/lseg@champion"]
    command += ["--env-manager", "local", "-i", "request.json", "-o", "answer.json"]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads((work / "answer.json").read_text())["predictions"]
    np.testing.assert_array_equal(mask_of(answer), ids)
    assert answer["labels"] == list(labels)


def assert_required(loaded: set[str]) -> None:
    """Each package that was imported belongs to a requirement or to something that one needs."""
    from importlib.metadata import packages_distributions, requires

    from packaging.requirements import Requirement

    # Clients and servers of HTTP import these where something else has installed them.
    optional = ["trio", "pysocks", "python-multipart"]
    listed = [*(Requirement(line).name for line in requirements()), *optional]
    closed: set[str] = set()
    while listed:
        name = listed.pop().lower().replace("_", "-")
        if name in closed:
            continue
        closed.add(name)
        try:
            needs = [Requirement(line) for line in requires(name) or ()]
        except ModuleNotFoundError:
            continue
        listed += [need.name for need in needs if not need.marker or need.marker.evaluate()]
    known = packages_distributions()
    owners = {
        name: {owner.lower().replace("_", "-") for owner in known[name]}
        for name in loaded & known.keys()
    }
    own = {"lseg-ray", "setuptools", "pip"}
    # Of each package that is imported, but not required, who installed it.
    assert {name: by for name, by in owners.items() if not by & (closed | own)} == {}
