# Equal expressions are computed once, commuted operands included; a use of the second reads the first.
# PASSES: cse,dce
module @m
func @f(%x: f32[B,4], %w: f32[4]) -> (f32[B,4]) {
  %0 = add(%x, %w) : f32[B,4]
  %1 = add(%w, %x) : f32[B,4]
  %2 = mul(%0, %1) : f32[B,4]
  return %2
}
# CHECK:      func @f
# CHECK-NEXT:   %0 = add(%x, %w) : f32[B,4]
# CHECK-NEXT:   %1 = mul(%0, %0) : f32[B,4]
# CHECK-NEXT:   return %1
