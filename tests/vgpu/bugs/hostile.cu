// Faults that a hostile examiner would plant: partial tiles, second iterations, missing halves of a protocol. With -DBUG each kernel
// has its fault, without it is right. `FIND kind` marks where it may be found; on a signature: anywhere.

#include <cooperative_groups.h>

#ifdef BUG
#define PICK(bug, clean) (bug)
#define BARRIER()
#define WARP_BARRIER()
#define FENCE()
#else
#define PICK(bug, clean) (clean)
#define BARRIER() __syncthreads()
#define WARP_BARRIER() __syncwarp()
#define FENCE() __threadfence()
#endif

namespace cg = cooperative_groups;

extern "C" {

// ---- partial tiles
__global__ void tile_columns(const float* x, float* out, int n) {  // out = transposed x, n by n, tiles of 8
  __shared__ float s[8][9];
  int row = blockIdx.y * 8 + threadIdx.y, column = blockIdx.x * 8 + threadIdx.x;
  if (row < n && PICK(true, column < n)) s[threadIdx.y][threadIdx.x] = x[row * n + column];  // FIND out-of-bounds
  __syncthreads();
  row = blockIdx.x * 8 + threadIdx.y, column = blockIdx.y * 8 + threadIdx.x;
  if (row < n && column < n) out[row * n + column] = s[threadIdx.x][threadIdx.y];
}

__global__ void tile_not_filled(const float* x, float* out, int n) {  // sums of 8 rows; the last tile is short
  __shared__ float s[8][8];
  float sum = 0;
  for (int first = 0; first < n; first += 8) {
    int at = first + threadIdx.x % 8;
    if (PICK(at < n, true)) s[threadIdx.x / 8][threadIdx.x % 8] = at < n ? x[threadIdx.x / 8 * n + at] : 0.f;
    __syncthreads();
    if (threadIdx.x < 8 && (n > 8 || first == 0))
      for (int i = 0; i < 8; ++i) sum += s[threadIdx.x][i];  // FIND uninitialised
    __syncthreads();
  }
  if (threadIdx.x < 8) out[threadIdx.x] = sum;
}

__global__ void ragged_row(const int* x, int* out) {
  __shared__ int s[8][9];
  int t = threadIdx.x;
  s[t / 8][t % 8] = x[t];
  if (t < PICK(7, 8)) s[t][8] = 1;
  __syncthreads();
  if (t < 8) {
    int sum = 0;
    for (int i = 0; i < 9; ++i) sum += s[t][i];  // FIND uninitialised
    out[t] = sum;
  }
}

__global__ void sum_of_100(const int* x, int* out, int n) {
  __shared__ int s[128];
  int t = threadIdx.x;
  s[t] = x[t];
#ifndef BUG
  if (t + n < 128) s[t + n] = 0;
#endif
  __syncthreads();
  for (int d = 64; d; d /= 2) {
    if (t < d) s[t] += s[t + d];  // FIND uninitialised
    __syncthreads();
  }
  if (t == 0) out[0] = s[0];
}

__global__ void bins_all_but_one(const int* x, int* out) {
  __shared__ int s[64];
  if (threadIdx.x < PICK(63, 64)) s[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&s[x[threadIdx.x]], 1);  // FIND uninitialised
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void partial_warp(const int* x, int* out, int n) {  // blocks of 40 threads
  __shared__ int parts[2];
  int t = threadIdx.x, v = x[t];
  unsigned mask = PICK(~0u, t < 32 ? ~0u : (1u << (n - 32)) - 1);
  for (int d = PICK(16, t < 32 ? 16 : 4); d; d /= 2)
    v += __shfl_down_sync(mask, v, d, PICK(32, t < 32 ? 32 : 8));  // FIND absent-lanes
  if (t % 32 == 0) parts[t / 32] = v;
  __syncthreads();
  if (t == 0) out[0] = parts[0] + parts[1];
}

__global__ void warps_rounded_down(const int* x, int* out, int n) {  // blocks of 40 threads
  __shared__ int parts[2];
  int t = threadIdx.x, v = x[t];
  unsigned mask = __activemask();
  v = __reduce_add_sync(mask, v);
  if (t % 32 == 0 && t / 32 < PICK(n / 32, (n + 31) / 32)) parts[t / 32] = v;
  __syncthreads();
  if (t == 0) out[0] = parts[0] + parts[1];  // FIND uninitialised
}

// ---- places
__global__ void counts_down(const int* x, int* out, int n) {
  int sum = 0;
  for (unsigned i = n - 1; PICK(i + 2 > 0u && i + 2 != 0u, i + 1 > 0u); --i) sum += x[i];  // FIND out-of-bounds
  out[threadIdx.x] = sum;
}

__global__ void store_by_offset(float* out, int offset) {
  *reinterpret_cast<float4*>(out + 4 * threadIdx.x + offset) = make_float4(1, 2, 3, 4);  // FIND misaligned
}

__global__ void three_of_four(float4* points, float* out) {
  if (PICK(true, false)) {
    reinterpret_cast<float2*>(points)[2 * threadIdx.x] = make_float2(1, 2);
    reinterpret_cast<float*>(points)[4 * threadIdx.x + 2] = 3;
  } else {
    points[threadIdx.x] = make_float4(1, 2, 3, 4);
  }
  float4 p;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"  // FIND uninitialised
               : "=f"(p.x), "=f"(p.y), "=f"(p.z), "=f"(p.w) : "l"(points + threadIdx.x) : "memory");  // FIND uninitialised
  out[threadIdx.x] = p.x + p.y + p.z;
}

__device__ __noinline__ void fill(int* a, int n) {
  for (int i = 0; i < n; ++i) a[i] = i;  // FIND out-of-bounds
}
__global__ void callers_array(int* out, int n) {
  int a[8];
  fill(a, n + PICK(1, 0));  // FIND out-of-bounds
  out[threadIdx.x] = a[threadIdx.x % 8];
}

__global__ void static_neighbour(const int* x, int* out) {
  __shared__ int a[32], b[32];
  int t = threadIdx.x;
  b[t] = 1;
  a[t + PICK(1, 0)] = x[t];  // FIND out-of-bounds
  __syncthreads();
  out[t] = b[t] + a[31 - t];
}

__global__ void static_into_dynamic(const int* x, int* out) {
  __shared__ int a[32];
  extern __shared__ int dynamic[];
  int t = threadIdx.x;
  dynamic[t] = 1;
  a[t] = x[t];
  __syncthreads();
  out[t] = dynamic[t] + a[t + PICK(1, 0)];  // FIND out-of-bounds
}

__global__ void carved_wrong(const int* x, int* out, int n) {  // dynamic: n floats, then n doubles
  extern __shared__ __align__(8) char raw[];
  float* a = reinterpret_cast<float*>(raw);
  double* b = reinterpret_cast<double*>(raw + PICK(n * 8, n * 4));
  int t = threadIdx.x;
  a[t] = x[t];
  b[t] = x[t];  // FIND out-of-bounds
  __syncthreads();
  out[t] = (int)(a[n - 1 - t] + b[t]);
}

__device__ int table_a[16], table_b[16];
__global__ void device_neighbour(int* out, int n) {
  int t = threadIdx.x;
  table_b[t % 16] = 5;
  table_a[t % 16 + PICK(n, 0)] = 1;  // FIND out-of-bounds
  __syncthreads();
  out[t] = table_a[t % 16] + table_b[t % 16];
}

__global__ void shared_as_global(const int* x, int* out) {
  __shared__ int s[32];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  int v;
#ifdef BUG
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_shared(&s[threadIdx.x])));  // FIND out-of-bounds
#else
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_shared(&s[threadIdx.x])));
#endif
  out[threadIdx.x] = v;
}

