# Transposes of a dot's operands and of its result become attributes.
# PASSES: layout,dce
dims B >= 1
func @f(%x: f32[8,B], %w: f32[4,8]) -> (f32[4,B]) {
  %0 = transpose(%x) [perm=(1, 0)] : f32[B,8]
  %1 = transpose(%w) [perm=(1, 0)] : f32[8,4]
  %2 = dot(%0, %1) [lhs_contract=(1,), rhs_contract=(0,)] : f32[B,4]
  %3 = tanh(%2) : f32[B,4]
  %4 = transpose(%3) [perm=(1, 0)] : f32[4,B]
  return %4
}
# CHECK:      func @f
# CHECK-NEXT:   dot(%w, %x) [lhs_contract=(1,), rhs_contract=(0,)] : f32[4,B]
# CHECK-NEXT:   tanh(
# CHECK-NEXT:   return
