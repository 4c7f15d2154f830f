// What the language can say: calls, recursion, function pointers, virtual functions, local arrays, structs by value, tables in
// constant and global memory, jump tables, printf, assert, integer and floating point functions of the toolkit.

#include <cassert>
#include <cstdio>

struct Point {
  float x, y;
  int id;
  short tag, other;
};

struct Box {
  double low[3], high[3];
  unsigned char axis;
};

extern "C" {

__device__ __noinline__ Point middle(Point a, Point b) { return {(a.x + b.x) / 2, (a.y + b.y) / 2, a.id ^ b.id, (short)(a.tag - b.tag), a.other}; }

__global__ void structs(const Point* points, Point* out, Box box, double* inside, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = middle(points[i], points[(i + 1) % n]);
  inside[i] = box.low[i % 3] * box.axis + box.high[(i + box.axis) % 3];
}

__device__ __noinline__ unsigned ackermann(unsigned m, unsigned n) {
  if (m == 0) return n + 1;
  return ackermann(m - 1, n == 0 ? 1 : ackermann(m, n - 1));
}

__device__ __noinline__ unsigned long long fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

__global__ void recursion(unsigned long long* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[2 * i] = ackermann(i % 3, i % 5);
  out[2 * i + 1] = fibonacci(i % 10);
}

typedef float (*Operation)(float, float);
__device__ __noinline__ float plus(float a, float b) { return a + b; }
__device__ __noinline__ float minus(float a, float b) { return a - b; }
__device__ __noinline__ float times(float a, float b) { return a * b; }
__device__ __noinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ Operation operations[] = {plus, minus, times, smaller};

__global__ void function_pointers(const float* x, const float* y, const int* which, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = operations[which[i]](x[i], y[i]);
}

// A private insertion sort: an array in local memory, indexed dynamically.
__global__ void local_sort(const int* x, int* out, int rows) {
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  int a[12];
  for (int i = 0; i < 12; ++i) {
    int v = x[row * 12 + i], j = i;
    for (; j > 0 && a[j - 1] > v; --j) a[j] = a[j - 1];
    a[j] = v;
  }
#pragma unroll 1
  for (int i = 0; i < 12; ++i) out[row * 12 + i] = a[i];
}

__constant__ float weights[5] = {1.f, -4.f, 6.f, -4.f, 1.f};
__constant__ int primes[16] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53};
__device__ const char* const names[4] = {"one", "three", "twentytwo", ""};
__device__ short offsets[4] = {-2, 300, 7, -32768};

__global__ void tables(const float* x, float* out, int* codes, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float sum = 0.f;
  for (int j = 0; j < 5; ++j) sum += weights[j] * x[(i + j) % n];
  out[i] = sum;
  int length = 0;
  for (const char* p = names[i % 4]; *p; ++p) length = length * 31 + *p;
  codes[i] = length + primes[i % 16] + offsets[i % 4];
}

__global__ void jump_table(const int* op, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int v = i;
  switch (op[i]) {
    case 0: v = v * v; break;
    case 1: v = ~v; break;
    case 2: v = v << 3; break;
    case 3: v = v / 7;  // and on to the next
    case 4: v = v - 100; break;
    case 5: v = __popc(v); break;
    case 6: v = __brev(v); break;
    case 7: v = __clz(v); break;
    case 8: while (v > 10) v = v / 3; break;
    case 9: out[i] = -9; return;
    default: v = -1;
  }
  out[i] = v;
}

