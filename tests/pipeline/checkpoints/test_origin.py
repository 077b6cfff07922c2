"""Tags that MLflow's pages read, and that no secret is in them."""

import getpass
import subprocess
from pathlib import Path
from typing import Any

from pipeline.checkpoints.environment import source_fingerprint
from pipeline.checkpoints.origin import origin_tags, tags_of_this_process
from pipeline.training.job import NOTE_TAG, Job, Lineage

JOB = str(Path(__file__).parents[3] / "jobs" / "train_mix.py")
COMMIT = "c" * 40


def test_a_new_run_says_who_started_it_and_how():
    tags = origin_tags(
        COMMIT, True, [JOB, "--config", "jobs/recipes/demo.yaml", "--run.name", "a b"]
    )
    assert tags == {
        "mlflow.source.name": "jobs/train_mix.py",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.git.commit": COMMIT,
        "mlflow.note.content": "To train it again or go on with it:\n\n"
        "    python jobs/train_mix.py --config jobs/recipes/demo.yaml --run.name 'a b'\n",
    }


def test_a_long_command_is_in_lines_that_a_shell_takes():
    words = [
        word for number in range(9) for word in (f"--train.setting_{number}", f"{number} of 9")
    ]
    note = origin_tags(COMMIT, True, [JOB, *words])["mlflow.note.content"]
    block = note.partition("\n\n")[2]
    lines = block.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) < 100
    assert all(line.startswith("    ") for line in lines)
    echo = subprocess.run(["sh", "-c", f"printf '%s\n' {block}"], capture_output=True, text=True)
    assert echo.stdout.splitlines() == ["python", "jobs/train_mix.py", *words]


def test_what_a_person_wrote_about_a_run_stays():
    assert "mlflow.note.content" not in origin_tags(COMMIT, False, [JOB])


def test_an_unknown_commit_is_none_and_a_foreign_script_stays_as_it_is():
    tags = origin_tags("unknown", True, ["/elsewhere/mine.py"])
    assert "mlflow.source.git.commit" not in tags
    assert tags["mlflow.source.name"] == "/elsewhere/mine.py"
    assert origin_tags("unknown", True, ()).keys() == {"mlflow.user"}


def test_a_run_that_is_no_training_says_its_code_user_and_script(monkeypatch):
    monkeypatch.setenv("LSEG_GIT_COMMIT", COMMIT)
    monkeypatch.setattr("sys.argv", [JOB, "--config", "x"])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    tags = tags_of_this_process()
    assert tags.pop("source_fingerprint") == source_fingerprint()
    assert tags == {
        "git_commit": COMMIT,
        "mlflow.source.git.commit": COMMIT,
        "mlflow.source.name": "jobs/train_mix.py",
        "mlflow.user": "ada",
    }
    monkeypatch.setenv("LSEG_USER", " grace ")
    assert tags_of_this_process()["mlflow.user"] == "grace"


def test_secrets_stay_out_of_the_command(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    words = ["--tracking.uri", "https://me:hunter3@mlflow", "--auth.token", "hunter4"]
    words += ["--auth.password=hunter5", "--note=hunter2-hunter2", "--flag", "--steps", "9"]
    note = origin_tags(COMMIT, True, [JOB, *words])["mlflow.note.content"]
    assert "hunter" not in note
    words = " ".join(note.replace("\\\n", "").split())
    assert "'https://***@mlflow' --auth.token" in words
    assert note.count("***") == 4
    assert words.endswith("--flag --steps 9")


def test_workers_that_start_again_leave_the_description_alone():
    job = Job(plan=Any, tags={"a": "1"}, lineage=Lineage(tags={NOTE_TAG: "made", "b": "2"}))  # type: ignore[arg-type]
    assert job.run_tags(resumes=False) == {"a": "1", "b": "2", NOTE_TAG: "made"}
    assert job.run_tags(resumes=True) == {"a": "1", "b": "2"}
