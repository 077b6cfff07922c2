"""The rule of arrows: a room imports only rooms on lower floors, and modules form no circle.

Imports inside functions count too: an arrow that is drawn late is still an arrow.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room may import the rooms on the lines below its own, but none on its own line.
ROOMS = """
jobs
pipeline.demo  pipeline.sweep  pipeline.retraining  pipeline.preflight
pipeline.evaluation  pipeline.registry  pipeline.serving
pipeline.training  pipeline.inference
pipeline.checkpoints  pipeline.scoring
pipeline.data  pipeline.tracking
pipeline.storage
pipeline.spread
pipeline.progress
pipeline.monitoring
pipeline.ray_internals  pipeline.signals  pipeline.log_lines
pipeline.errors  model
"""

ROOMS_OF_TRAINING = """
pipeline.training.driver
pipeline.training.worker
pipeline.training.saving
pipeline.training.job
pipeline.training.plan
pipeline.training.state  pipeline.training.questions  pipeline.training.published
pipeline.training.stopping
pipeline.training.config
"""

# Libraries that a room and everything in it does without.
WITHOUT = {
    "pipeline.data": {"torch", "torchvision", "timm", "mlflow", "model"},
    "pipeline.storage": {"ray", "torch"},
    "model": {"ray", "mlflow", "boto3"},
}


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    found = {}
    for package in ("jobs", "pipeline", "model"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """The line and the module of each import statement of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in known else str(node.module)


def room_of(module: str, rooms: dict[str, int]) -> str:
    """The room that a module lies in; empty for libraries and for what has no room."""
    return next((r for r in rooms if module == r or module.startswith(f"{r}.")), "")


def arrows_up(drawing: str, known: dict[str, Path]) -> list[str]:
    """Each import that does not lead to a lower floor, as `file:line: room -> module`."""
    floors = {r: -n for n, line in enumerate(drawing.strip().splitlines()) for r in line.split()}
    wrong = []
    for module, path in known.items():
        room = room_of(module, floors)
        for line, target in imports(path, known):
            other = room_of(target, floors)
            if room and other and room != other and floors[other] >= floors[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} -> {target}")
    return wrong


@pytest.mark.parametrize("drawing", [ROOMS, ROOMS_OF_TRAINING], ids=["rooms", "training"])
def test_arrows_lead_down(drawing: str):
    assert arrows_up(drawing, modules()) == []


def test_every_module_lies_in_a_room():
    named = dict.fromkeys(ROOMS.split(), 0)
    inside = dict.fromkeys(ROOMS_OF_TRAINING.split(), 0)
    known = modules()
    assert [m for m in known if m != "pipeline" and not room_of(m, named)] == []
    training = [m for m in known if m.startswith("pipeline.training.")]
    assert [m for m in training if not room_of(m, inside)] == []


def test_rooms_do_without_libraries():
    known = modules()
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {target}"
        for module, path in known.items()
        for line, target in imports(path, known)
        if target.split(".")[0] in WITHOUT.get(room_of(module, dict.fromkeys(WITHOUT, 0)), ())
    ]
    assert wrong == []


def test_modules_form_no_circle():
    known = modules()
    graph = {
        module: {target for _, target in imports(path, known) if target in known} - {module}
        for module, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_room_is_too_large_to_be_known():
    lines: Counter[str] = Counter()
    files: Counter[Path] = Counter()
    for module, path in modules().items():
        lines[".".join(module.split(".")[:2])] += len(path.read_text().splitlines())
        files[path.parent] += 1
    room, most = lines.most_common(1)[0]
    assert most <= 0.3 * sum(lines.values()), room
    # In jobs/ a file is a command, and none knows another.
    commands = files.pop(ROOT / "jobs")
    assert commands <= 30
    assert max(files.values()) <= 25, files.most_common(1)