__global__ void global_as_shared(const int* x, int* out) {
  int v;
#ifdef BUG
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "l"(x + threadIdx.x));  // FIND out-of-bounds
#else
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(x + threadIdx.x));
#endif
  out[threadIdx.x] = v;
}

__global__ void host_pointer(const int* x, int* out) {  // the bug is the host's: an address of its own
  out[threadIdx.x] = x[threadIdx.x];  // FIND out-of-bounds
}

__global__ void wrong_row_pitch(const float* x, float* out, int rows, int columns, int pitch) {
  for (int r = 0; r < rows; ++r)
    if (threadIdx.x < columns) out[r * columns + threadIdx.x] = x[r * PICK(pitch + 1, pitch) + threadIdx.x];  // FIND out-of-bounds
}

__global__ void shared_freed(int* out) {
  __shared__ int* p;
  if (threadIdx.x == 0) p = static_cast<int*>(malloc(64 * sizeof(int)));
  __syncthreads();
  p[threadIdx.x] = threadIdx.x;
  BARRIER();
  if (threadIdx.x == 0 && PICK(true, false)) free(p);
  __syncthreads();
  out[threadIdx.x] = p[63 - threadIdx.x];  // FIND use-after-free
  __syncthreads();
  if (threadIdx.x == 0 && PICK(false, true)) free(p);
}

