"""Exports a checkpoint into forms that run without this project.

    python jobs/export.py --checkpoint DIR --labels "road, sky, car" --out export
    python jobs/export.py --checkpoint DIR --to onnx --precision int8 --images '[photos]'

Writes the network (segment.onnx or segment.pt2), the labels and their text vectors (labels.txt,
text.npy), and export.json, which says what goes in and comes out. The export fails where the
exported network is not the network: docs/use.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.inference.export.config import ExportConfig


def run(config: ExportConfig) -> None:
    """Exports the checkpoint and prints what was written and how far off it is."""
    from pipeline.inference.export.run import export

    outcome = export(config)
    kind = "given" if config.images else "generated"
    print(f"equal to the network within {outcome.difference:.1g} on {kind} images of three sizes")
    if agreement := outcome.agreement:
        print(
            f"{config.precision}: {agreement.same_pixels:.2%} of the pixels get the network's "
            f"label, mIoU {100 * agreement.miou:.2f} with its answers as the truth: "
            f"{100 * (1 - agreement.miou):.2f} lost; logits within "
            f"{agreement.largest_difference:.2g}"
        )
    print(f"written: {outcome.folder}: {', '.join(outcome.files)}")


if __name__ == "__main__":
    sys.exit(main(ExportConfig, run, description=__doc__, bare={}))
