"""The processes of Ray Train's workers and of loaders, as the operating system lists them."""

import psutil


def train_workers(ancestor: psutil.Process | None = None) -> list[psutil.Process]:
    """Workers of a Ray that a process started: this process, if no other is given."""
    return _titled("RayTrainWorker", ancestor or psutil.Process())


def loaders() -> list[psutil.Process]:
    """The loaders of the trainings on a Ray that this process started."""
    return _titled("BlockLoader", psutil.Process())


def _titled(title: str, ancestor: psutil.Process) -> list[psutil.Process]:
    """Ray writes what an actor is into the title of its process."""
    found = []
    for process in ancestor.children(recursive=True):
        try:
            if title in " ".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:  # It ended meanwhile.
            continue
    return found
