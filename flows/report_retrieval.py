"""The report's section on what bits find, beside searches without learned codes (lightning_modules/retrieval.py)."""

from __future__ import annotations

from typing import Any

from flows import charts, figures
from flows.markup import section, table, text
from flows.results import Run, Stage
from flows.wording import listed, measured, number, warning


def retrieval(run: Run) -> str:
    shown = [stage for stage in run.evaluations if _about(stage)]
    if not shown:
        return ""
    columns = [("search", "tight"), ("bytes an item", "number"), ("precision of the first ten", "number"),
               ("mean average precision", "number")]  # fmt: skip
    parts = []
    for stage in shown:
        about, metrics = _about(stage), _metrics(stage)
        chart, drawn = figures.precision(stage.figure("retrieval"))
        searches = about["searches"]
        rows = []
        for search, said in searches.items():
            end = "" if search == "code" else f"/{search}"
            found = [metrics.get(f"{name}{end}") for name in ("precision@10", "mean_average_precision")]
            cells = [f"{said['bytes']:,.0f}", *("–" if value is None else number(value, 3) for value in found)]
            rows.append(("" if search == "code" else "side", [f"<b>{text(said['what'])}</b>", *cells]))
        ends = [number(metrics[f"bits_on_{end}"], 2) for end in ("lowest", "highest")]
        small = (
            f"{about['num_bits']} bits · {about['num_queries']:,} {text(measured([stage.set]))} queries among "
            f"{about['num_items']:,} training samples · a bit is 1 for a share of {ends[0]} to {ends[1]} of them"
        )
        key = charts.legend([str(searches[name]["what"]) for name in drawn])
        plot = f'<figure class="plot">{key}{chart}</figure>' if chart else ""
        parts.append(
            f"<h3>{text(stage.name)} · {text(stage.row['kind'])}</h3><p>{small}</p>{table(columns, rows)}{plot}"
        )
    note = (
        "Each query ranks the training samples, nearest first, codes by the number of bits that differ; what has its "
        "class counts as found. Precision is the share of right ones among those looked at, recall the share of all "
        "right ones that were among them: the curve's left end is what the first few items are like, and everything "
        "falls to the share of the class at 100 %. Where items are equally near, it is the mean over all their orders. "
        "Codes were learned without labels; a shortlist is what they find nearest, put in order by the data itself. "
        "Good: above the curves of other codes everywhere, and not far below raw search on the left, for a small part "
        "of its bytes. A bit that is nearly always 0 or 1 is wasted."
        + warning([stage.set for stage in shown], "what was found")
    )
    return section("Retrieval", "".join(parts), note)


def in_words(run: Run) -> str:
    """One sentence for the head of the page, "" where nothing was searched by bits."""
    said, sets = [], []
    for stage in run.evaluations:
        if (about := _about(stage)) and "precision@10" in (metrics := _metrics(stage)):
            raw = metrics.get("precision@10/raw")
            beside = f" ({raw:.0%} by raw search)" if raw is not None else ""
            sets.append(stage.set)
            share = f"{metrics['precision@10']:.0%}"
            said.append(f"{share} have its class by the {about['num_bits']} bits of {text(stage.name)}{beside}")
    if not said:
        return ""
    return f"Of the ten training samples nearest to a {text(measured(sets))} sample, {listed(said)}."


def _about(stage: Stage) -> dict[str, Any]:
    found = (stage.result.details if stage.result else {}).get("retrieval", {})
    return found if isinstance(found, dict) else {}


def _metrics(stage: Stage) -> dict[str, float]:
    """By name, without the set before it."""
    metrics = stage.result.metrics if stage.result else {}
    return {name.partition("/")[2]: value for name, value in metrics.items()}
