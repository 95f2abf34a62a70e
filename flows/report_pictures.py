"""The report's sections on how models learned and what they look like: curves, hidden units, chains, samples.

A section is a function of the run; it is empty where no stage has what it shows. Under each stands how to read it.
"""

from __future__ import annotations

from flows import charts, figures
from flows.markup import card, cards, image, moving, section, table, text
from flows.results import Run, Stage
from flows.wording import listed, measured, number, warning


def curves(run: Run) -> str:
    drawn, legend = [], ["train"]
    for stage in run.stages:
        if stage.row["flow"] == "finetune":  # its journal has a row a seed; the few-label table shows them
            continue
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for step, metrics in stage.journal():
            for name, value in metrics.items():
                part, _, quantity = name.partition("/")
                if quantity and quantity not in ("learning_rate", "free_energy_gap"):
                    panels.setdefault(quantity, {"train": [], "validation": []}).setdefault(part, [])
                    panels[quantity][part].append((step, value))
        for quantity, series in panels.items():
            words = quantity.replace("_", " ").replace("/", " ")
            chart = charts.curves(series, f"{words} of {stage.name}", _step(stage), words)
            if chart:
                drawn.append(card(f"<b>{text(stage.name)}</b> · {text(words)}", "", chart))
                legend = ["train", "validation"] if series["validation"] else legend
    note = (
        "Training objectives should fall and flatten, and validation should follow training: where it turns up again "
        "the model has begun to memorise. Two exceptions. The loss of an RBM, a deep or a general Boltzmann machine "
        "sets energies of data against those of chains and says little, unless the gradient is exact; reconstruction "
        "error and likelihood say more. A GAN's two losses play against each other: good is that neither runs away. "
        "Long curves are averaged in bins."
    )
    return section("Training curves", charts.legend(legend) + cards(drawn), note) if drawn else ""


def _step(stage: Stage) -> str:
    return "round over the data" if "round" in str(stage.row.get("what")) else "optimizer step"


def free_energy_gap(run: Run) -> str:
    drawn = []
    for stage in run.stages:
        name = "validation/free_energy_gap"
        points = [(step, metrics[name]) for step, metrics in stage.journal() if name in metrics]
        chart = charts.curves({"gap": points}, f"free-energy gap of {stage.name}", "optimizer step", "nats")
        if chart:
            last = number(points[-1][1])
            drawn.append(
                card(f"<b>{text(stage.name)}</b>", f"{text(stage.row['kind'])} · {last} nats at the end", chart)
            )
    note = (
        "The mean free energy of validation samples less that of as many training samples: by how many nats the model "
        "finds what it has seen more probable than what it has not; log Z cancels. A gap that stays near where it "
        "began says that nothing is learned by heart; one that grows is overfitting: stop there, or take more data, "
        "fewer hidden units or weight decay (Hinton 2010, §6). A deep Boltzmann machine's is that of its bound."
    )
    return section("Free-energy gap", cards(drawn), note) if drawn else ""


def filters(run: Run) -> str:
    shown, seen = [], set()
    for stage in run.evaluations:
        words = _words(stage)
        for layer, content in figures.filters(stage.figure("filters")).items():
            if content not in seen and layer not in words:
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


def words(run: Run) -> str:
    """What units of documents look for, and of any data whose values have names."""
    parts = []
    for stage in run.evaluations:
        for layer, units in _words(stage).items():
            topics = layer == "topics"
            said = ("more probable than in other topics", "less probable") if topics else ("raised by", "lowered by")
            columns = [("", "number"), (said[0], "text"), (said[1], "")]
            rows = [
                ("", [str(place), *(text(", ".join(ends)) for ends in unit)])
                for place, unit in enumerate(units, start=1)
            ]
            what = f"{len(units)} topics" if topics else f"{len(units)} units of layer {layer.removeprefix('layer')}"
            parts.append(f"<h3>{text(stage.name)} · {text(stage.row['kind'])}, {what}</h3>{table(columns, rows)}")
    note = (
        "What a unit looks for, as seen through the layers below it: the values that raise it most beside the other "
        "units, first the strongest, and those that lower it most. Good: what stands together belongs together, and "
        "units differ. The same few in many units, or such as nothing joins, mean too little training, or more units "
        "than the data need."
    )
    return section("Words of hidden units", "".join(parts), note) if parts else ""


def _words(stage: Stage) -> dict[str, list[list[list[str]]]]:
    return dict(stage.result.details.get("words", {})) if stage.result else {}


