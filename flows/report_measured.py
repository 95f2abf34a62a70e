"""The report's table of everything measured on data that has no section of its own, models beside each other."""

from __future__ import annotations

from flows.markup import section, table, text
from flows.results import Run
from flows.wording import SETS, listed, number, warning

ELSEWHERE = ("log_prob", "precision@", "mean_average_precision", "bits_on_", "cluster_accuracy", "nmi", "ari",
             "empty_clusters", "largest_cluster")  # fmt: skip
MEANING = {
    "squared_error": "the squared distance of a sample from its reconstruction",
    "error": "percent of labeled samples given a wrong class",
    "perplexity": "exp of minus the mean log-probability of a word: among so many equally likely words a model that is "
    "as unsure would have to choose; lower is better",
    "unigram_perplexity": "that of the words' frequencies alone",
    "reverse_perplexity": "by the log-likelihood from the other side",
    "explained_variance": "the share of the variance that reconstructions keep",
    "covariance_error": "the largest distance of an entry of the codes' covariance from that of white ones",
    "inertia": "the mean squared distance of a sample from its nearest centre",
    "energy": "½‖v − h D‖² + λ‖h‖₁ of the encoder's codes",
    "energy_ratio": "of that to the best codes' energy, 1 at best",
    "active": "the share of coefficients that are not 0",
    "optimal_active": "the same of the best codes",
    "objective": "½‖v − h D‖² + λ‖h‖₁",
    "nonzeros": "coefficients of a code that are not 0",
    "unused_atoms": "atoms that no sample has a coefficient of",
    "largest_gap": "the largest relative duality gap of a code, how far from optimal it can be",
    "gabor_share": "the share of atoms that a Gabor function fits",
}


def measured(run: Run) -> str:
    found: dict[str, dict[str, dict[str, float]]] = {}  # quantity, stage, set
    for stage in run.evaluations:
        for name, value in (stage.result.metrics if stage.result else {}).items():
            set_name, _, quantity = name.partition("/")
            if not quantity.startswith(ELSEWHERE):
                found.setdefault(quantity, {}).setdefault(stage.name, {})[set_name] = value
    if not found:
        return ""
    sets = [one for one in SETS if any(one in values for by_stage in found.values() for values in by_stage.values())]
    columns = [("quantity", ""), ("model", "tight"), *((SETS[one], "number") for one in sets)]
    rows = []
    for quantity in sorted(found, key=lambda name: ([*MEANING, name].index(name), name)):
        for place, (name, values) in enumerate(found[quantity].items()):
            said = "" if place else f"<b>{text(_words(quantity))}</b>"
            rows.append(("", [said, text(name), *(number(values.get(one), 4) for one in sets)]))
    known = [f"{_words(quantity)}: {said}" for quantity, said in MEANING.items() if quantity in found]
    note = (f"{text('; '.join(known))}. " if known else "") + (
        "Means over samples; compare a quantity between models that read the same data. An upper layer's squared error "
        "is of data seen through all layers; its other quantities are in units of the codes below it."
        + warning(sets, "such a number")
    )
    return section("Measured", table(columns, rows), note[:1].upper() + note[1:])


def in_words(run: Run) -> str:
    """One sentence for the head of a page that has no better one: the first of these that anything was measured in."""
    for quantity, of in (
        ("perplexity", "Perplexity of"),
        ("energy_ratio", "Energy of guessed codes, of the optimum's, on"),
        ("squared_error", "Squared error of"),
    ):
        said: dict[str, list[str]] = {}
        for stage in run.evaluations:
            value = (stage.result.metrics if stage.result else {}).get(f"{stage.set}/{quantity}")
            if value is not None:
                said.setdefault(stage.set, []).append(f"{text(stage.name)} {number(value, 4)}")
        if said:
            return " ".join(f"{of} a {SETS.get(one, one)} sample: {listed(values)}." for one, values in said.items())
    return ""


def _words(quantity: str) -> str:
    return quantity.replace("_", " ").replace("/", " ")
