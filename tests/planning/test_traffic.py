"""Cycles and bytes of a program's text: as often as loops run, slices for what only a slice is taken of."""

from planning.traffic import work

TEXT = """HloModule jit_step, entry_computation_layout={()->f32[]}, num_partitions=8

%nested (n.0: f32[4,256,128], n.1: s32[]) -> f32[1,256,128] {
  %n.0 = f32[4,256,128]{2,1,0} parameter(0)
  %n.1 = s32[] parameter(1)
  ROOT %taken = f32[1,256,128]{2,1,0} dynamic-slice(%n.0, %n.1, %n.1, %n.1), dynamic_slice_sizes={1,256,128}
}

%product (p.0: f32[4,256,128], p.1: bf16[64,256], p.2: s32[]) -> bf16[64,128] {
  %p.0 = f32[4,256,128]{2,1,0} parameter(0)
  %p.1 = bf16[64,256]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %part = f32[1,256,128]{2,1,0} fusion(%p.0, %p.2), kind=kLoop, calls=%nested
  ROOT %conv = bf16[64,128]{1,0} convolution(%p.1, %part), dim_labels=bf_io->bf
}

%stack (s.0: f32[4,64,128], s.1: f32[64,128], s.2: s32[]) -> (f32[4,64,128], f32[64,128]) {
  %s.0 = f32[4,64,128]{2,1,0} parameter(0)
  %s.1 = f32[64,128]{1,0} parameter(1)
  %s.2 = s32[] parameter(2)
  %one = f32[1,64,128]{2,1,0} bitcast(%s.1)
  %put = f32[4,64,128]{2,1,0} dynamic-update-slice(%s.0, %one, %s.2, %s.2, %s.2)
  ROOT %both = (f32[4,64,128]{2,1,0}, f32[64,128]{1,0}) tuple(%put, %s.1)
}

%body (state: (s32[], f32[4,256,128], bf16[64,256], f32[4,64,128])) -> (s32[]) {
  %state = (s32[], f32[4,256,128], bf16[64,256], f32[4,64,128]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = f32[4,256,128]{2,1,0} get-tuple-element(%state), index=1
  %x = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=2
  %kept = f32[4,64,128]{2,1,0} get-tuple-element(%state), index=3
  %y = bf16[64,128]{1,0} fusion(%w, %x, %i), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"100"}
  %z = f32[64,128]{1,0} convert(%y), backend_config={"estimated_cycles":"9223372036854775807"}
  %out = (f32[4,64,128]{2,1,0}, f32[64,128]{1,0}) fusion(%kept, %z, %i), kind=kLoop, calls=%stack, backend_config={"estimated_cycles":"7"}
  ROOT %again = (s32[]) tuple(%i)
}

%test (state.1: (s32[], f32[4,256,128], bf16[64,256], f32[4,64,128])) -> pred[] {
  %state.1 = (s32[], f32[4,256,128], bf16[64,256], f32[4,64,128]) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  %start = (s32[], f32[4,256,128], bf16[64,256], f32[4,64,128]) tuple()
  %loop = (s32[], f32[4,256,128], bf16[64,256], f32[4,64,128]) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"4"}}, metadata={op_name="jit(step)/while"}
  %moved = (f32[16]{0:S(1)}, f32[16]{0}, u32[]{:S(2)}) copy-start(%a)
  ROOT %b = f32[16]{0} negate(%a), backend_config={"estimated_cycles":"5"}
}
"""  # noqa: E501

PRODUCT = 256 * 128 * 4 + 4 + 64 * 128 * 2  # a slice of the stack, a number; x is in the core's memory
CONVERT = 64 * 128 * (2 + 4)
STACK = 64 * 128 * 4 + 4 + 64 * 128 * 4 + 64 * 128 * 4  # z and the number read; the slice and z written


def test_loops_count_as_often_as_they_run():
    found = work(TEXT)
    assert found.cycles == 4 * (100 + 7) + 5
    assert found.cycles_by_place == {"jit(step)/while x4": 428.0, "outside": 5.0}


def test_slices_are_what_is_moved_and_products_hide_what_they_read():
    found, outside = work(TEXT), 16 * 4 + 2 * 16 * 4
    assert found.bytes == 4 * (PRODUCT + CONVERT + STACK) + outside
    assert found.bytes_beside_products == 4 * (CONVERT + STACK) + outside
