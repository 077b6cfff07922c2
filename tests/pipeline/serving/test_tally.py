"""What a service counts, as Prometheus and its own page see it."""

from pipeline.serving.tally import Tally
from tests.support.shown_metrics import Shown, shown  # noqa: F401


def test_a_process_with_a_model_shows_its_counters_from_0_on(shown: Shown):  # noqa: F811
    tally = Tally()
    assert shown.of() == {}  # The process that takes the calls has no model.
    tally.model()
    names = ("images", "batches", "busy_seconds", "model_changes", "model_failures")
    from_0_on = {f"lseg_serve_{name}_total": 0 for name in names}
    assert shown.of() == {**from_0_on, "lseg_serve_model_behind": 0}
    tally.behind(True)
    assert shown.of()["lseg_serve_model_behind"] == 1
    tally.add("images", 3)
    tally.model()
    assert shown.of()["lseg_serve_images_total"] == 3
    assert shown.of()["lseg_serve_model_changes_total"] == 1
    assert shown.of()["lseg_serve_model_failures_total"] == 0


def test_calls_are_counted_by_their_status(shown: Shown):  # noqa: F811
    tally = Tally()
    for status in ("200", "200", "429"):
        tally.add("calls", status=status)
    assert shown.of(status="200") == {"lseg_serve_calls_total": 2}
    assert 'lseg_serve_calls_total{status="429"} 1' in tally.text(None)


def test_the_page_of_metrics_names_the_model_that_answers():
    about = {"model": 'models:/"lseg"/2', "is_behind": True, "waiting": 3}
    text = Tally().text(about)
    assert 'lseg_serve_model_info{model="models:/lseg/2"} 1' in text
    assert "lseg_serve_model_behind 1\n" in text
    assert "lseg_serve_waiting 3\n" in text
    assert "model_info" not in Tally().text(None)