__global__ void freed_inside(int* out) {  // FIND use-after-free
  int* p = static_cast<int*>(malloc(16));
  p[0] = 1;
  out[threadIdx.x] = p[0];
  if (PICK(true, false)) free(p + 1);
  free(p);
}

// ---- shared memory
__global__ void warp_synchronous(const int* x, int* out) {  // as everybody wrote it before Volta
  __shared__ int s[64];
  int t = threadIdx.x;
  volatile int* v = s;
  v[t] = x[t];
  __syncthreads();
  if (t < 32) {
    for (int d = 32; d; d /= 2) {
      int sum = v[t] + v[t + d];  // FIND shared-race
      WARP_BARRIER();
      if (t < d) v[t] = sum;  // FIND shared-race
      WARP_BARRIER();
    }
    if (t == 0) out[0] = v[0];
  }
}

__global__ void second_round(const int* x, int* out, int n) {
  __shared__ int done;
  int rounds = 0;
  if (threadIdx.x == 0) done = 0;
  __syncthreads();
  for (int r = 0; r < n; ++r) {
    if (x[r * 64 + threadIdx.x] > 60) done = r + 1;  // FIND shared-race
    __syncthreads();
    rounds += done == r + 1;  // FIND shared-race
    BARRIER();
  }
  out[threadIdx.x] = rounds;
}

__global__ void only_wide_blocks(const int* x, int* out) {  // right for 32 threads: one warp
  extern __shared__ int s[];
  int t = threadIdx.x, v = x[t];
  s[t] = v;
  if (PICK(blockDim.x > 64, blockDim.x > 32)) __syncthreads();
  else __syncwarp();
  out[t] = s[blockDim.x - 1 - t];  // FIND shared-race
}

__global__ void rows_of_33(const int* x, int* out) {  // the row's end belongs to the next warp
  __shared__ int s[65];
  int t = threadIdx.x;
  s[t] = x[t];
  if (t == 0) s[64] = 0;
  if (PICK(false, true)) __syncthreads();
  else __syncwarp();
  out[t] = s[t] + s[t + 1];  // FIND shared-race
}

__global__ void plain_beside_atomic(const int* x, int* out) {
  __shared__ int most;
  if (threadIdx.x == 0) most = 0;
  __syncthreads();
#ifdef BUG
  if (x[threadIdx.x] > most) most = x[threadIdx.x];  // FIND shared-race
#else
  atomicMax(&most, x[threadIdx.x]);
#endif
  __syncthreads();
  out[threadIdx.x] = most;
}

