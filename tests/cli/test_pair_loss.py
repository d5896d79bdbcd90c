"""--loss: names and weights."""

import pytest

from cli.pair_loss import parse_losses
from errors import InputError


def test_losses_have_weights():
    assert parse_losses("sigmoid") == (("sigmoid", 1.0),)
    assert parse_losses("sigmoid=0.5, sft=-1e-3,ipo=0") == (("sigmoid", 0.5), ("sft", -1e-3), ("ipo", 0.0))


@pytest.mark.parametrize("text", ["sigmoid=much", "sigmoid=nan", "sigmoid,sft=inf", "sigmoid=-inf", "sigmoid=0",
                                  "sigmoid=0,sft=0.0"])
def test_weights_that_make_no_loss_are_refused(text):
    with pytest.raises(InputError, match=f"--loss '{text}': a weight is no finite number, or all are 0"):
        parse_losses(text)
