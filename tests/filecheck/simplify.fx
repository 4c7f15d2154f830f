# Identities that are exact go; the one that is wrong for -0.0 stays, and a comparison of floats keeps its NaN.
# PASSES: simplify,cse,dce
func @f(%x: f32[B,4], %n: i32[B]) -> (f32[B,4], i32[B], bool[B,4]) {
  %one = const [value=dense<f32: 1.0>] : f32
  %zero = const [value=dense<f32: 0.0>] : f32
  %izero = const [value=dense<i32: 0>] : i32
  %0 = mul(%x, %one) : f32[B,4]
  %1 = neg(%0) : f32[B,4]
  %2 = neg(%1) : f32[B,4]
  %3 = sub(%2, %zero) : f32[B,4]
  %4 = add(%3, %zero) : f32[B,4]
  %5 = add(%n, %izero) : i32[B]
  %6 = lt(%x, %4) : bool[B,4]
  %7 = logical_not(%6) : bool[B,4]
  return %4, %5, %7
}
# CHECK:      func @f
# CHECK-NEXT:   [[ZERO:%[0-9a-z]+]] = const [value=dense<f32: 0.0>]
# CHECK-NEXT:   [[SUM:%[0-9a-z]+]] = add(%x, [[ZERO]]) : f32[B,4]
# CHECK-NEXT:   [[LESS:%[0-9a-z]+]] = lt(%x, [[SUM]]) : bool[B,4]
# CHECK-NEXT:   [[NOT:%[0-9a-z]+]] = logical_not([[LESS]]) : bool[B,4]
# CHECK-NEXT:   return [[SUM]], %n, [[NOT]]
