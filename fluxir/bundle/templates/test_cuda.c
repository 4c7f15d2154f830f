/* test_@PREFIX@.c: runs the program on the arrays of test_@PREFIX@.bin and compares with the results that are there, which
 * @ORACLE@.
 *
 *     ./test_@PREFIX@ [--folder FOLDER] [--device N]
 *
 * Exit status 0 where all agree, twice in a row.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "@PREFIX@.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

@COMPARE@
static int run_once(const @PREFIX@_model *model)
{
    char *in[INPUTS + 1] = {NULL}, *out[OUTPUTS + 1] = {NULL};
    int wrong = 0;
    for (int i = 0; i < INPUTS; i++) {
        in[i] = malloc(arrays[i].bytes + 1);
        memcpy(in[i], data[i], arrays[i].bytes);
    }
    for (int i = 0; i < OUTPUTS; i++) out[i] = calloc(arrays[INPUTS + i].bytes + 1, 1);
    const int status = @PREFIX@_run_host(model@DIMS_HOST@@HOST_ARGUMENTS@);
    if (status) {
        fprintf(stderr, "error %d: %s; %s\n", status, @PREFIX@_strerror(status), @PREFIX@_message());
        wrong++;
    }
    for (int i = 0; i < OUTPUTS && !status; i++) {
        const struct array *a = &arrays[INPUTS + i];
        const char *got = @RESULT@;
        const double d = difference(a, got, data[INPUTS + i]);
        if (!(d <= a->tolerance)) wrong++;
        printf("%s: largest difference %.3g, allowed %.3g\n", a->name, d, a->tolerance);
    }
    for (int i = 0; i < INPUTS; i++) free(in[i]);
    for (int i = 0; i < OUTPUTS; i++) free(out[i]);
    return wrong;
}

int main(int argc, char **argv)
{
    const char *folder = ".";
    int device = 0, wrong = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--folder")) folder = argv[i + 1];
        if (!strcmp(argv[i], "--device")) device = atoi(argv[i + 1]);
    }
    char path[4096];
    snprintf(path, sizeof path, "%s/test_@PREFIX@.bin", folder);
    if (!read_data(path)) {
        fprintf(stderr, "%s cannot be read\n", path);
        return 2;
    }
    @PREFIX@_model *model;
    const int status = @PREFIX@_open(folder, device, &model);
    if (status) {
        fprintf(stderr, "open: %s; %s\n", @PREFIX@_strerror(status), @PREFIX@_message());
        return 1;
    }
    printf("%s\n", @PREFIX@_target(model));
    for (int i = 0; i < 2; i++) wrong += run_once(model);
    @PREFIX@_close(model);
    for (int i = 0; i < TENSORS; i++) free(data[i]);
    printf(wrong ? "%d FAILED\n" : "ok\n", wrong);
    fflush(stdout);
    return wrong ? 1 : 0;
}
