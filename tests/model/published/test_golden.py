"""Checkpoints of every format so far are read, and predict what they did when they were written."""

import json
from pathlib import Path

import numpy as np
import pytest

from niwaki.model.published.checkpoint import Header, unpack
from niwaki.serving.double_buffer import DoubleBuffer
from tests.support.publisher import Publisher

GOLDEN = Path(__file__).parent / "golden"
PREDICTIONS = json.loads((GOLDEN / "predictions.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (["format-1-full"], "1"),
        (["format-2-full"], "1"),
        (["format-2-full", "format-2-delta"], "2"),
        (["format-3-float32-full"], "1"),
        (["format-3-float32-full", "format-3-float32-delta"], "2"),
        (["format-3-int8-full"], "1 int8"),
        (["format-3-int8-full", "format-3-int8-delta"], "2 int8"),
        (["format-4-float32-full"], "1 columns"),
        (["format-4-float32-full", "format-4-float32-delta"], "2 columns"),
        (["format-4-int8-full"], "1 columns int8"),
        (["format-4-int8-full", "format-4-int8-delta"], "2 columns int8"),
    ],
)
def test_a_checkpoint_of_any_format_predicts_what_it_did(files, version):
    path = [unpack((GOLDEN / f"{name}.niwaki").read_bytes()) for name in files]
    assert all(isinstance(header, Header) for header, _ in path)
    model = DoubleBuffer().make(path)
    assert np.abs(model.predict(Publisher().events)[:8] - PREDICTIONS[version]).max() < 1e-5
