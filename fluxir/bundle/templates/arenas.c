/* The most bytes that a call takes for any of the targets, or an error number, which is negative. */
static int64_t largest_arena(const int64_t *s)
{
    int bad = 0;
    int64_t most = 0;
    for (int i = 0; i < TARGETS; i++) {
        const int64_t bytes = targets[i].arena(s, &bad);
        if (bytes > most) most = bytes;
    }
    return bad || most > MOST_BYTES ? @PREFIX_UPPER@_ERROR_DIMS : most;
}
