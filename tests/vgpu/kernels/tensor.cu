// Tensor cores as CUDA C reaches them: wmma, and mma.sync with ldmatrix and cp.async written as PTX.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

namespace wmma = nvcuda::wmma;

__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, of which the last ones are zeros where `bytes` is less.
__device__ void copy16(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ void ldmatrix4(unsigned (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ void ldmatrix2(unsigned (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
__device__ void ldmatrix2_trans(unsigned (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}

template <class T>
__device__ void mma16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <>
__device__ void mma16<__half>(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ void mma16<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// C[m,n] = A[m,k] B[k,n], 16-bit floats, f32 accumulators: 64x64 a block of four warps, three stages of 32 along k.
// n and k are multiples of 8.
template <class T>
__device__ void matmul16(const T* a, const T* b, float* c, int m, int n, int k) {
  constexpr int STAGES = 3;
  __shared__ __align__(16) T left[STAGES][64][40], right[STAGES][32][72];
  int t = threadIdx.x, lane = t % 32, warp = t / 32, row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
  int wm = warp / 2 * 32, wn = warp % 2 * 32;
  auto stage = [&](int s, int base) {
    for (int i = t; i < 256; i += 128) {
      int row = i / 4, p = base + i % 4 * 8;
      bool there = row0 + row < m && p < k;
      copy16(&left[s][row][i % 4 * 8], there ? a + (size_t)(row0 + row) * k + p : a, there ? 16 : 0);
      int q = base + i / 8, column = i % 8 * 8;
      there = q < k && column0 + column < n;
      copy16(&right[s][i / 8][column], there ? b + (size_t)q * n + column0 + column : b, there ? 16 : 0);
    }
  };
  float sum[2][4][4] = {};
  int steps = (k + 31) / 32;
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) stage(s, s * 32);
    commit();
  }
  for (int step = 0; step < steps; ++step) {
    wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) stage((step + STAGES - 1) % STAGES, (step + STAGES - 1) * 32);
    commit();
    int s = step % STAGES;
#pragma unroll
    for (int p = 0; p < 32; p += 16) {
      unsigned x[2][4], y[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) ldmatrix4(x[i], &left[s][wm + 16 * i + lane % 16][p + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < 4; ++j) ldmatrix2_trans(y[j], &right[s][p + lane % 16][wn + 8 * j]);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma16<T>(sum[i][j], x[i], y[j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int row = row0 + wm + 16 * i + 8 * h + lane / 4, column = column0 + wn + 8 * j + lane % 4 * 2;
        if (row < m && column < n) *reinterpret_cast<float2*>(c + (size_t)row * n + column) = make_float2(sum[i][j][2 * h], sum[i][j][2 * h + 1]);
      }
}

extern "C" __global__ void __launch_bounds__(128) matmul_f16(const __half* a, const __half* b, float* c, int m, int n, int k) {
  matmul16(a, b, c, m, n, k);
}
extern "C" __global__ void __launch_bounds__(128)
matmul_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  matmul16(a, b, c, m, n, k);
}

// The same with tf32: 32x32 a block, two stages of 16 along k; n and k multiples of 4.
extern "C" __global__ void __launch_bounds__(128) matmul_tf32(const float* a, const float* b, float* c, int m, int n, int k) {
  __shared__ __align__(16) float left[2][32][20], right[2][16][40];
  int t = threadIdx.x, lane = t % 32, warp = t / 32, row0 = blockIdx.y * 32, column0 = blockIdx.x * 32;
  int wm = warp / 2 * 16, wn = warp % 2 * 16, g = lane / 4, q = lane % 4;
  auto stage = [&](int s, int base) {
    int row = t / 4, p = base + t % 4 * 4;
    bool there = row0 + row < m && p < k;
    copy16(&left[s][row][t % 4 * 4], there ? a + (row0 + row) * k + p : a, there ? 16 : 0);
    int depth = base + t / 8, column = t % 8 * 4;
    there = depth < k && column0 + column < n;
    copy16(&right[s][t / 8][column], there ? b + depth * n + column0 + column : b, there ? 16 : 0);
  };
  auto tf32 = [](float x) {
    unsigned r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
  };
  float sum[2][4] = {};
  int steps = (k + 15) / 16;
  stage(0, 0);
  commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      stage((step + 1) % 2, (step + 1) * 16);
      commit();
      wait<1>();
    } else {
      wait<0>();
    }
    __syncthreads();
    int s = step % 2;
#pragma unroll
    for (int p = 0; p < 16; p += 8) {
      unsigned x0 = tf32(left[s][wm + g][p + q]), x1 = tf32(left[s][wm + g + 8][p + q]);
      unsigned x2 = tf32(left[s][wm + g][p + q + 4]), x3 = tf32(left[s][wm + g + 8][p + q + 4]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        unsigned y0 = tf32(right[s][p + q][wn + 8 * j + g]), y1 = tf32(right[s][p + q + 4][wn + 8 * j + g]);
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])
            : "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(y0), "r"(y1));
      }
    }
    __syncthreads();
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) {
      int row = row0 + wm + g + i / 2 * 8, column = column0 + wn + 8 * j + 2 * q + i % 2;
      if (row < m && column < n) c[row * n + column] = sum[j][i];
    }
}

// C[m,n] = A[m,k] B[n,k]^T in bytes with 32-bit sums: 32x32 a block of four warps; k is a multiple of 16.
extern "C" __global__ void __launch_bounds__(128) matmul_s8(const signed char* a, const signed char* b, int* c, int m, int n, int k) {
  __shared__ __align__(16) signed char left[32][48], right[32][48];
  int t = threadIdx.x, lane = t % 32, warp = t / 32, row0 = blockIdx.y * 32, column0 = blockIdx.x * 32;
  int wm = warp / 2 * 16, wn = warp % 2 * 16, sum[2][4] = {};
  for (int base = 0; base < k; base += 32) {
    int row = t % 64 / 2, p = base + t % 2 * 16;
    bool first = t < 64, there = p < k && (first ? row0 + row < m : column0 + row < n);
    const signed char* from = first ? a + (size_t)(row0 + row) * k + p : b + (size_t)(column0 + row) * k + p;
    copy16(first ? &left[row][t % 2 * 16] : &right[row][t % 2 * 16], there ? from : a, there ? 16 : 0);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    unsigned x[4], y[2];
    ldmatrix4(x, &left[wm + lane % 16][lane / 16 * 16]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ldmatrix2(y, &right[wn + 8 * j + lane % 8][lane / 8 % 2 * 16]);
      asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+r"(sum[j][0]), "+r"(sum[j][1]), "+r"(sum[j][2]), "+r"(sum[j][3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    }
    __syncthreads();
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) {
      int row = row0 + wm + lane / 4 + i / 2 * 8, column = column0 + wn + 8 * j + lane % 4 * 2 + i % 2;
      if (row < m && column < n) c[row * n + column] = sum[j][i];
    }
}

// One warp, one product of each other shape; operands are read where the PTX manual says a lane's elements are.
extern "C" __global__ void mma_shapes(const __half* a, const __half* b, __half* half_sums, float* sums, const double* u, const double* v,
                                      double* wide, const unsigned* bytes, int* whole) {
  int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  auto pair = [](const __half* p, int step) {
    __half2 h = __halves2half2(p[0], p[step]);
    return *reinterpret_cast<unsigned*>(&h);
  };
  // A [16,16] by rows, B [16,8] by rows
  unsigned x[4] = {pair(a + g * 16 + 2 * t, 1), pair(a + (g + 8) * 16 + 2 * t, 1), pair(a + g * 16 + 2 * t + 8, 1), pair(a + (g + 8) * 16 + 2 * t + 8, 1)};
  unsigned y[2] = {pair(b + 2 * t * 8 + g, 8), pair(b + (2 * t + 8) * 8 + g, 8)}, h[2] = {0, 0};
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
      : "+r"(h[0]), "+r"(h[1]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
  for (int i = 0; i < 2; ++i) *reinterpret_cast<unsigned*>(half_sums + (g + 8 * i) * 8 + 2 * t) = h[i];
  // half as deep: A [16,8] is the left half
  float s[4] = {1.f, 2.f, 3.f, 4.f};
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]) : "r"(x[0]), "r"(x[1]), "r"(y[0]));
  for (int i = 0; i < 4; ++i) sums[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = s[i];
  // tf32, depth 4: A [16,4], B [4,8] are converted from the same halves
  unsigned p[2] = {__float_as_uint(__half2float(a[g * 16 + t])), __float_as_uint(__half2float(a[(g + 8) * 16 + t]))};
  unsigned q = __float_as_uint(__half2float(b[t * 8 + g]));
  float r[4] = {};
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3]) : "r"(p[0]), "r"(p[1]), "r"(q));
  for (int i = 0; i < 4; ++i) sums[128 + (g + i / 2 * 8) * 8 + 2 * t + i % 2] = r[i];
  // double precision: A [8,4], B [4,8]
  double d[2] = {0.5, -0.5};
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+d"(d[0]), "+d"(d[1]) : "d"(u[g * 4 + t]), "d"(v[t * 8 + g]));
  wide[g * 8 + 2 * t] = d[0];
  wide[g * 8 + 2 * t + 1] = d[1];
  // bytes: A [16,16] by rows, B [16,8] by columns, signed and unsigned mixed; and the smallest shape
  int w[4] = {}, e[2] = {};
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3]) : "r"(bytes[g * 4 + t]), "r"(bytes[(g + 8) * 4 + t]), "r"(bytes[64 + g * 4 + t]));
  for (int i = 0; i < 4; ++i) whole[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = w[i];
  asm("mma.sync.aligned.m8n8k16.row.col.satfinite.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
      : "+r"(e[0]), "+r"(e[1]) : "r"(bytes[g * 4 + t]), "r"(bytes[64 + g * 4 + t]));
  whole[128 + g * 8 + 2 * t] = e[0];
  whole[128 + g * 8 + 2 * t + 1] = e[1];
}

