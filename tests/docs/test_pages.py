"""README, CONTRIBUTING, docs/, the runbook: links lead somewhere, commands parse, files exist."""

import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import jobs.cli
from jobs.cli import build_parser, main
from tests.docs.generator import ROOT, generator
from tests.test_architecture import ROOMS, ROOMS_OF_TRAINING

README = ROOT / "README.md"
PAGES = [
    *(
        README,
        ROOT / "CONTRIBUTING.md",
        ROOT / "infra" / "RUNBOOK.md",
        ROOT / "infra" / "ALERTS.md",
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
HEADERS = sorted([*ROOT.glob("jobs/recipes/*.yaml"), *ROOT.glob("jobs/sweeps/*.yaml")])
BEFORE = {"jobs/prepare_shards.py": ["--roots.ade20k=DIR", "--out=DIR"]}
"""What `...` stands for, where a job needs it."""
STANDS_FOR = {"RECIPE": "jobs/recipes/one_gpu.yaml", "SWEEP": "jobs/sweeps/regularizer.yaml"}
MADE_BY_USERS = {"infra/.env"}
FILE_ENDINGS = (".yaml", ".py", ".md", ".safetensors")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def every(pages: list[Path]):
    return pytest.mark.parametrize("page", pages, ids=name_of)


@cache
def parts(page: Path) -> tuple[str, list[str], list[str]]:
    """Its prose, its blocks of code, and what stands in backticks in the prose."""
    lines, prose, blocks, code = page.read_text(encoding="utf-8").splitlines(), [], [], []
    for line in [*lines, ""]:
        if line.startswith("    ") and (code or not prose or not prose[-1].strip()):
            code.append(line[4:])
        elif not line and code:
            code.append(line)
        else:
            if code:
                blocks.append("\n".join(code))
            code = []
            prose.append(line)
    text = "\n".join(prose)
    quoted = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]
    return text, blocks, quoted


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", parts(page)[0], re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`]*`", "", parts(page)[0])
    return re.findall(r"\]\(([^)\s]+)\)", text)


@every(PAGES)
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@every(PAGES)
def test_rows_of_tables_have_a_cell_for_each_column(page):
    width = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        assert cells == width or not width or not cells, line
        width = cells


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [README]
    while left:
        page = left.pop()
        if page in reached:
            continue
        reached.add(page)
        paths = [link.partition("#")[0] for link in links(page) if "://" not in link]
        left += [(page.parent / path).resolve() for path in paths if path.endswith(".md")]
    assert [name_of(page) for page in PAGES if page not in reached] == []


