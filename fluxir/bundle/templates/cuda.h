/* @PREFIX@.h: the program "@PROGRAM@", made by fluxir @VERSION@ for @TARGETS@ and newer GPUs.
 *
 *     @PREFIX@_model *model;
 *     int status = @PREFIX@_open("folder of the bundle", 0, &model);
 *     status = @PREFIX@_run_host(model, @DIMS_RUN@...);
 *     @PREFIX@_close(model);
 *
 * Functions return 0 or an error number, which @PREFIX@_strerror explains; @PREFIX@_message tells what the CUDA driver said.
 * Arrays are dense, last axis fastest, and do not overlap. A model may be used by any number of threads at once, each with
 * its own workspace and stream.
 */
#ifndef @PREFIX_UPPER@_H
#define @PREFIX_UPPER@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @PREFIX_UPPER@_API __attribute__((visibility("default")))

@ERRORS@

typedef struct @PREFIX@_model @PREFIX@_model;

/* An address on the device (CUdeviceptr), as aligned as those that cuMemAlloc gives. */
typedef uint64_t @PREFIX@_device;

@DIMS@
/* Load the driver (libcuda.so.1), the kernels and the weights. `folder`: where the files of the bundle are; `device`: the
 * number of the GPU, whose primary context is used. */
@PREFIX_UPPER@_API int @PREFIX@_open(const char *folder, int device, @PREFIX@_model **model);

/* Give everything back. No call may be under way. A null pointer is fine. */
@PREFIX_UPPER@_API void @PREFIX@_close(@PREFIX@_model *model);

/* The target that was chosen for the device, such as "sm_80". */
@PREFIX_UPPER@_API const char *@PREFIX@_target(const @PREFIX@_model *model);

/* Bytes of temporary memory on the device that a call takes, or an error number, which is negative. */
@PREFIX_UPPER@_API int64_t @PREFIX@_workspace_size(@DIMS_ONLY@);

@SHAPES@
/* Put the program into a stream (a CUstream, or null). Arrays and workspace are on the device. It returns before the work
 * is done, but where the program has to look at a number that it has computed.
 *
@ARGUMENT_DOCS@
 */
@PREFIX_UPPER@_API int @PREFIX@_run(@RUN_PARAMETERS@);

/* Run the program on arrays of the host, and wait for the results. */
@PREFIX_UPPER@_API int @PREFIX@_run_host(@HOST_PARAMETERS@);

/* What an error number means; never a null pointer. */
@PREFIX_UPPER@_API const char *@PREFIX@_strerror(int error);

/* What the driver said about the last error of this thread. */
@PREFIX_UPPER@_API const char *@PREFIX@_message(void);

#ifdef __cplusplus
}
#endif

#endif
