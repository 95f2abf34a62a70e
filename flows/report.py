"""What lies under OUT/<run> and OUT/stages → one self-contained HTML page. Draws, never computes models.

One function a section; a section that has nothing to show is left out, so the page of a failed or half-done run shows
what there is. Under each section stands how to read it. Every string from outside is escaped; pictures are data URIs,
charts inline SVG; nothing is loaded from anywhere. What is NOT here: the sections on what models look like
(flows/report_pictures.py) and on their numbers (flows/report_numbers.py), pieces of HTML (flows/markup.py), numbers and
verdicts in words (flows/wording.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data import durable
from data.quarantine import Loss
from flows import (
    report_clusters,
    report_dictionaries,
    report_measured,
    report_numbers,
    report_pictures,
    report_retrieval,
)
from flows.markup import document, section, short_digest, table, text
from flows.results import Run, Stage, load
from flows.wording import apart, duration, errors_in_words, listed, measured, number, promise, warning


def write(out: Path, run: str) -> Path:
    """Draws OUT/<run>/report.html anew → its path. Errors: OSError."""
    path = out / run / "report.html"
    durable.write_bytes(path, page(load(out, run)).encode())
    return path


def page(run: Run) -> str:
    parts = (
        header, what_ran, report_pictures.curves, report_pictures.free_energy_gap, report_pictures.filters,
        report_pictures.words,
        report_dictionaries.dictionaries, report_dictionaries.codes,
        report_pictures.activity, report_pictures.weights, report_pictures.reconstructions, report_pictures.samples,
        report_pictures.chains, report_clusters.maps, report_clusters.clusters, report_retrieval.retrieval,
        report_measured.measured,
        report_numbers.likelihoods, report_numbers.few_labels, recipe, provenance,
    )  # fmt: skip
    body = "\n".join(filter(None, (part(run) for part in parts)))
    footer = "Drawn by strata from the files of this run. One file; it loads nothing."
    return document(f"{run.record['run']} · strata", body, footer)


# --- the sections, from top to bottom --------------------------------------------------------------------------------


def header(run: Run) -> str:
    record = run.record
    began = text(str(record["started"])[:16].replace("T", " ") + (" UTC" if "+00:00" in record["started"] else ""))
    about = f"run <code>{text(record['run'])}</code> · began {began} · {duration(record['seconds'] or 0)}"
    title = f'{text(record["name"])} <span class="badge {text(record["status"])}">{text(record["status"])}</span>'
    error = f'<p class="error">{text(record["error"])}</p>' if record.get("error") else ""
    lead = f'{error}<p class="lead">{summary(run)}</p>'
    return f'<header>\n<h1>{title}</h1>\n<p class="about">{about}</p>\n{lead}\n</header>'


def summary(run: Run) -> str:
    """What ran and the headline numbers, in words."""
    jobs = [stage for stage in run.stages if stage.row["flow"] not in ("ingest", "evaluate")]
    done = [stage for stage in jobs if stage.row["status"] == "finished"]
    declared = run.record.get("recipe", {}).get("stages", {})
    stacked = any(stage.row["flow"] == "pretrain" and declared.get(stage.name, {}).get("on") for stage in done)
    greedily = " greedily, layer by layer" if stacked else ""
    verbs = {"pretrain": f"pretrained {{}}{greedily}", "train": "trained {}", "finetune": "fine-tuned {}"}
    said = []
    for flow, verb in verbs.items():
        names = [
            f"{text(stage.name)} ({text(stage.row['kind'])}{', no epochs' if _untrained(run, stage) else ''})"
            for stage in done
            if stage.row["flow"] == flow
        ]
        if names:
            said.append(verb.format(listed(names)))
    sizes = [shards["sizes"].get("train", 0) for shards in run.record.get("shards", {}).values()]
    sentences = [f"From {sum(sizes):,} training samples this run {listed(said)}." if said else "No stage finished yet."]
    if len(done) < len(jobs):
        sentences.append(f"{len(done)} of {len(jobs)} stages were finished; what there is stands below.")
    for stage in done:
        if stage.result and (labels := stage.labels):
            sentences.append(errors_in_words(text(stage.name), stage.result.metrics, labels))
    answers = [(stage, found) for stage in run.evaluations for found in stage.likelihoods]
    for name in dict.fromkeys(stage.set for stage, _ in answers):
        values = []
        for stage, found in answers:
            sign, kind, _ = promise(found)
            if stage.set == name:
                back = found.get("reverse")
                kind += f", {number(back['nats'], 4)} from the other side" if back else ""
                kind += ": trust neither" if apart(found) else ""
                values.append(f"{text(stage.name)} {sign}{number(found['nats'], 4)} ({text(kind)})")
        of = f"Log-likelihood of a {text(measured([name]))} sample in nats"
        sentences.append(f"{of}: {listed(values)}.{warning([name], 'the number')}")
    parts = (report_clusters.in_words, report_retrieval.in_words, report_pictures.idle_units)
    sentences += filter(None, (part(run) for part in parts))
    if len(sentences) == 1 and said and (numbers := report_measured.in_words(run)):
        sentences.append(numbers)
    cached = sum(bool(stage.row.get("cached")) for stage in run.stages)
    if cached:
        sentences.append(f"{cached} of {len(run.stages)} stages had been computed before and were reused.")
    return " ".join(sentences)


def _untrained(run: Run, stage: Stage) -> bool:
    """Whether its weights are those it began with, since its recipe says so."""
    settings = run.record["recipe"].get("stages", {}).get(stage.name, {}).get("train", {})
    return settings.get("epochs") == 0 and not (stage.result and stage.result.steps)


def what_ran(run: Run) -> str:
    columns = [("stage", "tight"), ("what", "tight"), ("kind", "tight"), ("shape", ""), ("parameters", "number"),
               ("samples", "number"), ("steps", "number"), ("time", "number"), ("state", "tight")]  # fmt: skip
    rows = []
    for stage in run.stages:
        found = stage.result
        details = found.details if found else {}
        evaluation = stage.row["flow"] == "evaluate"
        samples = details.get("num_examples") if evaluation else _training_samples(run, stage)
        state = text(stage.row["status"]) + (" · cached" if stage.row.get("cached") else "")
        what = str(stage.row.get("what") or "–")
        cells = [
            text(stage.name) if evaluation else f"<b>{text(stage.name)}</b>", text(stage.row["flow"]),
            text(stage.row["kind"]), text(what if evaluation else what.split(", ")[0]),
            f"{details['parameters']:,}" if "parameters" in details else "–", f"{samples:,}" if samples else "–",
            f"{found.steps:,}" if found and found.steps else "–", duration(stage.row.get("seconds") or 0),
            f'<span class="{text(stage.row["status"])}">{state}</span>',
        ]  # fmt: skip
        rows.append(("side" if evaluation or stage.row["flow"] == "ingest" else "", cells))
    note = (
        "One row a stage, in the order it ran. A cached stage was computed before by a run with the same key and was "
        "not computed again; its time is what it took then."
    )
    return section("What ran", table(columns, rows), note)


def _training_samples(run: Run, stage: Stage) -> int | None:
    """Of the data set a stage reads: its own, that of the stage below it, or the only one."""
    shards, stages = run.record.get("shards", {}), run.record["recipe"].get("stages", {})
    name: str | None = stage.name
    while name in stages and not stages[name].get("data") and stages[name].get("on"):
        name = stages[name]["on"]
    chosen = stages.get(name, {}).get("data") or (stage.name if stage.name in shards else next(iter(shards), None))
    sizes = [
        shards.get(one, {}).get("sizes", {}).get("train") for one in (chosen if isinstance(chosen, dict) else [chosen])
    ]
    return None if None in sizes else sum(sizes)


def recipe(run: Run) -> str:
    overrides = [f"<code>{text(item)}</code>" for item in run.record.get("overrides", [])]
    changed = f"<p>Changed on the command line: {listed(overrides)}.</p>" if overrides else ""
    return section("Recipe", f"<pre>{text(run.record.get('recipe_text', ''))}</pre>{changed}")


def provenance(run: Run) -> str:
    shards = []
    for name, content in run.record.get("shards", {}).items():
        sizes = ", ".join(f"{part} {size:,}" for part, size in content["sizes"].items())
        digests = (short_digest(content.get(digest)) for digest in ("samples_digest", "labels_digest"))
        shape, folder = "×".join(map(str, content["shape"])), f"<code>{text(content['folder'])}</code>"
        if lost := content.get("lost"):
            sizes += f"; {Loss(**lost)}" if lost["shards"] else ""
        shards.append(("", [f"<b>{text(name)}</b>", text(shape), text(sizes), *digests, folder]))
    stages = []
    for stage in run.stages:
        placement = stage.result.placement if stage.result else {}
        where = ", ".join(f"{key} {value}" for key, value in _flat(placement).items())
        digest = short_digest(stage.result.digest if stage.result else None)
        name = f"<b>{text(stage.name)}</b> {text(stage.row['flow'])}"
        model = f"<code>{text(stage.row['folder'])}/model</code>" if stage.result and stage.result.model else "–"
        stages.append(("", [name, short_digest(stage.row["key"]), digest, model, text(where) or "–"]))
    names = ("data", "shape", "samples", "samples digest", "labels digest", "folder")
    shard_columns = [(name, "tight" if name != "samples" else "") for name in names]
    stage_columns = [("stage", "tight"), ("key", "tight"), ("digest of<br>its result", "tight"),
                     ("model, beside this run's folder", "tight"), ("computed with", "")]  # fmt: skip
    body = table(shard_columns, shards) + "<br>" if shards else ""
    note = (
        "A key names everything that enters a stage's mathematics: model, settings, seed, data and the stages below. "
        "Equal keys on the same machine type give equal results, byte for byte on a CPU; where and how it was computed "
        "stands in the last column. Digests are SHA-256, cut to twelve digits (the whole one is the tooltip). "
        "<code>strata data FOLDER</code> shows what is in a folder of shards; <code>strata encode MODEL --shards "
        "FOLDER</code> and its like go on from a model."
    )
    return section("Provenance", body + table(stage_columns, stages), note)


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
