"""The report's sections of numbers: likelihoods with what they promise, errors with few labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flows import charts, over_epochs
from flows.markup import cards, section, table, text
from flows.results import Run, Stage
from flows.wording import apart, measured, metric, number, promise, warning, with_error


def likelihoods(run: Run) -> str:
    columns = [("model", "tight"), ("log-likelihood, nats", "number"), ("what the number is", "wide"),
               ("estimator", ""), ("effective<br>sample size", "number"), ("binari&shy;zation", ""),
               ("split", ""), ("examples", "number")]  # fmt: skip
    rows, sets = [], []
    compared: dict[tuple[str, str, int], dict[str, list[tuple[float, float]]]] = {}
    for stage in run.evaluations:
        for found in stage.likelihoods:
            sets.append(stage.set)
            beware = warning([stage.set], "the number") + (f" {said}" if (said := apart(found)) else "")
            name = stage.name if len(stage.likelihoods) == 1 else f"{stage.name}, {found['estimator']}"
            key = (found["binarization"], found["split"], found["num_examples"])
            for answer in (found, found.get("reverse")):
                if answer:
                    sign, _, words = promise(answer)
                    rows.append(("" if answer is found else "side", [
                        f"<b>{text(stage.name)}</b>" if answer is found else "",
                        sign + with_error(answer["nats"], answer.get("std_error"), 4),
                        f"{text(words)}.<b>{beware}</b>" if beware else text(words),
                        text(answer["estimator"]), number(answer.get("effective_sample_size")),
                        text(found["binarization"]), text(found["split"]), f"{found['num_examples']:,}",
                    ]))  # fmt: skip
                    points = compared.setdefault(key, {}).setdefault(name, [])
                    points.append((answer["nats"], answer.get("std_error") or 0.0))
    if not rows:
        return ""
    note = (
        f"Mean log-probability of a {text(measured(sets))} sample; higher (closer to zero) is better. "
        "Compare two rows only if "
        "binarization, split and examples agree, and keep in mind what each number promises: a lower bound can hide a "
        "better model, an estimate by annealing can praise a worse one. ± is the standard error that comes from the "
        "estimator, not from the choice of samples; for AIS, twice the plain standard error, because the plain one is "
        "too small on well-mixing chains; see likelihood.py. A small effective sample size means that few of the "
        "draws carry the estimate: trust it less. Where log Z was also estimated from the other side, the truth lies "
        "between the two as far as those chains began where the model has its mass; a wide gap says that annealing is "
        "not to be trusted here. A GAN has no likelihood and no row." + warning(sets, "a number measured on them")
    )
    first = {stage.name: stage.likelihoods[0] for stage in reversed(run.evaluations) if stage.likelihoods}
    over = over_epochs.charts(run.record["recipe"]["stages"], first)
    drawn = "".join(map(_side_by_side, compared.values())) + (cards(over) if over else "")
    return section("Likelihoods", table(columns, rows) + drawn, note)


def _side_by_side(rows: Mapping[str, list[tuple[float, float]]]) -> str:
    """A chart of what may be compared, in the order of the stages: how a bound moves as a net grows and is trained."""
    if len(rows) < 2:
        return ""
    chart = charts.intervals(rows, "log-likelihoods", "log-likelihood, nats")
    return f'<figure class="plot">{charts.legend(["as above", "from the other side"])}{chart}</figure>'


def few_labels(run: Run) -> str:
    shown = [stage for stage in run.stages if stage.result and stage.labels]
    if not shown:
        return ""
    twins = [stage for stage in shown if any(not model["pretrained"] for model in stage.result.models)]  # type: ignore[union-attr]
    alone = [stage for stage in shown if stage not in twins]
    body = "".join(map(_beside_twins, twins)) + (_beside_each_other(alone) if alone else "")
    note = "Mean ± standard error over seeds; a seed draws the labels and the new weights. "
    if twins:
        note = (
            "The pretrained classifier starts from the stack learned without labels; its supervised twin is the same "
            f"net from random weights, trained on the same revealed labels with equal care. {note}The gain is paired "
            "(twin minus pretrained, same seed), so it is surer than the two columns look. Good: a gain of more than "
            "three standard errors, shrinking as labels increase. In the plot a dot is a seed, a thin line joins the "
            "pair, a wide mark is the mean. "
        )
    if alone:
        note += "Stages of one seed and number of labels have learned from the same labels."
    return section("Few labels", body, note.strip())


def _beside_twins(stage: Stage) -> str:
    """A stage's errors beside those of its supervised twins, as a table and a chart."""
    columns = [("labels", "number"), ("pretrained, % error", "number"), ("supervised twin, % error", "number"),
               ("paired gain, points", "number"), ("seeds", "number")]  # fmt: skip
    assert stage.result is not None
    metrics, groups, rows = stage.result.metrics, {}, []
    for labels in stage.labels:
        runs: dict[int, dict[bool, float]] = {}
        for model in stage.result.models:
            if str(model["labels"]) == labels:
                runs.setdefault(model["seed"], {})[bool(model["pretrained"])] = float(model["error"])
        groups[labels] = [(pair[True], pair.get(False)) for pair in runs.values() if True in pair]
        names = [f"test/error@{labels}", f"test/error@{labels}/supervised", f"test/gain@{labels}"]
        values = [metric(metrics, name) for name in names]
        rows.append(("", [text(labels), *values, str(len(runs) or "–")]))
    plot = charts.paired(groups, "revealed labels", "test error, %")
    if plot:
        plot = f'<figure class="plot">{charts.legend(["pretrained", "supervised twin"])}{plot}</figure>'
    return f"<h3>{text(stage.name)}</h3>" + table(columns, rows) + plot


def _beside_each_other(stages: Sequence[Stage]) -> str:
    """Errors of stages without twins: a column and a line a stage."""
    results = {stage.name: stage.result.metrics for stage in stages if stage.result}
    counts = list(dict.fromkeys(labels for stage in stages for labels in stage.labels))
    counts.sort(key=lambda labels: float(labels) if labels.isdigit() else math.inf)
    columns = [("labels", "number"), *((f"{text(name)}, % error", "number") for name in results)]
    rows = [
        ("", [text(labels), *(metric(metrics, f"test/error@{labels}") for metrics in results.values())])
        for labels in counts
    ]
    drawn = {
        name: [(float(place), metrics.get(f"test/error@{labels}", math.nan)) for place, labels in enumerate(counts)]
        for name, metrics in results.items()
    }
    places = {float(place): labels for place, labels in enumerate(counts)}
    chart = charts.curves(drawn, "errors with few labels", "revealed labels", "test error, %", places)
    plot = f'<figure class="plot">{charts.legend(list(drawn))}{chart}</figure>' if len(counts) > 1 else ""
    return table(columns, rows) + plot
