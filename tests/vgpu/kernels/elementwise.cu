// Kernels whose threads work alone or share a tile: element by element, stencils, transposition, particles, bytes.
// Where an answer depends on rounding, the arithmetic is spelled with intrinsics that no compiler contracts.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void add(const float* x, const float* y, float* out, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = x[i] + y[i];
}

// y = a x + y, four at a time and the rest one by one.
extern "C" __global__ void saxpy(float a, const float* __restrict__ x, float* __restrict__ y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (4 * i + 3 < n) {
    float4 u = reinterpret_cast<const float4*>(x)[i], v = reinterpret_cast<float4*>(y)[i];
    v.x = fmaf(a, u.x, v.x);
    v.y = fmaf(a, u.y, v.y);
    v.z = fmaf(a, u.z, v.z);
    v.w = fmaf(a, u.w, v.w);
    reinterpret_cast<float4*>(y)[i] = v;
  } else {
    for (int j = 4 * i; j < n; ++j) y[j] = fmaf(a, x[j], y[j]);
  }
}

constexpr int TILE = 32, ROWS = 8;

extern "C" __global__ void transpose(const float* in, float* out, int rows, int columns) {
  __shared__ float tile[TILE][TILE + 1];  // one column more: no bank conflict
  int x = blockIdx.x * TILE + threadIdx.x, y = blockIdx.y * TILE + threadIdx.y;
  for (int j = 0; j < TILE; j += ROWS)
    if (x < columns && y + j < rows) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * columns + x];
  __syncthreads();
  x = blockIdx.y * TILE + threadIdx.x;
  y = blockIdx.x * TILE + threadIdx.y;
  for (int j = 0; j < TILE; j += ROWS)
    if (x < rows && y + j < columns) out[(y + j) * rows + x] = tile[threadIdx.x][threadIdx.y + j];
}

constexpr int SIDE = 16;

// out = in + a * (sum of the four neighbours - 4 in), zero outside.
extern "C" __global__ void stencil2d(const float* in, float* out, int height, int width, float a) {
  __shared__ float tile[SIDE + 2][SIDE + 2];
  int x0 = blockIdx.x * SIDE - 1, y0 = blockIdx.y * SIDE - 1;
  for (int i = threadIdx.y * SIDE + threadIdx.x; i < (SIDE + 2) * (SIDE + 2); i += SIDE * SIDE) {
    int x = x0 + i % (SIDE + 2), y = y0 + i / (SIDE + 2);
    tile[i / (SIDE + 2)][i % (SIDE + 2)] = x >= 0 && x < width && y >= 0 && y < height ? in[y * width + x] : 0.f;
  }
  __syncthreads();
  int x = x0 + 1 + threadIdx.x, y = y0 + 1 + threadIdx.y, i = threadIdx.y + 1, j = threadIdx.x + 1;
  if (x < width && y < height) {
    float around = tile[i - 1][j] + tile[i + 1][j] + tile[i][j - 1] + tile[i][j + 1];
    out[y * width + x] = tile[i][j] + a * (around - 4.f * tile[i][j]);
  }
}

// Seven-point sum of interior points; a block walks along z with three planes in registers and one in shared memory.
extern "C" __global__ void stencil3d(const float* in, float* out, int nz, int ny, int nx) {
  __shared__ float plane[10][18];
  int x = blockIdx.x * 16 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y;
  bool there = x < nx && y < ny, inside = x > 0 && x < nx - 1 && y > 0 && y < ny - 1;
  auto at = [&](int z, int yy, int xx) { return in[(z * ny + yy) * nx + xx]; };
  float below = 0.f, here = there ? at(0, y, x) : 0.f, above = there && nz > 1 ? at(1, y, x) : 0.f;
  for (int z = 1; z < nz - 1; ++z) {
    below = here;
    here = above;
    above = there ? at(z + 1, y, x) : 0.f;
    __syncthreads();
    plane[threadIdx.y + 1][threadIdx.x + 1] = here;
    if (threadIdx.x == 0) plane[threadIdx.y + 1][0] = there && x > 0 ? at(z, y, x - 1) : 0.f;
    if (threadIdx.x == 15) plane[threadIdx.y + 1][17] = y < ny && x + 1 < nx ? at(z, y, x + 1) : 0.f;
    if (threadIdx.y == 0) plane[0][threadIdx.x + 1] = there && y > 0 ? at(z, y - 1, x) : 0.f;
    if (threadIdx.y == 7) plane[9][threadIdx.x + 1] = x < nx && y + 1 < ny ? at(z, y + 1, x) : 0.f;
    __syncthreads();
    int i = threadIdx.y + 1, j = threadIdx.x + 1;
    if (inside)
      out[(z * ny + y) * nx + x] =
          below + above + here + plane[i - 1][j] + plane[i + 1][j] + plane[i][j - 1] + plane[i][j + 1];
  }
}

