/* @PREFIX@.c: launches the kernels of @PREFIX@_*.ptx. Made by fluxir @VERSION@; see @PREFIX@.h.
 *
 * Needs the C library and, when it runs, NVIDIA's driver, which it loads itself.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "@PREFIX@.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES (INT64_C(1) << 62)
#define MOST_BLOCKS INT64_C(2147483647)
#define MOST_CALLS 4000 /* nested ones */
#define RANK @RANK@
#define KERNELS @KERNELS@
#define CONSTANTS @CONSTANTS@

@SIZES@
/* ---- the driver ----------------------------------------------------------------------------------------------------- */

typedef void *handle; /* a context, module, function or stream of the driver */

static struct {
    int (*cuInit)(unsigned);
    int (*cuGetErrorString)(int, const char **);
    int (*cuDeviceGet)(int *, int);
    int (*cuDeviceGetAttribute)(int *, int, int);
    int (*cuDevicePrimaryCtxRetain)(handle *, int);
    int (*cuDevicePrimaryCtxRelease_v2)(int);
    int (*cuCtxPushCurrent_v2)(handle);
    int (*cuCtxPopCurrent_v2)(handle *);
    int (*cuModuleLoadDataEx)(handle *, const void *, unsigned, int *, void **);
    int (*cuModuleUnload)(handle);
    int (*cuModuleGetFunction)(handle *, handle, const char *);
    int (*cuMemAlloc_v2)(uint64_t *, size_t);
    int (*cuMemFree_v2)(uint64_t);
    int (*cuMemcpyHtoD_v2)(uint64_t, const void *, size_t);
    int (*cuMemcpyHtoDAsync_v2)(uint64_t, const void *, size_t, handle);
    int (*cuMemcpyDtoHAsync_v2)(void *, uint64_t, size_t, handle);
    int (*cuMemcpyDtoDAsync_v2)(uint64_t, uint64_t, size_t, handle);
    int (*cuMemsetD8Async)(uint64_t, unsigned char, size_t, handle);
    int (*cuLaunchKernel)(handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **, void **);
    int (*cuStreamCreate)(handle *, unsigned);
    int (*cuStreamDestroy_v2)(handle);
    int (*cuStreamSynchronize)(handle);
} cuda;

static const char *const names[] = {
    "cuInit", "cuGetErrorString", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuModuleLoadDataEx", "cuModuleUnload",
    "cuModuleGetFunction", "cuMemAlloc_v2", "cuMemFree_v2", "cuMemcpyHtoD_v2", "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2", "cuMemsetD8Async", "cuLaunchKernel", "cuStreamCreate",
    "cuStreamDestroy_v2", "cuStreamSynchronize",
};

static __thread char message[2048];

/* An error of our own for one of the driver, whose words are kept. */
static int failed(const char *what, int code)
{
    const char *text = NULL;
    if (cuda.cuGetErrorString) cuda.cuGetErrorString(code, &text);
    snprintf(message, sizeof message, "%s: %s", what, text ? text : "no explanation");
    return code == 2 ? @PREFIX_UPPER@_ERROR_MEMORY : @PREFIX_UPPER@_ERROR_DRIVER;
}

#define TRY(call)                                        \
    do {                                                 \
        const int code_ = cuda.call;                     \
        if (code_) return failed(#call, code_);          \
    } while (0)

static int load_driver(void)
{
    if (cuda.cuInit) return 0;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        snprintf(message, sizeof message, "libcuda.so.1 cannot be loaded: %s", dlerror());
        return @PREFIX_UPPER@_ERROR_DEVICE;
    }
    void *found[sizeof names / sizeof *names];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        found[i] = dlsym(library, names[i]);
        if (!found[i]) {
            snprintf(message, sizeof message, "the driver has no %s", names[i]);
            return @PREFIX_UPPER@_ERROR_DEVICE;
        }
    }
    memcpy(&cuda, found, sizeof cuda);
    return 0;
}

/* ---- models --------------------------------------------------------------------------------------------------------- */

struct kernel {
    const char *name;
    unsigned block[3];
};

struct constant {
    int64_t offset, bytes; /* in the file of weights */
    int64_t place;         /* on the device */
};

struct call;

struct target {
    const char *name, *ptx;
    int capability, same; /* 0: runs on that and newer ones; 1: on the same major version; 2: on exactly that */
    const struct kernel *kernels;
    int kernel_count;
    const struct constant *constants;
    int constant_count;
    int64_t constant_bytes;
    int64_t (*arena)(const int64_t *s, int *bad);
    int (*run)(struct call *call, const int64_t *s, const uint64_t *arrays, uint64_t arena);
};

