# What depends on constants alone leaves the loop, if it is worth a read from memory; the cheap product stays.
# PASSES: hoist,dce
func @f(%c: f32[4], %w: f32[4], %x: f32[T,4]) -> (f32[4]) {
  %0 = scan(%c, %w, %x) [carry=1, consts=1] : f32[4] {
    (%a: f32[4], %v: f32[4], %e: f32[4]) ->
    %1 = exp(%v) : f32[4]
    %2 = mul(%v, %e) : f32[4]
    %3 = add(%2, %1) : f32[4]
    %4 = add(%a, %3) : f32[4]
    yield %4
  }
  return %0
}
# CHECK:      func @f
# CHECK-NEXT:   [[E:%[0-9]+]] = exp(%w) : f32[4]
# CHECK-NEXT:   scan(%c, %w, [[E]], %x) [carry=1, consts=2] : f32[4] {
# CHECK-NOT:    exp
# CHECK:        mul(
# CHECK:      }
