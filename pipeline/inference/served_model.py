"""The network as an MLflow pyfunc: images and labels in, label masks out.

Saved as code (`served_entry`) beside the checkpoint's safetensors and this project's packages, so
that loading it unpickles nothing and needs no installation of the project. What comes over the wire
is not trusted: images are bytes, never paths or addresses, and size, time and number of calls have
limits (`Limits`, MLflow's `model_config`). Images are decoded one after the other.
"""

import base64
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from PIL import Image

import model
import pipeline
from model.checkpoint import followed
from model.checkpoint_files import read_model_config
from model.config import STAND_IN, TextConfig
from model.errors import ModelError
from model.lseg import LSeg
from model.packages import PACKAGE, TEXT_PACKAGES, package_of
from model.sliding import SlidingConfig
from pipeline.checkpoints.files import USABLE
from pipeline.checkpoints.signature import SIGNATURE
from pipeline.errors import UserError
from pipeline.inference.config import Other
from pipeline.inference.segmenter import encode_index
from pipeline.inference.served_limits import Bodies, Limits, Turns, guarded
from pipeline.inference.served_network import Question, ServedNetwork, total_mpx
from pipeline.ray_internals import guard_scoring_server

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
"""Name of the artifact that is the checkpoint's folder."""
ENTRY = Path(__file__).with_name("served_entry.py")

REQUIRED = (
    "boto3",
    "h5py",
    "isal",
    "matplotlib",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "open_clip_torch",
    "pandas",
    "pillow",
    "PyYAML",
    "psutil",
    "safetensors",
    "scipy",
    "simplejpeg",
    "timm",
    "torch",
    "torchvision",
)
"""Distributions that serving imports; their versions are those of the process that saves."""


