# A pointwise chain behind a dot becomes its epilogue: one kernel.
# PASSES: fuse,dce
dims B >= 1
func @f(%x: f32[B,8], %w: f32[8,4], %b: f32[4]) -> (f32[B,4]) {
  %0 = dot(%x, %w) [lhs_contract=(1,), rhs_contract=(0,)] : f32[B,4]
  %1 = add(%0, %b) : f32[B,4]
  %2 = tanh(%1) : f32[B,4]
  return %2
}
# CHECK:      fused(%x, %w, %b) [kind="dot"
# CHECK:        dot(
# CHECK-NEXT:   add(
# CHECK-NEXT:   tanh(
# CHECK-NEXT:   yield
# CHECK-NOT:  fused
