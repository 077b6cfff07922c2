"""Work over the processes of a real Ray, some of which die."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.errors import UserError
from pipeline.spread import Death, Workers, _Worker

pytestmark = pytest.mark.usefixtures("local_ray")


def make(folder: Path) -> Callable[[Any], Any]:
    """A function over numbers; what else it is given says what befalls its process."""
    (folder / f"process-{os.getpid()}").touch()

    def work(item: Any) -> Any:
        what, number = item
        if what == "waits":
            while not (folder / "go").exists():
                time.sleep(0.05)
            what = "dies"
        if what == "dies":
            # The first `number` times.
            deaths = len(list(folder.glob("death-*")))
            if deaths < number:
                (folder / f"death-{deaths}").touch()
                os._exit(1)
        if what == "meets":
            # Returns once there are `number` processes.
            while len(list(folder.glob("process-*"))) < number:
                time.sleep(0.05)
        if what == "mistake":
            raise UserError("key=value: must be another")
        if what == "defect":
            raise KeyError("lost")
        return number * number

    return work


def never(death: Death) -> bool:
    raise AssertionError(death)


def test_each_item_is_done_once_by_so_many_processes(tmp_path):
    items = [("meets", 2)] + [("square", number) for number in range(1, 20)]
    with Workers(partial(make, tmp_path), 2, num_cpus=0.5, on_death=never) as workers:
        assert sorted(workers.run(items)) == [(0, 4), *((n, n * n) for n in range(1, 20))]
        assert list(workers.run([])) == []
        assert dict(workers.run(items[1:4])) == {0: 1, 1: 4, 2: 9}
    assert len(list(tmp_path.glob("process-*"))) == 2


def test_an_item_whose_worker_dies_is_done_again(tmp_path):
    deaths: list[Death] = []

    def again(death: Death) -> bool:
        deaths.append(death)
        return True

    items = [("square", 1), ("dies", 2), ("square", 3)]
    with Workers(partial(make, tmp_path), 1, num_cpus=0.5, on_death=again) as workers:
        assert dict(workers.run(items)) == {0: 1, 1: 4, 2: 9}
    assert [(d.index, d.of_item, d.of_worker) for d in deaths] == [(1, 1, 1), (1, 2, 2)]
    assert len(list(tmp_path.glob("process-*"))) == 3


def test_an_item_that_is_given_up_leaves_the_others_alone(tmp_path):
    items = [("dies", 99), ("square", 2), ("square", 3)]
    given_up: list[int] = []

    def until_the_second(death: Death) -> bool:
        if death.of_item == 2:
            given_up.append(death.index)
        return death.of_item < 2

    with Workers(partial(make, tmp_path), 2, num_cpus=0.5, on_death=until_the_second) as workers:
        assert dict(workers.run(items)) == {1: 4, 2: 9}
    assert given_up == [0]
    assert len(list(tmp_path.glob("death-*"))) == 2


def test_a_mistake_is_the_users_and_a_defect_ours(tmp_path):
    with Workers(partial(make, tmp_path), 1, num_cpus=0.5, on_death=never) as workers:
        with pytest.raises(UserError, match=r"^key=value: must be another$"):
            list(workers.run([("mistake", 0)]))
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError: 'lost'"):
            list(workers.run([("defect", 0)]))


def test_workers_without_a_place_in_the_cluster_hold_nothing_back(tmp_path):
    # Eight processes of a CPU each, where there are four CPUs.
    items = [("square", number) for number in range(16)]
    with Workers(partial(make, tmp_path), 8, on_death=never) as workers:
        assert dict(workers.run(items)) == {n: n * n for n in range(16)}
    assert len(list(tmp_path.glob("process-*"))) <= 4


def test_an_idle_worker_takes_over_from_one_whose_place_is_gone(tmp_path):
    """As when a node leaves: the new process waits for a place that never comes."""
    items = [("square", 2), ("waits", 1), ("meets", 2)]

    def again(death: Death) -> bool:
        return death.of_item == 1

    with Workers(partial(make, tmp_path), 2, num_cpus=0.5, on_death=again) as workers:
        results = workers.run(items)
        found = dict([next(results), next(results)])
        workers._kind = ray.remote(_Worker).options(num_cpus=10_000)
        (tmp_path / "go").touch()
        assert found | dict(results) == {0: 4, 1: 1, 2: 4}