struct @PREFIX@_model {
    const struct target *target;
    int device;
    handle context, module;
    handle kernels[KERNELS];
    uint64_t constants[CONSTANTS], weights;
};

/* One call under way, and the memory that it has asked for. */
struct held {
    uint64_t at;
    struct held *next;
};

struct call {
    const @PREFIX@_model *model;
    handle stream;
    struct held *held;
};

/* A tensor on the device. */
struct memory {
    uint64_t at;
    int64_t item;
    int rank;
    int64_t dim[RANK];
};

static int64_t bytes_of(const struct memory *m)
{
    int64_t n = m->item;
    for (int i = 0; i < m->rank; i++) n *= m->dim[i];
    return n;
}

/* The address of the part that `count` leading indices select. */
static inline uint64_t part_of(const struct memory *m, int count, const int64_t *indices)
{
    int64_t at = 0, rest = m->item;
    for (int i = 0; i < count; i++) at = at * m->dim[i] + indices[i];
    for (int i = count; i < m->rank; i++) rest *= m->dim[i];
    return m->at + (uint64_t)(at * rest);
}

static int allocate(struct call *call, int64_t bytes, int zero, uint64_t *at)
{
    *at = 0;
    if (bytes <= 0) return 0;
    struct held *held = malloc(sizeof *held);
    if (!held) return @PREFIX_UPPER@_ERROR_MEMORY;
    const int code = cuda.cuMemAlloc_v2(&held->at, (size_t)bytes);
    if (code) {
        free(held);
        return failed("cuMemAlloc", code);
    }
    held->next = call->held;
    call->held = held;
    *at = held->at;
    if (zero) TRY(cuMemsetD8Async(*at, 0, (size_t)bytes, call->stream));
    return 0;
}

/* Give back what a call has asked for, once its work is done. */
static int finish(struct call *call, int status)
{
    if (call->held) cuda.cuStreamSynchronize(call->stream);
    while (call->held) {
        struct held *next = call->held->next;
        cuda.cuMemFree_v2(call->held->at);
        free(call->held);
        call->held = next;
    }
    return status;
}

static inline int copy(struct call *call, const struct memory *to, const struct memory *from)
{
    const int64_t bytes = bytes_of(to);
    if (bytes && to->at != from->at) TRY(cuMemcpyDtoDAsync_v2(to->at, from->at, (size_t)bytes, call->stream));
    return 0;
}

/* Look at a number that the device has computed: waits for all work before. */
static inline int look(struct call *call, uint64_t at, void *value, size_t bytes)
{
    TRY(cuMemcpyDtoHAsync_v2(value, at, bytes, call->stream));
    TRY(cuStreamSynchronize(call->stream));
    return 0;
}

static inline int launch(struct call *call, int kernel, int64_t x, int64_t y, int64_t z, void **parameters)
{
    const unsigned *block = call->model->target->kernels[kernel].block;
    if (!x || !y || !z) return 0;
    if (x > MOST_BLOCKS || y > MOST_BLOCKS || z > MOST_BLOCKS) return @PREFIX_UPPER@_ERROR_DIMS;
    const int code = cuda.cuLaunchKernel(call->model->kernels[kernel], (unsigned)x, (unsigned)y, (unsigned)z, block[0],
                                         block[1], block[2], 0, call->stream, parameters, NULL);
    return code ? failed(call->model->target->kernels[kernel].name, code) : 0;
}

/* ---- the programs --------------------------------------------------------------------------------------------------- */

@SCALARS@
@PROGRAMS@
#define TARGETS (int)(sizeof targets / sizeof *targets)

/* ---- opening -------------------------------------------------------------------------------------------------------- */

static int runs_on(const struct target *t, int capability)
{
    if (t->same == 2) return capability == t->capability;
    return capability >= t->capability && (!t->same || capability / 10 == t->capability / 10);
}

/* The contents of a file and a zero byte, or null. */
static char *read_file(const char *folder, const char *name, int64_t *bytes)
{
    char *path = malloc(strlen(folder) + strlen(name) + 2), *content = NULL;
    if (!path) return NULL;
    sprintf(path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file) {
        long size = -1;
        if (!fseek(file, 0, SEEK_END)) size = ftell(file);
        if (size >= 0 && !fseek(file, 0, SEEK_SET)) content = malloc((size_t)size + 1);
        if (content && fread(content, 1, (size_t)size, file) != (size_t)size) {
            free(content);
            content = NULL;
        }
        if (content) {
            content[size] = 0;
            *bytes = size;
        }
        fclose(file);
    }
    if (!content) snprintf(message, sizeof message, "%s cannot be read", path);
    free(path);
    return content;
}

