"""The Grafana dashboard asks for metrics and labels that the server has, and for all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import Served, write_label

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "rayapp.json"
PANELS = json.loads(FILE.read_text())["panels"]
QUERIES = [(panel["title"], each["expr"], each["legendFormat"]) for panel in PANELS for each in panel["targets"]]
FUNCTIONS = {"sum", "by", "rate", "increase", "histogram_quantile", "le"}


@pytest.fixture(scope="module")
def families(gateway: Served, tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    gateway.infer("image=ct_a")
    gateway.infer("image=ct_a")
    gateway.infer("image=nothing")
    gateway.save("ct_a", write_label(tmp_path_factory.mktemp("label") / "label.nii.gz"))
    gateway.post("/batch/infer/bright", json={})
    return list(text_string_to_metric_families(gateway.get("/metrics").text))


@pytest.mark.parametrize(("title", "expr", "legend"), QUERIES)
def test_a_query_asks_for_samples_and_labels_that_exist(families: list[Metric], title: str, expr: str, legend: str):
    samples = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    asked = set(re.findall(r"rayapp_\w+", expr))
    assert asked
    for name in asked:
        assert name in samples, f"{title}: there is no {name}"
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(",")}
        chosen = set(re.findall(r"(\w+)=", expr))
        shown = set(re.findall(r"{{(\w+)}}", legend))
        assert grouped | chosen | shown <= samples[name], f"{title}: {name} has {samples[name]}"
    assert expr.count("(") == expr.count(")")


def test_every_metric_is_shown(families: list[Metric]):
    asked = " ".join(expr for _, expr, _ in QUERIES)
    ours = {family.name for family in families if family.name.startswith("rayapp_")}
    ours -= {name for name in ours if name.endswith("_created")}  # when counters began
    assert {name for name in ours if name not in asked} == set()


def test_no_two_panels_lie_on_each_other():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_stages_caches_saves_and_errors_are_counted(families: list[Metric]):
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }
    for stage in ("queue", "pre", "infer", "invert", "write", "total"):
        assert values["rayapp_infer_seconds_count", *sorted(("bright", stage))] == 2
    for cache in ("image", "prepared"):
        for result in ("hit", "miss"):
            assert values["rayapp_cache_requests_total", *sorted((cache, result))] == 1
    assert values["rayapp_saves_total", "label"] == 1
    assert values["rayapp_errors_total", "NotFound"] >= 1
    assert values["rayapp_infer_waiting", "bright"] == 0
    assert values["rayapp_sessions",] == 0
