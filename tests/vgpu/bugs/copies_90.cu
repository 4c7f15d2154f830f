// Barriers in shared memory, bulk copies and clusters used wrongly (sm_90a). With -DBUG each kernel has its fault.

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

__global__ void wrong_phase(const int* x, int* out) {
  __shared__ __align__(128) int s[64];
  __shared__ u64 full;
  if (threadIdx.x == 0) {
    INIT(full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    EXPECT(full, 256);
    BULK(s, x, 256, full);  // FIND async-copy
  }
  AWAIT(full, PICK(1, 0));
  out[threadIdx.x] = s[63 - threadIdx.x];  // FIND async-copy
}

__global__ void not_awaited(const int* x, int* out) {
  __shared__ __align__(128) int s[64];
  __shared__ u64 full;
  if (threadIdx.x == 0) INIT(full, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    EXPECT(full, 256);
    BULK(s, x, 256, full);  // FIND async-copy
  }
#ifdef BUG
  __syncthreads();
#else
  AWAIT(full, 0);
#endif
  out[threadIdx.x] = s[63 - threadIdx.x];  // FIND async-copy
}

__global__ void too_many_expected(const int* x, int* out) {
  __shared__ __align__(128) int s[64];
  __shared__ u64 full;
  if (threadIdx.x == 0) INIT(full, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    EXPECT(full, PICK(512, 256));
    BULK(s, x, 256, full);
  }
  AWAIT(full, 0);  // FIND deadlock
  out[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void one_arrival_short(const int* x, int* out) {
  __shared__ int s[64];
  __shared__ u64 barrier;
  if (threadIdx.x == 0) INIT(barrier, PICK(65, 64));
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  ARRIVE(barrier);
  AWAIT(barrier, 0);  // FIND deadlock
  out[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void barrier_not_made(const int* x, int* out) {
  __shared__ int s[64];
  __shared__ u64 barrier;
  if (PICK(false, threadIdx.x == 0)) INIT(barrier, 64);
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  ARRIVE(barrier);  // FIND uninitialised
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void waited_for_others_phase(const int* x, int* out) {
  __shared__ int s[64];
  __shared__ u64 barrier;
  if (threadIdx.x == 0) INIT(barrier, 64);
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  ARRIVE(barrier);
  AWAIT(barrier, PICK(1, 0));  // FIND deadlock
  out[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void misaligned_bulk(const int* x, int* out) {
  __shared__ __align__(128) int s[68];
  __shared__ u64 full;
  if (threadIdx.x == 0) INIT(full, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    EXPECT(full, 256);
    BULK(s + PICK(2, 4), x, 256, full);  // FIND misaligned
  }
  AWAIT(full, 0);
  out[threadIdx.x] = s[threadIdx.x + 4];
}

__global__ void bulk_past_end(const int* x, int* out, int bytes) {
  __shared__ __align__(128) int s[128];
  __shared__ u64 full;
  if (threadIdx.x == 0) INIT(full, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    EXPECT(full, bytes + PICK(16, 0));
    BULK(s, x, bytes + PICK(16, 0), full);  // FIND out-of-bounds
  }
  AWAIT(full, 0);
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void stored_before_read(const int* x, int* out) {
  __shared__ __align__(128) int s[64];
  s[threadIdx.x] = x[threadIdx.x];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 256;" ::"l"(__cvta_generic_to_global(out)), "r"(shared_address(s)) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#ifdef BUG
    s[0] = 5;  // FIND async-copy
#endif
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}

__global__ void __cluster_dims__(2, 1, 1) cluster_unsynchronised(const int* x, int* out) {
  __shared__ int s[64];
  auto cluster = cg::this_cluster();
  s[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
#ifdef BUG
  __syncthreads();
#else
  cluster.sync();
#endif
  int* other = cluster.map_shared_rank(s, cluster.block_rank() ^ 1);
  out[blockIdx.x * 64 + threadIdx.x] = other[threadIdx.x];  // FIND shared-race
  cluster.sync();
}

__global__ void __cluster_dims__(2, 1, 1) cluster_bounds(const int* x, int* out) {
  __shared__ int s[64];
  auto cluster = cg::this_cluster();
  s[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  cluster.sync();
  int* other = cluster.map_shared_rank(s, cluster.block_rank() ^ 1);
  out[blockIdx.x * 64 + threadIdx.x] = other[threadIdx.x + PICK(1, 0)];  // FIND out-of-bounds
  cluster.sync();
}

}  // extern "C"
