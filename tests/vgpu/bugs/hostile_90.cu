// Pipelines and clusters with half a protocol (sm_90a). With -DBUG each kernel has its fault, without it is right.

#include <cooperative_groups.h>

#ifdef BUG
#define PICK(bug, clean) (bug)
#else
#define PICK(bug, clean) (clean)
#endif

namespace cg = cooperative_groups;
typedef unsigned long long u64;

__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#define INIT(barrier, n) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(n) : "memory")
#define ARRIVE(barrier) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory")
#define EXPECT(barrier, bytes) \
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory")
#define AWAIT(barrier, phase)                                                                                              \
  asm volatile(                                                                                                           \
      "{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again; }" ::"r"(shared_address(&barrier)), \
      "r"(phase) : "memory")
#define BULK(to, from, bytes, barrier)                                                                                   \
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), \
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&barrier)) : "memory")

extern "C" {

__global__ void refilled_unread(const int* x, int* out, int n) {  // a ring of one: the producer does not wait for the readers
  __shared__ __align__(128) int s[32];
  __shared__ u64 full, empty;
  int t = threadIdx.x;
  if (t == 0) {
    INIT(full, 1);
    INIT(empty, 32);
  }
  __syncthreads();
  if (t >= 32) {
    if (t == 32)
      for (int r = 0; r < n; ++r) {
        if (r > 0 && PICK(false, true)) AWAIT(empty, (r - 1) & 1);
        EXPECT(full, 128);
        BULK(s, x + r * 32, 128, full);  // FIND async-copy
      }
  } else {
    int sum = 0;
    for (int r = 0; r < n; ++r) {
      AWAIT(full, r & 1);
      sum += s[31 - t] * (r + 1);  // FIND async-copy
      ARRIVE(empty);
    }
    out[t] = PICK(0, sum);
  }
}

__global__ void phase_not_flipped(const int* x, int* out) {
  __shared__ __align__(128) int s[2][32];
  __shared__ u64 full;
  int t = threadIdx.x, sum = 0;
  if (t == 0) INIT(full, 1);
  __syncthreads();
  for (int r = 0; r < 2; ++r) {
    if (t == 0) {
      EXPECT(full, 128);
      BULK(s[r], x + r * 32, 128, full);  // FIND async-copy
    }
    __syncwarp();
    AWAIT(full, PICK(0, r));
    sum += s[r][31 - t] * (r + 1);  // FIND async-copy
  }
  out[t] = sum;
}

__global__ void arrived_before_store(const int* x, int* out) {
  __shared__ int s[64];
  __shared__ u64 ready;
  int t = threadIdx.x;
  if (t == 0) INIT(ready, 64);
  __syncthreads();
  if (PICK(true, false)) ARRIVE(ready);
  s[t] = x[t];  // FIND shared-race
  if (PICK(false, true)) ARRIVE(ready);
  AWAIT(ready, 0);
  out[t] = s[63 - t];  // FIND shared-race
}

__global__ void lanes_of_one_warp(const int* x, int* out) {  // the barrier counts half of them
  __shared__ int s[32];
  __shared__ u64 ready;
  int t = threadIdx.x;
  if (t == 0) INIT(ready, 16);
  __syncwarp();
  s[t] = x[t];  // FIND shared-race
  if (t < 16) ARRIVE(ready);
#ifdef BUG
  if (t == 0) AWAIT(ready, 0);
#else
  AWAIT(ready, 0);
#endif
  if (t < 16) out[t] = s[15 - t];  // FIND shared-race
}

__global__ void __cluster_dims__(2, 1, 1) through_global(int* data, int* out) {  // a cluster's barrier orders global memory too
  auto cluster = cg::this_cluster();
  data[blockIdx.x * 64 + threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
  if (PICK(false, true)) cluster.sync();
  else __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = data[(blockIdx.x ^ 1) * 64 + threadIdx.x];  // FIND global-race
}

__global__ void __cluster_dims__(2, 1, 1) left_early(const int* x, int* out) {  // the other block may read from one that is gone
  __shared__ int s[64];
  auto cluster = cg::this_cluster();
  s[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  cluster.sync();
  if (PICK(cluster.block_rank() == 1, false)) return;
  int* other = cluster.map_shared_rank(s, cluster.block_rank() ^ 1);
  int sum = 0;
  for (int i = 0; i < 64; ++i) {
    __syncthreads();
    sum += other[(threadIdx.x + i) % 64];  // FIND out-of-bounds
  }
  out[blockIdx.x * 64 + threadIdx.x] = sum;
  if (PICK(false, true)) cluster.sync();
}

}  // extern "C"
