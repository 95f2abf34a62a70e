"""The report's sections on codes as places: a map of the plane they lie in, and clusters beside the classes.

Figures and numbers are those of lightning_modules/clustering.py. Under each section stands how to read it.
"""

from __future__ import annotations

from typing import Any

from flows import figures
from flows.markup import card, cards, image, section, table, text
from flows.results import Run, Stage
from flows.wording import listed, measured, number, warning

WIDEST = 20  # classes or clusters in a table of both


def maps(run: Run) -> str:
    drawn, seen = [], set()
    for stage in run.evaluations:
        about = _details(stage, "map")
        classes = list(map(str, about.get("classes", [])))
        chart = figures.plane(stage.figure("map"), classes)
        if not chart or chart in seen:
            continue
        seen.add(chart)
        kept = about.get("variance_kept")
        small = f"{stage.row['kind']} · {about.get('method', 'pca')}"
        small += f" · {kept:.0%} of the variance" if isinstance(kept, float) else ""
        drawn.append(card(f"<b>{text(stage.name)}</b>", text(small), chart))
    note = (
        "Each dot is one example where its code lies: along the two axes in which codes vary most (PCA), or as UMAP "
        "lays them out, where only nearness means something and distances between islands do not. What clusters is "
        "drawn by what it clusters. The colours are labels, which no unsupervised model has seen. Good: colours keep "
        "apart. Two axes show only part of what a code knows; what is mixed here may be apart in the whole."
    )
    return section("Maps of codes", cards(drawn), note) if drawn else ""


def clusters(run: Run) -> str:
    shown = [stage for stage in run.evaluations if _details(stage, "clusters")]
    if not shown:
        return ""
    columns = [("stage", "tight"), ("kind", "tight"), ("clusters", "number"), ("accuracy, %", "number"),
               ("NMI", "number"), ("ARI", "number"), ("smallest", "number"), ("largest", "number"),
               ("empty", "number"), ("samples", "")]  # fmt: skip
    rows, drawn, parts = [], [], []
    for stage in shown:
        about, metrics = _details(stage, "clusters"), _metrics(stage)
        sizes = about.get("sizes") or []
        agreement = [
            number(metrics[name], 3) if name in metrics else "–" for name in ("cluster_accuracy", "nmi", "ari")
        ]
        ends = [f"{size:,}" for size in (min(sizes), max(sizes))] if sizes else ["–", "–"]
        rows.append(("", [
            f"<b>{text(stage.name)}</b>", text(stage.row["kind"]), f"{about['num_clusters']:,}", *agreement, *ends,
            f"{metrics.get('empty_clusters', 0):.0f}", text(measured([stage.set])),
        ]))  # fmt: skip
        pictures = figures.rows_of_ten(stage.figure("clusters"))
        if pictures:
            small = "a row a cluster: the mean of its members, then the nine nearest to it"
            alt = f"clusters of {stage.name}"
            drawn.append(card(f"<b>{text(stage.name)}</b>", small, image(pictures, alt)))
        parts.append(_confusion(stage.name, about))
    note = (
        "Accuracy is the share of samples whose cluster is the one matched to their class, one to one, in the best way "
        "there is; with more clusters than classes the rest count as wrong. NMI is the mutual information of clusters "
        "and classes over the mean of their entropies, ARI the agreement about pairs beyond chance; both are 1 if they "
        "say the same and about 0 if they say nothing of each other. Labels were used here and nowhere before. Look "
        "for a row of two kinds (classes that were not told apart) and two rows of one kind."
        + warning([stage.set for stage in shown], "the agreement")
    )
    return section("Clusters", table(columns, rows) + "<br>" + cards(drawn) + "".join(parts), note)


def in_words(run: Run) -> str:
    """One sentence for the head of the page, "" without clusters that have classes."""
    said = []
    for stage in run.evaluations:
        accuracy = _metrics(stage).get("cluster_accuracy")
        if accuracy is not None:
            said.append(f"{text(stage.name)} {number(accuracy, 3)} %")
    return f"Share of samples in the cluster matched to their class: {listed(said)}." if said else ""


def _confusion(name: str, about: dict[str, Any]) -> str:
    """Clusters by classes, darker where more samples are."""
    counts, order, classes = (about.get(key, []) for key in ("confusion", "order", "classes"))
    if not counts or len(counts) > WIDEST or len(classes) > WIDEST:
        return ""
    most = max(map(max, counts)) or 1
    columns = [("cluster", "tight"), *((text(label), "number") for label in classes)]
    rows = [("", [str(cluster), *(_shaded(count, count / most) for count in counts[cluster])]) for cluster in order]
    return f"<h3>Clusters of {text(name)} by class</h3>" + table(columns, rows)


def _shaded(count: int, share: float) -> str:
    return (
        f'<span style="background:color-mix(in srgb, var(--first) {100 * share:.0f}%, transparent);'
        f'padding:.1rem .3rem;border-radius:.2rem">{count:,}</span>'
    )


def _details(stage: Stage, name: str) -> dict[str, Any]:
    return dict(stage.result.details.get(name, {})) if stage.result else {}


def _metrics(stage: Stage) -> dict[str, float]:
    """Without the name of the set they were measured on."""
    metrics = stage.result.metrics if stage.result else {}
    return {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(f"{stage.set}/")}
