// What sm_90 adds: bulk copies on mbarriers, clusters and their shared memory, tensor maps, wgmma, stmatrix.

#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda_fp16.h>

namespace cg = cooperative_groups;
typedef unsigned long long u64;

__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void init(u64* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ void arrive(u64* barrier) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}
__device__ void arrive_expect(u64* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ void wait(u64* barrier, int phase) {
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra.uni done;\n"
      "bra.uni again;\n"
      "done: }" ::"r"(shared_address(barrier)), "r"(phase) : "memory");
}
__device__ void bulk_load(void* to, const void* from, int bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
__device__ void bulk_store(void* to, const void* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)), "r"(shared_address(from)),
               "r"(bytes) : "memory");
}
__device__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

extern "C" {

// A row of 256 floats goes into shared memory in one copy, is doubled there, and leaves in one copy.
__global__ void bulk_copy(const float* x, float* out) {
  __shared__ __align__(128) float row[256], result[256];
  __shared__ u64 full;
  int t = threadIdx.x;
  if (t == 0) {
    init(&full, 1);
    fence_init();
    fence_async();
  }
  __syncthreads();
  if (t == 0) {
    arrive_expect(&full, sizeof row);
    bulk_load(row, x + blockIdx.x * 256, sizeof row, &full);
  }
  wait(&full, 0);
  for (int i = t; i < 256; i += blockDim.x) result[i] = 2.f * row[255 - i];
  fence_async();
  __syncthreads();
  if (t == 0) {
    bulk_store(out + blockIdx.x * 256, result, sizeof result);
    bulk_commit();
    bulk_wait();
  }
}

// Added to global memory on the way out.
__global__ void bulk_add(const int* x, int* out) {
  __shared__ __align__(128) int row[128];
  row[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32 [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(out)),
                 "r"(shared_address(row)), "r"(512) : "memory");
    bulk_commit();
    bulk_wait();
  }
}

// Warp 0 fetches tiles into a ring of three; two warps sum them and give the places back.
__global__ void ring(const float* x, float* out, int tiles) {
  __shared__ __align__(128) float stage[3][64];
  __shared__ u64 full[3], empty[3];
  int t = threadIdx.x;
  if (t == 0) {
    for (int i = 0; i < 3; ++i) init(full + i, 1), init(empty + i, 64);
    fence_init();
  }
  __syncthreads();
  if (t < 32) {
    if (t == 0)
      for (int i = 0; i < tiles; ++i) {
        if (i >= 3) wait(empty + i % 3, (i / 3 - 1) & 1);
        arrive_expect(full + i % 3, 256);
        bulk_load(stage[i % 3], x + i * 64, 256, full + i % 3);
      }
  } else {
    float sum = 0.f;
    for (int i = 0; i < tiles; ++i) {
      wait(full + i % 3, i / 3 & 1);
      sum += stage[i % 3][95 - t] * (i + 1);
      arrive(empty + i % 3);
    }
    out[t - 32] = sum;
  }
}

// Blocks of a cluster read each other's shared memory.
__global__ void __cluster_dims__(4, 1, 1) cluster_rotate(const int* x, int* out) {
  __shared__ int mine[64];
  auto cluster = cg::this_cluster();
  unsigned rank = cluster.block_rank();
  mine[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  cluster.sync();
  int* next = cluster.map_shared_rank(mine, (rank + 1) % 4);
  int v = next[63 - threadIdx.x] + 1000 * (int)rank + (int)cluster.num_blocks();
  cluster.sync();
  out[blockIdx.x * 64 + threadIdx.x] = v;
}

// A histogram spread over two blocks' shared memory, with atomics to the other block.
__global__ void __cluster_dims__(2, 1, 1) cluster_histogram(const unsigned char* x, unsigned* bins, int n) {
  __shared__ unsigned mine[128];
  auto cluster = cg::this_cluster();
  for (int i = threadIdx.x; i < 128; i += blockDim.x) mine[i] = 0;
  cluster.sync();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(cluster.map_shared_rank(mine, x[i] / 128) + x[i] % 128, 1u);
  cluster.sync();
  for (int i = threadIdx.x; i < 128; i += blockDim.x) atomicAdd(bins + cluster.block_rank() * 128 + i, mine[i]);
}

// A 16x32 tile of a matrix through a tensor map; what lies outside the matrix reads as zero and is not written.
__global__ void tensor_copy(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to) {
  __shared__ __align__(128) float tile[16][32];
  __shared__ u64 full;
  int t = threadIdx.x, column = blockIdx.x * 32, row = blockIdx.y * 16;
  if (t == 0) {
    init(&full, 1);
    fence_init();
  }
  __syncthreads();
  if (t == 0) {
    arrive_expect(&full, sizeof tile);
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(tile)), "l"(&from), "r"(column), "r"(row), "r"(shared_address(&full)) : "memory");
  }
  wait(&full, 0);
  for (int i = t; i < 512; i += blockDim.x) tile[i / 32][i % 32] += 1.f;
  fence_async();
  __syncthreads();
  if (t == 0) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to), "r"(column), "r"(row),
                 "r"(shared_address(tile)) : "memory");
    bulk_commit();
    bulk_wait();
  }
}