// Each result is one operation of packed halves: out[k][i] for k in +, -, *, fma, min, max, abs, negated, relu'd fma.
extern "C" __global__ void half2_arithmetic(const __half2* x, const __half2* y, __half2* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half2 a = x[i], b = y[i];
  out[0 * n + i] = __hadd2_rn(a, b);
  out[1 * n + i] = __hsub2_rn(a, b);
  out[2 * n + i] = __hmul2_rn(a, b);
  out[3 * n + i] = __hfma2(a, b, a);
  out[4 * n + i] = __hmin2(a, b);
  out[5 * n + i] = __hmax2(a, b);
  out[6 * n + i] = __habs2(a);
  out[7 * n + i] = __hneg2(b);
  out[8 * n + i] = __hfma2_relu(a, b, a);
  out[9 * n + i] = __hadd2_sat(a, b);
  out[10 * n + i] = __lows2half2(a, b);
  out[11 * n + i] = __lowhigh2highlow(a);
  out[12 * n + i] = __hgt2(a, b);
  out[13 * n + i] = __floats2half2_rn(__low2float(a) * 3.f, __high2float(b) + 1.f);
}

// The same for bfloat16; comparisons and conversions of single values too.
extern "C" __global__ void bf16_arithmetic(const __nv_bfloat162* x, const __nv_bfloat162* y, __nv_bfloat162* out, int* flags,
                                           int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __nv_bfloat162 a = x[i], b = y[i];
  out[0 * n + i] = __hadd2_rn(a, b);
  out[1 * n + i] = __hsub2_rn(a, b);
  out[2 * n + i] = __hmul2_rn(a, b);
  out[3 * n + i] = __hfma2(a, b, a);
  out[4 * n + i] = __hmin2(a, b);
  out[5 * n + i] = __hmax2(a, b);
  out[6 * n + i] = __habs2(a);
  out[7 * n + i] = __hneg2(b);
  out[8 * n + i] = __floats2bfloat162_rn(__low2float(a) * 3.f, __high2float(b) + 1.f);
  flags[i] = (__hlt(a.x, b.x) ? 1 : 0) | (__heq(a.y, b.y) ? 2 : 0) | (__hisnan(a.x) ? 4 : 0) |
             (__bfloat162int_rz(b.x) << 8);
}

extern "C" __global__ void mandelbrot(int* out, int width, int height, float x0, float y0, float step, int limit) {
  int px = blockIdx.x * blockDim.x + threadIdx.x, py = blockIdx.y * blockDim.y + threadIdx.y;
  if (px >= width || py >= height) return;
  float cx = __fadd_rn(x0, __fmul_rn(px, step)), cy = __fadd_rn(y0, __fmul_rn(py, step));
  float x = 0.f, y = 0.f;
  int count = 0;
  while (count < limit) {
    float xx = __fmul_rn(x, x), yy = __fmul_rn(y, y);
    if (__fadd_rn(xx, yy) > 4.f) break;
    y = __fadd_rn(__fmul_rn(__fmul_rn(2.f, x), y), cy);
    x = __fadd_rn(__fsub_rn(xx, yy), cx);
    ++count;
  }
  out[py * width + px] = count;
}

// Softened gravity on every body: a tile of bodies at a time through dynamic shared memory.
extern "C" __global__ void nbody(const float4* bodies, float3* forces, int n, float softening) {
  extern __shared__ float4 tile[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float4 me = i < n ? bodies[i] : make_float4(0.f, 0.f, 0.f, 0.f);
  float3 sum = make_float3(0.f, 0.f, 0.f);
  for (int base = 0; base < n; base += blockDim.x) {
    int j = base + threadIdx.x;
    tile[threadIdx.x] = j < n ? bodies[j] : make_float4(0.f, 0.f, 0.f, 0.f);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < blockDim.x; ++k) {
      float dx = tile[k].x - me.x, dy = tile[k].y - me.y, dz = tile[k].z - me.z;
      float inverse = rsqrtf(dx * dx + dy * dy + dz * dz + softening);
      float scale = tile[k].w * inverse * inverse * inverse;
      sum.x += dx * scale;
      sum.y += dy * scale;
      sum.z += dz * scale;
    }
    __syncthreads();
  }
  if (i < n) forces[i] = sum;
}

