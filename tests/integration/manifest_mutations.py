"""Defects put into the files of infra/: `python -m tests.integration.manifest_mutations`.

In a copy of the repository each file is changed at some places, one at a time: a key is lost or
misspelt, a word or a switch is another one (so a selector matches nothing, and a name that another
file refers to is gone), a number becomes a text. The tests of tests/infra that read the file must
fail over each. Prints those that none of them sees, and ends with exit code 1 if there are any.
What does not matter to a cluster (texts for people, places of panels) is left alone, and so are the
sizes of numbers, most of which may be others.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.deployment import INFRA, ROOT

FOR_PEOPLE = re.compile(r"^(description|summary|title|legendFormat|text|tags|color|unit|gridPos)$")
"""Keys below which nothing is changed."""
HEAVY = ("ray", "jobs.train_mix", "jobs.retrain", "kubernetes_validate", "boto3", "mlflow", "moto")
"""Modules that the tests import, loaded once for all of them."""
KINDS = ("lost", "misspelt", "other", "quoted")
READERS = {
    "kuberay": (
        *("kubernetes", "pods", "priority", "notice", "monitoring"),
        *("serve", "images", "scheduling"),
    ),
    "serve": ("serve", "priority", "kubernetes", "scheduling"),
    "prometheus": ("monitoring",),
    "grafana": ("monitoring",),
    "ray": ("scheduling", "images"),
    "": ("compose", "monitoring", "images", "scheduling"),
}
"""The tests that read the files of a folder of infra/, those that see most first."""
# It takes longer than all else, and reads nothing but the rules.
RULES_TEST = "test_each_alert_fires_when_it_should_and_not_before"


@dataclass(frozen=True)
class Mutation:
    """A change of one file, by positions in its text."""

    file: Path
    kind: str
    key: str
    begin: int
    end: int
    instead: str

    def text(self, before: str) -> str:
        """The changed file."""
        return before[: self.begin] + self.instead + before[self.end :]

    def told(self, before: str) -> str:
        """Where and what, in a line."""
        line = before.count("\n", 0, self.begin) + 1
        return f"{self.file}:{line}: {self.key} {self.kind}"


def mutations_of(file: Path, text: str) -> Iterator[Mutation]:
    """All changes of a YAML or JSON file."""
    for document in yaml.compose_all(text, yaml.SafeLoader):
        yield from _below(file, text, document, "")


def _below(file: Path, text: str, node: yaml.Node | None, key: str) -> Iterator[Mutation]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _below(file, text, item, key)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if FOR_PEOPLE.match(name.value):
                continue
            at = name.start_mark.index
            is_block = not node.flow_style and text[:at].rpartition("\n")[2].strip() == ""
            if is_block:  # Else the rest of its line is not its own.
                begin = text.rfind("\n", 0, at) + 1
                end = text.find("\n", _end_of(value) - 1) + 1 or len(text)
                yield Mutation(file, "lost", name.value, begin, end, "")
            end = name.end_mark.index - (1 if name.style else 0)
            yield Mutation(file, "misspelt", name.value, end, end, "x")
            yield from _below(file, text, value, name.value)
    elif isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">"):
        begin, end = node.start_mark.index, node.end_mark.index
        if node.tag.endswith(":bool"):
            instead = {"true": "false", "false": "true"}[node.value]
            yield Mutation(file, "other", key, begin, end, instead)
        # Docker Compose reads a number in quotes as the number.
        elif node.tag.endswith((":int", ":float")) and not file.name.startswith("compose"):
            yield Mutation(file, "quoted", key, begin, end, f'"{text[begin:end]}"')
        elif node.tag.endswith(":str"):
            end -= 1 if node.style else 0
            yield Mutation(file, "other", key, end, end, "x")


def _end_of(node: yaml.Node) -> int:
    """Where the last scalar of a node ends; a block itself ends where the next key begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end_of(last[1] if isinstance(node, yaml.MappingNode) else last)
    return node.end_mark.index