static int load_kernels(@PREFIX@_model *m, const char *folder)
{
    char log[1024] = "";
    int options[2] = {5, 6}; /* where the driver writes what is wrong, and how many bytes there are */
    void *values[2] = {log, (void *)sizeof log};
    int64_t bytes = 0;
    char *ptx = read_file(folder, m->target->ptx, &bytes);
    if (!ptx) return @PREFIX_UPPER@_ERROR_FILE;
    const int code = cuda.cuModuleLoadDataEx(&m->module, ptx, 2, options, values);
    free(ptx);
    if (code) {
        const int status = failed("cuModuleLoadDataEx", code);
        const size_t used = strlen(message);
        snprintf(message + used, sizeof message - used, "; %s", log);
        return status;
    }
    for (int i = 0; i < m->target->kernel_count; i++)
        TRY(cuModuleGetFunction(&m->kernels[i], m->module, m->target->kernels[i].name));
    return 0;
}

static int load_weights(@PREFIX@_model *m, const char *folder)
{
    int64_t bytes = 0;
    if (!m->target->constant_bytes) return 0;
    char *file = read_file(folder, "@PREFIX@.safetensors", &bytes);
    if (!file) return @PREFIX_UPPER@_ERROR_FILE;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (int64_t i = 0; i < @HEAD@ && i < bytes; i++)
        hash = (hash ^ ((unsigned char *)file)[i]) * UINT64_C(0x100000001b3);
    int code = 0, same = bytes == @BYTES@ && hash == UINT64_C(@HASH@);
    if (same) code = cuda.cuMemAlloc_v2(&m->weights, (size_t)m->target->constant_bytes);
    for (int i = 0; i < m->target->constant_count && same && !code; i++) {
        const struct constant *c = &m->target->constants[i];
        m->constants[i] = c->bytes ? m->weights + (uint64_t)c->place : 0;
        if (c->bytes) code = cuda.cuMemcpyHtoD_v2(m->constants[i], file + c->offset, (size_t)c->bytes);
    }
    free(file);
    if (!same) return @PREFIX_UPPER@_ERROR_WEIGHTS;
    return code ? failed("the weights", code) : 0;
}

int @PREFIX@_open(const char *folder, int device, @PREFIX@_model **model)
{
    message[0] = 0;
    if (!model || !folder) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    *model = NULL;
    int status = load_driver(), number, major, minor;
    if (status) return status;
    TRY(cuInit(0));
    TRY(cuDeviceGet(&number, device));
    TRY(cuDeviceGetAttribute(&major, 75, number));
    TRY(cuDeviceGetAttribute(&minor, 76, number));
    @PREFIX@_model *made = calloc(1, sizeof *made);
    if (!made) return @PREFIX_UPPER@_ERROR_MEMORY;
    for (int i = TARGETS - 1; i >= 0; i--)
        if (runs_on(&targets[i], 10 * major + minor)) made->target = &targets[i];
    if (!made->target) {
        free(made);
        snprintf(message, sizeof message, "the device is sm_%d%d, and there is no code for it", major, minor);
        return @PREFIX_UPPER@_ERROR_DEVICE;
    }
    made->device = number;
    const int code = cuda.cuDevicePrimaryCtxRetain(&made->context, number);
    if (code) {
        free(made);
        return failed("cuDevicePrimaryCtxRetain", code);
    }
    handle popped;
    status = cuda.cuCtxPushCurrent_v2(made->context) ? @PREFIX_UPPER@_ERROR_DRIVER : 0;
    if (!status) {
        status = load_kernels(made, folder);
        if (!status) status = load_weights(made, folder);
        cuda.cuCtxPopCurrent_v2(&popped);
    }
    if (status)
        @PREFIX@_close(made);
    else
        *model = made;
    return status;
}

void @PREFIX@_close(@PREFIX@_model *model)
{
    handle popped;
    if (!model) return;
    if (!cuda.cuCtxPushCurrent_v2(model->context)) {
        if (model->weights) cuda.cuMemFree_v2(model->weights);
        if (model->module) cuda.cuModuleUnload(model->module);
        cuda.cuCtxPopCurrent_v2(&popped);
    }
    cuda.cuDevicePrimaryCtxRelease_v2(model->device);
    free(model);
}

