"""Build W&B workspaces for the runs of a folder, one for each leaderboard table:

    pip install "detoxbench[workspaces]"
    python examples/wandb_workspace.py runs --entity ME

Each has the metrics as bars with their 95 % intervals, toxicity against fluency, the fits' curves, and the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from detoxbench.config import TrackerSpec
from detoxbench.results.store import runs
from detoxbench.tracking.report import Report, report_of

CHART = "detoxbench-intervals"
SPEC: dict[str, Any] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "title": "${string:metric}",
    "data": {"name": "wandb"},
    "transform": [{"filter": "datum['${field:metric}'] === '${string:metric}'"}],
    "encoding": {"y": {"field": "name", "type": "nominal", "title": None}},
    "layer": [
        {
            "mark": "bar",
            "encoding": {
                "x": {"field": "${field:value}", "type": "quantitative", "title": "${string:metric}"},
                "color": {"field": "${field:method}", "type": "nominal"},
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": {"field": "${field:low}", "type": "quantitative"},
                "x2": {"field": "${field:high}"},
            },
        },
    ],
}
"""Vega-Lite: of the table `intervals`, one metric of every run as a bar, and its interval as a line."""
TOXICITY = ("EMT", "mean_toxicity", "toxic_share", "DS")
FLUENCY = ("perplexity", "fluency_bits", "degenerate_share")
"""What the scatter plot shows: the first of each that the suite has."""


def workspace(entity: str, project: str, group: str, reports: Sequence[Report]) -> ws.Workspace:
    """The workspace of one group of reported runs; nothing is sent."""
    metrics: Mapping[str, Any] = reports[0].config["metrics"]
    headline = [name for name, metric in metrics.items() if metric["headline"]]
    bars = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": "intervals"}},
            chart_name=f"{entity}/{CHART}",
            chart_fields={name: name for name in ("metric", "method", "value", "low", "high")},
            chart_strings={"metric": name},
        )
        for name in headline
    ]
    scatter = [
        wr.ScatterPlot(title=f"{y} against {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))
        for x, y in [(_first(FLUENCY, metrics), _first(TOXICITY, metrics))]
        if x and y
    ]
    curves = [
        wr.LinePlot(title=name, x=wr.Metric("fit_step"), y=[name])
        for name in sorted({name for report in reports for name in report.curves})
    ]
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in ("samples", "records")]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"detoxbench {group}",
        sections=[
            ws.Section(name="Metrics with 95 % intervals", panels=bars, is_open=True),
            ws.Section(name="Toxicity against fluency", panels=scatter, is_open=True),
            ws.Section(name="Fits", panels=curves),
            ws.Section(name="Samples and records", panels=tables, is_open=True),
        ],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == group],
            pinned_columns=["config:method", "config:seed", *(f"summary:{name}" for name in headline)],
        ),
    )


def _first(wanted: Sequence[str], metrics: Mapping[str, Any]) -> str | None:
    """The first metric that is one of `wanted`, whatever its number of samples (EMT@25)."""
    return next((name for key in wanted for name in metrics if name.partition("@")[0] == key), None)


def workspaces(folder: Path, entity: str, project: str) -> list[ws.Workspace]:
    groups: dict[str, list[Report]] = {}
    for run in runs(folder):
        report = report_of(run, TrackerSpec(samples=0, artifact_mb=0))
        groups.setdefault(report.group, []).append(report)
    return [workspace(entity, project, group, reports) for group, reports in groups.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--entity", required=True)
    parser.add_argument("--project", default=TrackerSpec().project)
    parser.add_argument("--no-chart", dest="chart", action="store_false", help="the chart was created before")
    args = parser.parse_args()

    import wandb

    try:
        if args.chart:
            wandb.Api().create_custom_chart(
                entity=args.entity,
                name=CHART,
                display_name="Metric with its interval",
                spec_type="vega2",
                access="private",
                spec=SPEC,
            )
    except wandb.Error as error:
        sys.exit(f"cannot create the chart {args.entity}/{CHART}: {error}; if it is there already, use --no-chart")
    for made in workspaces(args.runs, args.entity, args.project):
        print(made.save().url)


if __name__ == "__main__":
    main()
