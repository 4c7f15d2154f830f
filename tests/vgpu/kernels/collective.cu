// Kernels whose threads work together: reductions, softmax, layernorm, scans, sorting, histograms, warps' votes, barriers.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

constexpr unsigned ALL = 0xffffffffu;

__device__ float warp_sum(float x) {
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(ALL, x, d);
  return x;
}

__device__ float warp_max(float x) {
  for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, d));
  return x;
}

// The sum (or maximum) of a value of each thread of the block, known to all of them.
template <bool MAXIMUM>
__device__ float block_reduce(float x) {
  __shared__ float parts[32];
  int warps = (blockDim.x + 31) / 32;
  x = MAXIMUM ? warp_max(x) : warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : (MAXIMUM ? -INFINITY : 0.f);
  return MAXIMUM ? warp_max(x) : warp_sum(x);
}

extern "C" __global__ void block_sum(const float* x, float* out, int n) {
  float sum = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = block_reduce<false>(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// A tree in shared memory; the last warp needs no barrier but __syncwarp.
extern "C" __global__ void tree_sum(const int* x, int* out, int n) {
  __shared__ int s[256];
  int t = threadIdx.x, i = blockIdx.x * 512 + t;
  s[t] = (i < n ? x[i] : 0) + (i + 256 < n ? x[i + 256] : 0);
  __syncthreads();
  for (int d = 128; d >= 32; d /= 2) {
    if (t < d) s[t] += s[t + d];
    __syncthreads();
  }
  if (t < 32) {
    for (int d = 16; d; d /= 2) {
      int v = s[t] + (t < d ? s[t + d] : 0);
      __syncwarp();
      s[t] = v;
      __syncwarp();
    }
  }
  if (t == 0) out[blockIdx.x] = s[0];
}

extern "C" __global__ void softmax(const float* x, float* out, int columns) {
  x += blockIdx.x * (size_t)columns;
  out += blockIdx.x * (size_t)columns;
  float top = -INFINITY, sum = 0.f;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) top = fmaxf(top, x[i]);
  top = block_reduce<true>(top);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __expf(x[i] - top);
  sum = block_reduce<false>(sum);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) out[i] = __expf(x[i] - top) / sum;
}

// Welford's mean and variance, merged by shuffles.
extern "C" __global__ void layernorm(const float* x, const float* gain, const float* bias, float* out, int columns, float eps) {
  __shared__ float3 parts[32];
  x += blockIdx.x * (size_t)columns;
  out += blockIdx.x * (size_t)columns;
  float count = 0.f, mean = 0.f, m2 = 0.f;
  auto merge = [&](float c, float m, float q) {
    float all = count + c;
    if (all == 0.f) return;
    float d = m - mean;
    mean += d * (c / all);
    m2 += q + d * d * (count * c / all);
    count = all;
  };
  for (int i = threadIdx.x; i < columns; i += blockDim.x) merge(1.f, x[i], 0.f);
  for (int d = 16; d; d /= 2)
    merge(__shfl_down_sync(ALL, count, d), __shfl_down_sync(ALL, mean, d), __shfl_down_sync(ALL, m2, d));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = make_float3(count, mean, m2);
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < blockDim.x / 32; ++w) merge(parts[w].x, parts[w].y, parts[w].z);
    parts[0] = make_float3(count, mean, m2);
  }
  __syncthreads();
  mean = parts[0].y;
  float scale = rsqrtf(parts[0].z / columns + eps);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) out[i] = (x[i] - mean) * scale * gain[i] + bias[i];
}

// Blelloch's work-efficient exclusive scan of 512 elements a block, each block for itself; its total goes to `totals`.
extern "C" __global__ void blelloch(const int* x, int* out, int* totals, int n) {
  extern __shared__ int s[];
  int t = threadIdx.x, width = 2 * blockDim.x, base = blockIdx.x * width;
  s[2 * t] = base + 2 * t < n ? x[base + 2 * t] : 0;
  s[2 * t + 1] = base + 2 * t + 1 < n ? x[base + 2 * t + 1] : 0;
  int offset = 1;
  for (int d = width / 2; d > 0; d /= 2, offset *= 2) {
    __syncthreads();
    if (t < d) s[offset * (2 * t + 2) - 1] += s[offset * (2 * t + 1) - 1];
  }
  if (t == 0) {
    totals[blockIdx.x] = s[width - 1];
    s[width - 1] = 0;
  }
  for (int d = 1; d < width; d *= 2) {
    offset /= 2;
    __syncthreads();
    if (t < d) {
      int i = offset * (2 * t + 1) - 1, j = offset * (2 * t + 2) - 1, v = s[i];
      s[i] = s[j];
      s[j] += v;
    }
  }
  __syncthreads();
  if (base + 2 * t < n) out[base + 2 * t] = s[2 * t];
  if (base + 2 * t + 1 < n) out[base + 2 * t + 1] = s[2 * t + 1];
}

