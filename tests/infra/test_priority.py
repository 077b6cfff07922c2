"""Whose pods go first on Kubernetes: the classes, and the parts that give them to pods."""

import shutil
from pathlib import Path

import kubernetes_validate
import pytest

from tests.support.deployment import (
    INFRA,
    KUBERAY,
    PLATFORMS,
    WITH_CLUSTER,
    pod_templates,
    pods,
    rendered,
)

CORE_VERSION = "1.37"
CLASSES = {each["metadata"]["name"]: each for each in rendered(KUBERAY / "priority")}


def classes_of(documents: list[dict]) -> dict[str, str | None]:
    """The class of each kind of pod."""
    kinds = {"headGroupSpec": "head", "workerGroupSpecs": "worker"}
    found = {}
    for place, pod in pod_templates(documents):
        (kind,) = [short for key, short in kinds.items() if key in place] or ["client"]
        found[kind] = pod["spec"].get("priorityClassName")
    return found


@pytest.fixture(params=PLATFORMS)
def chosen(request, tmp_path) -> Path:
    """A copy of infra/ in which a platform's trainings and its service have their classes."""
    for name in ("kuberay", "serve"):
        shutil.copytree(INFRA / name, tmp_path / name)
    choices = tmp_path / "kuberay" / "overlays" / request.param / "choices" / "kustomization.yaml"
    service = tmp_path / "serve" / request.param / "kustomization.yaml"
    for path, before, after in (
        (choices, "components:\n", "components:\n  - ../../../components/priority\n"),
        (service, "  # - ../priority\n", "  - ../priority\n"),
    ):
        assert path.read_text().count(before) == 1, path
        path.write_text(path.read_text().replace(before, after))
    return tmp_path


def test_trainings_and_services_have_their_classes_where_they_are_chosen(chosen):
    of_training = {"head": "lseg-driver", "worker": "lseg-training", "client": "lseg-driver"}
    (choices,) = [
        path for path in chosen.glob("kuberay/overlays/*/choices/*.yaml")
        if "components/priority" in path.read_text()
    ]  # fmt: skip
    for name in ("cluster", "train", "check", "nightly"):
        assert classes_of(rendered(choices.parents[1] / name)) == of_training, name
    service = rendered(chosen / "serve" / choices.parents[1].name)
    assert classes_of(service) == {"head": "lseg-serving", "worker": "lseg-serving"}


def test_no_pod_asks_for_a_class_that_may_not_be_there():
    """Kubernetes lets no such pod in, so what is shipped does without."""
    named = [place for place, pod in pods(*WITH_CLUSTER).items() if "priority" in str(pod["spec"])]
    assert named == []
    for platform in PLATFORMS:
        assert set(classes_of(rendered(INFRA / "serve" / platform)).values()) == {None}


def test_a_service_goes_first_and_a_training_ends_nobody():
    assert sorted(CLASSES) == ["lseg-driver", "lseg-serving", "lseg-training"]
    for each in CLASSES.values():
        kubernetes_validate.validate(each, CORE_VERSION, strict=True)
        assert each["metadata"]["labels"] == {"app.kubernetes.io/part-of": "lseg"}
        assert not each.get("globalDefault")  # Else pods of others would have it, too.
    values = {name: each["value"] for name, each in CLASSES.items()}
    # Those of Kubernetes itself begin at two thousand millions, pods without a class have 0.
    assert 0 < values["lseg-training"] < values["lseg-driver"] < values["lseg-serving"] < 10**9
    policies = {name: each["preemptionPolicy"] for name, each in CLASSES.items()}
    assert policies.pop("lseg-serving") == "PreemptLowerPriority"
    assert set(policies.values()) == {"Never"}
