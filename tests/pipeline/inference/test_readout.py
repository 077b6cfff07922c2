"""What is read from scores of labels that compete, and of labels that do not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.prediction import NO_LABEL
from model.sliding import AS_IT_IS
from pipeline.inference import readout


@pytest.mark.parametrize(("apart", "ids"), [(True, [NO_LABEL, 0]), (False, [0, 0])])
def test_probabilities_are_those_that_the_network_means(monkeypatch, apart, ids):
    """One label, and two texts for none of them; of the first pixel nothing is likely."""
    logits = torch.tensor([[[[-3.0, 9.0]], [[-8.0, 2.0]], [[-8.0, 2.0]]]])
    views = SimpleNamespace(bands=lambda text: iter([(slice(0, 1), logits)]))
    monkeypatch.setattr(readout, "Views", lambda *_: views)
    lseg = SimpleNamespace(scores_apart=apart)
    given = (torch.zeros(1, 3, 1, 2), torch.zeros(3, 4), 1, AS_IT_IS, (1, 2), 0.5)
    ((_, kept, best),) = readout.probability_bands(lseg, *given)  # type: ignore[arg-type]
    assert best.tolist() == [[ids]]
    odds = np.exp(logits[0, :, 0].numpy())
    if apart:
        np.testing.assert_allclose(kept[0, :, 0], (odds / (1 + odds))[:2], atol=1e-3)
    else:
        shares = odds / odds.sum(0)
        np.testing.assert_allclose(kept[0, :, 0], [shares[0], shares[1:].sum(0)], atol=1e-3)
