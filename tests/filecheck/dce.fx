# What nobody uses goes, chains of it too; a kernel's stores stay.
# PASSES: dce
func @f(%x: f32[4]) -> (f32[4]) {
  %0 = exp(%x) : f32[4]
  %1 = neg(%0) : f32[4]
  return %x
}
kernel @k(%x: &f32[4], %o: &f32[4]) {
  %0 = const [value=dense<i64: 0>] : i64
  %1 = load(%x, %0) : f32
  %2 = exp(%1) : f32
  store(%o, %1, %0)
  return
}
# CHECK:      func @f
# CHECK-NEXT:   return %x
# CHECK:      kernel @k
# CHECK-NOT:    exp
# CHECK:        store(%o,