def activity(run: Run) -> str:
    drawn, seen = [], set()
    for stage in run.evaluations:
        for layer, units in figures.activity(stage.figure("activity")).items():
            if (units.by_unit, units.by_example) in seen:
                continue
            seen.add((units.by_unit, units.by_example))
            idle = f"of {units.num_units:,} units {units.never_on:,} never on"
            if units.rectified:
                idle += f" · mean value {number(units.mean)}"
            else:
                idle += f" and {units.always_on:,} always on · {units.mean:.0%} on at a time"
            seen_on = f"{units.num_examples:,} {measured([stage.set])} examples"
            small = f"layer {layer.removeprefix('layer')} · {idle} · {seen_on}"
            drawn.append(card(f"<b>{text(stage.name)}</b>", text(small), units.by_unit + units.by_example))
    note = (
        "How active hidden units are, by unit and by example. A unit is never on if it was on with a probability below "
        f"{figures.SILENT:.0%} for every example (a rectified one: with a mean below {figures.SILENT:g}), and always "
        "on the other way round: either tells nothing, and many of them mean a learning rate that was too high. Good: "
        "most units are on for some examples and off for others, and no example leaves all of them silent."
    )
    return section("Hidden activity", cards(drawn), note) if drawn else ""


def idle_units(run: Run) -> str:
    """One sentence for the head of the page, "" where most hidden units of every layer tell something."""
    said = []
    for stage in run.evaluations:
        for layer, units in figures.activity(stage.figure("activity")).items():
            if 2 * (units.never_on + units.always_on) > units.num_units:
                counts = f"{units.never_on:,} of {units.num_units:,} never on, {units.always_on:,} always on"
                said.append(f"layer {layer.removeprefix('layer')} of {text(stage.name)} ({counts})")
    if not said:
        return ""
    return f"Most hidden units tell nothing in {listed(said)}: a lower learning rate or centered gradients may help."


def weights(run: Run) -> str:
    drawn, seen = [], set()
    for stage in run.evaluations:
        for layer, both in figures.weights(stage.figure("weights")).items():
            if both not in seen:
                seen.add(both)
                small = f"{stage.row['kind']} · layer {layer.removeprefix('layer')}"
                drawn.append(card(f"<b>{text(stage.name)}</b>", text(small), "".join(both)))
    note = (
        "All weights of a layer, and the length of those into each unit. Good: a peak at zero with tails to both "
        "sides, and lengths of one order. Weights that pile up on one side, or are very long, ask for a lower learning "
        "rate or for weight decay."
    )
    return section("Weights", cards(drawn), note) if drawn else ""


def reconstructions(run: Run) -> str:
    shown, sets = [], []
    for stage in run.evaluations:
        arrays = stage.figure("reconstructions")
        content = figures.reconstructions(arrays)
        if content:
            sets.append(stage.set)
            picture = image(content, f"originals above reconstructions of {stage.name}")
            where = "the reconstruction under each original"
            if arrays["originals"].ndim < 3:  # values that are no pictures
                where = "a row each, reconstructions below originals"
            small = f"{text(measured([stage.set]))} samples, {where}"
            if "corrupted" in arrays:
                small += ", between them the corrupted copy it was made from; numbers are of clean ones"
            error = (stage.result.metrics if stage.result else {}).get(f"{stage.set}/squared_error")
            small += f" · squared error {number(error, 4)}" if error is not None else ""
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
        drawn = figures.tiles(stage.figure("samples"))
        if not drawn:
            continue
        data = figures.tiles(stage.figure("data"))
        if data and data not in seen:
            seen.add(data)
            sets.append(stage.set)
            small = f"{text(measured([stage.set]))} samples, for comparison"
            shown.append(card("<b>real data</b>", small, image(data, "real data")))
        by_class = figures.tiles(stage.figure("samples_by_class"))
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


def chains(run: Run) -> str:
    shown = []
    for stage in run.evaluations:
        content = stage.figure("chains")
        if not (drawn := figures.strip(content)):
            continue
        sweeps, picture = drawn
        small = f"columns: the example, then after {listed([f'{sweep:,}' for sweep in sweeps[1:]])} sweeps"
        alt = f"Gibbs chains of {stage.name}"
        film = moving("sweep by sweep", figures.animation(content), f"{alt}, sweep by sweep")
        shown.append(card(f"<b>{text(stage.name)}</b>", text(small), image(picture, alt) + film))
    note = (
        "A row is a Gibbs chain that starts at a real example and is then left to the model. Good: it stays on "
        "pictures that look like data and wanders from one kind to another. A chain that never leaves its first "
        "picture mixes slowly: training by its states and estimates of log Z are then both unsure. One that falls "
        "apart says that the model puts its mass where there are no data."
    )
    return section("Gibbs chains", cards(shown), note) if shown else ""
