"""What a compiler's dump says of memory, and what its error says."""

from planning.memory import of_error, read_memory
from planning.program import Held

TEXT = """HloModule jit_step, num_partitions=1

ENTRY %main (p: f32[64,64]) -> f32[64,64] {
  %p = f32[64,64]{1,0} parameter(0)
  %pair = (f32[64,64]{1,0}, bf16[8]{0}) custom-call(%p), metadata={op_name="jit(step)/while/body/layers/mlp"}
  ROOT %out = f32[64,64]{1,0} get-tuple-element(%pair), index=0
}
"""

BUFFERS = """BufferAssignment:
allocation 0: size 16384, page 0, parameter 0, shape |f32[64,64]| at ShapeIndex {}:
 value: <1 p @0> (size=16384,offset=0): f32[64,64]{1,0}
allocation 1: size 512, page 0, maybe-live-out:
allocation 2: size 100, color 1, page 0, preallocated-temp:
allocation 3: size 20000, page 0, preallocated-temp:
 value: <2 pair @0> (size=16384,offset=0): f32[64,64]{1,0}
"""

LIVE = """HloLiveRange (max 3):
  Live ranges at 1 (peak):
    pair{0}: 16384 bytes (cumulative: 16384 bytes)
    p{}: 16384 bytes (cumulative: 32768 bytes)
    pair{1}: 16 bytes (cumulative: 32784 bytes)
    gone{}: 16 bytes (cumulative: 32800 bytes)
  Stack trace breakdown for peak usage: 32 784 bytes
    main (100.0%, total: 32 784 bytes, current: 0 bytes, remaining: 32 784 bytes)
"""

ERROR = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

Total hbm usage >= 20.75G:
    reserved        258.00M

Largest program allocations in hbm:

  1. Size: 8.00G
     Operator: op_name="jit(step)/while/body/layers/mlp/dot" source_file="x.py" source_line=1
     Shape: f32[32,4,4096,4096]{3,2,1,0:T(8,128)}
     Unpadded size: 8.00G
"""  # noqa: E501


def test_arguments_temporaries_and_what_is_alive_at_the_peak():
    memory = read_memory(BUFFERS, LIVE, TEXT)
    assert (memory.arguments, memory.temporaries, memory.total) == (16896, 20000, 36896)
    assert memory.largest == [Held("layers/mlp", "f32[64,64]", 16384), Held("layers/mlp", "bf16[8]", 16)]


def test_the_compilers_error_says_how_much_is_needed():
    memory = of_error(ERROR)
    assert (memory.temporaries, memory.limit) == (int(20.5 * 2**30), int(15.75 * 2**30))
    assert memory.largest == [Held("layers/mlp/dot", "f32[32,4,4096,4096]", 8 * 2**30)]
    assert of_error("INTERNAL: something else") is None
