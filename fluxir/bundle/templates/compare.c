static double value(const char *dtype, const char *at, size_t i)
{
#define READ(name, type)                       \
    if (!strcmp(dtype, name)) {                \
        type x;                                \
        memcpy(&x, at + i * sizeof x, sizeof x); \
        return (double)x;                      \
    }
    READ("f32", float)
    READ("f64", double)
    READ("bool", uint8_t)
    READ("u8", uint8_t)
    READ("u16", uint16_t)
    READ("u32", uint32_t)
    READ("u64", uint64_t)
    READ("i8", int8_t)
    READ("i16", int16_t)
    READ("i32", int32_t)
    READ("i64", int64_t)
#undef READ
    uint16_t bits;
    memcpy(&bits, at + 2 * i, 2);
    if (!strcmp(dtype, "bf16")) {
        const uint32_t wide = (uint32_t)bits << 16;
        float x;
        memcpy(&x, &wide, 4);
        return x;
    }
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double x = exponent == 31  ? (fraction ? NAN : INFINITY)
               : exponent == 0 ? ldexp(fraction, -24)
                               : ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -x : x;
}

/* The largest difference of two arrays relative to the largest value of the second; infinite where one has a NaN or an
 * infinity and the other another value. */
static double difference(const struct array *a, const char *got, const char *want)
{
    const size_t item = strchr(a->dtype, '6') && strstr(a->dtype, "64") ? 8
                        : strstr(a->dtype, "32")                        ? 4
                        : strstr(a->dtype, "16")                        ? 2
                                                                        : 1;
    double most = 0, largest = 0;
    for (size_t i = 0; i < a->bytes / item; i++) {
        const double x = value(a->dtype, got, i), y = value(a->dtype, want, i);
        if (isnan(x) && isnan(y)) continue;
        if (x == y) {
            if (isfinite(y) && fabs(y) > largest) largest = fabs(y);
            continue;
        }
        if (!isfinite(x) || !isfinite(y)) return INFINITY;
        if (fabs(x - y) > most) most = fabs(x - y);
        if (fabs(y) > largest) largest = fabs(y);
    }
    return most == 0 ? 0 : largest == 0 ? INFINITY : most / largest;
}

static int read_data(const char *path)
{
    FILE *file = fopen(path, "rb");
    int fine = file != NULL;
    for (int i = 0; i < TENSORS && fine; i++) {
        data[i] = malloc(arrays[i].bytes + 1);
        fine = data[i] && fread(data[i], 1, arrays[i].bytes, file) == arrays[i].bytes;
    }
    if (file) fclose(file);
    return fine;
}

