"""The configuration of the model registry, and of `jobs/registry.py`."""

import re
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import UserError
from pipeline.registry.locks import LockConfig
from pipeline.tracking.config import TrackingConfig

Action = Literal["list", "register", "promote", "roll_back", "remove_alias"]

_TAKES = {
    "list": (),
    "register": ("checkpoint", "alias", "run_id", "tags"),
    "promote": ("version", "alias"),
    "roll_back": (),
    "remove_alias": ("alias",),
}


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Which registered model; the server is that of `tracking`."""

    name: str = "lseg"
    """Name of the model in MLflow's registry; made at the first registration."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.\-]{0,199}", self.name):
            raise UserError(
                f"registry.name={self.name[:100]!r}: must be at most 200 letters, digits, '.', '_' "
                "and '-': write for example lseg"
            )


@dataclass(frozen=True, kw_only=True)
class RegistryJobConfig:
    """What to do with the registry."""

    action: Action = "list"
    """`list` versions; `register` a checkpoint; `promote` a version; `roll_back` to the version
    that the champion replaced; `remove_alias`. May also be the first word of the command line."""

    checkpoint: str = ""
    """Checkpoint to register: a folder, or `s3://bucket/folder`; also the word after `register`."""

    version: str = ""
    """Version to promote: its number, or `@alias`; also the word after `promote`."""

    alias: str = ""
    """Alias to give or to remove. By default `promote` gives `champion`, and `register` none."""

    run_id: str = ""
    """MLflow run that the version belongs to; empty: the one that trained the checkpoint if this
    server knows it, else a new one."""

    tags: dict[str, str] = field(default_factory=dict)
    """Further tags of the version to register."""

    registry: RegistryConfig = field(default_factory=RegistryConfig)
    lock: LockConfig = field(default_factory=LockConfig)
    """The lock on changes of the champion; the same times as in `jobs/retrain.py`."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("checkpoint", "version", "alias", "run_id", "tags"):
            if getattr(self, name) and name not in _TAKES[self.action]:
                takes = ", ".join(_TAKES[self.action]) or "nothing"
                raise UserError(f"{name}: {self.action} takes {takes}: leave it out")
        if self.alias and (
            not re.fullmatch(r"[A-Za-z0-9_-]{1,250}", self.alias)
            or re.fullmatch(r"v\d+", self.alias, re.IGNORECASE)
            or self.alias.lower() == "latest"
        ):
            raise UserError(
                f"alias={self.alias!r}: must be letters, digits, '_' and '-', and neither 'latest' "
                "nor like v1, which MLflow keeps for numbers: write for example champion"
            )
        needed = {"register": "checkpoint", "promote": "version", "remove_alias": "alias"}
        name = needed.get(self.action)
        if name and not getattr(self, name):
            raise UserError(
                f"{name}='': {self.action} needs the {name}: `registry.py {self.action} "
                f"{name.upper()}`"
            )
