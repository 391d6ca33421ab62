/* The loops themselves, for one type (STORE in memory, REAL in registers) and one vector width (LANES). */
#define VEC JOIN(vec, JOIN(ISA, TYPE, WIDTH), t)
#define BITS JOIN(bits, JOIN(ISA, TYPE, WIDTH), t)
#define HALF JOIN(half, JOIN(ISA, TYPE, WIDTH), t)
#define MASK JOIN(mask, JOIN(ISA, TYPE, WIDTH), t)
#define NAME(f) JOIN(JOIN(f, ISA, TYPE), WIDTH, rows)
typedef REAL VEC __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(STORE)), may_alias));
typedef INTEGER MASK __attribute__((vector_size(LANES * sizeof(REAL))));
#ifdef BITS16
typedef uint32_t BITS __attribute__((vector_size(LANES * 4), may_alias));
typedef uint16_t HALF __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
#endif

#define AHEAD 8 /* entries: how far ahead of its use a gathered row is asked for */

/* Columns `at` to `at + width` of the rows first to last, n vectors wide. n, and the mode, are constants where this is
 * called, so that the sums live in registers; the last vector starts at width - LANES and may overlap the one before. */
enum { NAME(plain), NAME(outer), NAME(inner) };
INLINE void NAME(block)(const int n, const int mode, const product *p, int64_t batch, int64_t first, int64_t last, int64_t at,
                        int64_t width) {
    const REAL *values = p->values;
    const int32_t *crow = p->crow, *col = p->col, *order = mode == NAME(plain) ? 0 : p->order;
    const STORE *x = (const STORE *)p->x + batch * p->x_batch + at;
    const int64_t end = width - LANES, step = p->x_row, stop = crow[last], x_head = p->x_head;
    const int64_t heads = mode == NAME(plain) ? 1 : p->heads, inner = mode == NAME(inner) ? p->inner : 1;
    const int64_t outer = mode == NAME(outer) ? p->outer : 1;
    const VEC alpha = (REAL)p->alpha - (VEC){0}, beta = (REAL)p->beta - (VEC){0}, gamma = (REAL)p->gamma - (VEC){0};
    for (int64_t i = first; i < last; i++)
        for (int64_t h = 0; h < outer; h++) { /* the rows that the first head has gathered are still near for the others */
            VEC sum[MOST_VECTORS];
#pragma GCC unroll 16
            for (int v = 0; v < n; v++) sum[v] = (VEC){0};
            for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
                const STORE *row = x + col[k] * step + h * x_head;
                const char *next = (const char *)(x + col[k + AHEAD < stop ? k + AHEAD : k] * step + h * x_head);
                const REAL *value = values + (order ? order[k] : k) * heads + h;
#pragma GCC unroll 16
                for (int line = 0; line < (int)((n * LANES * sizeof(STORE) + 63) / 64); line++)
                    __builtin_prefetch(next + 64 * line);
                for (int64_t g = 0; g < inner; g++, row += x_head) {
                    VEC w = value[g] - (VEC){0};
#pragma GCC unroll 16
                    for (int v = 0; v < n - 1; v++) sum[v] += w * LOAD(row + v * LANES);
                    sum[n - 1] += w * LOAD(row + end);
                }
            }
            STORE *y = (STORE *)p->y + batch * p->y_batch + i * p->y_row + h * p->y_head + at;
#pragma GCC unroll 16
            for (int v = 0; v < n; v++) sum[v] *= alpha;
            if (p->z) { /* z and w are read before any of y is written: they may be y */
                const STORE *z = (const STORE *)p->z + batch * p->z_batch + i * p->z_row + at;
#pragma GCC unroll 16
                for (int v = 0; v < n - 1; v++) sum[v] += beta * LOAD(z + v * LANES);
                sum[n - 1] += beta * LOAD(z + end);
            }
            if (p->w) {
                const STORE *w = (const STORE *)p->w + batch * p->w_batch + i * p->w_row + at;
#pragma GCC unroll 16
                for (int v = 0; v < n - 1; v++) sum[v] += gamma * LOAD(w + v * LANES);
                sum[n - 1] += gamma * LOAD(w + end);
            }
#pragma GCC unroll 16
            for (int v = 0; v < n - 1; v++) SAVE(y + v * LANES, sum[v]);
            SAVE(y + end, sum[n - 1]);
        }
}

