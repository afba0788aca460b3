"""Did all workers evaluate the same model on the same data, by the same function?

The rows carry digests of both (`codedgrad.inference.row`), so it costs no message to
find that all agree. Where they differ, the workers tell each other what they have.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from codedgrad.errors import MismatchError
from codedgrad.inference import sums
from codedgrad.inference.row import Marks, digest40
from codedgrad.job import agreement
from codedgrad.job.runtime import DISAGREE
from codedgrad.row.digest import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from codedgrad.inference.row import Decoded
    from codedgrad.inference.sums import Schema
    from codedgrad.job.runtime import Runtime

_WEIGHTS = "weights"
_REMEDIES = {
    _WEIGHTS: "start from the same values (codedgrad.broadcast_parameters("
    "model.state_dict())) and make the same updates on every worker",
    "metrics": "give every worker the same function",
}
_SAME_DATA = "give every worker the same data and the same arguments"


class Own:
    """What this worker evaluates, as (name, value) pairs, and the marks of its rows."""

    def __init__(
        self, models: Sequence[nn.Module], data: Sequence[tuple[str, str]]
    ) -> None:
        """Read the weights: parameters and those buffers that are saved."""
        self._pairs = {_WEIGHTS: weights_of(models), **dict(data)}
        others = [pair for pair in self._pairs.items() if pair[0] != _WEIGHTS]
        self.marks = Marks(digest40(self._pairs[_WEIGHTS]), digest40(repr(others)))

    def check(self, job: Runtime, decoded: Decoded, schema: Schema | None) -> Schema:
        """Returns what the metrics are, if the sum is of the same as this worker's.

        Args:
            job: all workers.
            decoded: the sum.
            schema: what the metrics are here; None: no batch was computed.

        Raises:
            MismatchError: it is not; all workers raise it, if their rows differed.
        """
        told = decoded.text() if schema is None else sums.text_of(schema)
        same_model, same_data = decoded.fits(self.marks.with_metrics(told))
        if same_model and same_data:
            return sums.schema_of(told) if schema is None else schema
        if decoded.alike():  # all whose rows were taken agree
            wrong = _SAME_DATA if same_model else _REMEDIES[_WEIGHTS]
            what = "data, arguments or metrics" if same_model else _WEIGHTS
            raise MismatchError(
                f"its {what} differ from those of the workers whose sums were taken "
                f"(its own came too late); {wrong}"
            )
        metrics = (
            None
            if schema is None
            else ", ".join(f"{entry.name} ({entry})" for entry in schema)
        )
        mine = {**self._pairs, "metrics": metrics}
        blobs = job.gather(json.dumps(mine).encode(), "to compare an evaluation")
        every = [json.loads(blob) for blob in blobs]
        text = f"{DISAGREE}evaluation: {_difference(job, every)}"
        raise agreement.everywhere(job, text)


def _difference(job: Runtime, every: Sequence[dict[str, str | None]]) -> str:
    """Returns who differs in what first, from what most workers have."""
    for name in every[0]:
        values = [one.get(name) for one in every]
        known = [value for value in values if value is not None]
        if len(set(known)) < 2:
            continue
        usual = max(known, key=known.count)
        others = [
            f"{job.unit} {w} has {name} = {value}"
            for w, value in enumerate(values)
            if value not in (None, usual)
        ]
        remedy = _REMEDIES.get(name, _SAME_DATA)
        return f"{'; '.join(others)}, the others {usual}; {remedy}"
    return "they have changed while they were compared"


def weights_of(models: Sequence[nn.Module]) -> str:
    """Return a digest of the parameters and of the buffers that are saved."""
    found = hashlib.blake2b(digest_size=8)
    for model in models:
        for path, module in model.named_modules():
            # What is not saved may be a cache of each worker's own.
            passing = module._non_persistent_buffers_set
            held = [*module._parameters.items(), *module._buffers.items()]
            for name, tensor in held:
                if tensor is not None and name not in passing:
                    digest = tensor_digest(tensor)
                    found.update(f"{path}.{name} {digest}".encode())
    return found.hexdigest()
