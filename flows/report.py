"""What lies under OUT/<run> and OUT/stages → one self-contained HTML page. Draws, never computes models.

One function a section; a section that has nothing to show is left out, so the page of a failed or half-done run shows
what there is. Under each section stands how to read it. Every string from outside is escaped; pictures are data URIs,
curves inline SVG; nothing is loaded from anywhere. What is NOT here: pieces of HTML (flows/markup.py), pixels and lines
(flows/pictures.py), numbers and verdicts in words (flows/wording.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf import journal
from conf.protocol import Result
from data import durable
from data.quarantine import Loss
from flows import over_epochs, pictures
from flows.markup import card, cards, document, image, section, short_digest, table, text
from flows.wording import (
    duration,
    errors_in_words,
    findings,
    listed,
    measured,
    metric,
    number,
    promise,
    warning,
    with_error,
)


@dataclass(frozen=True)
class Stage:
    """One row of run.json and the result in its folder, if there is one."""

    row: dict[str, Any]
    folder: Path
    result: Result | None

    @property
    def name(self) -> str:
        """An evaluation bears the name of the stage it measures."""
        return str(self.row["evaluates"] or self.row["name"])

    @property
    def set(self) -> str:
        """Which samples an evaluation measured: test, validation or train."""
        return str((self.result.details if self.result else {}).get("set", "unnamed"))

    def figure(self, name: str) -> dict[str, pictures.Array]:
        return pictures.arrays(self.folder / "figures" / f"{name}.npz")


@dataclass(frozen=True)
class Run:
    record: dict[str, Any]
    stages: list[Stage]

    @property
    def evaluations(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.row["flow"] == "evaluate"]


def load(out: Path, run: str) -> Run:
    record = durable.read_json(out / run / "run.json")
    folders = [out / row["folder"] for row in record["stages"]]
    return Run(record, [Stage(row, at, result(at)) for row, at in zip(record["stages"], folders, strict=True)])


def result(folder: Path) -> Result | None:
    """A stage's result; None while there is none (or none that can be read)."""
    try:
        return Result.model_validate_json((folder / "result.json").read_bytes())
    except (OSError, ValidationError):
        return None


def write(out: Path, run: str) -> Path:
    """Draws OUT/<run>/report.html anew → its path. Errors: OSError."""
    path = out / run / "report.html"
    durable.write_bytes(path, page(load(out, run)).encode())
    return path


def page(run: Run) -> str:
    parts = (header, what_ran, curves, filters, reconstructions, samples, likelihoods, few_labels, recipe, provenance)
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
    verbs = {"pretrain": "pretrained {} greedily, layer by layer", "train": "trained {}", "finetune": "fine-tuned {}"}
    said = []
    for flow, verb in verbs.items():
        names = [f"{text(stage.name)} ({text(stage.row['kind'])})" for stage in done if stage.row["flow"] == flow]
        if names:
            said.append(verb.format(listed(names)))
    sizes = [shards["sizes"].get("train", 0) for shards in run.record.get("shards", {}).values()]
    sentences = [f"From {sum(sizes):,} training samples this run {listed(said)}." if said else "No stage finished yet."]
    if len(done) < len(jobs):
        sentences.append(f"{len(done)} of {len(jobs)} stages were finished; what there is stands below.")
    for stage in done:
        if stage.result and (labels := _labels(stage.result)):
            sentences.append(errors_in_words(text(stage.name), stage.result.metrics, labels))
    for name in dict.fromkeys(stage.set for stage, _ in _likelihoods(run)):
        values = []
        for stage, found in _likelihoods(run):
            sign, kind, _ = promise(found)
            if stage.set == name:
                values.append(f"{text(stage.name)} {sign}{number(found['nats'], 4)} ({text(kind)})")
        of = f"Log-likelihood of a {text(measured([name]))} sample in nats"
        sentences.append(f"{of}: {listed(values)}.{warning([name], 'the number')}")
    cached = sum(bool(stage.row.get("cached")) for stage in run.stages)
    if cached:
        sentences.append(f"{cached} of {len(run.stages)} stages had been computed before and were reused.")
    return " ".join(sentences)


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


