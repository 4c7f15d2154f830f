# Constants are evaluated, through several ops and with NaN bits kept.
# PASSES: fold,dce
func @f(%x: f32[2]) -> (f32[2], f32) {
  %0 = const [value=dense<f32[2]: 1.0 2.0>] : f32[2]
  %1 = const [value=dense<f32: 3.0>] : f32
  %2 = mul(%0, %1) : f32[2]
  %3 = add(%x, %2) : f32[2]
  %4 = const [value=dense<f32: nan:7fc00001>] : f32
  return %3, %4
}
# CHECK:      func @f
# CHECK-NEXT:   [[C:%[0-9]+]] = const [value=dense<f32[2]: 3.0 6.0>] : f32[2]
# CHECK-NEXT:   add(%x, [[C]]) : f32[2]
# CHECK-NEXT:   const [value=dense<f32: nan:7fc00001>] : f32
# CHECK-NEXT:   return
