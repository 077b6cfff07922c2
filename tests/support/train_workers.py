"""The processes of Ray Train's workers, as the operating system lists them."""

import psutil


def train_workers(ancestor: psutil.Process | None = None) -> list[psutil.Process]:
    """Workers of a Ray that a process started: this process, if no other is given."""
    found = []
    for process in (ancestor or psutil.Process()).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:  # It ended meanwhile.
            continue
    return found
