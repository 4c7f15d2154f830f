/* @PREFIX@.h: the program "@PROGRAM@", made by fluxir @VERSION@ for @TARGETS@.
 *
 *     @PREFIX@_model *model;
 *     int status = @PREFIX@_open(@WEIGHTS_EXAMPLE@, 2, &model);
 *     int64_t bytes = @PREFIX@_workspace_size(@DIMS_EXAMPLE@);
 *     void *workspace = malloc(bytes);
 *     status = @PREFIX@_run(model, @DIMS_RUN@..., workspace, bytes);
 *     @PREFIX@_close(model);
 *
 * Functions return 0 or an error number, which @PREFIX@_strerror explains. Arrays are dense, last axis fastest, and do
 * not overlap. A model may be used by any number of threads at once, each with its own workspace.
 */
#ifndef @PREFIX_UPPER@_H
#define @PREFIX_UPPER@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define @PREFIX_UPPER@_API
#else
#define @PREFIX_UPPER@_API __attribute__((visibility("default")))
#endif

@ERRORS@

typedef struct @PREFIX@_model @PREFIX@_model;

@DIMS@
/* Make the program ready. `weights`: @WEIGHTS_DOC@
 * `threads`: how many threads a call may use, 1 to 256, the caller's included. The others wait in the background until the
 * last model of this library is closed. */
@PREFIX_UPPER@_API int @PREFIX@_open(const char *weights, int threads, @PREFIX@_model **model);

/* Give everything back. No call may be under way. A null pointer is fine. */
@PREFIX_UPPER@_API void @PREFIX@_close(@PREFIX@_model *model);

/* The target that was chosen for this machine, such as "cpu:x86-64-v3". */
@PREFIX_UPPER@_API const char *@PREFIX@_target(const @PREFIX@_model *model);

/* Bytes of temporary memory that a call takes, or an error number, which is negative. */
@PREFIX_UPPER@_API int64_t @PREFIX@_workspace_size(@DIMS_ONLY@);

@SHAPES@
/* Run the program. `workspace` holds nothing between calls and may have any alignment.
 *
@ARGUMENT_DOCS@
 */
@PREFIX_UPPER@_API int @PREFIX@_run(@RUN_PARAMETERS@);

/* What an error number means; never a null pointer. */
@PREFIX_UPPER@_API const char *@PREFIX@_strerror(int error);

#ifdef __cplusplus
}
#endif

#endif
