/* The weights are a file, which is mapped: processes share its pages, and only what is used is read. The head of the file
 * names its tensors by digests of their contents; its hash tells whether it is the file that this code was made with. */
#define WEIGHT_BYTES @BYTES@
#define WEIGHT_HEAD @HEAD@
#define WEIGHT_HASH UINT64_C(@HASH@)

static int open_weights(const char *path, const char **weights)
{
    struct stat found;
    if (!path) return @PREFIX_UPPER@_ERROR_ARGUMENT;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return @PREFIX_UPPER@_ERROR_FILE;
    if (fstat(file, &found) || found.st_size != WEIGHT_BYTES) {
        close(file);
        return @PREFIX_UPPER@_ERROR_WEIGHTS;
    }
    void *place = mmap(NULL, WEIGHT_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (place == MAP_FAILED) return @PREFIX_UPPER@_ERROR_MEMORY;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (int i = 0; i < WEIGHT_HEAD; i++) hash = (hash ^ ((const unsigned char *)place)[i]) * UINT64_C(0x100000001b3);
    if (hash != WEIGHT_HASH) {
        munmap(place, WEIGHT_BYTES);
        return @PREFIX_UPPER@_ERROR_WEIGHTS;
    }
    *weights = place;
    return 0;
}

static void close_weights(const char *weights)
{
    munmap((void *)weights, WEIGHT_BYTES);
}

