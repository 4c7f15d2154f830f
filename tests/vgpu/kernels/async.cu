// Asynchronous copies and barriers in shared memory through the toolkit's own C++ interfaces.

#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include <cuda/pipeline>

namespace cg = cooperative_groups;
#pragma nv_diag_suppress static_var_with_dynamic_init
using Barrier = cuda::barrier<cuda::thread_scope_block>;

// Each round: write, arrive, do something else, wait, read another thread's.
extern "C" __global__ void split_barrier(const int* x, int* out, int rounds) {
  __shared__ int s[2][128];
  __shared__ Barrier barrier;
  int t = threadIdx.x, n = blockDim.x;
  if (t == 0) init(&barrier, n);
  __syncthreads();
  int v = x[blockIdx.x * n + t], other = 0;
  for (int r = 0; r < rounds; ++r) {
    s[r % 2][t] = v;
    auto token = barrier.arrive();
    other += r * t;
    barrier.wait(std::move(token));
    v += s[r % 2][(t + 1) % n];
  }
  out[blockIdx.x * n + t] = v + other;
}

// Rows of 128 floats stream through two stages; every thread copies its own element.
extern "C" __global__ void pipeline_sum(const float* x, float* out, int rows) {
  __shared__ float stages[2][128];
  auto pipe = cuda::make_pipeline();
  int t = threadIdx.x;
  float sum = 0.f;
  for (int fetch = 0, r = 0; r < rows; ++r) {
    for (; fetch < rows && fetch < r + 2; ++fetch) {
      pipe.producer_acquire();
      cuda::memcpy_async(&stages[fetch % 2][t], x + fetch * 128 + t, sizeof(float), pipe);
      pipe.producer_commit();
    }
    cuda::pipeline_consumer_wait_prior<1>(pipe);
    if (r + 1 == rows) cuda::pipeline_consumer_wait_prior<0>(pipe);
    __syncthreads();
    sum += stages[r % 2][127 - t] * (r + 1);
    __syncthreads();
    pipe.consumer_release();
  }
  out[t] = sum;
}

// A block's threads copy a tile together and wait for all of it.
extern "C" __global__ void group_copy(const int* x, int* out, int n) {
  extern __shared__ __align__(16) int tile[];
  auto block = cg::this_thread_block();
  int base = blockIdx.x * 256, count = min(256, n - base);
  cg::memcpy_async(block, tile, x + base, sizeof(int) * count);
  cg::wait(block);
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[base + i] = tile[count - 1 - i];
}

// Copies that arrive on a barrier in shared memory.
extern "C" __global__ void barrier_copy(const int4* x, int4* out) {
  __shared__ __align__(16) int4 tile[64];
  __shared__ Barrier barrier;
  if (threadIdx.x == 0) init(&barrier, blockDim.x);
  __syncthreads();
  cuda::memcpy_async(tile + threadIdx.x, x + blockIdx.x * 64 + threadIdx.x, cuda::aligned_size_t<16>(16), barrier);
  barrier.arrive_and_wait();
  int4 v = tile[63 - threadIdx.x];
  v.x += 1;
  out[blockIdx.x * 64 + threadIdx.x] = v;
}
