"""Resume points of a stage: everything that, with the step's number, makes the rest of the run the same bit for bit.

`STEP.pt` (model, optimizers, every rank's sums since the last journal row, where it ran), one `STEP.rankN.pt` a rank
(its slice of the global chains), and `STEP.json` written last with every file's SHA-256. The newest whole one counts;
the one before it is kept against damage. `position.json` tells tracking how far the journal is final. The only
`torch.load` of the project is here: `weights_only=True`, after the digest matched.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.errors import Damaged
from data import durable

KEPT = 2
FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """One resume point, read back."""

    step: int
    journal: int  # length of the journal at that step, in bytes
    state: dict[str, Any]
    rank_state: dict[str, Tensor]  # of all ranks, in global chain order


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_rank(self, step: int, rank: int, state: dict[str, Tensor]) -> None:
        """Each rank calls this before rank 0 commits."""
        if state:
            durable.write_bytes(self._path(step, rank), _to_bytes(state))

    def commit(self, step: int, state: dict[str, Any], *, ranks: int, journal: int) -> None:
        """Rank 0, after every rank has saved: from here on the point counts."""
        durable.write_bytes(self._path(step), _to_bytes(state))
        names = [self._path(step)] + [path for rank in range(ranks) if (path := self._path(step, rank)).exists()]
        about = {"format": FORMAT, "step": step, "journal": journal, "ranks": ranks}
        files = {path.name: durable.digest_file(path) for path in names}
        durable.write_json(self.folder / f"{step}.json", about | {"sha256": files})
        durable.write_json(self.folder / "position.json", {"step": step, "journal": journal})
        for old in self._steps()[:-KEPT]:
            (self.folder / f"{old}.json").unlink()
            for path in self.folder.glob(f"{old}.*"):
                path.unlink()

    def load(self) -> Saved | None:
        """The newest whole point; None where there is none. A damaged one is named on stderr and passed over."""
        damaged = []
        for step in reversed(self._steps()):
            try:
                return self._read(step)
            except Damaged as error:
                damaged.append(str(error))
                print(f"strata: {error}; trying the resume point before it", file=sys.stderr)
        if damaged:
            raise Damaged(f"{damaged[0]}, and no other is whole; delete {self.folder} to train this stage anew")
        return None

    def _read(self, step: int) -> Saved:
        about = self.folder / f"{step}.json"
        try:
            described = durable.read_json(about)
            if described["format"] != FORMAT:
                raise Damaged(f"checkpoint {about} has format {described['format']}, expected {FORMAT}")
            files = dict(described["sha256"])
            journal, ranks = int(described["journal"]), int(described["ranks"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"checkpoint {about} cannot be read ({type(error).__name__})") from None
        contents = {}
        for name, digest in files.items():
            path = self.folder / name
            content = path.read_bytes() if path.is_file() else b""
            if durable.digest_bytes(content) != digest:
                raise Damaged(f"checkpoint {path} does not match its recorded SHA-256")
            contents[name] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        shares = [contents[name] for rank in range(ranks) if (name := self._path(step, rank).name) in contents]
        whole = {key: torch.cat([share[key] for share in shares]) for key in (shares[0] if shares else {})}
        return Saved(step=step, journal=journal, state=contents[self._path(step).name], rank_state=whole)

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit())

    def _path(self, step: int, rank: int | None = None) -> Path:
        return self.folder / (f"{step}.pt" if rank is None else f"{step}.rank{rank}.pt")


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