def curves(run: Run) -> str:
    charts, legend = [], ["train"]
    for stage in run.stages:
        if stage.row["flow"] == "finetune":  # its journal has a row a seed; the few-label table shows them
            continue
        rows, _ = journal.read(stage.folder / "journal.jsonl")
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for row in rows:
            for name, value in row["metrics"].items():
                part, _, quantity = name.partition("/")
                if quantity and quantity != "learning_rate":
                    panels.setdefault(quantity, {"train": [], "validation": []}).setdefault(part, [])
                    panels[quantity][part].append((row["step"], value))
        for quantity, series in panels.items():
            words = quantity.replace("_", " ").replace("/", " ")
            chart = pictures.curves(series, f"{words} of {stage.name}", "optimizer step", words)
            if chart:
                charts.append(card(f"<b>{text(stage.name)}</b> · {text(words)}", "", chart))
                legend = ["train", "validation"] if series["validation"] else legend
    note = (
        "Training objectives should fall and flatten, and validation should follow training: where it turns up again "
        "the model has begun to memorise. Two exceptions. The loss of an RBM under contrastive divergence is a "
        "difference of free energies that hovers around a small number and says little; its reconstruction error and "
        "likelihood say more. A GAN's two losses play against each other: good is that neither runs away. "
        "Long curves are averaged in bins."
    )
    return section("Training curves", pictures.legend(legend) + cards(charts), note) if charts else ""


def filters(run: Run) -> str:
    shown, seen = [], set()
    for stage in run.evaluations:
        for layer, content in pictures.filters(stage.figure("filters")).items():
            if content not in seen:
                seen.add(content)
                picture = image(content, f"filters of {stage.name}, {layer}")
                small = f"{stage.row['kind']} · layer {layer.removeprefix('layer')}"
                shown.append(card(f"<b>{text(stage.name)}</b>", text(small), picture))
    note = (
        "What a hidden unit looks for, drawn as a picture of the data: red raises it, blue lowers it, white does not "
        "matter. One colour scale a layer, symmetric around zero. Good filters are local and different from each other "
        "(strokes, edges, then larger parts in higher layers); noise, or many copies of one picture, means too little "
        "training or dead units."
    )
    return section("Learned filters", cards(shown), note) if shown else ""


def reconstructions(run: Run) -> str:
    shown, sets = [], []
    for stage in run.evaluations:
        content = pictures.figure("reconstructions", stage.figure("reconstructions"))
        if content:
            sets.append(stage.set)
            picture = image(content, f"originals above reconstructions of {stage.name}")
            small = f"{text(measured([stage.set]))} samples, the reconstruction under each original"
            if stage.result and stage.result.metrics:
                small += f" · {text(findings(stage.result.metrics))}"
            shown.append(card(f"<b>{text(stage.name)}</b>", small, picture))
    if not shown:
        return ""
    note = (
        f"Originals are {text(measured(sets))} samples, encoded and decoded again. Good: the same sample, "
        "a little smoother. A reconstruction that "
        "shows another class, or the same blur for every sample, means the code has lost what mattered. A sharp "
        "reconstruction alone is no proof of a good model of the data." + warning(sets, "how well they come back")
    )
    return section("Reconstructions", cards(shown), note)


def samples(run: Run) -> str:
    shown, seen, sets, clamped = [], set(), [], ""
    for stage in run.evaluations:
        drawn = pictures.figure("samples", stage.figure("samples"))
        if not drawn:
            continue
        data = pictures.figure("data", stage.figure("data"))
        if data and data not in seen:
            seen.add(data)
            sets.append(stage.set)
            small = f"{text(measured([stage.set]))} samples, for comparison"
            shown.append(card("<b>real data</b>", small, image(data, "real data")))
        by_class = pictures.figure("samples_by_class", stage.figure("samples_by_class"))
        if by_class:
            clamped = " Samples by class are drawn with the label units clamped, one class a row, in their order."
        for kind, content in (("samples", drawn), ("samples by class", by_class)):
            if content:
                picture = image(content, f"{kind} from {stage.name}")
                shown.append(card(f"<b>{text(stage.name)}</b>", f"{kind} · {text(stage.row['kind'])}", picture))
    note = (
        "Drawn by each model from nothing, not chosen, on the same scale as the real data beside them. Good: hard to "
        "tell from the real ones, and as varied. Look for repeats (a GAN that has collapsed), for blur (typical of a "
        "VAE, which shows means) and for a class that is missing." + clamped + " Judging by eye is not a "
        "measurement: no claim is made beyond the numbers in the tables."
        + warning(sets, "the likeness to the real data shown")
    )
    return section("Samples beside real data", cards(shown), note) if shown else ""


def _likelihoods(run: Run) -> list[tuple[Stage, dict[str, Any]]]:
    return [(s, found) for s in run.evaluations if s.result for found in s.result.details.get("likelihoods", [])]


