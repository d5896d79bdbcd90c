"""What a search tries, in which order, and when it ends."""

import types

import pytest

from errors import InputError
from models.config import PRESETS
from planning.chips import chip_named
from planning.search import COMPILES, Choice, Foretold, Job, choices, devices_in, foretell, search

SPLIT = ("residual_length=tensor",)
CHIP = chip_named("v5e:2x4")
JOB = Job(PRESETS["qwen3-0.6b"], None, "adamw", 64, 2048, 8, 1)


def choice(count=1, remat="none", fsdp=8, tensor=1, rules=()):
    mesh = ("slice", 1), ("data", 8 // fsdp // tensor), ("fsdp", fsdp), ("tensor", tensor)
    return Choice(count, remat, mesh, rules)


def test_choices_are_those_that_divide():
    found = list(choices(JOB))
    assert len(found) == len(set(found))
    assert {dict(each.mesh)["tensor"] for each in found} == {1, 2, 4, 8}
    for each in found:
        mesh = dict(each.mesh)
        assert mesh["data"] * mesh["fsdp"] * mesh["tensor"] == 8
        assert each.num_microbatches * mesh["data"] * mesh["fsdp"] <= 64
        assert each.rules == () or mesh["tensor"] > 1
    assert {dict(each.mesh)["slice"] for each in choices(JOB._replace(slices=2))} == {2}


@pytest.mark.parametrize(("one", "other"), [
    (choice(remat="full"), choice(remat="dots")), (choice(4), choice(1)), (choice(fsdp=8), choice(fsdp=1)),
    (choice(remat="full", fsdp=4, tensor=2, rules=SPLIT), choice(remat="full", fsdp=4, tensor=2))])
def test_what_needs_less_memory_is_foretold_to(one, other):
    assert foretell(JOB, one, CHIP).bytes < foretell(JOB, other, CHIP).bytes


@pytest.mark.parametrize(("one", "other"), [
    (choice(remat="none"), choice(remat="full")), (choice(1), choice(8)), (choice(tensor=1), choice(fsdp=1, tensor=8))])
def test_what_is_faster_is_foretold_to_be(one, other):
    assert foretell(JOB, one, CHIP).seconds < foretell(JOB, other, CHIP).seconds


def fake(foretold, need, seconds, limit=100):
    fits = need <= limit
    return types.SimpleNamespace(need=need, fits=fits, times=types.SimpleNamespace(total=seconds))


def run(candidates, compile_one):
    compiled = []

    def one(chosen):
        compiled.append(chosen)
        return compile_one(chosen)

    found, tried = search([Foretold(name, size, seconds) for name, size, seconds in candidates], 100, one)
    return found, compiled, tried


def test_the_most_promising_are_compiled_while_they_may_be_faster():
    candidates = [("a", 50, 1.0), ("b", 60, 1.01), ("large", 99, 0.5), ("slow", 10, 2.0)]
    found, compiled, _ = run(candidates, lambda name: fake(name, 50, {"a": 3.0, "b": 2.0}[name]))
    assert (found, compiled) == ("b", ["a", "b"])


def test_what_was_compiled_corrects_what_is_foretold():
    candidates = [("a", 80, 1.0), ("b", 70, 1.1), ("c", 30, 1.2)]
    found, compiled, _ = run(candidates, lambda name: fake(name, {"a": 160, "c": 60}[name], 1.0))
    assert (found, compiled) == ("c", ["a", "c"])


def test_the_smallest_is_tried_where_none_is_foretold_to_fit():
    candidates = [("a", 300, 1.0), ("b", 200, 1.1)]
    found, compiled, tried = run(candidates, lambda name: fake(name, {"a": 300, "b": 150}[name], 1.0))
    assert found is None
    assert compiled == ["b", "a"]
    assert min(each.need for _, each in tried) == 150


def test_a_search_compiles_no_more_than_it_may():
    found, compiled, _ = run([(str(n), 10 + n, 1.0) for n in range(40)], lambda name: fake(name, 500, 1.0))
    assert found is None
    assert len(compiled) == COMPILES - 1
    assert run([("a", 10, 1.0), ("b", 10, 1.0)], lambda name: None) == (None, ["a", "b"], [])


def test_a_topology_has_so_many_devices():
    assert [devices_in(name, 2) for name in ("v5p:2x2x4", "v5e:4x4", "tpu7x:2x2x1")] == [32, 32, 16]
    for bad in ("v5p", "v5p:", "v5p:0x2", "v5p:2x", "v5p:axb"):
        with pytest.raises(InputError, match=f"--topology {bad}: give a chip"):
            devices_in(bad, 1)
    for bad in ("v5p:2x2", "v5e:2x2x2", "v6e:4", "v5e:16x32", "v5p:99999x99998x2"):
        with pytest.raises(InputError, match=f"--topology {bad}: there is none; v.. has [23] dimensions and up to"):
            devices_in(bad, 1)


def test_micro_batches_divide_the_rows_of_a_device():
    """Pairs stay together: 24 rows on 4 chips are 3 pairs each, which 2 does not divide."""
    job = JOB._replace(rows=24, chips=4, slices=1)
    assert {each.num_microbatches for each in choices(job, group=2) if dict(each.mesh)["tensor"] == 1} == {1}
    assert {each.num_microbatches for each in choices(job) if dict(each.mesh)["tensor"] == 1} == {1, 2}
