# A loop loses the carry that nobody needs and the output that nobody reads; a carry that never changes is a constant.
# PASSES: simplify
func @f(%c: f32[4], %d: f32[4], %w: f32[4], %x: f32[T,4]) -> (f32[4]) {
  %0, %1, %2, %3 = scan(%c, %d, %w, %x) [carry=3] : f32[4], f32[4], f32[4], f32[T,4] {
    (%a: f32[4], %b: f32[4], %v: f32[4], %e: f32[4]) ->
    %4 = mul(%v, %e) : f32[4]
    %5 = add(%a, %4) : f32[4]
    %6 = exp(%b) : f32[4]
    %7 = tanh(%a) : f32[4]
    yield %5, %6, %v, %7
  }
  return %0
}
# CHECK:      scan(%c, %w, %x) [carry=1, consts=1] : f32[4] {
# CHECK-NEXT:   (%a: f32[4], %v: f32[4], %e: f32[4]) ->
# CHECK-NEXT:   mul(%v, %e)
# CHECK-NEXT:   add(%a,
# CHECK-NEXT:   yield
# CHECK-NOT:  exp
# CHECK-NOT:  tanh
