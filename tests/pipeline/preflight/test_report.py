"""The table and the JSON of a check."""

import json

from pipeline.preflight.report import Report


def test_the_table_has_a_line_a_check_and_says_how_it_ended():
    report = Report()
    report.add("nodes", "ok", "2 workers on 1 nodes")
    report.add("exchange", "remark", "NCCL: 0.80 GB/s\na worker", "use EFA", gb_per_s=0.8)
    assert report.lines() == [
        "ok      nodes     2 workers on 1 nodes",
        "remark  exchange  NCCL: 0.80 GB/s\\na worker: use EFA",
        "2 checks passed",
    ]
    report.add("clocks", "failed", "at most 90.00 s apart", "run NTP on the nodes")
    assert report.lines()[-2:] == [
        "FAILED  clocks    at most 90.00 s apart: run NTP on the nodes",
        "1 of 3 checks failed",
    ]
    document = json.loads(report.to_json())
    assert document["failed"] == report.num_failed == 1
    assert document["checks"][1]["figures"] == {"gb_per_s": 0.8}
