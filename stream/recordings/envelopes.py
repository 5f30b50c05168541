"""The place of the events in the rows of a sample: the rows themselves, or an object in each.

In: a `Sample`, and what a user asks for. Out: the sample of the events, and the path to them.
"""

from typing import NamedTuple

from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.names import is_label_name, is_time_name
from niwaki.stream.recordings.samples import Sample

_DEEPEST = 3
_LEAST_COLUMNS = 3


class Opened(NamedTuple):
    """The events of a sample."""

    sample: Sample
    path: str
    """The path of the event in each row; empty: the row is the event."""
    label: str | None
    """The column that is the label; None: it is still to be found."""
    notes: list[str]


def open_envelope(sample: Sample, envelope: str | None, label: str | None) -> Opened:
    """The events of a sample, in their envelope if they have one. `envelope`, `label`: what a user
    asks for."""
    if envelope:
        inner = sample.within(envelope)
        if not inner.columns:
            paths = {name.rpartition(".")[0] for name in sample.columns if "." in name}
            meant = nearest(envelope, sorted(paths), cutoff=0) or "none"
            rule = f"must be the path of an object; the nearest is {meant}"
            raise ConfigError("--envelope", rule, envelope)
        return Opened(inner, envelope, label, [])
    plain = Opened(sample, "", label, [])
    if label or any(map(is_label_name, sample.columns)):
        return plain
    found = [name for name in sample.columns if is_label_name(name.rpartition(".")[2])]
    paths = {name.rpartition(".")[0] for name in found}
    # The state of a row before a change is not the event.
    paths -= {path for path in paths if path.endswith("before") and f"{path[:-6]}after" in paths}
    if len(paths) != 1 or (path := paths.pop()).count(".") >= _DEEPEST:
        return plain
    inner = sample.within(path)
    if len(inner.columns) < _LEAST_COLUMNS:
        return plain
    outer = [name for name in sample.columns if not name.startswith(f"{path}.")]
    if any(map(is_time_name, outer)) and not any(map(is_time_name, inner.columns)):
        # The event time is not in the envelope, so all is read from outside, by paths.
        within = min((name for name in found if name.startswith(f"{path}.")), key=len)
        note = f"the label is {within}, in an object; the event time is outside of it"
        return Opened(sample, "", within, [note])
    note = f"the event of each row is at {path} (--envelope {path})"
    return Opened(inner, path, label, [note])