// C = A B + C with fragments of the wmma interface, one warp for each 16x16; sizes are multiples of 16.
extern "C" __global__ void wmma_f16(const __half* a, const __half* b, float* c, int n, int k) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> x;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> y;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  float* out = c + blockIdx.y * 16 * n + blockIdx.x * 16;
  wmma::load_matrix_sync(sum, out, n, wmma::mem_row_major);
  for (int p = 0; p < k; p += 16) {
    wmma::load_matrix_sync(x, a + blockIdx.y * 16 * k + p, k);
    wmma::load_matrix_sync(y, b + p * n + blockIdx.x * 16, n);
    wmma::mma_sync(sum, x, y, sum);
  }
  for (int i = 0; i < sum.num_elements; ++i) sum.x[i] *= 0.5f;
  wmma::store_matrix_sync(out, sum, n, wmma::mem_row_major);
}

// The other shapes and types through shared memory, columns first: 32x8x16 halves, 16x16x16 bytes, 16x16x16 bf16, 16x16x8 tf32, 8x8x4 doubles.
extern "C" __global__ void wmma_shapes(const __half* a, const __half* b, __half* c, const signed char* e, int* f, const __nv_bfloat16* g,
                                       float* h, const float* p, float* q, const double* u, double* v) {
  __shared__ __half tile[32 * 16];
  for (int i = threadIdx.x; i < 32 * 16; i += 32) tile[i] = a[i];
  __syncwarp();
  {
    wmma::fragment<wmma::matrix_a, 32, 8, 16, __half, wmma::col_major> x;
    wmma::fragment<wmma::matrix_b, 32, 8, 16, __half, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 32, 8, 16, __half> z;
    wmma::fill_fragment(z, __float2half(1.f));
    wmma::load_matrix_sync(x, tile, 32);
    wmma::load_matrix_sync(y, b, 16);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(c, z, 32, wmma::mem_col_major);
  }
  {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, int> z;
    wmma::fill_fragment(z, -5);
    wmma::load_matrix_sync(x, e, 16);
    wmma::load_matrix_sync(y, e + 256, 16);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(f, z, 16, wmma::mem_row_major);
  }
  {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> z;
    wmma::fill_fragment(z, 0.f);
    wmma::load_matrix_sync(x, g, 16);
    wmma::load_matrix_sync(y, g + 256, 16);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(h, z, 16, wmma::mem_row_major);
  }
  {
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> z;
    wmma::fill_fragment(z, 0.f);
    wmma::load_matrix_sync(x, p, 8);
    wmma::load_matrix_sync(y, p + 128, 16);
    for (int i = 0; i < x.num_elements; ++i) x.x[i] = wmma::__float_to_tf32(x.x[i]);
    for (int i = 0; i < y.num_elements; ++i) y.x[i] = wmma::__float_to_tf32(y.x[i]);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(q, z, 16, wmma::mem_row_major);
  }
  {
    wmma::fragment<wmma::matrix_a, 8, 8, 4, double, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 8, 8, 4, double, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 8, 8, 4, double> z;
    wmma::fill_fragment(z, 0.25);
    wmma::load_matrix_sync(x, u, 4);
    wmma::load_matrix_sync(y, u + 32, 4);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(v, z, 8, wmma::mem_row_major);
  }
}

