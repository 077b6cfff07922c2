"""Networks by name on the Hugging Face Hub: `LSeg.from_pretrained` and `push_to_hub`.

By huggingface_hub's mixin, whose way of reading a `config.json` into arguments is replaced: what
comes from the Hub is a stranger's checkpoint, and is read by the same rules as any other folder.
Only the files that a checkpoint is made of are fetched, all of one commit, after a look at their
sizes; no pickle and no code.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from huggingface_hub import (
    _CACHED_NO_EXIST,
    ModelCard,
    ModelHubMixin,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model.checkpoint import is_uri, resolvers, save_checkpoint
from model.checkpoint_files import (
    CONFIG,
    FILES,
    TEXT_WEIGHTS,
    WEIGHTS,
    checkpoint_fingerprint,
    read_labels,
    read_model_config,
)
from model.config import ModelConfig, TextConfig
from model.errors import ModelError, Unreachable
from model.model_card import REPOSITORY_NAME, model_card, published_config
from model.settings_file import MAX_BYTES, parse_json, parse_yaml, shown

SCHEME = "hf"
PROVENANCE, METRICS = "provenance.json", "metrics.json"
FETCHED = (*FILES, PROVENANCE, METRICS)
_IN_ORDER = (CONFIG, *(file for file in FETCHED if file not in (CONFIG, WEIGHTS)), WEIGHTS)
"""The weights come last: a cache that holds them holds all that the repository has."""
MAX_GIB = 16
"""Size of a file of weights that is fetched: four times that of the largest ViT."""

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEPT_TAGS = ("git_commit", "manifest.", "version.")
"""Beginnings of what of provenance.json is published: no names of jobs and runs."""


@dataclass(frozen=True)
class _Published:
    """A network with the settings under which it is published."""

    config: ModelConfig
    network: Any

    def state_dict(self) -> dict[str, Any]:
        """Returns the trained weights by name."""
        return self.network.state_dict()


class HubMixin(ModelHubMixin):
    """What makes a network one of the Hub."""

    folder: Path | None = None
    """Where the network was loaded from."""

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: Any = "cpu",
        text: TextConfig | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Loads a network from a folder, or by its name on the Hub.

        Args:
            pretrained_model_name_or_path: a checkpoint folder; `owner/name` on the Hub; or what
                `load` takes. A folder of that name goes before the Hub.
            device: as in `load`.
            text: as in `load`.
            force_download: fetch what the cache already holds.
            token: the Hub's; None: that of `hf auth login` or HF_TOKEN.
            cache_dir: the Hub's cache.
            local_files_only: never ask the Hub.
            revision: branch, tag or commit.

        Returns:
            The network in evaluation mode.

        Raises:
            FileNotFoundError: a folder lacks a file.
            ModelError: as `load`; or the Hub has no such network; or it does not answer, and the
                cache does not hold the network.
        """
        source = pretrained_model_name_or_path
        if not (Path(source).is_dir() or is_uri(source)):
            source = fetch(
                str(source),
                revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return cls.load(source, device, text)  # pyright: ignore[reportAttributeAccessIssue]

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes a checkpoint folder, with what is known of its training."""
        config = self.save_published(save_directory)
        for name in (PROVENANCE, METRICS):
            if content := self._told(name):
                (save_directory / name).write_text(json.dumps(content, indent=1) + "\n")
        # Written here, because the mixin would write the settings as they are in memory.
        plain = {"library_name": REPOSITORY_NAME, "model": asdict(config)}
        (save_directory / "config.json").write_text(json.dumps(plain, indent=1) + "\n")

    def save_published(self, directory: Path) -> ModelConfig:
        """Writes a checkpoint folder, without the places of its training; returns its settings."""
        config, names, texts = self._published()
        extra = _kept_settings(self.folder)
        save_checkpoint(directory, _Published(config, self), names, extra, texts)
        if config.text.pretrained == TEXT_WEIGHTS and self.folder:
            shutil.copyfile(self.folder / TEXT_WEIGHTS, directory / TEXT_WEIGHTS)
        return config

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Publishes the network, with its page; the arguments are those of the mixin.

        `model_card_kwargs={"reports": [...]}` puts evaluations (`report.json`) onto the page.

        Returns:
            The address of the commit.

        Raises:
            ModelError: a report is none, or that of another checkpoint.
        """
        told = {"name": repo_id, **(kwargs.pop("model_card_kwargs", None) or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=told, **kwargs)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Writes the page from the provenance; see `model.model_card.model_card` for `reports`."""
        config, names, texts = self._published()
        reports: Sequence[str] = kwargs.get("reports", ())
        provenance, metrics = self._told(PROVENANCE), self._told(METRICS)
        name = kwargs.get("name", "OWNER/NAME")
        own = checkpoint_fingerprint(self.folder) if reports and self.folder else ""
        content = model_card(config, texts or names, provenance, metrics, reports, name, own)
        return ModelCard(content, ignore_metadata_errors=True)

    def _published(self) -> tuple[ModelConfig, tuple[str, ...], tuple[str, ...]]:
        """Settings without places, names and texts of the labels, as the folder named them."""
        config: ModelConfig = self.config  # pyright: ignore[reportAttributeAccessIssue]
        labels: tuple[str, ...] = self.labels  # pyright: ignore[reportAttributeAccessIssue]
        if self.folder is None:
            return published_config(config), labels, ()
        # Not the text encoder that the caller uses in place of the one that is named.
        config = replace(config, text=read_model_config(self.folder).text)
        return published_config(config), *read_labels(self.folder)

    def _told(self, name: str) -> dict[str, Any]:
        """What a file beside the weights says, without names of jobs, runs and machines."""
        path = self.folder / name if self.folder else None
        if path is None or not path.is_file():
            return {}
        with path.open("rb") as file:
            content = parse_json(file.read(MAX_BYTES + 1), str(path))
        if not isinstance(content, dict):
            return {}
        kept = _KEPT_TAGS if name == PROVENANCE else ("step", "val/")
        return {key: value for key, value in content.items() if str(key).startswith(kept)}


def _kept_settings(folder: Path | None) -> Mapping[str, Any]:
    """The settings beside the network's that predictions need: sizes of crops and images."""
    if folder is None:
        return {}
    with (folder / CONFIG).open("rb") as file:
        content = parse_yaml(file.read(MAX_BYTES + 1), str(folder / CONFIG))
    data = content.get("data") if isinstance(content, dict) else None
    augment = data.get("augment") if isinstance(data, dict) else None
    return {"data": {"augment": augment}} if isinstance(augment, dict) else {}


def fetch_uri(uri: str) -> Path:
    """Fetches the checkpoint that `hf://owner/name`, or `hf://owner/name@revision`, names."""
    name, _, revision = uri.partition("://")[2].partition("@")
    return fetch(name.strip("/"), revision or None)


def fetch(
    name: str,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fetches the files of a checkpoint from the Hub into its cache.

    Where the Hub does not answer, the copy in the cache is used as it is, with a warning. The files
    of a commit that the cache holds are taken from there without a question.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit.
        token: the Hub's.
        cache_dir: where the cache lies.
        force_download: fetch what it already holds; then the cache is no substitute for the Hub.
        local_files_only: never ask the Hub.

    Raises:
        ModelError: the name is none, the Hub has no such checkpoint, or a file is too large.
        Unreachable: the Hub does not answer, and the cache lacks a file.
    """
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{shown(name)[1:-1]}: is no folder, and no name on the Hub either: must be a "
            "checkpoint folder or owner/name: correct it"
        )
    offline = bool(local_files_only or constants.HF_HUB_OFFLINE)
    asked = _Asked(name, token, cache_dir, revision, force_download and not offline, offline)
    folder: Path | None = None
    for file in _IN_ORDER:
        try:
            path = asked.file(file)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise ModelError(
                f"{name}: is not on the Hub (or not in revision {revision or 'main'}, or not for "
                "this token), and no folder here: correct the name, or log in (`hf auth login`)"
            ) from None
        if path is None:
            if file in (CONFIG, WEIGHTS):
                raise asked.lacks(file)
            continue
        _check_size(name, file, path.stat().st_size)
        folder = path.parent
        # The cache names folders by commit: all files come from that of the first one.
        asked.revision = folder.name
    assert folder is not None
    return folder


@dataclass
class _Asked:
    """A repository, and what has come of asking the Hub for its files."""

    name: str
    token: str | bool | None
    cache_dir: str | Path | None
    revision: str | None
    force_download: bool
    offline: bool
    """The cache alone is looked at."""
    has_answered: bool = False
    """The Hub answered before, so that a file which cannot be fetched now may well exist."""
    failure: str = ""
    """Why the Hub is not asked any more, where it was asked in vain."""

    def file(self, file: str) -> Path | None:
        """Finds a file in the cache, or fetches it.

        Returns:
            The file; None where the repository has none, or where only the cache is looked at and
            does not hold it.

        Raises:
            Unreachable: the Hub does not answer (any more), and the cache is no substitute.
        """
        # The files of a commit never change, so that a copy needs no question.
        is_commit = bool(_COMMIT.fullmatch(self.revision or ""))
        if self.offline or (is_commit and not self.force_download):
            found = try_to_load_from_cache(self.name, file, self.cache_dir, self.revision)
            if isinstance(found, str):
                return Path(found)
            if self.offline or found is _CACHED_NO_EXIST:
                return None
        try:
            path = self._fetched(file)
        except (RepositoryNotFoundError, RevisionNotFoundError, ModelError):
            raise
        except Exception as error:  # Whatever the HTTP library of this version raises.
            if self.has_answered or self.force_download:
                raise self._unreachable(file, type(error).__name__) from None
            self.offline, self.failure = True, type(error).__name__
            path = self.file(file)
            if path is not None:
                logger.warning(
                    "%s: the Hub does not answer (%s): the copy in its cache is used, of commit %s",
                    self.name,
                    self.failure,
                    path.parent.name,
                )
        self.has_answered = not self.offline
        return path

    def _fetched(self, file: str) -> Path | None:
        """Fetches a file after a look at its size; None where the repository has none."""
        url = hf_hub_url(self.name, file, revision=self.revision)
        how: dict[str, Any] = {"cache_dir": self.cache_dir, "token": self.token}
        how |= {"revision": self.revision, "force_download": self.force_download}
        try:
            _check_size(self.name, file, get_hf_file_metadata(url, token=self.token).size or 0)
        except EntryNotFoundError:
            # Asked again, for the cache to note what is missing.
            with suppress(EntryNotFoundError):
                hf_hub_download(self.name, file, **how)
            return None
        return Path(hf_hub_download(self.name, file, **how))

    def lacks(self, file: str) -> ModelError:
        """The error that there is no such file, although a checkpoint must have it."""
        if not self.offline:
            return ModelError(
                f"{self.name}: has no {file}: must be a checkpoint of this project: name another"
            )
        return self._unreachable(file, self.failure)

    def _unreachable(self, file: str, failure: str) -> Unreachable:
        why = f"the Hub does not answer ({failure})" if failure else "only the cache may be asked"
        there = "cannot be fetched" if self.force_download else "is not in the Hub's cache here"
        return Unreachable(
            f"{self.name}: {file} {there}, and {why}: name a folder, or fetch it where there is a "
            f"network (`hf download {self.name}`) and copy the cache"
        )


def _check_size(name: str, file: str, size: int) -> None:
    """Refuses a file that is too large."""
    most = MAX_GIB * 2**30 if file.endswith(".safetensors") else MAX_BYTES
    if size > most:
        raise ModelError(
            f"{name}: {file} has {size} bytes: must have at most {most:g}: name another network"
        )


resolvers.setdefault(SCHEME, fetch_uri)
