"""Numbers and verdicts → the words of the report; the lead never hides bad news.

What a likelihood promises, which samples were measured, whether pretraining helped. Plain text: escaping is for
flows/report.py, which alone writes HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KINDS = {
    "exact": ("", "exact: every term of the sum was summed"),
    "lower_bound": ("≥\u00a0", "lower bound: the true value is at least this, up to sampling error"),
    "upper_bound": ("≤\u00a0", "upper bound: the true value is at most this, up to sampling error"),
    "estimate": ("≈\u00a0", "estimate: neither bound nor exact"),
}
AIS = "annealing finds log Z too small on average, so this number flatters the model"
BOUND_WITH_AIS = (
    "the variational bound lies too low, the log Z by annealing that is subtracted is too small on average, which "
    "raises it again: the true value may lie on either side"
)
FROM_BEHIND = "from the other side: a lower bound, up to sampling error, if its chains began at draws from the model"
SETS = {"test": "test", "validation": "validation", "train": "TRAINING"}
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_E_NOTATION = 1e6  # from here on


# --- text and numbers ------------------------------------------------------------------------------------------------


def public(value: str) -> str:
    """`https://user:password@host` → `https://host`, wherever it stands in a text."""
    return _USERINFO.sub("", value)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, a real minus sign, e-notation from a million on and below 1e−4; a dash for no number."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= _E_NOTATION or 0 < abs(value) < 1e-4:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(power)}".replace("-", "−")
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:,.{places}f}".replace("-", "−")


def with_error(value: float, std_error: float | None, digits: int = 3) -> str:
    """`20.4 ± 0.4`: one digit of the error, two where it begins with 1, 2 or 3 (the Particle Data Group's rule)."""
    if not std_error or not math.isfinite(std_error) or not math.isfinite(value):
        return number(value, digits)
    if max(abs(value), std_error) >= _E_NOTATION:
        power = math.floor(math.log10(max(abs(value), std_error)))
        return f"({with_error(value / 10.0**power, std_error / 10.0**power, digits)})e{power}"
    power = math.floor(math.log10(std_error))
    places = max(0, -power + (1 if std_error / 10.0**power < 3.55 else 0))
    return f"{value:,.{places}f}\u00a0±\u00a0{std_error:.{places}f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: int) -> str:
    """`412 bytes`, `95.3 MiB`."""
    power = min(4, max(0, (max(1, num_bytes).bit_length() - 1) // 10))
    return f"{num_bytes / 1024**power:,.1f} {'KMGT'[power - 1]}iB" if power else f"{num_bytes:,} bytes"


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# --- which samples ---------------------------------------------------------------------------------------------------


def measured(sets: Iterable[str]) -> str:
    """`test`, `test and TRAINING`: what stands before `sample(s)`, each set once."""
    return listed([SETS.get(name, name) for name in dict.fromkeys(sets)])


def warning(sets: Iterable[str], what: str) -> str:
    """Said wherever something was measured on training samples; empty otherwise. `what` says nothing about new data."""
    if "train" not in sets:
        return ""
    return f" These are TRAINING samples: {what} therefore says nothing about new data."


# --- what a likelihood promises --------------------------------------------------------------------------------------


def promise(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """(sign, kind, words) of a likelihood entry; whatever its kind says, nothing less an AIS estimate is a bound."""
    kind, estimator = str(found["kind"]), str(found["estimator"])
    annealed = re.search(r"\bais\b|anneal", estimator, re.IGNORECASE)
    kind = "estimate" if annealed else kind
    sign, words = KINDS.get(kind, ("", kind))
    if "reverse AIS" in estimator:
        words = FROM_BEHIND
    elif annealed:
        words = f"{words}; {BOUND_WITH_AIS if re.search('bound', estimator, re.IGNORECASE) else AIS}"
    return sign, kind.replace("_", " "), words


def apart(found: Mapping[str, Any]) -> str:
    """A sentence where the two sides of a likelihood differ by more than a nat and three of their errors, else "".

    The effective sample size cannot say it: chains that all miss the same modes agree with one another.
    """
    back = found.get("reverse")
    if not back:
        return ""
    gap = abs(found["nats"] - back["nats"])
    if gap <= 1 + 3 * math.hypot(found.get("std_error") or 0, back.get("std_error") or 0):
        return ""
    return f"The two sides are {number(gap)} nats apart: trust neither."


def in_words(found: Mapping[str, Any]) -> str:
    """nats with the standard error, kind, estimator with its chains and temperatures, effective sample size."""
    error, size = found.get("std_error"), found.get("effective_sample_size")
    parts = [
        f"{found['nats']:.3f}" + ("" if error is None else f" ± {error:.3f}") + " nats",
        str(found["kind"]).replace("_", " "),
        str(found["estimator"]),
        *([] if size is None else [f"effective sample size {number(size)}"]),
    ]
    return ", ".join(parts)


# --- did pretraining help --------------------------------------------------------------------------------------------


def errors_in_words(name: str, metrics: Mapping[str, float], counts: Sequence[str]) -> str:
    """One clause for each number of labels, with the verdict on the paired gain."""
    clauses = []
    for labels in counts:
        ours, twin, gain = f"test/error@{labels}", f"test/error@{labels}/supervised", f"test/gain@{labels}"
        clause = f"with {labels} labels {metric(metrics, ours)} %"
        if twin in metrics and gain in metrics:
            said = verdict(metrics[gain], metrics.get(f"{gain}/std_error"))
            clause += f" against {metric(metrics, twin)} %, {said} (a paired gain of {metric(metrics, gain)} points)"
        clauses.append(clause)
    twins = any(f"test/gain@{labels}" in metrics for labels in counts)
    against = ", pretrained against its supervised twin" if twins else ""
    return f"Error of {name} on test samples{against}: {'; '.join(clauses)}."


def verdict(gain: float, std_error: float | None) -> str:
    """What a paired gain (twin's error minus ours) says; bad news wins over `no clear difference`."""
    if not math.isfinite(gain):
        return "not comparable with its twin"
    if std_error is None or not math.isfinite(std_error):
        side = "worse than" if gain < 0 else "better than" if gain else "equal to"
        return f"{side} its twin, with too few seeds to judge"
    if gain < -std_error:
        return "worse than its twin" + (", if within two standard errors" if gain >= -2 * std_error else "")
    return "no clear difference" if abs(gain) <= 2 * std_error else "better than its twin"


def metric(metrics: Mapping[str, float], name: str) -> str:
    return with_error(metrics[name], metrics.get(f"{name}/std_error")) if name in metrics else "–"