__global__ void dynamic_shared(const int* x, int* out, int n) {
  extern __shared__ __align__(16) unsigned char raw[];
  int* reversed = reinterpret_cast<int*>(raw);
  short* low = reinterpret_cast<short*>(raw + n * sizeof(int));
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    reversed[n - 1 - i] = x[i];
    low[i] = (short)x[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = reversed[i] + low[(i + 1) % n];
}

__global__ void talk(const int* x, int n) {
  int i = threadIdx.x;
  assert(i < 64);
  if (i < n) printf("%d: x=%d hex=%08x f=%.3f %s %lld %c%%\n", i, x[i], x[i] * 17, x[i] / 8.0, i & 1 ? "odd" : "even", (long long)x[i] << 33, 'a' + i);
}

// Integer arithmetic that the hardware does in pieces: out[k] for each question k.
__global__ void integers(const long long* x, const long long* y, long long* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  long long a = x[i], b = y[i];
  unsigned long long ua = a, ub = b;
  int p = (int)a, q = (int)b, k = 0;
  auto say = [&](long long v) { out[n * k++ + i] = v; };
  say(a / b);
  say(a % b);
  say(ua / ub);
  say(ua % ub);
  say(__mul64hi(a, b));
  say(__umul64hi(ua, ub));
  say(__mulhi(p, q));
  say(__umulhi(p, q));
  say(__mul24(p, q));
  say(__umul24(p, q));
  say(__popcll(ua));
  say(__clzll(a));
  say(__ffsll(a));
  say(__brevll(ua));
  say(__byte_perm(p, q, 0x3715));
  say(__byte_perm(p, q, 0x9b0e));
  say(__funnelshift_l(p, q, i));
  say(__funnelshift_r(p, q, i));
  say(__funnelshift_lc(p, q, i));
  say(__sad(p, q, 3u));
  say(__usad(p, q, 3u));
  say(__hadd(p, q));
  say(__urhadd(p, q));
  say(__dp4a(p, q, 7));
  say(__dp4a((unsigned)p, (unsigned)q, 7u));
  say(__dp2a_lo(p, q, 7));
  say(p >> (q & 31));
  say((unsigned)p >> (q & 31));
  say(a << (q & 63));
  say((signed char)p * (unsigned char)q);
  say((short)p / ((short)q | 1));
  say(__vadd4(p, q));
  say(__vabsdiffu4(p, q));
  say(__vmaxs2(p, q));
  say(__vcmpgtu4(p, q));
  say(max(p, q) - min((unsigned)p, (unsigned)q));
  say(abs(p) + llabs(b));
}

// Conversions between widths with every rounding, and to integers that cannot hold the value.
__global__ void conversions(const double* x, long long* out, double* rounded, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  double d = x[i];
  float f = (float)d;
  int k = 0;
  auto say = [&](long long v) { out[n * k++ + i] = v; };
  say((int)d);
  say((unsigned)d);
  say((long long)d);
  say((unsigned long long)d);
  say((int)f);
  say((unsigned)f);
  say((long long)f);
  say((signed char)(int)f);
  say(__float2int_rn(f));
  say(__float2int_ru(f));
  say(__float2int_rd(f));
  say(__float2ll_rz(f));
  say(__float_as_int(__double2float_rn(d)));
  say(__float_as_int(__double2float_rz(d)));
  say(__float_as_int(__double2float_ru(d)));
  say(__float_as_int(__double2float_rd(d)));
  say(__float_as_int(__ll2float_rn((long long)d)));
  say(__float_as_int(__uint2float_rz((unsigned)(int)f)));
  say(__double2hiint(d));
  say(__double2loint(d));
  int r = 0;
  auto tell = [&](double v) { rounded[n * r++ + i] = v; };
  tell(floor(d));
  tell(ceil(d));
  tell(trunc(d));
  tell(rint(d));
  tell(floorf(f));
  tell(ceilf(f));
  tell(truncf(f));
  tell(rintf(f));
  tell(round(d));
  tell(roundf(f));
  tell(__saturatef(f));
}

// One operation of IEEE 754 each, exact: compared bit for bit.
__global__ void ieee(const float* x, const float* y, const float* z, float* out, const double* u, const double* v, double* wide, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float a = x[i], b = y[i], c = z[i];
  double d = u[i], e = v[i];
  int k = 0, r = 0;
  auto say = [&](float value) { out[n * k++ + i] = value; };
  auto tell = [&](double value) { wide[n * r++ + i] = value; };
  say(__fadd_rn(a, b));
  say(__fadd_rz(a, b));
  say(__fadd_ru(a, b));
  say(__fadd_rd(a, b));
  say(__fmul_rn(a, b));
  say(__fmul_rz(a, b));
  say(__fmul_ru(a, b));
  say(__fmul_rd(a, b));
  say(__fmaf_rn(a, b, c));
  say(__fmaf_rz(a, b, c));
  say(__fmaf_ru(a, b, c));
  say(__fmaf_rd(a, b, c));
  say(__fdiv_rn(a, b));
  say(__fdiv_rz(a, b));
  say(__fsqrt_rn(fabsf(a)));
  say(__fsqrt_ru(fabsf(a)));
  say(__frcp_rn(b));
  say(fminf(a, b));
  say(fmaxf(a, b));
  say(copysignf(a, b));
  say(fmodf(a, b));
  say(remainderf(a, b));
  say(nextafterf(a, b));
  say(ldexpf(a, i % 40 - 20));
  tell(__dadd_rn(d, e));
  tell(__dmul_rn(d, e));
  tell(__fma_rn(d, e, 1.0));
  tell(__ddiv_rn(d, e));
  tell(__dsqrt_rn(fabs(d)));
  tell(__drcp_rn(e));
  tell(fmod(d, e));
}

#ifndef WITHOUT_MATH
// The toolkit's functions, which are sequences of instructions: some branch, some use tables in local or constant memory.
__global__ void math(const float* x, float* out, const double* u, double* wide, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float a = x[i];
  double d = u[i];
  int k = 0, r = 0;
  auto say = [&](float value) { out[n * k++ + i] = value; };
  auto tell = [&](double value) { wide[n * r++ + i] = value; };
  say(expf(a));
  say(logf(fabsf(a)));
  say(sinf(a));
  say(cosf(a * 1e6f));  // reduced with many bits of pi
  say(tanhf(a));
  say(powf(fabsf(a), 1.7f));
  say(erff(a));
  say(cbrtf(a));
  say(atan2f(a, 0.3f));
  say(log1pf(fabsf(a)));
  say(lgammaf(fabsf(a)));
  say(a / 3.3f);
  say(sqrtf(fabsf(a)));
  say(rsqrtf(fabsf(a)));
  say(__expf(a));
  say(__sinf(a));
  say(__logf(fabsf(a)));
  say(__fdividef(a, 1.7f));
  tell(exp(d));
  tell(sin(d));
  tell(log(fabs(d)));
  tell(pow(fabs(d), 0.3));
  tell(tanh(d));
  tell(1.0 / d);
  tell(sqrt(fabs(d)));
}

#endif

}  // extern "C"

struct Shape {
  __device__ virtual float area() const = 0;
  __device__ virtual int sides() const { return 4; }
};

struct Square : Shape {
  float a;
  __device__ explicit Square(float a) : a(a) {}
  __device__ float area() const override { return a * a; }
};

struct Triangle : Shape {
  float a, h;
  __device__ Triangle(float a, float h) : a(a), h(h) {}
  __device__ float area() const override { return a * h / 2; }
  __device__ int sides() const override { return 3; }
};

extern "C" __global__ void virtual_functions(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Square square(x[i]);
  Triangle triangle(x[i], 3.f);
  const Shape* shape = x[i] > 0.f ? static_cast<const Shape*>(&square) : &triangle;
  out[i] = shape->area() + shape->sides();
}
