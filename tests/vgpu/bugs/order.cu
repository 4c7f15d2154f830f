// What blocks, barriers and warps get wrong. With -DBUG each kernel has its fault, without it is right. `FIND kind` marks where it
// may be found; on a signature: anywhere.

#include <cassert>

#ifdef BUG
#define PICK(bug, clean) (bug)
#else
#define PICK(bug, clean) (clean)
#endif

extern "C" {

// ---- between blocks
__global__ void shared_sums(const int* x, int* out) {
#ifdef BUG
  out[threadIdx.x] += x[blockIdx.x * blockDim.x + threadIdx.x];  // FIND global-race
#else
  atomicAdd(&out[threadIdx.x], x[blockIdx.x * blockDim.x + threadIdx.x]);
#endif
}

__global__ void counter(const int* x, int* out) {
  if (threadIdx.x == 0) {
#ifdef BUG
    *out += x[blockIdx.x];  // FIND global-race
#else
    atomicAdd(out, x[blockIdx.x]);
#endif
  }
}

__global__ void stencil_in_place(int* x, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i + 1 < n) PICK(x, out)[i] = x[i] + x[i + 1];  // FIND global-race
}

__global__ void rows_overlap(int* out, int columns) {
  for (int i = threadIdx.x; i < columns + PICK(1, 0); i += blockDim.x) out[blockIdx.x * columns + i] = blockIdx.x;  // FIND global-race
}

__global__ void found(const int* x, int* out) {
  if (x[blockIdx.x * blockDim.x + threadIdx.x] > 0) *out = PICK(blockIdx.x, 1);  // FIND global-race
}

__device__ unsigned finished = 0;
__global__ void last_block(const int* x, int* parts, int* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = x[blockIdx.x] * 3;
#ifndef BUG
    __threadfence();
#endif
    last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < gridDim.x; ++i) sum += parts[i];  // FIND global-race
    *out = sum;
  }
}

__global__ void mailbox(int* data, int* ready, int* out) {
  volatile int* flag = ready;
  if (blockIdx.x == 0) {
    data[threadIdx.x] = threadIdx.x * 3;
#ifndef BUG
    __threadfence();
#endif
    __syncthreads();
    if (threadIdx.x == 0) *flag = 1;
  } else {
    if (threadIdx.x == 0)
      while (*flag == 0) {
      }
    __syncthreads();
    __threadfence();
    out[threadIdx.x] = data[threadIdx.x];  // FIND global-race
  }
}

