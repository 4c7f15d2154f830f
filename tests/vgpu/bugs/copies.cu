// Asynchronous copies and tensor cores used wrongly (sm_80). With -DBUG each kernel has its fault, without it is right.

#ifdef BUG
#define PICK(bug, clean) (bug)
#else
#define PICK(bug, clean) (clean)
#endif

__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

#define COPY4(to, from) asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory")
#define COPY16(to, from) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory")
#define COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

extern "C" {

__global__ void no_wait(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);  // FIND async-copy
  COMMIT();
#ifndef BUG
  WAIT(0);
#endif
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];  // FIND async-copy
}

__global__ void not_committed(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);  // FIND async-copy
#ifndef BUG
  COMMIT();
#endif
  WAIT(0);
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];  // FIND async-copy
}

__global__ void wait_one_less(const int* x, int* out, int tiles) {
  __shared__ int s[3][64];
  int t = threadIdx.x, sum = 0;
  for (int r = 0; r < 2; ++r) {
    if (r < tiles) COPY4(&s[r][t], x + r * 64 + t);
    COMMIT();
  }
  for (int r = 0; r < tiles; ++r) {
    WAIT(PICK(2, 1));
    __syncthreads();
    sum += s[r % 3][63 - t] * (r + 1);  // FIND async-copy
    if (r + 2 < tiles) COPY4(&s[(r + 2) % 3][t], x + (r + 2) * 64 + t);
    COMMIT();
  }
  WAIT(0);
  out[t] = sum;
}

__global__ void own_wait_only(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);  // FIND shared-race
  COMMIT();
  WAIT(0);
#ifndef BUG
  __syncthreads();
#endif
  out[threadIdx.x] = s[63 - threadIdx.x];  // FIND shared-race
}

__global__ void refilled_early(const int* x, int* out, int tiles) {
  __shared__ int s[64];
  int t = threadIdx.x, sum = 0;
  for (int r = 0; r < tiles; ++r) {
    COPY4(&s[t], x + r * 64 + t);  // FIND shared-race
    COMMIT();
    WAIT(0);
    __syncthreads();
    sum += s[63 - t] * (r + 1);  // FIND shared-race
#ifndef BUG
    __syncthreads();
#endif
  }
  out[t] = sum;
}

__global__ void read_too_soon(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);
  COMMIT();
#ifdef BUG
  int v = s[threadIdx.x];  // FIND async-copy
  WAIT(0);
#else
  WAIT(0);
  int v = s[threadIdx.x];
#endif
  out[threadIdx.x] = v;
}

__global__ void overwritten(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);
  COMMIT();
#ifdef BUG
  s[threadIdx.x] = 1;  // FIND async-copy
  WAIT(0);
#else
  WAIT(0);
  s[threadIdx.x] = 1;
#endif
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void source_changed(int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);
  COMMIT();
#ifdef BUG
  x[threadIdx.x] = 5;  // FIND async-copy
  WAIT(0);
#else
  WAIT(0);
  x[threadIdx.x] = 5;
#endif
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void left_behind(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x], x + threadIdx.x);  // FIND async-copy
  COMMIT();
#ifndef BUG
  WAIT(0);
#endif
  out[threadIdx.x] = 1;
}

__global__ void misaligned_copy(const int* x, int* out) {
  __shared__ __align__(16) int s[2 * 32 + 4];
  COPY16(&s[PICK(2, 4) * threadIdx.x], x + 4 * threadIdx.x);  // FIND misaligned
  COMMIT();
  WAIT(0);
  out[threadIdx.x] = s[4 * threadIdx.x];
}

__global__ void copied_past_end(const int* x, int* out, int n) {
  __shared__ __align__(16) int s[64];
  int at = 4 * threadIdx.x, bytes = PICK(16, max(0, min(16, 4 * (n - at))));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(s + at)), "l"(bytes ? x + at : x), "r"(bytes)  // FIND out-of-bounds
               : "memory");
  COMMIT();
  WAIT(0);
  if (at < n) out[threadIdx.x] = s[at];
}

__global__ void copied_beside(const int* x, int* out) {
  __shared__ int s[64];
  COPY4(&s[threadIdx.x + PICK(1, 0)], x + threadIdx.x);  // FIND out-of-bounds
  COMMIT();
  WAIT(0);
  out[threadIdx.x] = PICK(0, s[threadIdx.x]);
}

__global__ void matrix_rows(const int* x, unsigned* out) {
  __shared__ __align__(16) unsigned s[8 * 5 + 3];
  for (int i = threadIdx.x; i < 43; i += 32) s[i] = x[i];
  __syncwarp();
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(shared_address(s + threadIdx.x % 8 * PICK(5, 4))) : "memory");  // FIND misaligned
  out[threadIdx.x] = r;
}

__global__ void matrix_past_end(const int* x, unsigned* out) {
  __shared__ __align__(16) unsigned s[32];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(shared_address(s + threadIdx.x % 8 * 4 + PICK(4, 0))) : "memory");  // FIND out-of-bounds
  out[threadIdx.x] = r;
}

__global__ void matrix_unwritten(const int* x, unsigned* out) {
  __shared__ __align__(16) unsigned s[32];
  if (threadIdx.x < PICK(28, 32)) s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(shared_address(s + threadIdx.x % 8 * 4)) : "memory");  // FIND uninitialised
  out[threadIdx.x] = r;
}

__global__ void product_in_branch(const unsigned* x, float* out) {
  float c[4] = {};
  if (PICK(threadIdx.x < 24, true))
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"  // FIND absent-lanes
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])  // FIND absent-lanes
                 : "r"(x[threadIdx.x]), "r"(x[threadIdx.x]), "r"(x[threadIdx.x]));  // FIND absent-lanes
  out[threadIdx.x] = c[0] * 0.f;
}

}  // extern "C"
