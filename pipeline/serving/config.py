"""The configuration of `jobs/playground.py` and `jobs/serve.py`."""

from dataclasses import dataclass

from pipeline.errors import UserError

MAX_IMAGE_MIB = 256
"""Above it one call in base64 would be more than the bodies that may wait together."""
MAX_LABELS = 2000
"""Fields of a form, and labels of a call."""


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Which model is served, where, and what a call may cost."""

    checkpoint: str
    """Checkpoint folder, `s3://bucket/folder`, or `models:/name@alias`, which is followed: when it
    is given to another version, that one answers."""

    host: str = "127.0.0.1"
    """Address to listen at. With any but this machine's own, LSEG_API_KEY must hold a key, which
    callers send."""

    port: int = 8000
    """Port to listen at; 0 takes any that is free."""

    device: str = "auto"
    """Where the network runs: `cpu`, `cuda`, or `auto`, a GPU where there is one."""

    follow_s: float = 10
    """Seconds from one look at the alias to the next; 0: it is not followed."""

    max_image_mib: float = 16
    """Size of an image file, at most 256."""

    max_image_mpx: float = 24
    """Megapixels of an image."""

    max_call_s: float = 50
    """Seconds after which a call ends without an answer."""

    max_labels: int = 1000
    """Labels of a call, at most 2000."""

    max_waiting: int = 32
    """Calls that wait for a network at once; those beyond get status 429."""

    max_batch: int = 8
    """Images of one size and one question that go through the network together."""

    def __post_init__(self) -> None:
        if not self.checkpoint.strip():
            raise UserError("checkpoint: is empty: name a checkpoint's folder")
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port={self.port}: must be 1 to 65535, or 0 for any that is free")
        if not self.host.strip():
            raise UserError("host: is empty: give an address, such as 127.0.0.1")
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise UserError(f"device={self.device}: must be auto, cpu or cuda: correct it")
        if not self.follow_s >= 0:
            raise UserError(f"follow_s={self.follow_s}: must be at least 0")
        sizes = {"max_image_mib": MAX_IMAGE_MIB, "max_image_mpx": 10_000, "max_call_s": 10_000}
        for name, most in sizes.items():
            if not 0 < getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: must be above 0, at most {most}")
        counts = {"max_labels": MAX_LABELS, "max_waiting": 100_000, "max_batch": 100_000}
        for name, most in counts.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 to {most}")


@dataclass(frozen=True, kw_only=True)
class PlaygroundConfig(ServiceConfig):
    """Which model the page asks, and where the page is."""

    port: int = 7860
    """Port to listen at; 0 takes any that is free."""

    examples: str = ""
    """Folder with images that the page offers; without it the rendered scenes of the demo, or a
    photo in the public domain."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceConfig):
    """Which model is served by how many replicas."""

    replicas: int = 1
    """Replicas, each with a network of its own."""

    cpus: float = 1
    """CPUs of each replica."""

    gpus: float = 0
    """GPUs of each replica; several share one with 0.5 or less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.replicas <= 1000:
            raise UserError(f"replicas={self.replicas}: must be 1 to 1000")
        if not 0 < self.cpus <= 1000:
            raise UserError(f"cpus={self.cpus}: must be above 0, at most 1000")
        if not 0 <= self.gpus <= 16:
            raise UserError(f"gpus={self.gpus}: must be 0 to 16")


def address(host: str, port: int) -> str:
    """What a browser of this machine opens."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