def likelihoods(run: Run) -> str:
    columns = [("model", "tight"), ("log-likelihood, nats", "number"), ("what the number is", "wide"),
               ("estimator", ""), ("effective<br>sample size", "number"), ("binari&shy;zation", ""),
               ("split", ""), ("examples", "number")]  # fmt: skip
    rows, sets = [], []
    for stage, found in _likelihoods(run):
        sign, _, words = promise(found)
        sets.append(stage.set)
        beware = warning([stage.set], "the number")
        rows.append(("", [
            f"<b>{text(stage.name)}</b>", sign + with_error(found["nats"], found.get("std_error"), 4),
            f"{text(words)}.<b>{beware}</b>" if beware else text(words),
            text(found["estimator"]), number(found.get("effective_sample_size")),
            text(found["binarization"]), text(found["split"]), f"{found['num_examples']:,}",
        ]))  # fmt: skip
    if not rows:
        return ""
    note = (
        f"Mean log-probability of a {text(measured(sets))} sample; higher (closer to zero) is better. "
        "Compare two rows only if "
        "binarization, split and examples agree, and keep in mind what each number promises: a lower bound can hide a "
        "better model, an estimate by annealing can praise a worse one. ± is the standard error that comes from the "
        "estimator, not from the choice of samples; for AIS, twice the plain standard error, because the plain one is "
        "too small on well-mixing chains; see likelihood.py. A small effective sample size means that few of the "
        "draws carry the estimate: trust it less. A GAN has no likelihood and no row."
        + warning(sets, "a number measured on them")
    )
    first = {stage.name: found for stage, found in reversed(_likelihoods(run))}
    charts = over_epochs.charts(run.record["recipe"]["stages"], first)
    return section("Likelihoods", table(columns, rows) + (cards(charts) if charts else ""), note)


def _labels(result: Result) -> list[str]:
    """The numbers of labels a fine-tuning was run with, fewest first, `all` last."""
    found = [name.partition("@")[2] for name in result.metrics if re.fullmatch(r"test/error@\w+", name)]
    return sorted(found, key=lambda labels: float(labels) if labels.isdigit() else math.inf)


def few_labels(run: Run) -> str:
    columns = [("labels", "number"), ("pretrained, % error", "number"), ("supervised twin, % error", "number"),
               ("paired gain, points", "number"), ("seeds", "number")]  # fmt: skip
    body = []
    for stage in run.stages:
        if not stage.result or not (counts := _labels(stage.result)):
            continue
        metrics, groups, rows = stage.result.metrics, {}, []
        for labels in counts:
            runs: dict[int, dict[bool, float]] = {}
            for model in stage.result.models:
                if str(model["labels"]) == labels:
                    runs.setdefault(model["seed"], {})[bool(model["pretrained"])] = float(model["error"])
            groups[labels] = [(pair[True], pair.get(False)) for pair in runs.values() if True in pair]
            names = [f"test/error@{labels}", f"test/error@{labels}/supervised", f"test/gain@{labels}"]
            values = [metric(metrics, name) for name in names]
            rows.append(("", [text(labels), *values, str(len(runs) or "–")]))
        plot = pictures.paired(groups, "revealed labels", "test error, %")
        if plot:
            plot = f'<figure class="plot">{pictures.legend(["pretrained", "supervised twin"])}{plot}</figure>'
        body.append(f"<h3>{text(stage.name)}</h3>" + table(columns, rows) + plot)
    note = (
        "The pretrained classifier starts from the stack learned without labels; its supervised twin is the same net "
        "from random weights, trained on the same revealed labels with equal care. Mean ± standard error over seeds; a "
        "seed draws the labels and the new weights. The gain is paired (twin minus pretrained, same seed), so it is "
        "surer than the two columns look. Good: a gain of more than three standard errors, shrinking as labels "
        "increase. In the plot a dot is a seed, a thin line joins the pair, a wide mark is the mean."
    )
    return section("Few labels", "".join(body), note) if body else ""


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
        stages.append(("", [name, short_digest(stage.row["key"]), digest, text(where) or "–"]))
    names = ("data", "shape", "samples", "samples digest", "labels digest", "folder")
    shard_columns = [(name, "tight" if name != "samples" else "") for name in names]
    stage_columns = [("stage", "tight"), ("key", "tight"), ("digest of its result", "tight"), ("computed with", "wide")]
    body = table(shard_columns, shards) + "<br>" if shards else ""
    note = (
        "A key names everything that enters a stage's mathematics: model, settings, seed, data and the stages below. "
        "Equal keys on the same machine type give equal results, byte for byte on a CPU; where and how it was computed "
        "stands in the last column. Digests are SHA-256, cut to twelve digits (the whole one is the tooltip). "
        "<code>strata data FOLDER</code> shows what is in a folder of shards."
    )
    return section("Provenance", body + table(stage_columns, stages), note)


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
