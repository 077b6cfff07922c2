"""The origin of a run: code version, library versions, Ray job."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pipeline.ray_internals import SUBMITTED_JOB

UNKNOWN = "unknown"
ROOT = Path(__file__).resolve().parents[2]
"""The folder of the sources that run."""

COMMIT_FILE = ".commit"
"""File beside the sources with the commit that an image was built from; there is no repository."""

_SOURCES = (".csv", ".json", ".py", ".tsv", ".txt", ".yaml")
"""What decides about a run; compiled files do not."""

_LIBRARIES = (
    "mlflow",
    "numpy",
    "open_clip_torch",
    "opencv-python-headless",
    "pillow",
    "ray",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "webdataset",
)


def git_commit(source: Path = Path(__file__), root: Path = ROOT) -> str:
    """Names the version of the code.

    `LSEG_GIT_COMMIT` comes first: a working directory uploaded by `ray job submit` has no `.git`.
    An image has its commit in a file.

    Args:
        source: A file of the code in question. A repository around it counts only if it tracks
            that file: an installed package may lie inside a checkout of something else.
        root: The folder of the sources.

    Returns:
        40 hex digits, followed by `-dirty` if tracked files were changed; or `unknown`.
    """
    if commit := os.environ.get("LSEG_GIT_COMMIT", "").strip():
        return commit
    source = source.resolve()
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return _commit_of_image(root) or UNKNOWN
    # Excluding every tag leaves the full hash as the only name.
    described = _git(source.parent, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    return described or UNKNOWN


def _commit_of_image(root: Path) -> str:
    try:
        return (root / COMMIT_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def source_fingerprint(root: Path = ROOT) -> str:
    """Names the sources of a folder by their content, also where there is no repository.

    `ray job submit` uploads sources without `.git`: their commit is not known there, but equal
    files have equal names, there and in a checkout.

    Args:
        root: The folder that holds `pipeline`, `model` and `jobs`.

    Returns:
        16 hex digits, of the SHA-256 of all names and contents.
    """
    digest = hashlib.sha256()
    paths = [
        path
        for package in ("jobs", "model", "pipeline")
        for path in (root / package).rglob("*")
        if path.suffix in _SOURCES and path.is_file()
    ]
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> str | None:
    """Runs git; None if it is missing, fails or takes longer than 5 s."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a run's result, where installed."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def ray_job_id() -> str:
    """Names the Ray job that this process belongs to.

    Returns:
        The id that `ray job submit` printed (`raysubmit_...`); else Ray's own job id in hex; an
        empty string outside Ray.
    """
    submitted = os.environ.get(SUBMITTED_JOB)
    if submitted:
        try:
            return json.loads(submitted)["metadata"]["job_submission_id"]
        except (ValueError, KeyError, TypeError):
            pass  # another version of Ray: fall back to the id that every version has
    # A job that never imported Ray has not joined a cluster; importing it costs seconds.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return ray.get_runtime_context().get_job_id()
