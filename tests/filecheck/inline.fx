# Calls are replaced by bodies, and functions nobody calls any more go; recursion stays a call.
# PASSES: inline
func @main(%x: f32[4], %n: i64) -> (f32[4]) {
  %0 = call(%x) [callee="twice", results=(!f32[4],)] : f32[4]
  %1 = call(%0, %n) [callee="down", results=(!f32[4],)] : f32[4]
  return %1
}
func @twice(%x: f32[4]) -> (f32[4]) {
  %0 = add(%x, %x) : f32[4]
  return %0
}
func @down(%x: f32[4], %n: i64) -> (f32[4]) {
  %zero = const [value=dense<i64: 0>] : i64
  %p = gt(%n, %zero) : bool
  %0 = if(%p, %x, %n) : f32[4] {
    (%y: f32[4], %m: i64) ->
    %one = const [value=dense<i64: 1>] : i64
    %k = sub(%m, %one) : i64
    %1 = call(%y, %k) [callee="down", results=(!f32[4],)] : f32[4]
    yield %1
  } {
    (%y: f32[4], %m: i64) ->
    yield %y
  }
  return %0
}
# CHECK:      func @main(%x: f32[4], %n: i64)
# CHECK-NEXT:   [[SUM:%[0-9]+]] = add(%x, %x) : f32[4]
# CHECK-NEXT:   call([[SUM]], %n) [callee="down"
# CHECK-NOT:  func @twice
# CHECK:      func @down
# CHECK:        call({{.*}}) [callee="down"
