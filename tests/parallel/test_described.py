"""What a training says of itself to a process that is to come into it."""

from __future__ import annotations

from torch import nn

import codedgrad


def test_what_has_changed_since_the_start_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))
    with codedgrad.CodedGradient(model) as coded:
        model[1].p = 0.1
        told = [value for _, value in coded._arrangement.describe_again()]
        assert "Dropout(p=0.1, inplace=False)" in told
        assert coded._arrangement.fits()