const char *@PREFIX@_target(const @PREFIX@_model *model)
{
    return model ? model->target->name : "";
}

/* ---- running -------------------------------------------------------------------------------------------------------- */

@ARENAS@
int64_t @PREFIX@_workspace_size(@DIMS_ONLY@)
{
    int64_t s[SYMBOLS];
    const int status = sizes_of(@DIMS_NAME@, s);
    if (status) return status;
    return largest_arena(s);
}

static int run(const @PREFIX@_model *model, const int64_t *s, const uint64_t *arrays, uint64_t workspace,
               size_t workspace_bytes, handle stream)
{
    int bad = 0;
    const int64_t arena = model->target->arena(s, &bad);
    if (bad || arena < 0 || arena > MOST_BYTES) return @PREFIX_UPPER@_ERROR_DIMS;
    if ((uint64_t)arena > workspace_bytes || (arena && !workspace)) return @PREFIX_UPPER@_ERROR_WORKSPACE;
    struct call call = {model, stream, NULL};
    return finish(&call, model->target->run(&call, s, arrays, workspace));
}

int @PREFIX@_run(@RUN_PARAMETERS@)
{
    int bad = 0;
    int64_t s[SYMBOLS];
    handle popped;
    message[0] = 0;
    if (!model) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    int status = sizes_of(@DIMS_NAME@, s);
    if (status) return status;
@NULL_CHECKS@
    if (bad) return @PREFIX_UPPER@_ERROR_DIMS;
    const uint64_t arrays[] = {@ARRAYS@0};
    TRY(cuCtxPushCurrent_v2(model->context));
    status = run(model, s, arrays, workspace, workspace_bytes, stream);
    cuda.cuCtxPopCurrent_v2(&popped);
    return status;
}

/* Everything of a call on arrays of the host, in a stream of its own. */
static int run_host(const @PREFIX@_model *model, const int64_t *s, int64_t workspace_bytes, void *const *hosts,
                    const int64_t *bytes, struct call *call)
{
    uint64_t arrays[@TENSORS@ + 1] = {0}, workspace;
    int status = allocate(call, workspace_bytes, 0, &workspace);
    for (int i = 0; i < @TENSORS@ && !status; i++) {
        if (i >= @INPUTS@ && taken[i] >= 0)
            arrays[i] = arrays[taken[i]];
        else
            status = allocate(call, bytes[i], 0, &arrays[i]);
        if (i < @INPUTS@ && !status && bytes[i])
            TRY(cuMemcpyHtoDAsync_v2(arrays[i], hosts[i], (size_t)bytes[i], call->stream));
    }
    if (!status) status = run(model, s, arrays, workspace, (size_t)workspace_bytes, call->stream);
    for (int i = @INPUTS@; i < @TENSORS@ && !status; i++)
        if (bytes[i]) TRY(cuMemcpyDtoHAsync_v2(hosts[i], arrays[i], (size_t)bytes[i], call->stream));
    if (!status) TRY(cuStreamSynchronize(call->stream));
    return status;
}

int @PREFIX@_run_host(@HOST_PARAMETERS@)
{
    int bad = 0;
    int64_t s[SYMBOLS];
    handle popped;
    message[0] = 0;
    if (!model) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    int status = sizes_of(@DIMS_NAME@, s);
    if (status) return status;
@NULL_CHECKS@
    if (bad) return @PREFIX_UPPER@_ERROR_DIMS;
    const int64_t workspace_bytes = @PREFIX@_workspace_size(@DIMS_ARGUMENT@);
    if (workspace_bytes < 0) return (int)workspace_bytes;
    void *const hosts[] = {@HOSTS@NULL};
    const int64_t bytes[] = {@ARRAY_BYTES@0};
    struct call call = {model, NULL, NULL};
    TRY(cuCtxPushCurrent_v2(model->context));
    const int code = cuda.cuStreamCreate(&call.stream, 1);
    status = code ? failed("cuStreamCreate", code) : run_host(model, s, workspace_bytes, hosts, bytes, &call);
    finish(&call, status);
    if (!code) cuda.cuStreamDestroy_v2(call.stream);
    cuda.cuCtxPopCurrent_v2(&popped);
    return status;
}

const char *@PREFIX@_strerror(int error)
{
    switch (error) {
@ERROR_CASES@
    default: return "unknown error";
    }
}

const char *@PREFIX@_message(void)
{
    return message;
}
