// Races in shared memory. With -DBUG each kernel has its fault, without it is right. `FIND kind` marks where it may be found.

#ifdef BUG
#define PICK(bug, clean) (bug)
#define BARRIER()
#define WARP_BARRIER()
#else
#define PICK(bug, clean) (clean)
#define BARRIER() __syncthreads()
#define WARP_BARRIER() __syncwarp()
#endif

extern "C" {

__global__ void no_barrier(const int* x, int* out) {
  __shared__ int s[128];
  s[threadIdx.x] = x[threadIdx.x];
  BARRIER();
  out[threadIdx.x] = s[127 - threadIdx.x];  // FIND shared-race
}

__global__ void tile_begin(const int* x, int* out, int tiles) {
  __shared__ int s[64];
  int sum = 0;
  for (int r = 0; r < tiles; ++r) {
    s[threadIdx.x] = x[r * 64 + threadIdx.x];  // FIND shared-race
    BARRIER();
    sum += s[63 - threadIdx.x] * r;  // FIND shared-race
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void tile_end(const int* x, int* out, int tiles) {
  __shared__ int s[64];
  int sum = 0;
  for (int r = 0; r < tiles; ++r) {
    s[threadIdx.x] = x[r * 64 + threadIdx.x];  // FIND shared-race
    __syncthreads();
    sum += s[63 - threadIdx.x] * r;  // FIND shared-race
    BARRIER();
  }
  out[threadIdx.x] = sum;
}

__global__ void tree(const int* x, int* out) {
  __shared__ int s[128];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int d = 64; d; d /= 2) {
    if (t < d) s[t] += s[t + d];  // FIND shared-race
    BARRIER();
  }
  if (t == 0) out[0] = s[0];  // FIND shared-race
}

__global__ void last_warp(const int* x, int* out) {
  __shared__ int s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  if (t < 32) {
    for (int d = 32; d; d /= 2) {
      int v = s[t] + s[t + d];  // FIND shared-race
      WARP_BARRIER();
      if (t < d) s[t] = v;  // FIND shared-race
      WARP_BARRIER();
    }
    if (t == 0) out[0] = s[0];
  }
}

__global__ void double_buffer(const int* x, int* out, int rounds) {
  __shared__ int s[2][64];
  int t = threadIdx.x, sum = 0;
  s[0][t] = x[t];
  __syncthreads();
  for (int r = 0; r < rounds; ++r) {
    if (r + 1 < rounds) s[(r + PICK(2, 1)) % 2][t] = x[(r + 1) * 64 + t];  // FIND shared-race
    sum += s[r % 2][63 - t];  // FIND shared-race
    __syncthreads();
  }
  out[t] = sum;
}

__global__ void two_writers(const int* x, int* out) {
  __shared__ int s[64];
  int t = threadIdx.x;
  s[PICK(t / 2, t)] = x[t];  // FIND shared-race
  __syncthreads();
  if (t < 32) out[t] = s[t];
}

__global__ void flag(const int* x, int* out) {
  __shared__ int found;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  if (x[threadIdx.x] > 0) found = PICK(threadIdx.x + 1, 1);  // FIND shared-race
  __syncthreads();
  if (threadIdx.x == 0) out[0] = found;
}

__global__ void in_place(const int* x, int* out) {
  __shared__ int s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  int v = s[t] + s[(t + 1) % 64];  // FIND shared-race
  BARRIER();
  s[t] = v;  // FIND shared-race
  __syncthreads();
  out[t] = s[63 - t];
}

__global__ void hillis_steele(const int* x, int* out) {
  __shared__ int s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int d = 1; d < 64; d *= 2) {
    int v = t >= d ? s[t - d] : 0;  // FIND shared-race
    BARRIER();
    s[t] += v;  // FIND shared-race
    __syncthreads();
  }
  out[t] = s[t];
}

__global__ void bins(const int* x, int* out) {
  __shared__ int s[8];
  if (threadIdx.x < 8) s[threadIdx.x] = 0;
  __syncthreads();
#ifdef BUG
  s[x[threadIdx.x] % 8]++;  // FIND shared-race
#else
  atomicAdd(&s[x[threadIdx.x] % 8], 1);
#endif
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = s[threadIdx.x];
}

__global__ void bins_read_early(const int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&s[63 - x[threadIdx.x]], 1);  // FIND shared-race
  BARRIER();
  out[threadIdx.x] = s[threadIdx.x];  // FIND shared-race
}

__global__ void bins_cleared_late(const int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = 0;  // FIND shared-race
  BARRIER();
  atomicAdd(&s[63 - x[threadIdx.x]], 1);  // FIND shared-race
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void broadcast(const int* x, int* out) {
  __shared__ int total;
  if (threadIdx.x == 0) total = x[0] * 7;  // FIND shared-race
  BARRIER();
  out[threadIdx.x] = total;  // FIND shared-race
}

__device__ __noinline__ int block_sum(int v, int* parts) {
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;  // FIND shared-race
  __syncthreads();
  return parts[0] + parts[1];  // FIND shared-race
}

__global__ void reduced_twice(const int* x, int* out) {
  __shared__ int parts[2];
  int a = block_sum(x[threadIdx.x], parts);  // FIND shared-race
  BARRIER();
  int b = block_sum(x[threadIdx.x] * a, parts);  // FIND shared-race
  out[threadIdx.x] = b;
}

__global__ void warp_exchange(const int* x, int* out) {
  __shared__ int s[32];
  s[threadIdx.x] = x[threadIdx.x];
  WARP_BARRIER();
  out[threadIdx.x] = s[31 - threadIdx.x];  // FIND shared-race
}

__global__ void warp_barrier_too_weak(const int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
#ifdef BUG
  __syncwarp();
#else
  __syncthreads();
#endif
  out[threadIdx.x] = s[63 - threadIdx.x];  // FIND shared-race
}

__global__ void bytes(const int* x, int* out) {
  __shared__ short s[64];
  int t = threadIdx.x;
  if (t == 0) s[63] = 0;
  __syncthreads();
#ifdef BUG
  if (t % 2 == 0) *reinterpret_cast<int*>(&s[t]) = x[t];  // FIND shared-race
  if (t % 2 == 1) s[t] = (short)x[t];  // FIND shared-race
#else
  s[t] = (short)x[t];
#endif
  __syncthreads();
  out[t] = s[t];
}

__global__ void transposed_in_place(const int* x, int* out) {
  __shared__ int s[8][8];
  int i = threadIdx.x / 8, j = threadIdx.x % 8;
  s[i][j] = x[threadIdx.x];
  __syncthreads();
#ifdef BUG
  s[j][i] = s[i][j];  // FIND shared-race
#else
  int v = s[i][j];
  __syncthreads();
  s[j][i] = v;
#endif
  __syncthreads();
  out[threadIdx.x] = s[i][j];
}

__global__ void named_barriers(const int* x, int* out) {
  __shared__ int s[64];
  int t = threadIdx.x, v = 0;
  if (t < 32) {
    s[t] = x[t];  // FIND shared-race
    asm volatile("bar.arrive 1, 64;" ::: "memory");
  } else {
#ifndef BUG
    asm volatile("bar.sync 1, 64;" ::: "memory");
#endif
    v = s[63 - t];  // FIND shared-race
#ifdef BUG
    asm volatile("bar.sync 1, 64;" ::: "memory");
#endif
    out[t - 32] = v;
  }
}

}  // extern "C"
