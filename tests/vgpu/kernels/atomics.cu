// Atomic operations: every operation and type, in shared and global memory, scopes, compare-and-swap loops, locks.

#include <cuda/atomic>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" {

// Lane i works on slot i % slots of each row; rows: add sub min max and or xor inc dec exch(last writer unknown: its bits).
__global__ void integers(const int* x, int* rows, unsigned* urows, unsigned long long* wide, int n, int slots) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int s = i % slots, v = x[i];
  atomicAdd(rows + s, v);
  atomicSub(rows + slots + s, v);
  atomicMin(rows + 2 * slots + s, v);
  atomicMax(rows + 3 * slots + s, v);
  atomicAnd(rows + 4 * slots + s, v);
  atomicOr(rows + 5 * slots + s, v);
  atomicXor(rows + 6 * slots + s, v);
  atomicAdd(urows + s, (unsigned)v);
  atomicMin(urows + slots + s, (unsigned)v);
  atomicMax(urows + 2 * slots + s, (unsigned)v);
  atomicInc(urows + 3 * slots + s, 6u);
  atomicDec(urows + 4 * slots + s, 6u);
  unsigned long long w = (unsigned long long)(unsigned)v * 0x9e3779b97f4a7c15ull;
  atomicAdd(wide + s, w);
  atomicMin(wide + slots + s, w);
  atomicMax(wide + 2 * slots + s, w);
  atomicAnd(wide + 3 * slots + s, w);
  atomicOr(wide + 4 * slots + s, w);
  atomicXor(wide + 5 * slots + s, w);
  atomicMax(reinterpret_cast<long long*>(wide) + 6 * slots + s, (long long)w);
  atomicMin(reinterpret_cast<long long*>(wide) + 7 * slots + s, (long long)w);
}

// The values that fetch-and-add returns are all different: each thread writes its index there.
__global__ void tickets(unsigned* counter, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[atomicAdd(counter, 1u)] = i;
}

__global__ void floats(const float* x, float* f, double* d, __half* h, __half2* h2, __nv_bfloat16* b, __nv_bfloat162* b2, int n, int slots) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int s = i % slots;
  atomicAdd(f + s, x[i]);
  atomicAdd(d + s, (double)x[i]);
  atomicAdd(h + s, __float2half(x[i]));
  atomicAdd(h2 + s, __floats2half2_rn(x[i], -x[i]));
  atomicAdd(b + s, __float2bfloat16(x[i]));
  atomicAdd(b2 + s, __floats2bfloat162_rn(x[i], 1.f));
}

__device__ float atomic_max(float* address, float value) {
  int* bits = reinterpret_cast<int*>(address);
  int old = *bits, assumed;
  do {
    assumed = old;
    old = atomicCAS(bits, assumed, __float_as_int(fmaxf(value, __int_as_float(assumed))));
  } while (old != assumed);
  return __int_as_float(old);
}

__global__ void swap_loops(const float* x, float* top, double* product, unsigned short* halves, int n, int slots) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomic_max(top + i % slots, x[i]);
  auto* bits = reinterpret_cast<unsigned long long*>(product + i % slots);
  for (unsigned long long old = *bits, assumed;;) {
    assumed = old;
    old = atomicCAS(bits, assumed, __double_as_longlong(__longlong_as_double(assumed) * (x[i] > 0.f ? 2.0 : 0.5)));
    if (old == assumed) break;
  }
  unsigned short* place = halves + i % slots;
  for (unsigned short old = *place, assumed;;) {
    assumed = old;
    old = atomicCAS(place, assumed, (unsigned short)(assumed + 3));
    if (old == assumed) break;
  }
}

__global__ void shared_atomics(const int* x, int* out, float* fout, int n) {
  __shared__ int bins[8], least, most;
  __shared__ unsigned long long wide;
  __shared__ float sum;
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) least = 1 << 30, most = -(1 << 30), wide = 0, sum = 0.f;
  __syncthreads();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    atomicAdd_block(&bins[x[i] & 7], 1);
    atomicMin(&least, x[i]);
    atomicMax(&most, x[i]);
    atomicAdd(&wide, (unsigned long long)(x[i] & 0xff) << 30);
    atomicAdd(&sum, (float)(x[i] & 0xff));
  }
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd_system(out + threadIdx.x, bins[threadIdx.x]);
  if (threadIdx.x == 0) {
    atomicMin(out + 8, least);
    atomicMax(out + 9, most);
    atomicAdd(out + 10, (int)(wide >> 30));
    atomicAdd(fout, sum);
  }
}

// A lock with acquire and release around plain reads and writes; one thread of a block takes it.
__global__ void lock(int* taken, int* account, int rounds) {
  if (threadIdx.x != 0) return;
  cuda::atomic_ref<int, cuda::thread_scope_device> flag(*taken);
  for (int r = 0; r < rounds; ++r) {
    while (flag.exchange(1, cuda::memory_order_acquire)) __nanosleep(20);
    account[0] += blockIdx.x + 1;
    account[1] = account[0] * 2;
    flag.store(0, cuda::memory_order_release);
  }
}

// A message from block 0 to block 1: data, then a flag that is stored with release and loaded with acquire.
__global__ void message(int* data, int* flag, int* out, int n) {
  cuda::atomic_ref<int, cuda::thread_scope_device> ready(*flag);
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) data[i] = i * i;
    __syncthreads();
    if (threadIdx.x == 0) ready.store(1, cuda::memory_order_release);
  } else {
    if (threadIdx.x == 0)
      while (!ready.load(cuda::memory_order_acquire)) {
      }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = data[n - 1 - i];
  }
}

#if __CUDA_ARCH__ >= 900
__global__ void vectors(const float* x, float2* f2, float4* f4, int n, int slots) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(f2 + i % slots, make_float2(x[i], -x[i]));
  atomicAdd(f4 + i % slots, make_float4(x[i], 1.f, 2.f * x[i], -1.f));
}
#endif

}  // extern "C"
