/* Arithmetic on the host as everywhere: integers wrap around, quotients are rounded towards zero, division by 0 gives 0. */

static inline int64_t int_div(int64_t a, int64_t b)
{
    return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
}

static inline int64_t int_mod(int64_t a, int64_t b)
{
    return b == 0 || b == -1 ? 0 : a % b;
}

static inline uint64_t uint_div(uint64_t a, uint64_t b)
{
    return b == 0 ? 0 : a / b;
}

static inline uint64_t uint_mod(uint64_t a, uint64_t b)
{
    return b == 0 ? 0 : a % b;
}

static inline double float_minimum(double a, double b)
{
    return isnan(a) || isnan(b) ? NAN : a < b ? a : b;
}

static inline double float_maximum(double a, double b)
{
    return isnan(a) || isnan(b) ? NAN : a > b ? a : b;
}