// D[64,32] = A[64,k] B[32,k]^T: a warpgroup multiplies from shared memory in 8x8 core matrices, without swizzle.
__global__ void __launch_bounds__(128) wgmma_f16(const __half* a, const __half* b, float* d, int k) {
  __shared__ __align__(128) __half left[64 * 32], right[32 * 32];
  int t = threadIdx.x;
  float c[16];
  for (int i = 0; i < 16; ++i) c[i] = 0.f;
  // (row, p) of a tile [rows, 32]: core matrices of 8 rows x 8 columns, four of them along k, then the next eight rows
  auto place = [](int row, int p) { return row / 8 * 256 + p / 8 * 64 + row % 8 * 8 + p % 8; };
  auto descriptor = [](const void* p) { return (u64)((shared_address(p) & 0x3ffff) >> 4) | (u64)(128 >> 4) << 16 | (u64)(512 >> 4) << 32; };
  for (int base = 0; base < k; base += 32) {
    for (int i = t; i < 64 * 32; i += 128) left[place(i / 32, i % 32)] = a[i / 32 * k + base + i % 32];
    for (int i = t; i < 32 * 32; i += 128) right[place(i / 32, i % 32)] = b[i / 32 * k + base + i % 32];
    fence_async();
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int p = 0; p < 32; p += 16)
      asm volatile(
          "{ .reg .pred p; setp.ne.b32 p, %18, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, p, 1, 1, 0, 0; }"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
            "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])
          : "l"(descriptor(left + p * 8)), "l"(descriptor(right + p * 8)), "r"((int)(base + p > 0)));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    __syncthreads();
  }
  int row = t / 32 * 16 + t % 32 / 4;
  for (int i = 0; i < 16; ++i) d[(row + i / 2 % 2 * 8) * 32 + i / 4 * 8 + t % 4 * 2 + i % 2] = c[i];
}

// Registers to shared memory in 8x8 tiles, straight and transposed; one elected lane says who it is.
__global__ void stmatrix(const unsigned* x, unsigned* out) {
  __shared__ __align__(16) __half tile[2][8 * 8 * 2];
  int lane = threadIdx.x;
  unsigned a = x[lane], b = x[32 + lane], elected;
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(&tile[0][lane % 16 * 8])), "r"(a), "r"(b) : "memory");
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(&tile[1][lane % 16 * 8])), "r"(a), "r"(b)
               : "memory");
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(elected));
  __syncwarp();
  for (int i = 0; i < 4; ++i) out[i * 32 + lane] = reinterpret_cast<unsigned*>(tile)[i * 32 + lane];
  out[128 + lane] = elected;
}

// Producer and consumer warpgroups trade registers; a dependent launch waits for the one before it.
__global__ void __launch_bounds__(256) registers(const int* x, int* out) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    out[threadIdx.x] = x[threadIdx.x] + 1;
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 152;");
    out[threadIdx.x] = x[threadIdx.x] * 2;
  }
  asm volatile("griddepcontrol.launch_dependents;");
}

}  // extern "C"
