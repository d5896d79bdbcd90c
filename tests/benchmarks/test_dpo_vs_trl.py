"""DPO beside TRL: that the two sides do the same work is seen in float32."""

import contextlib

import pytest

from benchmarks import dpo_vs_trl
from benchmarks.turns import Turn, Work

BFLOAT16, FLOAT32 = (dpo_vs_trl.Config(trl_python="python", dtype=dtype) for dtype in ("bfloat16", "float32"))


def test_bfloat16_alone_is_compared_in_float32_first(monkeypatch):
    compared = []
    monkeypatch.setattr(dpo_vs_trl, "check_in_float32", lambda config: compared.append(config.dtype))
    monkeypatch.setattr("benchmarks.turns.prepare", lambda config, folder: (_ for _ in ()).throw(KeyError))
    for config in (BFLOAT16, FLOAT32):
        with pytest.raises(KeyError):
            dpo_vs_trl.compare(config)
    assert compared == ["bfloat16"]


@pytest.mark.parametrize(("losses", "same"), [((0.693147, 0.155, 0.024), True), ((0.693147, 0.155, 0.04), False),
                                              ((0.6935, 0.159, 0.025), False)])
def test_what_float32_tells(losses, same, monkeypatch):
    def compare(config):
        assert (config.dtype, config.rounds, config.steps) == ("float32", 1, 3)
        work = Work("", "pairs", 4, dpo_vs_trl.TOLERANCES["float32"])
        return work, {side: [Turn([], list(each), 0.0, {}, 0.0)]
                      for side, each in (("Temper", (0.693147, 0.159, 0.025)), ("TRL", losses))}

    monkeypatch.setattr(dpo_vs_trl, "compare", compare)
    ends = pytest.raises(SystemExit, match="the two sides did not do the same work")
    with contextlib.nullcontext() if same else ends:
        dpo_vs_trl.check_in_float32(BFLOAT16)