__global__ void three_stages(const int* x, int* out, int n) {  // a ring of 3, prefetched 2 ahead
  __shared__ int s[3][64];
  int t = threadIdx.x, sum = 0;
  s[0][t] = x[t];
  s[1][t] = x[64 + t];
  __syncthreads();
  for (int r = 0; r < n; ++r) {
    sum += s[r % 3][63 - t];  // FIND shared-race
    if (r + 2 < n) s[PICK(r + 3, r + 2) % 3][t] = x[(r + 2) * 64 + t];  // FIND shared-race
    __syncthreads();
  }
  out[t] = sum;
}

__global__ void two_barriers_crossed(const int* x, int* out) {  // producers and consumers agree on the wrong barrier
  __shared__ int s[32];
  int t = threadIdx.x;
  if (t < 32) {
    s[t] = x[t];
    asm volatile("bar.arrive 1, 64;" ::: "memory");
    asm volatile("bar.sync 2, 64;" ::: "memory");
    s[t] = 0;  // FIND shared-race
  } else {
    asm volatile("bar.sync 1, 64;" ::: "memory");
#ifdef BUG
    asm volatile("bar.arrive 2, 64;" ::: "memory");
    out[t - 32] = s[63 - t];  // FIND shared-race
#else
    out[t - 32] = s[63 - t];
    asm volatile("bar.arrive 2, 64;" ::: "memory");
#endif
  }
}

__global__ void tile_groups(const int* x, int* out) {
  __shared__ int s[64];
  auto tile = cg::tiled_partition<16>(cg::this_thread_block());
  int t = threadIdx.x;
  s[t] = x[t];
  tile.sync();
  out[t] = s[PICK(t ^ 16, t ^ 15)];  // FIND shared-race
}

// ---- barriers and votes
__global__ void trips_by_warp(const int* x, int* out, int n) {
  __shared__ int s[64];
  int t = threadIdx.x, sum = 0;
  for (int r = 0; r < n + PICK(t / 32, 0); ++r) {
    s[t] = x[t] + r;
    __syncthreads();  // FIND divergent-barrier
    sum += s[63 - t];
    __syncthreads();  // FIND divergent-barrier
  }
  out[t] = PICK(0, sum);
}

__global__ void barrier_past_break(const int* x, int* out, int n) {
  int t = threadIdx.x, sum = 0;
  for (int r = 0; r < n; ++r) {
    if (PICK(x[t] == r, false)) break;
    sum += x[t];
    __syncthreads();  // FIND divergent-barrier
  }
  out[t] = sum;
}

__global__ void source_has_left(const int* x, int* out) {
  int t = threadIdx.x, v = x[t];
  if (PICK(t != 5, true)) {
    unsigned mask = PICK(~(1u << 5), ~0u);
    out[t] = __shfl_sync(mask, v, 5);  // FIND absent-lanes
  } else {
    out[t] = v;
  }
}

__global__ void any_of_odd(const int* x, int* out) {
  int t = threadIdx.x;
  if (t % 2) out[t] = __any_sync(PICK(0x55555555u, 0xaaaaaaaau), x[t] > 5);  // FIND absent-lanes
}

__global__ void not_cooperative(const int* x, int* out) {  // FIND trap
  cg::this_grid().sync();
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void grid_sync_by_some(int* x, int* out) {  // FIND deadlock
  x[blockIdx.x * 32 + threadIdx.x] = blockIdx.x;
  if (PICK(blockIdx.x != 1, true)) cg::this_grid().sync();
  out[blockIdx.x * 32 + threadIdx.x] = PICK(0, x[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x]);
}

// ---- between blocks
__global__ void reversed_in_place(int* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < PICK(n, n / 2)) {
    int a = x[i], b = x[n - 1 - i];  // FIND global-race
    x[i] = b;  // FIND global-race
    if (PICK(false, true)) x[n - 1 - i] = a;
  }
}

__global__ void first_and_last(int* out) {  // only across the waves of a large grid
  if (threadIdx.x == 0 && (blockIdx.x == 0 || PICK(blockIdx.x == gridDim.x - 1, false))) out[0] = blockIdx.x + 1;  // FIND global-race
}

