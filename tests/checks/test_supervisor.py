"""A check that ends its process, or never ends, is a verdict; the others run."""

import pytest
from failing_checks import crashes, never_ends, no_devices

from checks.supervisor import Options, supervise


def outcomes(make, **options):
    machine, *verdicts = supervise(make, Options(**options))
    return machine, [(each.name, each.status, each.note) for each in verdicts]


def test_a_crash_does_not_end_the_others():
    assert outcomes(crashes) == ({"kind": "none"}, [
        ("before", "ok", ""), ("crash", "failed", "the process ended with signal 9"), ("behind", "ok", "")])


def test_devices_that_cannot_be_started_are_a_verdict():
    [verdict] = supervise(no_devices, Options())
    assert (verdict.name, verdict.status, verdict.note) == ("start of JAX", "failed", "the process ended with status 3")


@pytest.mark.slow
def test_what_never_ends_is_ended():
    assert outcomes(never_ends, limit=5.0)[1] == [
        ("endless", "failed", "not ended after 5 s"), ("behind", "failed", "ValueError: first line")]


@pytest.mark.slow
def test_behind_the_deadline_nothing_begins():
    assert [status for _, status, _ in outcomes(crashes, deadline=0.0)[1]] == ["not run"] * 3