// Inclusive scan in one pass (decoupled look-back): a block waits for the flags of those with earlier tickets. A state is
// (value << 2 | flag): 1 where it is the sum of one block, 2 where it is the sum of all up to there.
extern "C" __global__ void lookback_scan(const int* x, int* out, unsigned long long* states, unsigned* ticket, int n) {
  __shared__ int parts[8];
  __shared__ int tile, before;
  if (threadIdx.x == 0) tile = atomicAdd(ticket, 1u);
  __syncthreads();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = tile * 256 + threadIdx.x, v = i < n ? x[i] : 0;
  for (int d = 1; d < 32; d *= 2) {
    int u = __shfl_up_sync(ALL, v, d);
    if (lane >= d) v += u;
  }
  if (lane == 31) parts[warp] = v;
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < 8; ++w) {
    if (w == warp) v += sum;
    sum += parts[w];
  }
  if (threadIdx.x == 0) {
    volatile unsigned long long* state = states;
    int found = 0;
    if (tile > 0) {
      state[tile] = (unsigned long long)(unsigned)sum << 2 | 1;
      for (int look = tile - 1;;) {
        unsigned long long s = state[look];
        if ((s & 3) == 0) continue;
        found += (int)(unsigned)(s >> 2);
        if ((s & 3) == 2) break;
        --look;
      }
    }
    state[tile] = (unsigned long long)(unsigned)(found + sum) << 2 | 2;
    before = found;
  }
  __syncthreads();
  if (i < n) out[i] = v + before;
}

__device__ unsigned finished = 0;

// The sum of everything in one launch: the block that ends last adds the parts of all the others.
extern "C" __global__ void last_block_sum(const float* x, volatile float* parts, float* out, int n) {
  __shared__ bool last;
  float sum = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = block_reduce<false>(sum);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = sum;
    __threadfence();
    last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last) {
    sum = 0.f;
    for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += parts[i];
    sum = block_reduce<false>(sum);
    if (threadIdx.x == 0) *out = sum;
  }
}

__device__ unsigned arrived = 0;

// All blocks meet `rounds` times; in each round an element becomes the sum of its neighbours on a ring.
extern "C" __global__ void grid_barrier(float* a, float* b, int n, int rounds) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int r = 0; r < rounds; ++r) {
    if (i < n) __stcg(b + i, __ldcg(a + (i + 1) % n) + __ldcg(a + (i + n - 1) % n));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      atomicAdd(&arrived, 1u);
      while (*(volatile unsigned*)&arrived < (r + 1) * gridDim.x) __nanosleep(100);
      __threadfence();
    }
    __syncthreads();
    float* c = a;
    a = b;
    b = c;
  }
}

extern "C" __global__ void bitonic(unsigned* keys, int n) {
  extern __shared__ unsigned k[];
  int t = threadIdx.x, width = 2 * blockDim.x, base = blockIdx.x * width;
  for (int i = t; i < width; i += blockDim.x) k[i] = base + i < n ? keys[base + i] : 0xffffffffu;
  for (int size = 2; size <= width; size *= 2)
    for (int stride = size / 2; stride; stride /= 2) {
      __syncthreads();
      int i = 2 * t - (t & (stride - 1)), j = i + stride;
      bool up = (t & (size / 2)) == 0;
      if ((k[i] > k[j]) == up) {
        unsigned swap = k[i];
        k[i] = k[j];
        k[j] = swap;
      }
    }
  __syncthreads();
  for (int i = t; i < width; i += blockDim.x)
    if (base + i < n) keys[base + i] = k[i];
}

