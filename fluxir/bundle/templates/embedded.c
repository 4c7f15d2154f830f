/* The weights are in the object file. */
@EXTERN@
static int open_weights(const char *path, const char **weights)
{
    if (path) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    *weights = @PLACE@;
    return 0;
}

static void close_weights(const char *weights)
{
    (void)weights;
}