__device__ unsigned pcg(unsigned state) {
  state = state * 747796405u + 2891336453u;
  unsigned word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

// How many of `n` hashed points of the square [0, 65536)^2 lie in the quarter circle.
extern "C" __global__ void monte_carlo(unsigned long long* hits, unsigned seed, int n) {
  unsigned long long mine = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    unsigned h = pcg(pcg(seed) + i);
    unsigned long long x = h & 0xffff, y = h >> 16;
    mine += x * x + y * y < (1ull << 32);
  }
  if (mine) atomicAdd(hits, mine);
}

// Where `pattern` begins in `text`: how often, and the first place (or the text's length).
extern "C" __global__ void find(const char* text, int n, const char* pattern, int m, int* count, int* first) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  bool found = i + m <= n;
  for (int j = 0; found && j < m; ++j) found = text[i + j] == pattern[j];
  if (found) {
    atomicAdd(count, 1);
    atomicMin(first, i);
  }
}

// Sum of x * y in double precision: a block adds its part.
extern "C" __global__ void ddot(const double* x, const double* y, double* out, int n) {
  __shared__ double parts[32];
  double sum = 0.0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum = fma(x[i], y[i], sum);
  for (int d = 16; d; d /= 2) sum += __shfl_down_sync(~0u, sum, d);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < blockDim.x / 32; ++i) sum += parts[i];
    atomicAdd(out, sum);
  }
}

// One thread computes one element and walks along k with both panels staged in shared memory.
extern "C" __global__ void sgemm(const float* a, const float* b, float* c, int m, int n, int k, float alpha, float beta) {
  __shared__ float left[16][16], right[16][17];
  int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
  float sum = 0.f;
  for (int base = 0; base < k; base += 16) {
    left[threadIdx.y][threadIdx.x] = row < m && base + threadIdx.x < k ? a[row * k + base + threadIdx.x] : 0.f;
    right[threadIdx.y][threadIdx.x] = column < n && base + threadIdx.y < k ? b[(base + threadIdx.y) * n + column] : 0.f;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; ++i) sum += left[threadIdx.y][i] * right[i][threadIdx.x];
    __syncthreads();
  }
  if (row < m && column < n) c[row * n + column] = alpha * sum + beta * c[row * n + column];
}

// 64x64 of the product for each block of 256 threads, 4x4 for each thread: registers, vector loads, double buffering.
extern "C" __global__ void __launch_bounds__(256) sgemm_tiled(const float* a, const float* b, float* c, int m, int n, int k) {
  __shared__ __align__(16) float left[2][8][64], right[2][8][64];
  int t = threadIdx.x, tx = t % 16, ty = t / 16, row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
  auto stage = [&](int buffer, int base) {
    for (int i = t; i < 8 * 64; i += 256) {
      int row = row0 + i / 8, p = base + i % 8;
      left[buffer][i % 8][i / 8] = row < m && p < k ? a[row * k + p] : 0.f;
      int column = column0 + i % 64, q = base + i / 64;
      right[buffer][i / 64][i % 64] = column < n && q < k ? b[q * n + column] : 0.f;
    }
  };
  float sum[4][4] = {};
  stage(0, 0);
  __syncthreads();
  for (int base = 0, now = 0; base < k; base += 8, now ^= 1) {
    if (base + 8 < k) stage(now ^ 1, base + 8);
#pragma unroll
    for (int p = 0; p < 8; ++p) {
      float4 u = *reinterpret_cast<float4*>(&left[now][p][4 * ty]), v = *reinterpret_cast<float4*>(&right[now][p][4 * tx]);
      float x[4] = {u.x, u.y, u.z, u.w}, y[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      int row = row0 + 4 * ty + i, column = column0 + 4 * tx + j;
      if (row < m && column < n) c[row * n + column] = sum[i][j];
    }
}