__global__ void cleared_by_first(const int* x, int* sum) {
  if (blockIdx.x == 0 && threadIdx.x == 0 && PICK(true, false)) *sum = 0;  // FIND global-race
  atomicAdd(sum, x[blockIdx.x * blockDim.x + threadIdx.x]);  // FIND global-race
}

__device__ unsigned arrived = 0;
__global__ void last_block_no_barrier(const int* x, int* parts, int* out) {  // every thread writes; one announces it
  __shared__ bool last;
  parts[blockIdx.x * 64 + threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x] * 3;
  __threadfence();
  BARRIER();
  if (threadIdx.x == 0) last = atomicInc(&arrived, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (last) {
    int sum = 0;
    for (int i = 0; i < gridDim.x; ++i) sum += parts[i * 64 + threadIdx.x];  // FIND global-race
    out[threadIdx.x] = sum;
  }
}

__device__ unsigned arrived_early = 0;
__global__ void announced_first(const int* x, int* parts, int* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    if (PICK(true, false)) last = atomicInc(&arrived_early, gridDim.x - 1) == gridDim.x - 1;
    parts[blockIdx.x] = x[blockIdx.x] * 3;  // FIND global-race
    __threadfence();
    if (PICK(false, true)) last = atomicInc(&arrived_early, gridDim.x - 1) == gridDim.x - 1;
    if (last) {
      int sum = 0;
      for (int i = 0; i < gridDim.x; ++i) sum += parts[i];  // FIND global-race
      *out = sum;
    }
  }
}

__global__ void one_waits_all_read(int* data, int* ready, int* out) {  // thread 0 saw the flag; the others were not told
  if (blockIdx.x == 0) {
    data[threadIdx.x] = threadIdx.x * 3;  // FIND global-race
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(ready, 1);
  } else {
    if (threadIdx.x == 0) {
      while (atomicAdd(ready, 0) == 0) {
      }
      __threadfence();
    }
    BARRIER();
    out[threadIdx.x] = data[threadIdx.x];  // FIND global-race
  }
}

__device__ int lock_word = 0;
__global__ void lock_without_fence(int* account) {
  if (threadIdx.x == 0) {
    while (atomicCAS(&lock_word, 0, 1) != 0) {
    }
    __threadfence();
    *account = *account + 1;  // FIND global-race
    FENCE();
    atomicExch(&lock_word, 0);
  }
}

__global__ void two_locks(int* locks, int* out) {  // each block takes one and wants the other
  if (threadIdx.x == 0) {
    int a = PICK(blockIdx.x % 2, 0), b = 1 - a;
    while (atomicCAS(&locks[a], 0, 1) != 0) {
    }
    __threadfence();
    while (atomicCAS(&locks[b], 0, 1) != 0) {  // FIND deadlock
    }
    __threadfence();
    *out = *out + 1;
    __threadfence();
    atomicExch(&locks[b], 0);
    atomicExch(&locks[a], 0);
  }
}

__global__ void look_back(const int* x, int* sums, int* flags, int* out) {  // a chained scan of block sums
  __shared__ int before;
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < 32; ++i) sum += x[blockIdx.x * 32 + i];
    int previous = 0;
    if (blockIdx.x > 0) {
      while (atomicAdd(&flags[blockIdx.x - 1], 0) == 0) {
      }
      __threadfence();
      previous = sums[blockIdx.x - 1];  // FIND global-race
    }
    sums[blockIdx.x] = previous + sum;
    FENCE();
    atomicExch(&flags[blockIdx.x], 1);
    before = previous;
  }
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = before;
}

__global__ void barrier_of_blocks(int* count, int* data, int* out) {
  data[blockIdx.x * 32 + threadIdx.x] = blockIdx.x;
  FENCE();
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(count, 1);
    while (*(volatile int*)count < gridDim.x) {
    }
    __threadfence();
  }
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = data[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x];  // FIND global-race
}

}  // extern "C"
