/* @PREFIX@.c: the way from C into the machine code of @PREFIX@_code.o. Made by fluxir @VERSION@; see @PREFIX@.h.
 *
 * Needs the C library and POSIX threads. Build it together with @PREFIX@_code.o, which this file alone refers to.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "@PREFIX@.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST_BYTES (INT64_C(1) << 62)

@SIZES@
/* ---- the machine code ----------------------------------------------------------------------------------------------- */

/* What compiled code is given to run with: it calls `parallel` for loops that are worth more than one thread. */
struct context {
    int64_t threads;
    void (*parallel)(struct context *, void *, void *, int64_t, int64_t);
    void *state;
    void *stack; /* the lowest address that a recursive program's frames may reach */
};

typedef int entry(void **arguments, const int64_t *sizes, void *arena, struct context *context);

@FEATURES@
struct target {
    const char *name;
    const struct feature *features;
    int feature_count;
    entry *run;
    int64_t (*arena)(const int64_t *s, int *bad);
    const int *symbols;      /* which of all sizes the code takes */
    int symbol_count;
    const int *errors;       /* our number of each error of the code */
    int error_count;
    const uint64_t *offsets; /* of the constants in the weights */
    int constant_count;
};

@TARGET_TABLES@
#define TARGETS (int)(sizeof targets / sizeof *targets)

/* ---- threads -------------------------------------------------------------------------------------------------------- */

/* The pool: `@PREFIX@_pool_state` is all zeros without workers; workers end once STOP is set. One call at a time
 * has the workers, others that come meanwhile run on their own thread. */
extern void @PREFIX@_pool_parallel(struct context *, void *, void *, int64_t, int64_t);
extern void *@PREFIX@_pool_worker(void *);
extern char @PREFIX@_pool_state[];

#define POOL_BYTES @POOL_BYTES@
#define POOL_EPOCH @POOL_EPOCH@
#define POOL_WORKERS @POOL_WORKERS@
#define POOL_STOP @POOL_STOP@
#define MAX_THREADS @MAX_THREADS@
#define WORKER_STACK (8 << 20) /* bytes */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_t workers[MAX_THREADS];
static int worker_count, models;

/* In a forked child only the forking thread is left. */
static void after_fork(void)
{
    memset(@PREFIX@_pool_state, 0, POOL_BYTES);
    worker_count = 0;
    pthread_mutex_init(&lock, NULL);
}

static void prepare(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

static void pool_set(size_t place, int64_t value)
{
    __atomic_store_n((int64_t *)(@PREFIX@_pool_state + place), value, __ATOMIC_SEQ_CST);
}

/* Have `count` workers, as far as the system allows: with fewer everything runs, only slower. */
static void start_workers(int count)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    if (worker_count >= count || pthread_attr_init(&attributes)) return;
    pthread_attr_setstacksize(&attributes, WORKER_STACK);
    sigfillset(&all); /* signals are for the program's own threads */
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (worker_count < count &&
           pthread_create(&workers[worker_count], &attributes, @PREFIX@_pool_worker, NULL) == 0)
        worker_count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    pool_set(POOL_WORKERS, worker_count);
}

static void stop_workers(void)
{
    int *epoch = (int *)(@PREFIX@_pool_state + POOL_EPOCH);
    pool_set(POOL_STOP, 1);
    __atomic_add_fetch(epoch, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, epoch, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
    while (worker_count) pthread_join(workers[--worker_count], NULL);
    memset(@PREFIX@_pool_state, 0, POOL_BYTES);
}

/* ---- models --------------------------------------------------------------------------------------------------------- */

@WEIGHTS@
struct @PREFIX@_model {
    struct context context;
    const struct target *target;
    const char *weights;
    void *constants[CONSTANTS];
};

static const struct target *choose_target(void)
{
    for (int i = 0; i < TARGETS; i++) {
        int there = 0;
        while (there < targets[i].feature_count && has_feature(&targets[i].features[there])) there++;
        if (there == targets[i].feature_count) return &targets[i];
    }
    return NULL;
}

int @PREFIX@_open(const char *weights, int threads, @PREFIX@_model **model)
{
    if (!model || threads < 1 || threads > MAX_THREADS) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    *model = NULL;
    const struct target *target = choose_target();
    if (!target) return @PREFIX_UPPER@_ERROR_DEVICE;
    @PREFIX@_model *made = calloc(1, sizeof *made);
    if (!made) return @PREFIX_UPPER@_ERROR_MEMORY;
    const int status = open_weights(weights, &made->weights);
    if (status) {
        free(made);
        return status;
    }
    made->target = target;
    for (int i = 0; i < target->constant_count; i++) made->constants[i] = (void *)(made->weights + target->offsets[i]);
    made->context.threads = threads;
    made->context.parallel = threads > 1 ? @PREFIX@_pool_parallel : NULL;
    made->context.state = @PREFIX@_pool_state;
    pthread_once(&once, prepare);
    pthread_mutex_lock(&lock);
    models++;
    start_workers(threads - 1);
    pthread_mutex_unlock(&lock);
    *model = made;
    return 0;
}

void @PREFIX@_close(@PREFIX@_model *model)
{
    if (!model) return;
    pthread_mutex_lock(&lock);
    if (--models == 0) stop_workers();
    pthread_mutex_unlock(&lock);
    close_weights(model->weights);
    free(model);
}

const char *@PREFIX@_target(const @PREFIX@_model *model)
{
    return model ? model->target->name : "";
}

@ARENAS@
int64_t @PREFIX@_workspace_size(@DIMS_ONLY@)
{
    int64_t s[SYMBOLS];
    const int status = sizes_of(@DIMS_NAME@, s);
    if (status) return status;
    const int64_t most = largest_arena(s);
    return most > 0 ? most + ALIGNMENT - 1 : most;
}

@STACK@
int @PREFIX@_run(@RUN_PARAMETERS@)
{
    int bad = 0;
    int64_t s[SYMBOLS], sizes[SYMBOLS];
    void *arguments[TENSORS + CONSTANTS];
    if (!model) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    const int status = sizes_of(@DIMS_NAME@, s);
    if (status) return status;
@NULL_CHECKS@
    const struct target *target = model->target;
    const int64_t arena = target->arena(s, &bad);
    char *start = (char *)(((uintptr_t)workspace + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
    if (bad || arena < 0 || arena > MOST_BYTES) return @PREFIX_UPPER@_ERROR_DIMS;
    if (arena && !workspace) return @PREFIX_UPPER@_ERROR_WORKSPACE;
    if (arena && (uint64_t)(start - (char *)workspace) + (uint64_t)arena > workspace_bytes)
        return @PREFIX_UPPER@_ERROR_WORKSPACE;
@ARGUMENTS@
    for (int i = 0; i < target->constant_count; i++) arguments[TENSORS + i] = model->constants[i];
    for (int i = 0; i < target->symbol_count; i++) sizes[i] = s[target->symbols[i]];
    struct context context = model->context;
@SET_STACK@
    const int number = target->run(arguments, sizes, start, &context);
    return number > 0 && number < target->error_count ? target->errors[number] : number;
}

const char *@PREFIX@_strerror(int error)
{
    switch (error) {
@ERROR_CASES@
    default: return "unknown error";
    }
}