class Copy:
    """A copy of the repository, in which the tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        files = [each for each in listed.split(b"\0") if each and (ROOT / each.decode()).is_file()]
        packed = subprocess.run(
            ["tar", "-c", "--null", "-T", "-"],
            cwd=ROOT,
            input=b"\0".join(files),
            capture_output=True,
            check=True,
        )
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        # A script under test asks for the commit of the checkout that it is in.
        for words in (["init"], ["add", "--all"], ["commit", "--message", "copy"]):
            git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words]
            subprocess.run(git, cwd=folder, check=True, capture_output=True)

    def failing_test(self, log: Path, words: Sequence[str]) -> str:
        """The first test that fails, in a fork of this process; empty where all pass.

        Args:
            log: Gets what the tests print.
            words: What pytest is told: which tests.
        """
        child = os.fork()
        if not child:
            self._run_tests(log, words)
        _, status = os.waitpid(child, 0)
        text = log.read_text(errors="replace")
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M)
        if os.waitstatus_to_exitcode(status) == 0:
            return ""
        return found[0] if found else "collecting the tests"

    def _run_tests(self, log: Path, tests: Sequence[str]) -> None:
        import pytest

        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.chdir(self.folder)
            sys.path.insert(0, str(self.folder))
            words = ["-q", "-x", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider"]
            words += ["--rootdir", str(self.folder), *tests]
            os._exit(int(pytest.main(words)))


def readers_of(file: Path) -> list[str]:
    """What pytest is told, to run the tests that read a file of infra/."""
    folder = file.parts[1] if len(file.parts) > 2 else ""
    words = [f"tests/infra/test_{name}.py" for name in READERS[folder]]
    if folder != "prometheus":
        words.append(f"--deselect=tests/infra/test_monitoring.py::{RULES_TEST}")
    return words


def chosen(files: list[Path], each: int, seed: int) -> list[Mutation]:
    """Up to `each` changes of every file, of different kinds as far as it has them."""
    pick = random.Random(seed)
    found = []
    for file in files:
        there = list(mutations_of(file, (ROOT / file).read_text()))
        pick.shuffle(there)
        for number in range(each):
            kind = KINDS[number % len(KINDS)]
            same = [one for one in there if one.kind == kind] or there
            if same:
                found.append(same[0])
                there.remove(same[0])
    return found


def main(argv: list[str] | None = None) -> int:
    """Makes the changes."""
    parser = argparse.ArgumentParser(description="Defects in the files of infra/.")
    parser.add_argument("--each", type=int, default=2, help="Changes of every file.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Part of the names of the files.")
    given = parser.parse_args(argv)
    there = sorted(path.relative_to(ROOT) for path in INFRA.rglob("*") if _is_one(path))
    files = [file for file in there if given.only in str(file)]
    wanted = chosen(files, given.each, given.seed)
    sys.path = [each for each in sys.path if Path(each or ".").resolve() != ROOT]
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Copy(Path(folder))
        _load_from(copy.folder)
        log = Path(folder) / "log"
        words = [word for file in files for word in readers_of(file)]
        if failed := copy.failing_test(log, list(dict.fromkeys(words))):
            print(f"without a change already: {failed} fails\n{log.read_text()[-3000:]}")
            return 2
        for mutation in wanted:
            path, began = copy.folder / mutation.file, time.monotonic()
            before = path.read_text()
            path.write_text(mutation.text(before))
            failed = copy.failing_test(log, readers_of(mutation.file))
            path.write_text(before)
            verdict = failed.rpartition("::")[2] if failed else "NOT SEEN"
            took_s = time.monotonic() - began
            print(f"{mutation.told(before)}: {verdict} ({took_s:.0f} s)", flush=True)
            if not failed:
                missed.append(mutation.told(before))
    print(f"\n{len(wanted) - len(missed)} of {len(wanted)} changes of {len(files)} files are seen")
    for told in missed:
        print(f"not seen: {told}")
    return int(bool(missed))


def _is_one(path: Path) -> bool:
    return path.suffix in (".yaml", ".json")


def _load_from(folder: Path) -> None:
    """Imports what the tests need from the copy; what is of the tests is left to each fork."""
    for name in [each for each in sys.modules if each.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    for name in HEAVY:
        __import__(name)


if __name__ == "__main__":
    sys.exit(main())
