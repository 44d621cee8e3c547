"""Checkpoints of a training: one file, whole or not at all, from which it goes on to the bit.

The file has a line of JSON (what was trained, by what, on how many ranks), then for each rank what ``torch.save``
wrote: rank 0 the replicated weights, every rank its parts of fields, its random state, and the learner's state of what
it has. Rank 0 writes; the others' parts pass through it one after the other.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npde_fem.learn.distributed import Distributed
from npde_fem.parallel import alike, on_root

import torch

if TYPE_CHECKING:
    from npde_fem.learn.training import Training

__all__ = ["Checkpoint"]

_MAGIC = "npde_fem checkpoint 1"


class Checkpoint:
    """Writes and reads the checkpoints of one training.

    Parameters
    ----------
    training
        What is trained.
    path
        The file.
    """

    def __init__(self, training: Training, path: str | os.PathLike[str]) -> None:
        self.training, self.path, self.learner = training, Path(path), dict[str, Any]()

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what this rank writes of values by the names of weights: all on rank 0, those of fields on others."""
        kinds = dict(self.training.model.named_parameters())
        return {n: v for n, v in values.items() if not self.training.comm.rank or isinstance(kinds.get(n), Distributed)}

    def _fingerprint(self) -> dict[str, Any]:
        kinds = dict(self.training.model.named_parameters())
        weights = {}
        for name, value in self.training.model.state_dict().items():
            spread = isinstance(kinds.get(name), Distributed)
            shape = "field" if spread else list(value.shape)
            weights[name] = {"shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}
        return {"weights": weights, "learner": self.learner}

    @property
    def _spread(self) -> bool:
        return any(isinstance(p, Distributed) for p in self.training.model.parameters())

    def write(self, moments: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        """Write a checkpoint with the state of the learner: by the names of weights, and the rest (collective)."""
        training = self.training
        comm = training.comm
        buffer = io.BytesIO()
        own = {"weights": self._own(training.model.state_dict()), "moments": self._own(moments), "rest": dict(rest)}
        torch.save(own | {"random": torch.get_rng_state(), "states": training.states()}, buffer)
        blob = buffer.getvalue()
        sizes = comm.gather(len(blob))
        aside = self.path.with_name(f".{self.path.name}.part")
        with alike(comm):
            file = aside.open("wb") if comm.rank == 0 else None
        if file is None:
            comm.send(blob, dest=0)
        else:
            head = {"magic": _MAGIC, "ranks": comm.size, "sizes": sizes, **self._fingerprint()}
            with file:
                file.write(json.dumps(head).encode() + b"\n")
                file.write(blob)
                for rank in range(1, comm.size):
                    file.write(comm.recv(source=rank))
                file.flush()
                os.fsync(file.fileno())
        with alike(comm):
            if comm.rank == 0:
                aside.replace(self.path)

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give the training what a checkpoint has; return the two parts of the learner's state (collective).

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no checkpoint, or one of another model or learner, or of fields on another number of ranks.
        """
        comm = self.training.comm
        head, place = on_root(comm, self._head)
        with alike(comm):
            self._compare(head)
        rank = comm.rank if head["ranks"] == comm.size else 0
        with alike(comm), self.path.open("rb") as file:
            first = _load(file, place, head["sizes"][0])
            own = first if rank == 0 else _load(file, place + sum(head["sizes"][:rank]), head["sizes"][rank])
        self.training.model.load_state_dict({**first["weights"], **own["weights"]})
        torch.set_rng_state(own["random"])
        self.training.restore(own["states"])
        return {**first["moments"], **own["moments"]}, own["rest"]

    def _head(self) -> tuple[dict[str, Any], int]:
        if not self.path.is_file():
            raise FileNotFoundError(f"resume: no such file: {self.path}")
        with self.path.open("rb") as file:
            line = file.readline(1 << 24)
            try:
                head = json.loads(line)
            except ValueError as error:
                raise ValueError(f"resume: {self.path} is no checkpoint of a training") from error
            if not isinstance(head, dict) or head.get("magic") != _MAGIC:
                raise ValueError(f"resume: {self.path} is no checkpoint of a training, or of another version")
            return head, file.tell()

    def _compare(self, head: Mapping[str, Any]) -> None:
        mine = self._fingerprint()
        theirs, own = head["weights"], mine["weights"]
        for name in [*own, *(n for n in theirs if n not in own)]:
            if theirs.get(name) != own.get(name):
                raise ValueError(
                    f"resume: {self.path} is of another model: weight {name!r} is {_told(theirs.get(name))} there, "
                    f"{_told(own.get(name))} here"
                )
        for name in [*mine["learner"], *(n for n in head["learner"] if n not in mine["learner"])]:
            if head["learner"].get(name) != mine["learner"].get(name):
                raise ValueError(
                    f"resume: {self.path} is of another learner: {name} = {head['learner'].get(name)!r} there, "
                    f"{mine['learner'].get(name)!r} here"
                )
        if self._spread and head["ranks"] != self.training.comm.size:
            raise ValueError(
                f"resume: {self.path} has fields on {head['ranks']} ranks; as many allowed, here are "
                f"{self.training.comm.size}"
            )


def _load(file: Any, place: int, size: int) -> dict[str, Any]:
    file.seek(place)
    return dict(torch.load(io.BytesIO(file.read(size)), map_location="cpu", weights_only=True))


def _told(weight: Mapping[str, Any] | None) -> str:
    return "missing" if weight is None else f"of shape {weight['shape']} and type {weight['dtype']}"
