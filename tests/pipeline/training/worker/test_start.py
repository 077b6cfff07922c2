import subprocess
import sys

from pipeline.training.worker.start import start_worker

HEAVY = ("torch", "timm", "torchvision", "open_clip", "mlflow")


def test_a_process_that_only_passes_the_run_on_reads_no_torch():
    """Ray's controller reads the first two, and the process that manages the data the third."""
    modules = (start_worker.__module__, "pipeline.training.job", "pipeline.training.driver.stream")
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