// Flash attention of one head a block row: 64 queries for four warps, keys and values in tiles of 32, head dimension 64.
extern "C" __global__ void __launch_bounds__(128)
flash_attention(const __half* q, const __half* k, const __half* v, __half* out, int length, float scale, int causal) {
  constexpr int D = 64, KV = 32;
  __shared__ __align__(16) __half keys[KV][D + 8], values[KV][D + 8], queries[64][D + 8];
  size_t head = (size_t)blockIdx.y * length * D;
  q += head, k += head, v += head, out += head;
  int t = threadIdx.x, lane = t % 32, warp = t / 32, g = lane / 4, p = lane % 4, first = blockIdx.x * 64;
  for (int i = t; i < 64 * 8; i += 128) {
    int row = first + i / 8;
    copy16(&queries[i / 8][i % 8 * 8], row < length ? q + row * D + i % 8 * 8 : q, row < length ? 16 : 0);
  }
  commit();
  wait<0>();
  __syncthreads();
  unsigned x[4][4];
  for (int d = 0; d < 4; ++d) ldmatrix4(x[d], &queries[warp * 16 + lane % 16][d * 16 + lane / 16 * 8]);
  float sum[8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  int row[2] = {first + warp * 16 + g, first + warp * 16 + g + 8}, end = causal ? min(length, first + 64) : length;
  for (int base = 0; base < end; base += KV) {
    __syncthreads();
    for (int i = t; i < KV * 8; i += 128) {
      int r = base + i / 8;
      copy16(&keys[i / 8][i % 8 * 8], r < length ? k + r * D + i % 8 * 8 : k, r < length ? 16 : 0);
      copy16(&values[i / 8][i % 8 * 8], r < length ? v + r * D + i % 8 * 8 : v, r < length ? 16 : 0);
    }
    commit();
    wait<0>();
    __syncthreads();
    float s[4][4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        unsigned y[2];
        ldmatrix2(y, &keys[j * 8 + lane % 8][d * 16 + lane / 8 % 2 * 8]);
        mma16<__half>(s[j], x[d], y);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = top[h];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          int column = base + j * 8 + 2 * p + e;
          float& z = s[j][2 * h + e];
          z = column < length && (!causal || column <= row[h]) ? z * scale : -INFINITY;
          most = fmaxf(most, z);
        }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      float anchor = most == -INFINITY ? 0.f : most, fade = exp2f(top[h] - anchor), all = 0.f;
      top[h] = most;
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) all += s[j][2 * h + e] = exp2f(s[j][2 * h + e] - anchor);
      total[h] = total[h] * fade + all;
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j][2 * h] *= fade, sum[j][2 * h + 1] *= fade;
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      unsigned weight[4];
      for (int i = 0; i < 4; ++i) {
        __half2 w = __floats2half2_rn(s[2 * c + i / 2][i % 2 * 2], s[2 * c + i / 2][i % 2 * 2 + 1]);
        weight[i] = *reinterpret_cast<unsigned*>(&w);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        unsigned y[2];
        ldmatrix2_trans(y, &values[c * 16 + lane % 16][j * 8]);
        mma16<__half>(sum[j], weight, y);
      }
    }
  }
  for (int h = 0; h < 2; ++h) {
    float all = total[h];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    if (row[h] < length)
      for (int j = 0; j < 8; ++j)
        *reinterpret_cast<__half2*>(out + row[h] * D + j * 8 + 2 * p) = __floats2half2_rn(sum[j][2 * h] / all, sum[j][2 * h + 1] / all);
  }
}
