"""The places that jobs write to are tried before the work starts: one line, exit code 2."""

import importlib

import pytest

from jobs.cli import main

JOBS = {
    "prepare_shards": ("PrepareConfig", ["--roots.idd=/data", "--out"]),
    "predict": ("PredictConfig", ["--images=[a.jpg]", "--labels=[a]", "--checkpoint=x", "--out"]),
    "import_official": ("ImportConfig", ["--checkpoint=lseg.ckpt", "--out"]),
    "demo": ("DemoConfig", ["--out"]),
    "sweep_demo": ("SweepDemoConfig", ["--out"]),
    "train_mix": ("JobConfig", ["--run.storage"]),
    "retrain": ("RetrainConfig", ["--run.storage"]),
    "sweep": ("JobConfig", ["--name=s", "--base=demo.yaml", "--grid={train.lr: [1]}", "--storage"]),
    "evaluate": ("EvaluateConfig", ["--checkpoint=x", "--shards=/data", "--out"]),
    "export_official": ("ExportConfig", ["--checkpoint=x", "--out"]),
    "doctor": ("DoctorConfig", ["--shards=/data", "--out"]),
    "preview": ("PreviewConfig", ["--shards=/data", "--out"]),
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("place", ["/proc/nope", "file", "name"])
def test_a_place_that_cannot_be_made_is_one_line(job, place, tmp_path, capsys):
    (tmp_path / "file").touch()
    bad = {"/proc/nope": "/proc/nope", "file": f"{tmp_path}/file/x", "name": "/tmp/" + "n" * 300}
    given = bad[place] + ("/x.ckpt" if job == "export_official" else "")
    kind, words = JOBS[job]
    module = importlib.import_module(f"jobs.{job}")
    run = getattr(module, "main_run", None) or module.run
    words = [*words[:-1], f"{words[-1]}={given}"]
    assert main(getattr(module, kind), run, words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    assert bad[place][:40] in told


OF_CHECKPOINTS = {
    "predict": ("PredictConfig", ["--images=[a.png]", "--labels=a, b", "--out=out"]),
    "export": ("ExportConfig", ["--out=out"]),
    "export_official": ("ExportConfig", ["--out=out.ckpt"]),
    "playground": ("PlaygroundConfig", ["--port=0"]),
    "serve": ("ServeConfig", ["--port=0"]),
    "registry": ("RegistryJobConfig", ["--action=register", "--tracking.uri=sqlite:///m.db"]),
}


@pytest.mark.parametrize("job", OF_CHECKPOINTS)
def test_what_is_no_checkpoint_is_one_line_that_says_what_is_there(
    job, tmp_path, monkeypatch, capsys
):
    step = tmp_path / "runs/night/step_00000200"
    step.mkdir(parents=True)
    for path in (step / "model.safetensors", step / "config.yaml", tmp_path / "lseg.ckpt"):
        path.touch()
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    kind, words = OF_CHECKPOINTS[job]
    module = importlib.import_module(f"jobs.{job}")
    for place, said in (
        ("nowhere", "there is no such directory"),
        ("runs/night", "this is that of a run, with step_00000200, of which"),
        ("runs", "this is that of runs, with night/step_00000200: add one to the path"),
        ("lseg.ckpt", "(jobs/import_official.py)"),
        (f"{step}/model.safetensors", f"is a file of a checkpoint: name the directory, {step}"),
    ):
        code = main(getattr(module, kind), module.run, [*words, f"--checkpoint={place}"])
        told = capsys.readouterr().err.splitlines()
        errors = [line for line in told if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), told
        assert said in errors[0]