extern "C" __global__ void histogram(const unsigned char* x, unsigned* bins, int n) {
  __shared__ unsigned mine[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) mine[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&mine[x[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (mine[i]) atomicAdd(&bins[i], mine[i]);
}

// What a warp's threads learn of each other's values: seven answers a thread.
extern "C" __global__ void warp_votes(const int* x, unsigned* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, v = x[i], same;
  unsigned* mine = out + 8 * i;
  mine[0] = __ballot_sync(ALL, v > 0);
  mine[1] = __any_sync(ALL, v > 6) | __all_sync(ALL, v < 7) << 1 | (__all_sync(ALL, v == 3) << 2);
  mine[2] = __match_any_sync(ALL, v);
  mine[3] = __match_all_sync(ALL, v, &same);
  mine[3] += 2 * same;
  mine[4] = __reduce_add_sync(ALL, v);
  mine[5] = __reduce_max_sync(ALL, v) & 0xffff | __reduce_min_sync(ALL, v) << 16;
  mine[6] = __reduce_xor_sync(ALL, (unsigned)v);
  if (v & 1)  // only the odd ones, in a branch
    mine[7] = __ballot_sync(__activemask(), v > 2);
  else
    mine[7] = __shfl_sync(__activemask(), v, 31 - __clz(__activemask()));
}

// Shuffles in pieces of a warp: 2-D prefix sums over rows of eight, rotation, broadcast, and 64-bit values.
extern "C" __global__ void shuffles(const int* x, int* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, v = x[i], sum = v;
  for (int d = 1; d < 8; d *= 2) {
    int u = __shfl_up_sync(ALL, sum, d, 8);
    if (lane % 8 >= d) sum += u;
  }
  int* mine = out + 6 * i;
  mine[0] = sum;
  mine[1] = __shfl_sync(ALL, v, lane + 5, 16);
  mine[2] = __shfl_down_sync(ALL, v, 3, 4);
  mine[3] = __shfl_xor_sync(ALL, v, 31);
  long long wide = __shfl_xor_sync(ALL, (long long)v << 33, 1);
  mine[4] = (int)(wide >> 32);
  mine[5] = __shfl_sync(ALL, v, -1);
}

extern "C" __global__ void groups(const int* x, int* out, int n) {
  auto block = cg::this_thread_block();
  auto tile = cg::tiled_partition<8>(block);
  int i = block.group_index().x * block.size() + block.thread_rank();
  int v = i < n ? x[i] : 0;
  int sum = cg::reduce(tile, v, cg::plus<int>());
  int top = cg::reduce(tile, v, cg::greater<int>());
  int rank = cg::exclusive_scan(tile, v);
  if (i < n && v % 3 == 0) {  // the threads that happen to be here
    auto here = cg::coalesced_threads();
    int leader = here.shfl(v, 0);
    out[4 * i + 3] = here.thread_rank() * 1000 + here.size() * 10 + (leader == v);
  } else if (i < n) {
    out[4 * i + 3] = -1;
  }
  tile.sync();
  if (i < n) {
    out[4 * i] = sum;
    out[4 * i + 1] = top;
    out[4 * i + 2] = rank;
  }
}

extern "C" __global__ void block_votes(const int* x, int* out) {
  int v = x[blockIdx.x * blockDim.x + threadIdx.x];
  int count = __syncthreads_count(v > 0), any = __syncthreads_or(v > 8), all = __syncthreads_and(v < 9);
  if (threadIdx.x == 0) {
    out[3 * blockIdx.x] = count;
    out[3 * blockIdx.x + 1] = any != 0;
    out[3 * blockIdx.x + 2] = all != 0;
  }
}

// Two warps make, two warps take: buffers change hands by named barriers.
extern "C" __global__ void producer_consumer(const int* x, int* out, int rounds) {
  __shared__ int buffer[2][64];
  auto arrive = [](int id) { asm volatile("bar.arrive %0, 128;" ::"r"(id) : "memory"); };
  auto wait = [](int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); };
  int t = threadIdx.x % 64;  // barriers 1, 2: full; 3, 4: empty
  if (threadIdx.x < 64) {
    for (int r = 0; r < rounds; ++r) {
      if (r >= 2) wait(3 + r % 2);
      buffer[r % 2][t] = x[r * 64 + t] * 3;
      arrive(1 + r % 2);
    }
  } else {
    for (int r = 0; r < rounds; ++r) {
      wait(1 + r % 2);
      out[r * 64 + t] = buffer[r % 2][63 - t] + r;
      if (r + 2 < rounds) arrive(3 + r % 2);
    }
  }
}

// Levels of a graph in compressed rows from vertex 0, in one block: threads take vertices until no level changes.
extern "C" __global__ void bfs(const int* rows, const int* neighbours, int* level, int n) {
  for (int depth = 0;; ++depth) {
    int found = 0;
    for (int v = threadIdx.x; v < n; v += blockDim.x)
      if (level[v] == depth)
        for (int e = rows[v]; e < rows[v + 1]; ++e)
          if (atomicCAS(&level[neighbours[e]], -1, depth + 1) == -1) found = 1;
    if (!__syncthreads_or(found)) break;
  }
}
