/* ---- sizes: checked arithmetic, which rounds quotients down --------------------------------------------------------- */

static inline int64_t size_add(int64_t a, int64_t b, int *bad)
{
    int64_t r;
    if (__builtin_add_overflow(a, b, &r)) *bad = 1;
    return r;
}

static inline int64_t size_sub(int64_t a, int64_t b, int *bad)
{
    int64_t r;
    if (__builtin_sub_overflow(a, b, &r)) *bad = 1;
    return r;
}

static inline int64_t size_mul(int64_t a, int64_t b, int *bad)
{
    int64_t r;
    if (__builtin_mul_overflow(a, b, &r)) *bad = 1;
    return r;
}

static inline int64_t size_floordiv(int64_t a, int64_t b, int *bad)
{
    if (b == 0 || (a == INT64_MIN && b == -1)) {
        *bad = 1;
        return 0;
    }
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static inline int64_t size_mod(int64_t a, int64_t b, int *bad)
{
    if (b == 0 || b == -1) {
        if (b == 0) *bad = 1;
        return 0;
    }
    int64_t r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

static inline int64_t size_max(int64_t a, int64_t b, int *bad)
{
    (void)bad;
    return a > b ? a : b;
}

static inline int64_t size_min(int64_t a, int64_t b, int *bad)
{
    (void)bad;
    return a < b ? a : b;
}
