"""What the demo says at its end."""

import shlex

from jobs.cli import build_parser
from jobs.demo import next_steps
from pipeline.inference.config import PredictConfig
from pipeline.inference.search import find_photos
from pipeline.serving.config import PlaygroundConfig
from tests.support.tiny_roots import encode, noise, write


def test_the_commands_at_the_end_are_for_files_that_are_there(tmp_path):
    picture = tmp_path / "raw/ade20k/images/a.jpg"
    write(picture, encode(noise(24, 32, 0), ".jpg"))
    text = next_steps(tmp_path, str(tmp_path / "train/step_00000004"))
    assert "each class is a pattern of small tiles" in text
    commands = [line for line in text.replace("\\\n", " ").splitlines() if "python" in line]
    predict, preview, page = (shlex.split(command) for command in commands)
    assert predict[:2] == ["python", "jobs/predict.py"]
    assert [photo.uri for photo in find_photos([predict[2]]).photos] == [str(picture)]
    read = build_parser(PredictConfig).parse_args(predict[3:])
    assert read.checkpoint == str(tmp_path / "train/step_00000004")
    assert preview == ["python", "jobs/preview.py", "--shards", str(tmp_path / "shards")]
    assert text.splitlines()[-1].strip() == shlex.join(page)  # The last line opens the page.
    assert page[:2] == ["python", "jobs/playground.py"]
    read = build_parser(PlaygroundConfig).parse_args(page[2:])
    assert read.checkpoint == str(tmp_path / "train/step_00000004")