def test_the_readme_is_short_and_has_an_image():
    text = README.read_text(encoding="utf-8")
    assert len(text) <= 8_000
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert images
    for image in images:
        assert 10_000 < (ROOT / image).stat().st_size < 150_000


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The jobs that a text calls, with the words after each."""
    joined = re.sub(r"\\\n\s*#?\s*", "", text)
    found = re.findall(r"python (jobs/[a-z_0-9]+\.py)([^\n]*)", joined)
    return [(job, shlex.split(words, comments=True)) for job, words in found]


def all_commands() -> list[tuple[str, str, list[str]]]:
    found = []
    for page in PAGES:
        _, blocks, quoted = parts(page)
        for text in [*blocks, *quoted]:
            found += [(name_of(page), job, words) for job, words in commands(text)]
    for path in HEADERS:
        lines = path.read_text(encoding="utf-8").splitlines()
        header = "\n".join(line.lstrip("# ") for line in lines if line.startswith("#"))
        found += [(name_of(path), job, words) for job, words in commands(header)]
    once = {(job, *words): (page, job, words) for page, job, words in reversed(found)}
    return list(reversed(once.values()))


@pytest.mark.parametrize(
    ("page", "job", "words"),
    [pytest.param(*each, id=f"{each[0]}-{number}") for number, each in enumerate(all_commands())],
)
def test_commands_parse(page, job, words, monkeypatch, capsys):
    assert (ROOT / job).is_file()
    if "--help" in words or not words:
        return
    words = [STANDS_FOR.get(word, word).replace("NAME.yaml", "one_gpu.yaml") for word in words]
    if "..." in words:
        place = words.index("...")
        words[place : place + 1] = BEFORE.get(job, [])
    codes = []

    def parse_only(config_class, run, *args, **kwargs):
        codes.append(main(config_class, lambda config: None, *args, **kwargs))
        return codes[-1]

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(jobs.cli, "main", parse_only)
    monkeypatch.setattr(sys, "argv", [job, *words])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / job), run_name="__main__")
    assert codes == [0], capsys.readouterr().err


def test_the_pages_call_every_job():
    named = {job for _, job, _ in all_commands()}
    named |= {f"jobs/{target}.py" for target in ("demo", "sweep_demo")}  # By `make`.
    assert named == {f"jobs/{job}.py" for job in generator.jobs()}


@every(PAGES)
def test_modules_and_targets_exist(page):
    _, blocks, quoted = parts(page)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in [*blocks, *quoted]:
        for module in re.findall(r"python -m (tests[\w.]+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        for words in re.findall(r"^make ([^#\n]+)", text, re.M):
            called = [word for word in shlex.split(words) if "=" not in word]
            assert [word for word in called if word not in targets] == [], words


@every(PAGES)
def test_files_exist(page):
    _, blocks, quoted = parts(page)
    folders = r"(?:docs|infra|jobs|model|pipeline|tests)"
    modules = {path.name for folder in ("jobs", "model", "pipeline", "tests", "docs")
               for path in (ROOT / folder).rglob("*.py")}  # fmt: skip
    for text in [*blocks, *quoted]:
        paths = re.findall(rf"(?<![\w./:-]){folders}/[\w./-]*[\w/]", text)
        for path in set(paths) - MADE_BY_USERS:
            found = list(ROOT.glob(path.replace("NAME", "*")))
            assert found, path
        for module in re.findall(r"(?<![\w./-])\w+\.py\b", text):
            assert module in modules, module


@every(PAGES)
def test_what_a_page_says_is_in_a_module_is_there(page):
    text = " ".join(parts(page)[0].split())
    for name, path in re.findall(
        r"`([\w.]+)` in `((?:jobs|model|pipeline|tests)/[\w/]+\.py)`", text
    ):
        source = "".join(file.read_text("utf-8") for file in ROOT.glob(path.replace("NAME", "*")))
        last = name.rsplit(".", 1)[-1]
        assert re.search(rf"(?:class|def|^) ?{last}\b", source, re.M), f"{name} in {path}"


@cache
def keys() -> set[str]:
    """The keys of all jobs."""
    classes = [generator.config_class(job) for job in generator.jobs()]
    return {key for each in classes for key in build_parser(each).get_defaults().keys()}


@every(PAGES)
def test_keys_exist(page):
    groups = {key.partition(".")[0] for key in keys() if "." in key}
    for text in parts(page)[2]:
        if found := re.fullmatch(r"(?:--)?((\w+)\.[\w.]+\w)(?:[ =].+)?", text):
            key, group = found.groups()
            if group in groups and not (key.isupper() or key.endswith(FILE_ENDINGS)):
                inside = [known for known in keys() if known == key or known.startswith(f"{key}.")]
                inside += [known for known in keys() if key.startswith(f"{known}.")]  # Mappings.
                assert inside, key


def test_the_drawing_of_the_rule_is_that_of_its_test():
    page = ROOT / "docs" / "architecture.md"
    drawn = ROOMS.replace("pipeline.", "").strip()
    assert drawn in [block.strip() for block in parts(page)[1]]
    inside = ROOMS_OF_TRAINING.replace("pipeline.training.", "").split()
    (line,) = re.findall(r"^- Inside `training`: (.+(?:\n  .+)*)", page.read_text("utf-8"), re.M)
    assert re.findall(r"`(\w+)`", line) == inside


def test_recipes_and_sweeps_have_a_row():
    for folder, page in (("recipes", "training"), ("sweeps", "sweeps")):
        quoted = parts(ROOT / "docs" / f"{page}.md")[2]
        for path in (ROOT / "jobs" / folder).glob("*.yaml"):
            assert {path.stem, path.name} & set(quoted), path.name


def test_make_help_lists_every_target_and_every_job():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for job, sentence in generator.jobs().items():
        assert f"jobs/{job}.py" in done.stdout
        assert sentence in done.stdout
    (line,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert [name for name in line.split() if not re.search(rf"\b{name}\b", done.stdout)] == []
