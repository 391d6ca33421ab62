/* The loops themselves, for one type (STORE in memory, REAL in registers) and one vector width (LANES). */
#define VEC JOIN(vec, JOIN(ISA, TYPE, WIDTH), t)
#define BITS JOIN(bits, JOIN(ISA, TYPE, WIDTH), t)
#define HALF JOIN(half, JOIN(ISA, TYPE, WIDTH), t)
#define NAME(f) JOIN(JOIN(f, ISA, TYPE), WIDTH, rows)
typedef REAL VEC __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(STORE)), may_alias));
#ifdef BITS16
typedef uint32_t BITS __attribute__((vector_size(LANES * 4), may_alias));
typedef uint16_t HALF __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
#endif

#define AHEAD 8 /* entries: how far ahead of its use a gathered row is asked for */

/* Columns `at` to `at + width` of the rows first to last, n vectors wide. n is a constant where this is called, so that the
 * sums live in registers; the last vector starts at width - LANES and may overlap the one before. */
INLINE void NAME(block)(const int n, const product *p, int64_t batch, int64_t first, int64_t last, int64_t at, int64_t width) {
    const REAL *values = p->values;
    const int32_t *crow = p->crow, *col = p->col;
    const STORE *x = (const STORE *)p->x + batch * p->x_batch + at;
    const int64_t end = width - LANES, step = p->x_row, stop = crow[last];
    const VEC alpha = (REAL)p->alpha - (VEC){0}, beta = (REAL)p->beta - (VEC){0};
    for (int64_t i = first; i < last; i++) {
        VEC sum[MOST_VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < n; v++) sum[v] = (VEC){0};
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
            const STORE *row = x + col[k] * step;
            const char *next = (const char *)(x + col[k + AHEAD < stop ? k + AHEAD : k] * step);
#pragma GCC unroll 16
            for (int line = 0; line < (int)((n * LANES * sizeof(STORE) + 63) / 64); line++) __builtin_prefetch(next + 64 * line);
            VEC w = values[k] - (VEC){0};
#pragma GCC unroll 16
            for (int v = 0; v < n - 1; v++) sum[v] += w * LOAD(row + v * LANES);
            sum[n - 1] += w * LOAD(row + end);
        }
        STORE *y = (STORE *)p->y + batch * p->y_batch + i * p->y_row + at;
        if (p->z) {
            const STORE *z = (const STORE *)p->z + batch * p->z_batch + i * p->z_row + at;
#pragma GCC unroll 16
            for (int v = 0; v < n - 1; v++) sum[v] = alpha * sum[v] + beta * LOAD(z + v * LANES);
            sum[n - 1] = alpha * sum[n - 1] + beta * LOAD(z + end); /* read before any of y is written: z may be y */
        } else {
#pragma GCC unroll 16
            for (int v = 0; v < n; v++) sum[v] *= alpha;
        }
#pragma GCC unroll 16
        for (int v = 0; v < n - 1; v++) SAVE(y + v * LANES, sum[v]);
        SAVE(y + end, sum[n - 1]);
    }
}

#define CASE(n)                                                   \
    case n:                                                       \
        NAME(block)(n, p, batch, first, last, at, width);         \
        break;

static void NAME(spmm)(const product *p, int64_t batch, int64_t first, int64_t last) {
    for (int64_t at = 0, width; at < p->channels; at += width) {
        width = p->channels - at;
        if (width > MOST_VECTORS * LANES) { /* leave the next block at least one full vector */
            width = MOST_VECTORS * LANES;
            if (p->channels - at - width < LANES) width -= LANES;
        }
        switch ((width + LANES - 1) / LANES) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#if MOST_VECTORS == 16
            CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14) CASE(15) CASE(16)
#endif
        }
    }
}

static void NAME(sddmm)(const product *p, int64_t first, int64_t last) {
    const int32_t *crow = p->crow, *col = p->col;
    const int64_t c = p->channels, whole = c / LANES * LANES;
    REAL *out = p->y;
    for (int64_t i = first; i < last; i++) {
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
            REAL total = 0;
            for (int64_t b = 0; b < p->batch; b++) {
                const STORE *left = (const STORE *)p->z + b * p->z_batch + i * p->z_row;
                const STORE *right = (const STORE *)p->x + b * p->x_batch + col[k] * p->x_row;
                VEC sum = {0};
                int64_t j = 0;
                for (; j < whole; j += LANES) sum += LOAD(left + j) * LOAD(right + j);
                for (int v = 0; v < LANES; v++) total += sum[v];
                for (; j < c; j++) total += LOAD1(left + j) * LOAD1(right + j);
            }
            out[k] = total;
        }
    }
}

#undef CASE
#undef AHEAD
#undef VEC
#undef BITS
#undef HALF
#undef NAME
