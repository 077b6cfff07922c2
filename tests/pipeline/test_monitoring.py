import math
import re
import time
import urllib.request

import pytest

from pipeline import monitoring
from tests.support.shown_metrics import Shown, shown  # noqa: F401


def test_names_are_those_that_prometheus_users_expect():
    names = [metric.name for metric in monitoring.ALL]
    assert len(set(names)) == len(names)
    for metric in monitoring.ALL:
        assert re.fullmatch(r"lseg_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "Counter"), metric.name
        assert metric.text.endswith("."), metric.name


def test_a_process_without_ray_sets_nothing(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    gauge = monitoring.Gauge("lseg_test_of_nothing", "A test.", "run")
    counter = monitoring.Counter("lseg_test_of_nothing_total", "A test.", "run")
    del monitoring.ALL[-2:]
    gauge.set(1, run="a")
    counter.start(run="a")
    counter.add(1, run="a")
    assert gauge._made is None
    assert counter._made is None


def test_a_number_that_is_not_finite_leaves_the_gauge(shown: Shown):  # noqa: F811
    monitoring.LOSS.set(2.5, run="a")
    for value in (math.nan, math.inf, -math.inf):
        monitoring.LOSS.set(value, run="a")
    assert shown.of(run="a") == {"lseg_training_loss": 2.5}


def test_a_counter_only_grows(shown: Shown):  # noqa: F811
    monitoring.FAILURES.start(run="a")
    for value in (2, 0, -5, 1):
        monitoring.FAILURES.add(value, run="a")
    assert shown.of(run="a") == {"lseg_training_failures_total": 3}


def test_a_block_holds_a_gauge_also_when_it_fails(shown: Shown):  # noqa: F811
    def inside():
        with monitoring.TRAINING_ACTIVE.while_in(run="a"):
            assert shown.of(run="a") == {"lseg_training_active": 1}
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert shown.of(run="a") == {"lseg_training_active": 0}


def test_the_node_of_a_process_serves_what_it_set(local_ray):
    import ray

    monitoring.STEP.set(7, run="served")
    monitoring.FAILURES.start(run="served")
    monitoring.IMAGES.add(12, run="served")
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {"step": 7, "failures_total": 0, "images_total": 12}
    found: dict[str, float] = {}
    deadline = time.monotonic() + 60
    while found != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(address, timeout=30) as answer:
            text = answer.read().decode()
        lines = re.findall(r'^ray_lseg_training_(\w+)\{.*run="served".*\} (\S+)$', text, re.M)
        found = {name: float(value) for name, value in lines}
    assert found == wanted


@pytest.mark.slow  # Ray forgets a gauge after 20 seconds.
def test_a_gauge_that_is_set_once_is_served_as_long_as_its_process_lives(local_ray):
    import ray

    @ray.remote(num_cpus=0)
    class Driver:
        def begin(self, run: str) -> None:
            monitoring.TRAINING_ACTIVE.set(1, run=run)

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def is_served() -> bool:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return 'run="long"' in answer.read().decode()

    def wait_until_it_is(served: bool) -> None:
        deadline = time.monotonic() + 60
        while is_served() is not served:
            assert time.monotonic() < deadline
            time.sleep(0.5)

    driver = Driver.remote()
    ray.get(driver.begin.remote("long"))
    wait_until_it_is(served=True)
    for _ in range(45):
        assert is_served()
        time.sleep(1)
    ray.kill(driver)
    wait_until_it_is(served=False)