__global__ void neighbours_result(int* x, int* out) {
  x[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x;
#ifdef BUG
  out[blockIdx.x * blockDim.x + threadIdx.x] = x[(blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x];  // FIND global-race
#else
  out[blockIdx.x * blockDim.x + threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x] + 1;
#endif
}

__global__ void sum_read_early(const int* x, int* sum, int* out) {
  if (threadIdx.x == 0) {
    atomicAdd(sum, x[blockIdx.x]);  // FIND global-race
#ifdef BUG
    out[blockIdx.x] = *sum;  // FIND global-race
#else
    out[blockIdx.x] = 1;
#endif
  }
}

// ---- barriers
__global__ void barrier_in_branch(const int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
#ifdef BUG
  if (threadIdx.x < 48) __syncthreads();  // FIND divergent-barrier
  out[threadIdx.x] = x[threadIdx.x];
#else
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
#endif
  __syncthreads();  // FIND divergent-barrier
}

__global__ void early_return(const int* x, int* out, int n) {
  __shared__ int s[64];
#ifdef BUG
  if (threadIdx.x >= n) return;
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // FIND divergent-barrier
  out[threadIdx.x] = s[n - 1 - threadIdx.x];
#else
  if (threadIdx.x < n) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < n) out[threadIdx.x] = s[n - 1 - threadIdx.x];
#endif
}

__global__ void barrier_in_loop(const int* x, int* out) {
  int sum = 0;
  for (int i = 0; i < (PICK((int)threadIdx.x % 3 + 1, 3)); ++i) {
    sum += x[threadIdx.x] + i;
    __syncthreads();  // FIND divergent-barrier
  }
  out[threadIdx.x] = sum;
}

__global__ void votes_in_branch(const int* x, int* out) {
  int count = 0;
  if (PICK(x[threadIdx.x] > 0, true)) count = __syncthreads_count(x[threadIdx.x] > 0);  // FIND divergent-barrier
  out[threadIdx.x] = count;
}

__global__ void wrong_count(const int* x, int* out) {
  if (threadIdx.x < 64) asm volatile("bar.sync 1, %0;" ::"r"(PICK(96, 64)) : "memory");  // FIND deadlock
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void crossed(const int* x, int* out) {
  int first = threadIdx.x < 32 ? 1 : 2;
  asm volatile("bar.sync %0, 64;" ::"r"(PICK(first, 1)) : "memory");  // FIND deadlock
  asm volatile("bar.sync %0, 64;" ::"r"(PICK(3 - first, 2)) : "memory");
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void never_set(volatile int* flag, int* out) {  // FIND deadlock
  if (threadIdx.x == 0 && PICK(false, true)) *flag = 1;
  __syncthreads();
  while (*flag == 0) {
  }
  out[threadIdx.x] = 1;
}

// ---- warps
__global__ void shuffle_absent(const int* x, int* out) {
  int t = threadIdx.x, v = x[t];
  if (t < 16) {
    v += __shfl_down_sync(PICK(~0u, 0xffffu), v, 8, 16);  // FIND absent-lanes
    out[t] = v;
  }
}

__global__ void shuffle_exited(const int* x, int* out, int n) {
  int t = threadIdx.x, v = t < n ? x[t] : 0;
#ifdef BUG
  if (t >= n) return;
#endif
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);  // FIND absent-lanes
  if (t == 0) out[0] = v;
}

__global__ void shuffle_outsider(const int* x, int* out) {
  int t = threadIdx.x;
  if (t < 16) out[t] = __shfl_sync(0xffffu, x[t], PICK(t + 8, (t + 8) % 16));  // FIND absent-lanes
}

__global__ void ballot_in_branch(const int* x, unsigned* out) {
  int t = threadIdx.x;
  unsigned all = __ballot_sync(~0u, x[t] > 0);
  if (x[t] > 0) out[t] = __ballot_sync(PICK(~0u, all), x[t] > 5);  // FIND absent-lanes
}

__global__ void mask_without_me(const int* x, int* out) {
  int t = threadIdx.x;
  out[t] = __any_sync(PICK(0x7fffffffu, ~0u), x[t] > 5);  // FIND absent-lanes
}

__global__ void reduce_in_branch(const int* x, int* out) {
  int t = threadIdx.x;
  if (t % 2 == 0) out[t] = __reduce_add_sync(PICK(~0u, 0x55555555u), x[t]);  // FIND absent-lanes
}

__global__ void match_in_branch(const int* x, unsigned* out) {
  int t = threadIdx.x;
  if (t < 20) out[t] = __match_any_sync(PICK(~0u, 0xfffffu), x[t]);  // FIND absent-lanes
}

__global__ void warp_barrier_in_branch(const int* x, int* out) {
  __shared__ int s[32];
  int t = threadIdx.x;
  if (t < 8) {
    s[t] = x[t];
    __syncwarp(PICK(0x7fu, 0xffu));  // FIND absent-lanes
    out[t] = s[7 - t];
  }
}

// ---- the kernel's own
__global__ void trapped(const int* x, int* out) {
  if (x[threadIdx.x] > PICK(50, 1000)) __trap();  // FIND trap
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void asserted(const int* x, int* out) {
  assert(x[threadIdx.x] < PICK(50, 1000));  // FIND assert
  out[threadIdx.x] = x[threadIdx.x];
}

__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
__global__ void recursion(int* out, int n) {  // FIND limit
  out[threadIdx.x] = fibonacci(PICK(n * 100000, n));
}

__global__ void __launch_bounds__(64) too_many_threads(int* out) {  // FIND limit
  out[threadIdx.x] = threadIdx.x;
}

__global__ void too_large_block(int* out) {  // FIND limit
  out[threadIdx.x] = threadIdx.x;
}

__global__ void too_much_shared(int* out) {  // FIND limit
  extern __shared__ int s[];
  s[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s[threadIdx.x];
}

}  // extern "C"
