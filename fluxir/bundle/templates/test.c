/* test_@PREFIX@.c: runs the program on the arrays of test_@PREFIX@.bin and compares with the results that are there, which
 * @ORACLE@.
 *
 *     ./test_@PREFIX@ [--data FILE] [--weights FILE] [--threads N] [--time CALLS]
 *
 * Exit status 0 where all agree: for one thread, for N, and for two callers at once.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "@PREFIX@.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

@COMPARE@
/* One caller: its own workspace, its own results. */
struct caller {
    const @PREFIX@_model *model;
    int calls, wrong, show;
    double *times;
};

static void *call(void *argument)
{
    struct caller *c = argument;
    char *in[INPUTS + 1] = {NULL}, *out[OUTPUTS + 1] = {NULL};
    const int64_t bytes = @PREFIX@_workspace_size(@DIMS_ARGUMENT@);
    void *workspace = bytes > 0 ? malloc((size_t)bytes) : NULL;
    int status = bytes < 0 ? (int)bytes : 0;
    for (int i = 0; i < INPUTS; i++) in[i] = malloc(arrays[i].bytes + 1);
    for (int i = 0; i < OUTPUTS; i++) out[i] = calloc(arrays[INPUTS + i].bytes + 1, 1);
    for (int n = 0; n < c->calls && !status; n++) {
        struct timespec begin, end;
        if (n == 0 || @TAKES@) /* arguments that results were written into */
            for (int i = 0; i < INPUTS; i++) memcpy(in[i], data[i], arrays[i].bytes);
        clock_gettime(CLOCK_MONOTONIC, &begin);
        status = @PREFIX@_run(c->model, @DIMS_RUN@@RUN_ARGUMENTS@workspace, (size_t)bytes);
        clock_gettime(CLOCK_MONOTONIC, &end);
        if (c->times) c->times[n] = (double)(end.tv_sec - begin.tv_sec) * 1e6 + (double)(end.tv_nsec - begin.tv_nsec) * 1e-3;
    }
    if (status) {
        fprintf(stderr, "error %d: %s\n", status, @PREFIX@_strerror(status));
        c->wrong++;
    }
    for (int i = 0; i < OUTPUTS && !status; i++) {
        const struct array *a = &arrays[INPUTS + i];
        const char *got = @RESULT@;
        const double d = difference(a, got, data[INPUTS + i]);
        if (!(d <= a->tolerance)) c->wrong++;
        if (c->show || !(d <= a->tolerance))
            printf("%s: largest difference %.3g, allowed %.3g\n", a->name, d, a->tolerance);
    }
    for (int i = 0; i < INPUTS; i++) free(in[i]);
    for (int i = 0; i < OUTPUTS; i++) free(out[i]);
    free(workspace);
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int with_threads(const char *weights, int threads, int callers, int calls, int show, double *times)
{
    @PREFIX@_model *model;
    struct caller c[2];
    pthread_t thread[2];
    int wrong = 0;
    const int status = @PREFIX@_open(weights, threads, &model);
    if (status) {
        fprintf(stderr, "open: %s\n", @PREFIX@_strerror(status));
        return 1;
    }
    if (show) printf("%s, %d thread%s\n", @PREFIX@_target(model), threads, threads > 1 ? "s" : "");
    for (int i = 0; i < callers; i++) {
        c[i] = (struct caller){model, calls, 0, show && i == 0, i == 0 ? times : NULL};
        if (i > 0) pthread_create(&thread[i], NULL, call, &c[i]);
    }
    call(&c[0]);
    wrong += c[0].wrong;
    for (int i = 1; i < callers; i++) {
        pthread_join(thread[i], NULL);
        wrong += c[i].wrong;
    }
    @PREFIX@_close(model);
    return wrong;
}

int main(int argc, char **argv)
{
    const char *path = "test_@PREFIX@.bin", *weights = @WEIGHTS_EXAMPLE@;
    int threads = 2, calls = 0, wrong = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--data")) path = argv[i + 1];
        if (!strcmp(argv[i], "--weights")) weights = argv[i + 1];
        if (!strcmp(argv[i], "--threads")) threads = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--time")) calls = atoi(argv[i + 1]);
    }
    if (!read_data(path)) {
        fprintf(stderr, "%s cannot be read\n", path);
        return 2;
    }
    wrong += with_threads(weights, 1, 1, 1, 1, NULL);
    wrong += with_threads(weights, threads, 1, 2, 1, NULL);
    wrong += with_threads(weights, threads, 2, 3, 0, NULL);
    if (calls > 0) {
        double *times = malloc((size_t)calls * sizeof *times);
        wrong += with_threads(weights, threads, 1, calls, 0, times);
        qsort(times, (size_t)calls, sizeof *times, ascending);
        printf("%d calls, %d threads: median %.1f us, least %.1f us\n", calls, threads, times[calls / 2], times[0]);
        free(times);
    }
    for (int i = 0; i < TENSORS; i++) free(data[i]);
    printf(wrong ? "%d FAILED\n" : "ok\n", wrong);
    return wrong ? 1 : 0;
}
