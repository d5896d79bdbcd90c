"""What is said of steps that teach nothing, and when they end a run."""

import pytest

from errors import InputError
from training.watching import PATIENCE, Watch

FINE = {"skipped_updates": 0, "loss_weight": 3.0}


@pytest.mark.parametrize(("idle", "words"), [({"skipped_updates": 1, "loss_weight": 3.0}, "not finite"),
                                             ({"skipped_updates": 0, "loss_weight": 0.0}, "weight is 0")])
def test_the_first_step_of_several_is_told_and_the_last_ends_the_run(capsys, idle, words):
    watch = Watch()
    watch.update(1, FINE)
    for step in range(2, PATIENCE + 1):
        watch.update(step, idle)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: step 2: ")
    assert words in line
    watch.update(11, FINE)  # from here on it is counted anew
    for step in range(12, 11 + PATIENCE):
        watch.update(step, idle)
    with pytest.raises(InputError, match=rf"^step 21: .*{words}.* {PATIENCE} steps in a row"):
        watch.update(21, idle)


def test_a_step_without_an_update_of_the_policy_is_none_that_teaches_nothing(capsys):
    Watch().update(1, {"skipped_updates": 0})  # a critic's warm-up
    assert capsys.readouterr().err == ""


def test_other_processes_are_silent(capsys):
    Watch(shown=False).update(1, {"skipped_updates": 1})
    assert capsys.readouterr().err == ""
