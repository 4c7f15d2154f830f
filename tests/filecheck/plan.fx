# Two buffers whose lifetimes do not meet share their place in the arena, for every size.
# PASSES: plan
dims B >= 1
host @main(%x: &f32[B,16], %out: &f32[B,16]) [inputs=1] {
  %0 = alloc [type=!&f32[B,16]] : &f32[B,16]
  launch(%x, %0) [callee="k"]
  %1 = alloc [type=!&f32[B,16]] : &f32[B,16]
  launch(%0, %1) [callee="k"]
  %2 = alloc [type=!&f32[B,16]] : &f32[B,16]
  launch(%1, %2) [callee="k"]
  launch(%2, %out) [callee="k"]
  return
}
kernel @k(%x: &f32[B,16], %out: &f32[B,16]) {
  return
}
# CHECK:      %arena: &u8[B*128]
# CHECK-SAME: arena=<B*128>, buffers=3
# CHECK-NOT:  alloc
# CHECK:      view(%arena) [type=!&f32[B,16], offset=0]
# CHECK:      view(%arena) [type=!&f32[B,16], offset=<B*64>]
# CHECK:      view(%arena) [type=!&f32[B,16], offset=0]
