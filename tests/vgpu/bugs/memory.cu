// Accesses to the wrong place, at the wrong alignment, too early or too late. With -DBUG each kernel has its fault, without it is
// right. `FIND kind` marks the line where the sanitizer has to find it; on a signature: anywhere in the kernel.

#ifdef BUG
#define PICK(bug, clean) (bug)
#else
#define PICK(bug, clean) (clean)
#endif

extern "C" {

// ---- out of bounds, global
__global__ void over_by_one(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n + PICK(1, 0)) out[i] = 2.f * x[i];  // FIND out-of-bounds
}

__global__ void last_block(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (PICK(true, i < n)) out[i] = x[i] + 1.f;  // FIND out-of-bounds
}

__global__ void under(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] - (PICK(true, i > 0) ? x[i - 1] : 0.f);  // FIND out-of-bounds
}

__global__ void far_away(const float* x, float* out, int n, int pitch) {
  int row = blockIdx.x, i = threadIdx.x;
  if (i < n) out[row * n + i] = x[row * PICK(pitch * 4, pitch) + i];  // FIND out-of-bounds
}

__global__ void vector_tail(const float* x, float* out, int n) {
  int i = threadIdx.x;
  if (4 * i + PICK(0, 3) < n) {
    float4 v = reinterpret_cast<const float4*>(x)[i];  // FIND out-of-bounds
    out[i] = v.x + v.y + v.z + v.w;
  }
}

__global__ void red_zone(const float* x, float* out, int n) {
  int i = threadIdx.x;
  if (i < n) out[i] = x[i + PICK(i == 7 ? 64 : 0, 0)];  // FIND out-of-bounds
}

__global__ void wrong_size(const float* x, float* out, int n) {  // the bug is the host's: half the memory
  int i = threadIdx.x;
  if (i < n) out[i] = -x[i];  // FIND out-of-bounds
}

__global__ void null_pointer(const float* x, float* out, int n) {  // the bug is the host's
  int i = threadIdx.x;
  if (i < n) out[i] = x[i];  // FIND out-of-bounds
}

__global__ void overflow(const float* x, float* out, int n, int pitch) {
  int i = threadIdx.x;
#ifdef BUG
  int at = i * pitch % n;
#else
  int at = (int)((long long)i * pitch % n);
#endif
  out[i] = x[at];  // FIND out-of-bounds
}

__global__ void negative_remainder(const float* x, float* out, int n) {
  int i = threadIdx.x;
  if (i < n) out[i] = x[(i - 3 + PICK(0, n)) % n];  // FIND out-of-bounds
}

__global__ void bad_index(const float* x, const int* index, float* out, int n, int size) {
  int i = threadIdx.x;
  if (i < n && PICK(true, (unsigned)index[i] < size)) out[i] = x[index[i]];  // FIND out-of-bounds
}

__global__ void atomic_past_end(const int* x, int* bins, int n) {
  int i = threadIdx.x;
  if (i < n) atomicAdd(&bins[PICK(x[i] + 1, x[i])], 1);  // FIND out-of-bounds
}

__global__ void byte_too_many(const char* text, int* out, int n) {
  int length = 0;
  while (PICK(true, length < n) && text[length] != 0) ++length;  // FIND out-of-bounds
  out[0] = length;
}

// ---- out of bounds, other memories
__global__ void shared_static(const int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x + PICK(1, 0)];  // FIND out-of-bounds
}

__global__ void shared_store(const int* x, int* out) {
  __shared__ int s[65];
  s[threadIdx.x + PICK(2, 1)] = x[threadIdx.x];  // FIND out-of-bounds
  __syncthreads();
  out[threadIdx.x] = threadIdx.x ? s[threadIdx.x + PICK(1, 0)] : 0;
}

__global__ void shared_dynamic(const int* x, int* out) {  // the bug is the host's: too few bytes
  extern __shared__ int d[];
  d[threadIdx.x] = x[threadIdx.x];  // FIND out-of-bounds
  __syncthreads();
  if (threadIdx.x < 32) out[threadIdx.x] = d[31 - threadIdx.x];
}

__global__ void local_array(const int* x, int* out, int m) {
  int a[8];
  for (int i = 0; i < m + PICK(1, 0); ++i) a[i] = x[i] * (int)threadIdx.x;  // FIND out-of-bounds
  int sum = 0;
  for (int i = 0; i < m; ++i) sum += a[(i * 3) % m];
  out[threadIdx.x] = sum;
}