#define CASE(n, mode)                                              \
    case n:                                                        \
        NAME(block)(n, NAME(mode), p, batch, first, last, at, width); \
        break;
#define CASES(mode) CASE(1, mode) CASE(2, mode) CASE(3, mode) CASE(4, mode)
#define HEAD_VECTORS 4 /* wider rows of several heads are cut */

static void NAME(spmm)(const product *p, int64_t batch, int64_t first, int64_t last) {
    const int one = p->heads == 1 && !p->order;
#ifdef WIDE
    const int64_t most = one ? MOST_VECTORS : HEAD_VECTORS;
#else
    const int64_t most = HEAD_VECTORS;
#endif
    for (int64_t at = 0, width; at < p->channels; at += width) {
        width = p->channels - at;
        if (width > most * LANES) { /* leave the next block at least one full vector */
            width = most * LANES;
            if (p->channels - at - width < LANES) width -= LANES;
        }
        int64_t n = (width + LANES - 1) / LANES;
        if (p->outer > 1) {
            switch (n) { CASES(outer) }
            continue;
        }
        if (!one) {
            switch (n) { CASES(inner) }
            continue;
        }
        switch (n) {
            CASES(plain)
#ifdef WIDE
            CASE(5, plain) CASE(6, plain) CASE(7, plain) CASE(8, plain)
#endif
#if defined(WIDE) && MOST_VECTORS == 16
            CASE(9, plain) CASE(10, plain) CASE(11, plain) CASE(12, plain)
            CASE(13, plain) CASE(14, plain) CASE(15, plain) CASE(16, plain)
#endif
        }
    }
}

/* The sum of a vector's lanes: each is added to the one half the width away, then a quarter, and so on. */
INLINE REAL NAME(lanes)(VEC x) {
#if LANES == 16
    x += __builtin_shuffle(x, (MASK){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    x += __builtin_shuffle(x, (MASK){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    x += __builtin_shuffle(x, (MASK){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    x += __builtin_shuffle(x, (MASK){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
#elif LANES == 8
    x += __builtin_shuffle(x, (MASK){4, 5, 6, 7, 0, 1, 2, 3});
    x += __builtin_shuffle(x, (MASK){2, 3, 0, 1, 6, 7, 4, 5});
    x += __builtin_shuffle(x, (MASK){1, 0, 3, 2, 5, 4, 7, 6});
#elif LANES == 4
    x += __builtin_shuffle(x, (MASK){2, 3, 0, 1});
    x += __builtin_shuffle(x, (MASK){1, 0, 3, 2});
#else
    x += __builtin_shuffle(x, (MASK){1, 0});
#endif
    return x[0];
}

static void NAME(sddmm)(const product *p, int64_t first, int64_t last) {
    const int32_t *crow = p->crow, *col = p->col;
    const int64_t c = p->channels, whole = c / LANES * LANES;
    REAL *out = p->y;
    const int64_t stop = crow[last], bytes = p->x_head * (p->heads - 1) * sizeof(STORE) + c * sizeof(STORE);
    for (int64_t i = first; i < last; i++)
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
            const char *next = (const char *)((const STORE *)p->x + col[k + AHEAD < stop ? k + AHEAD : k] * p->x_row);
            for (int64_t line = 0; line < bytes && line < 1024; line += 64) __builtin_prefetch(next + line);
            for (int64_t h = 0; h < p->heads; h++) {
                REAL total = 0;
                for (int64_t b = 0; b < p->batch; b++) {
                    const STORE *left = (const STORE *)p->z + b * p->z_batch + i * p->z_row + h * p->z_head;
                    const STORE *right = (const STORE *)p->x + b * p->x_batch + col[k] * p->x_row + h * p->x_head;
                    VEC sum = {0};
                    int64_t j = 0;
                    for (; j < whole; j += LANES) sum += LOAD(left + j) * LOAD(right + j);
                    total += NAME(lanes)(sum);
                    for (; j < c; j++) total += LOAD1(left + j) * LOAD1(right + j);
                }
                out[k * p->heads + h] = total;
            }
        }
}

#undef CASE
#undef CASES
#undef HEAD_VECTORS
#undef AHEAD
#undef VEC
#undef BITS
#undef HALF
#undef MASK
#undef NAME
