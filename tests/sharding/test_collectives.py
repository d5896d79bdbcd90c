"""What is read of a program's text: loops and how often they run, kinds, groups, axes and bytes of collectives."""

import io
import types
from pathlib import Path

import numpy as np
import pytest

from sharding.collectives import axes_of, collectives, exchange_table, groups_of, short_name, tally
from sharding.hlo import Array, Instruction, elements, made_arrays, parse

MESH = types.SimpleNamespace(shape={"data": 2, "fsdp": 2, "tensor": 2})

TEXT = (Path(__file__).parents[1] / "fixtures" / "exchange.hlo").read_text()


def test_kinds_bytes_axes_and_places():
    found = collectives(TEXT, MESH)
    place = "while x3 > jvp(Transformer)/while x2"
    assert [(each.kind, each.bytes, each.axes, each.group_size, each.times, each.place) for each in found] == [
        ("all-gather", 4 * 16 * 4, ("fsdp",), 2, 6, place),
        ("reduce-scatter", 12 * 16 * 4 // 2, ("tensor",), 2, 6, place),
        ("all-reduce", 2 * (4 * 16 * 4 + 4 * 2 * 2) * 7 // 8, ("data", "fsdp", "tensor"), 8, 1, "outside"),
        ("all-to-all", 4 * 2 * 2 // 2, ("tensor",), 2, 1, "outside"),
        ("collective-permute", 4 * 16 * 4, ("fsdp",), 2, 1, "outside"),
        ("collective-permute", 0, (), 2, 1, "outside")]
    assert found[0].results == (Array("f32", (8, 16)),)
    assert found[1].results == (Array("f32", (6, 16)),)
    assert found[2].operands == found[2].results == (Array("f32", (4, 16)), Array("bf16", (4, 2)))
    assert found[2].dtype == "bf16+f32"
    assert short_name(found[0].op_name) == "layers/attn/q"


def test_a_table_by_kind_and_place():
    from rich.console import Console

    rows = tally(collectives(TEXT, MESH))
    assert [row.bytes for row in rows] == [6 * 384, 6 * 256, 476, 256, 8, 0]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(exchange_table(rows, least=1))
    shown = console.export_text()
    assert "jvp(Transformer)/while x2" in shown
    assert "f32[12,16]" in shown
    assert shown.count("collective-permute") == 1


@pytest.mark.parametrize(("change", "message"), [
    (("all-to-all(", "all-shuffle("), "exchanged: all-shuffle exchanges arrays in a way"),
    ((" all-reduce(%p, ", " send(%p, "), "sums: send exchanges"),
    (("replica_groups={},", "replica_groups=everyone,"), "sums: all-reduce names its groups in a way"),
    (("ENTRY ", ""), "no ENTRY computation")])
def test_what_is_not_known_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        collectives(TEXT.replace(*change))


@pytest.mark.parametrize(("text", "groups"), [
    ("{{0,2},{1,3},{4,6},{5,7}}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("[4,2]<=[2,2,2]T(2,1,0)", [[0, 4], [2, 6], [1, 5], [3, 7]]),
    ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=4,'b'=2] {'b','a'}", [[0, 2, 4, 6, 1, 3, 5, 7]]),
    ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['a'=2,'b'=4] {'b':(2)2,'a'}", [[0, 4, 1, 5], [2, 6, 3, 7]]),
    ("mesh['a'=4,'b'=2], device_ids=([8]<=[2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['a'=2,'b'=2], device_ids=({{3,2},{1,0}}) {'a'}", [[3, 1], [2, 0]])])
def test_groups_in_every_notation(text, groups):
    instruction = Instruction("x", "f32[]", "all-gather", "%p", f", replica_groups={text}, dimensions={{0}}", False)
    np.testing.assert_array_equal(groups_of(instruction, 8), groups)


def test_axes_of_groups():
    assert axes_of(np.array([[0, 1], [2, 3]]), MESH) == ("tensor",)
    assert axes_of(np.array([[0, 2, 4, 6]]), MESH) == ("data", "fsdp")
    assert axes_of(np.array([[0, 1]]), None) == ()


def test_loops_that_do_not_say_how_often_count_once():
    found = collectives(TEXT.replace('"known_trip_count":{"n":"3"}', ""))
    assert found[0].loops[0].trips is None
    assert found[0].times == 2
    assert found[0].place.startswith("while x? > ")


def test_what_overlaps_computation_on_a_tpu_counts_once():
    """Its begin, steps and end all have the instruction."""
    lines = [f"  %{name} = f32[8,16] all-gather(%p), channel_id={channel}, replica_groups=[4,2]<=[8], dimensions="
             f'{{0}}, frontend_attributes={{chain_id="{channel}"}}\n' for name, channel in (
                 ("begin", 8), ("step", 8), ("end", 8), ("other", 9))]
    more = collectives(TEXT.replace("  ROOT %result", "".join(lines) + "  ROOT %result"), MESH)
    assert [each.kind for each in more[len(collectives(TEXT, MESH)):]] == ["all-gather", "all-gather"]


@pytest.mark.parametrize(("kind", "target", "sent", "gets", "found"), [
    ("ALL_REDUCE", '"{1,2}x{0:3}"', "%p", "f32[4,16]", ("all-reduce", 2, 256)),
    ("ALL_GATHER", '"{1:4}x{0:3}"', "%p", "f32[16,16]", ("all-gather", 4, 768)),
    ("REDUCE_SCATTER", '"{1,2}x{0:3}"', "%p", "f32[2,16]", ("reduce-scatter", 2, 128)),
    ("ALL_TO_ALL", "{{100000,200000,300000,400000},{100001,200001,300001,400001}}", "%q", "bf16[4,2]",
     ("all-to-all", 4, 12)),
    ("ONE_TO_ONE", "{{100000->200000},{200000->100000}}", "%p", "f32[4,16]", ("collective-permute", 2, 256))])
def test_what_goes_between_slices_is_sent_by_the_host(kind, target, sent, gets, found):
    """`num_partitions` counts the devices of one slice."""
    name = (f'is_host_transfer=true, frontend_attributes={{_xla_host_transfer_rendezvous="x",_xla_megascale_target='
            f'{target},_xla_megascale_transfer_type="{kind}"}}')
    lines = (f"  %after = token[] after-all()\n"
             f"  %out = (f32[4,16]{{1,0}}, u32[], token[]) send({sent}, %after), channel_id=6, {name}\n"
             f"  %in = ({gets}{{1,0}}, u32[], token[]) recv(%after), channel_id=5, {name}\n"
             f"  %out-done = token[] send-done(%out), channel_id=6, is_host_transfer=true\n")
    text = TEXT.replace("num_partitions=8", "num_partitions=4").replace("  ROOT %result", lines + "  ROOT %result")
    mesh = types.SimpleNamespace(shape={"slice": found[1], "data": 1, "fsdp": 4})
    between = collectives(text, mesh)[-1]
    assert between.axes == ("slice",)
    assert (between.kind, between.group_size, between.bytes) == found
    assert str(between.results[0]) == gets
    assert len(collectives(text.replace("_xla_megascale", "_callback"))) == len(collectives(TEXT))


def test_a_transfer_between_slices_of_an_unknown_kind_is_an_error():
    line = '  %out = f32[4]{0} send(%p), is_host_transfer=true, x={_xla_megascale_transfer_type="SWAP"}\n'
    with pytest.raises(ValueError, match="out: send exchanges arrays in a way"):
        collectives(TEXT.replace("  ROOT %result", line + "  ROOT %result"))


def test_arrays_are_what_is_made_and_held():
    made = made_arrays(TEXT)
    assert {array for array, loops in made if len(loops) == 2} >= {Array("f32", (8, 16)), Array("f32", (6, 16))}
    assert {array for array, loops in made if not loops} >= {Array("bf16", (4, 2)), Array("f32", (4, 16))}
    assert Array("f32", (12, 16)) not in {array for array, _ in made}  # within a fusion


def test_types():
    assert elements("((f32[2,3]{1,0:T(8,128)}, s4[8]{0}), bf16[2]{0}, u32[])") == [
        "(f32[2,3]{1,0:T(8,128)}, s4[8]{0})", "bf16[2]{0}", "u32[]"]
    assert [Array(dtype, (8,)).bytes for dtype in ("s4", "f8e4m3fn", "pred", "bf16", "f64")] == [4, 8, 8, 16, 64]
    assert parse(TEXT).num_partitions == 8
