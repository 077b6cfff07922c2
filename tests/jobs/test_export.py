from pathlib import Path

import pytest

from jobs.cli import main
from jobs.export import run
from pipeline.inference.export.config import ExportConfig

RUN = Path(__file__).resolve().parents[1] / "golden" / "formats" / "run" / "best_00000003"


def test_an_export_says_what_it_wrote(tmp_path, capsys):
    words = ["--checkpoint", str(RUN), "--to", "safetensors", "--out", str(tmp_path / "o")]
    assert main(ExportConfig, run, words) == 0
    said = capsys.readouterr().out
    assert "equal to the network within 0 on generated images of three sizes" in said
    assert "model.safetensors" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "tflite"], "tflite"),
        (["--checkpoint", "no/such"], "no/such/model.safetensors: no such file"),
        (["--labels", "a, a"], "labels: names 'a' twice"),
        (["--images", "[no/such.jpg]"], "no/such.jpg"),
        (["--out", "/proc/here"], "/proc/here"),
    ],
)
def test_a_mistake_ends_in_one_line(tmp_path, capsys, words, message):
    given = ["--checkpoint", str(RUN), "--out", str(tmp_path / "o"), "--to", "safetensors"]
    assert main(ExportConfig, run, [*given, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