__constant__ int table[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
__global__ void constant_table(int* out, int n) {
  out[threadIdx.x] = table[threadIdx.x % PICK(n + 1, n)];  // FIND out-of-bounds
}

__device__ int variable[8] = {1, 2, 3, 4, 5, 6, 7, 8};
__global__ void device_variable(int* out, int n) {
  out[threadIdx.x] = variable[threadIdx.x % PICK(n + 1, n)];  // FIND out-of-bounds
}

struct Four {
  int v[4];
};
__global__ void parameter_array(const __grid_constant__ Four four, int* out, int n) {
  out[threadIdx.x] = four.v[threadIdx.x % PICK(n + 4, n)];  // FIND out-of-bounds
}

__global__ void constant_store(int* out, int n) {
  int* p = PICK(n < 9 ? table : out, out);
  p[threadIdx.x] = 5;  // FIND out-of-bounds
}

// ---- misaligned
__global__ void misaligned_word(const char* x, int* out) {
  out[threadIdx.x] = *reinterpret_cast<const int*>(x + 4 * threadIdx.x + PICK(1, 0));  // FIND misaligned
}

__global__ void misaligned_vector(const float* x, float* out) {
  float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + PICK(1, 4));  // FIND misaligned
  out[threadIdx.x] = v.x + v.w;
}

__global__ void misaligned_double(const float* x, double* out) {
  out[threadIdx.x] = *reinterpret_cast<const double*>(x + PICK(threadIdx.x, 2 * threadIdx.x));  // FIND misaligned
}

__global__ void misaligned_shared(const short* x, int* out) {
  __shared__ __align__(16) short s[130];
  for (int i = threadIdx.x; i < 130; i += 64) s[i] = x[i];
  __syncthreads();
  out[threadIdx.x] = *reinterpret_cast<int*>(s + 2 * threadIdx.x + PICK(1, 2));  // FIND misaligned
}

__global__ void misaligned_atomic(char* x) {
  atomicAdd(reinterpret_cast<int*>(x + PICK(2, 4)), 1);  // FIND misaligned
}

__global__ void misaligned_store(int* out) {
  *reinterpret_cast<int2*>(out + PICK(threadIdx.x, 2 * threadIdx.x)) = make_int2(1, 2);  // FIND misaligned
}

// ---- uninitialised
__global__ void accumulate(const float* x, float* out, int n) {  // the bug is the host's: `out` was never zeroed
  int i = threadIdx.x;
  if (i < n) out[i] += x[i];  // FIND uninitialised
}

__global__ void accumulate_atomic(const int* x, int* out) {  // likewise
  atomicAdd(out, x[threadIdx.x]);  // FIND uninitialised
}

__global__ void scratch(const float* x, float* temporary, float* out, int n) {
  int i = threadIdx.x;
  if (PICK(i > 0, true)) temporary[i] = x[i] * x[i];
  __syncthreads();
  out[i] = temporary[n - 1 - i];  // FIND uninitialised
}

__global__ void half_a_pair(const int* x, int2* out, int* sums) {
  int i = threadIdx.x;
  out[i].x = x[i];
  if (PICK(i % 2, true)) out[i].y = 1;
  __syncthreads();
  int2 v = out[63 - i];  // FIND uninitialised
  sums[i] = v.x + v.y;
}

__global__ void padded_row(const float* x, float* out) {
  __shared__ float tile[8][9];
  tile[threadIdx.x / 8][threadIdx.x % 8] = x[threadIdx.x];
  __syncthreads();
  int i = threadIdx.x * 9;
  out[threadIdx.x] = tile[threadIdx.x % 8][threadIdx.x / 8 + PICK(i % 64 == 0 ? 8 : 0, 0)];  // FIND uninitialised
}

__global__ void shared_sum(const int* x, int* out) {
  __shared__ int sum;
#ifndef BUG
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
#endif
  atomicAdd(&sum, x[threadIdx.x]);  // FIND uninitialised
  __syncthreads();
  if (threadIdx.x == 0) out[0] = sum;
}

__global__ void local_tail(const int* x, int* out, int m) {
  int a[8];
  for (int i = 0; i < m - PICK(1, 0); ++i) a[i] = x[i];
  out[threadIdx.x] = a[threadIdx.x % m];  // FIND uninitialised
}

// ---- use after free
__global__ void freed_array(const float* x, float* out) {  // the bug is the host's
  out[threadIdx.x] = x[threadIdx.x];  // FIND use-after-free
}

__global__ void freed_store(const float* x, float* out) {  // the bug is the host's
  out[threadIdx.x] = x[threadIdx.x];  // FIND use-after-free
}

__global__ void own_memory(const int* x, int* out) {
  int* mine = static_cast<int*>(malloc(4 * sizeof(int)));
  for (int i = 0; i < 4; ++i) mine[i] = x[i] + threadIdx.x;
  int sum = 0;
#ifdef BUG
  free(mine);
#endif
  for (int i = 0; i < 4; ++i) sum += mine[i];  // FIND use-after-free
#ifndef BUG
  free(mine);
#endif
  out[threadIdx.x] = sum;
}

__global__ void freed_twice(int* out) {
  void* p = malloc(16);
  out[threadIdx.x] = p != nullptr;
  free(p);
#ifdef BUG
  free(p);  // FIND use-after-free
#endif
}

}  // extern "C"
