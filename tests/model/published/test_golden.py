"""Checkpoints of the format are read, and predict what they did when they were written."""

import json
from pathlib import Path

import numpy as np
import pytest

from niwaki.model.published.checkpoint import Header, unpack
from niwaki.serving.double_buffer import DoubleBuffer
from tests.support.publisher import Publisher
from tests.support.streams import list_events

GOLDEN = Path(__file__).parent / "golden"
PREDICTIONS = json.loads((GOLDEN / "predictions.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (["float32-full"], "1"),
        (["float32-full", "float32-delta"], "2"),
        (["int8-full"], "1 int8"),
        (["int8-full", "int8-delta"], "2 int8"),
        (["columns-float32-full"], "1 columns"),
        (["columns-float32-full", "columns-float32-delta"], "2 columns"),
        (["columns-int8-full"], "1 columns int8"),
        (["columns-int8-full", "columns-int8-delta"], "2 columns int8"),
    ],
)
def test_a_checkpoint_of_the_format_predicts_what_it_did(files, version):
    path = [unpack((GOLDEN / f"format-1-{name}.niwaki").read_bytes()) for name in files]
    assert all(isinstance(header, Header) for header, _ in path)
    model = DoubleBuffer().make(path)
    assert np.abs(model.predict(Publisher().events)[:8] - PREDICTIONS[version]).max() < 1e-5


@pytest.mark.parametrize(
    ("files", "version"), [(["full"], "1 lists"), (["full", "delta"], "2 lists")]
)
def test_a_checkpoint_of_format_2_names_the_pairs_that_live(files, version):
    path = [unpack((GOLDEN / f"format-2-lists-{name}.niwaki").read_bytes()) for name in files]
    model = DoubleBuffer().make(path)
    events = list_events(64, seed=99)
    assert np.abs(model.predict(events)[:8] - PREDICTIONS[version]).max() < 1e-5
