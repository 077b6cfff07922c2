"""The signature is one that MLflow reads, and the one that a service keeps."""

import json

from pipeline.checkpoints.signature import SIGNATURE


def test_mlflow_reads_it_and_writes_the_same():
    from mlflow.models import ModelSignature

    read = ModelSignature.from_dict(SIGNATURE)
    for part, text in read.to_dict().items():
        assert json.loads(text) == json.loads(SIGNATURE[part]), part
    assert read.inputs.input_names() == ["image"]
    assert [param.name for param in read.params.params] == ["labels", "other", "view", "base_px"]