class SegmentationModel(PythonModel):
    """Segments images with any labels.

    Input: a table with the column `image`: bytes of a JPEG, PNG, WebP, TIFF, BMP, PPM or GIF
    (base64 over REST). Parameters and outputs: see `signature`.
    """

    def load_context(self, context: Any) -> None:
        """Loads the network, and the text encoder too, so that a service fails early."""
        values = dict(context.model_config or {})
        device = values.pop("device", "auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._limits = Limits(**values)
        folder = Path(context.artifacts[CHECKPOINT])
        self._network = ServedNetwork(folder, device, self._limits)
        self._turns = Turns(self._limits)
        # Of all parts of the work the forward pass of a window comes most often.
        self._network.lseg.backbone.register_forward_pre_hook(self._turns.check)
        guard_scoring_server(
            partial(guarded, turns=self._turns, limits=self._limits),
            partial(Bodies, limits=self._limits),
        )

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Segments each row's image; see `signature` for what comes out.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE; the message says which row or parameter.
                DEADLINE_EXCEEDED or TEMPORARILY_UNAVAILABLE where the call's time is over.
        """
        try:
            with self._turns.one():
                files = self._files(model_input)
                question = self._asked(params or {})
                answers = []
                for number in range(len(files)):
                    self._turns.check()
                    image = self._decode(number, files[number])
                    files[number] = b""
                    answers.append(self._answer(image, question))
                    del image  # Before the next one is decoded.
                return answers
        except (UserError, ModelError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def segment(
        self,
        image: np.ndarray,
        labels: Sequence[str] = (),
        other: Other | None = None,
        sliding: SlidingConfig | None = None,
    ) -> np.ndarray:
        """Segments one decoded image; for Python callers (`unwrap_python_model().segment`).

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: What to look for; none: what the network was trained on.
            other: What becomes of pixels of none of them; None: each gets its best label.
            sliding: How to look; None: as in training.

        Returns:
            (H, W) int64: positions in `labels`, or -1.
        """
        network = self._network
        question = Question(
            tuple(labels) or network.labels, other or Other(), sliding or network.usual_sliding()
        )
        return self._segment(image, question)

    def _segment(self, image: np.ndarray, question: Question) -> np.ndarray:
        seen = self._network.see(image, question)
        return self._network.label_ids(seen[None], image.shape[:2], question)[0]

    def _answer(self, image: np.ndarray, question: Question) -> dict[str, Any]:
        labels = question.labels
        ids = self._segment(image, question)
        counts = np.bincount(ids.ravel() + 1, minlength=len(labels) + 1)
        shares = (counts / ids.size).round(6).tolist()
        mask = encode_index(ids, labels, "distinct")
        return {
            "mask": base64.b64encode(mask).decode("ascii"),
            "labels": list(labels),
            "shares": shares[1:],
            "no_label_share": shares[0],
            "no_label_id": 255 if len(labels) <= 255 else 65_535,
            "height": ids.shape[0],
            "width": ids.shape[1],
        }

    def _files(self, table: pd.DataFrame) -> list[bytes]:
        """The files of a table, all of which are within the limits by their sizes and headers."""
        limits = self._limits
        rows = table["image"].tolist()
        if not 0 < len(rows) <= limits.max_images:
            raise UserError(
                f"image: {len(rows)} rows: must be 1 to {limits.max_images}: send more calls"
            )
        files = []
        for number, value in enumerate(rows):
            if not isinstance(value, bytes | bytearray | memoryview) or not len(value):
                raise UserError(
                    f"image[{number}]: must be the bytes of an image file (base64 over REST), "
                    f"not {type(value).__name__}: paths and addresses are not read here"
                )
            files.append(bytes(value))
            self._network.check_mib(f"image[{number}]", files[-1])
        total_mib = sum(map(len, files)) / 2**20
        if total_mib > limits.max_call_mib:
            raise UserError(
                f"image: {total_mib:.1f} MiB in {len(files)} rows: must be at most "
                f"{limits.max_call_mib:g} MiB in one call: send more calls"
            )
        sizes = [self._network.size(f"image[{n}]", data) for n, data in enumerate(files)]
        if (mpx := total_mpx(sizes)) > limits.max_call_mpx:
            raise UserError(
                f"image: {mpx:.1f} megapixels in {len(files)} rows: must be at most "
                f"{limits.max_call_mpx:g} in one call: send more calls"
            )
        return files

    def _decode(self, number: int, data: bytes) -> np.ndarray:
        return self._network.decode(f"image[{number}]", data)

    def _asked(self, params: Mapping[str, Any]) -> Question:
        return self._network.question(params, self._turns.check)


def signature() -> Any:
    """The pyfunc's signature: an MLflow `ModelSignature`."""
    from mlflow.models import ModelSignature

    return ModelSignature.from_dict(SIGNATURE)


def requirements(encoder: str = "") -> list[str]:
    """Pinned requirements of a model with this text encoder, from the versions installed here."""
    extra = ("sentence-transformers",) if encoder.startswith("sentence-transformers/") else ()
    if encoder.startswith(PACKAGE):
        entry = package_of(TEXT_PACKAGES, encoder, "text.encoder")
        extra = (entry.package, "tokenizers")
    pins = []
    for name in (*REQUIRED, *extra):
        try:
            # Local parts (2.11.0+cu128) name builds that no index has.
            pins.append(f"{name}=={metadata.version(name).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            pins.append(name)
    return pins


def check_checkpoint(folder: Path) -> None:
    """Loads a checkpoint as a service will, but for its text encoder.

    Raises:
        ModelError: It cannot be loaded; its weights are not finite, for example.
    """
    named = read_model_config(folder).text
    try:
        followed(named, folder)
    except ModelError as error:
        logger.warning("registered all the same, and served only where it is named: %s", error)
    LSeg.load(folder, text=TextConfig(encoder=STAND_IN))


def code_paths() -> list[str]:
    """Returns the folders of the code that travels with every model."""
    return [str(Path(package.__path__[0])) for package in (model, pipeline)]


def save_served(checkpoint: Path, target: Path, *, logged: Any = None, run_id: str = "") -> None:
    """Writes the pyfunc of a checkpoint.

    Args:
        checkpoint: Its folder on this machine; only `USABLE` files of it go along.
        target: A folder that does not exist.
        logged: MLflow's `LoggedModel` that it becomes.
        run_id: MLflow run of it.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    described = None
    if logged is not None:
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run_id,
            model_id=logged.model_id,
        )
    with tempfile.TemporaryDirectory(prefix="lseg-serve-") as scratch:
        staged = Path(scratch) / CHECKPOINT
        staged.mkdir()
        for name in USABLE:
            if (checkpoint / name).is_file():
                _link_or_copy(checkpoint / name, staged / name)
        mlflow.pyfunc.save_model(
            path=str(target),
            mlflow_model=described,
            python_model=str(ENTRY),
            artifacts={CHECKPOINT: str(staged)},
            code_paths=code_paths(),
            signature=signature(),
            input_example=_example(),
            pip_requirements=requirements(read_model_config(checkpoint).text.encoder),
            model_config={"device": "auto", **asdict(Limits())},
        )
    # MLflow runs the entry to check it.
    for unwanted in list(target.rglob("__pycache__")):
        shutil.rmtree(unwanted)
    _drop_places(target / "MLmodel")


def _drop_places(path: Path) -> None:
    """Takes the folders of this machine out of a description that everybody reads."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    flavor = content["flavors"]["python_function"]
    flavor["model_code_path"] = ENTRY.name  # MLflow looks for this name beside the description.
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def _link_or_copy(source: Path, target: Path) -> None:
    """Links a file where possible: MLflow copies it in any case, and refuses symbolic links."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _example() -> tuple[pd.DataFrame, dict[str, Any]]:
    """An example input, which the UI shows as the request to send."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (70, 130, 180)).save(buffer, "PNG")
    table = pd.DataFrame({"image": [buffer.getvalue()]})
    return table, {"labels": ["sky", "grass", "dog"], "other": "other"}
