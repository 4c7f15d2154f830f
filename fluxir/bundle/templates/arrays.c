enum { INPUTS = @INPUTS@, OUTPUTS = @OUTPUTS@, TENSORS = INPUTS + OUTPUTS };

struct array {
    const char *name, *dtype;
    size_t bytes;
    double tolerance; /* of a difference, relative to the largest value */
};

static const struct array arrays[TENSORS + 1] = {
@ARRAYS@
    {NULL, NULL, 0, 0},
};

static char *data[TENSORS + 1]; /* what the file says: inputs, then results */
@DIMS@
