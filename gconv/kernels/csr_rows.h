/* The loops of the products, for one type (STORE in memory, REAL in registers) and one vector width (LANES). */
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

#define AHEAD 8 /* prefetch distance of gathered rows, in entries */
#define SLOTS 4 /* prefetch distance of the values of scheduled rows, in rows */

/* Channels `at` to `at + width` of the rows first to last, as n vectors. n, the mode, and whether there is a schedule, are
 * constants at the call, so that the sums stay in registers. The last vector starts at width - LANES and may overlap the one
 * before. */
enum { NAME(plain), NAME(outer), NAME(inner) };
INLINE void NAME(block)(const int n, const int mode, const int slots, const product *p, int64_t batch, int64_t first,
                        int64_t last, int64_t at, int64_t width) {
    const REAL *values = p->values;
    const int32_t *crow = p->crow, *col = p->col, *order = mode == NAME(plain) ? 0 : p->order;
    const STORE *x = (const STORE *)p->x + batch * p->x_batch + at;
    const int64_t end = width - LANES, step = p->x_row, stop = crow[last], x_head = p->x_head;
    const int64_t heads = mode == NAME(plain) ? 1 : p->heads, inner = mode == NAME(inner) ? p->inner : 1;
    const int64_t outer = mode == NAME(outer) ? p->outer : 1;
    const VEC alpha = (REAL)p->alpha - (VEC){0}, beta = (REAL)p->beta - (VEC){0}, gamma = (REAL)p->gamma - (VEC){0};
    for (int64_t i = first; i < last; i++) {
        const int64_t r = slots ? p->place[i] : i, shift = slots ? p->start[i] - crow[i] : 0;
        if (slots && i + SLOTS < last) {
            const char *own = (const char *)(values + p->start[i + SLOTS] * heads);
            const char *to = (const char *)((STORE *)p->y + batch * p->y_batch + p->place[i + SLOTS] * p->y_row + at);
            __builtin_prefetch(own), __builtin_prefetch(own + 64);
UNROLL(16)
            for (int line = 0; line < (int)((n * LANES * sizeof(STORE) + 63) / 64); line++)
                __builtin_prefetch(to + 64 * line, 1);
        }
        for (int64_t h = 0; h < outer; h++) { /* the other heads find the rows of the first head in cache */
            VEC sum[MOST_VECTORS];
UNROLL(16)
            for (int v = 0; v < n; v++) sum[v] = (VEC){0};
            for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
                const STORE *row = x + col[k] * step + h * x_head;
                const char *next = (const char *)(x + col[k + AHEAD < stop ? k + AHEAD : k] * step + h * x_head);
                const REAL *value = values + (order ? order[k + shift] : k + shift) * heads + h;
UNROLL(16)
                for (int line = 0; line < (int)((n * LANES * sizeof(STORE) + 63) / 64); line++)
                    __builtin_prefetch(next + 64 * line);
                for (int64_t g = 0; g < inner; g++, row += x_head) {
                    VEC w = value[g] - (VEC){0};
UNROLL(16)
                    for (int v = 0; v < n - 1; v++) sum[v] += w * LOAD(row + v * LANES);
                    sum[n - 1] += w * LOAD(row + end);
                }
            }
            STORE *y = (STORE *)p->y + batch * p->y_batch + r * p->y_row + h * p->y_head + at;
UNROLL(16)
            for (int v = 0; v < n; v++) sum[v] *= alpha;
            if (p->z) { /* z and w are read before any of y is written: they may be y */
                const STORE *z = (const STORE *)p->z + batch * p->z_batch + r * p->z_row + at;
UNROLL(16)
                for (int v = 0; v < n - 1; v++) sum[v] += beta * LOAD(z + v * LANES);
                sum[n - 1] += beta * LOAD(z + end);
            }
            if (p->w) {
                const STORE *w = (const STORE *)p->w + batch * p->w_batch + r * p->w_row + at;
UNROLL(16)
                for (int v = 0; v < n - 1; v++) sum[v] += gamma * LOAD(w + v * LANES);
                sum[n - 1] += gamma * LOAD(w + end);
            }
UNROLL(16)
            for (int v = 0; v < n - 1; v++) SAVE(y + v * LANES, sum[v]);
            SAVE(y + end, sum[n - 1]);
        }
    }
}

/* The same for 8 of several heads, from head h on, whose channels fill one vector, so that an entry is read once for all of
 * them. Whether there is a schedule is a constant at the call. */
INLINE void NAME(eight_heads)(const int slots, const product *p, int64_t batch, int64_t first, int64_t last, int64_t h) {
    const REAL *values = (const REAL *)p->values + h;
    const int32_t *crow = p->crow, *col = p->col, *order = p->order;
    const int64_t step = p->x_row, x_head = p->x_head, y_head = p->y_head, heads = p->heads, stop = crow[last];
    const STORE *x = (const STORE *)p->x + batch * p->x_batch + h * x_head;
    const VEC alpha = (REAL)p->alpha - (VEC){0};
    for (int64_t i = first; i < last; i++) {
        const int64_t r = slots ? p->place[i] : i, shift = slots ? p->start[i] - crow[i] : 0;
        VEC sum[8];
UNROLL(8)
        for (int v = 0; v < 8; v++) sum[v] = (VEC){0};
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
            const int64_t ahead = k + AHEAD < stop ? k + AHEAD : k;
            const STORE *row = x + col[k] * step, *next = x + col[ahead] * step;
            const REAL *value = values + (order ? order[k + shift] : k + shift) * heads;
            if (order && !slots) __builtin_prefetch(values + order[ahead] * heads);
UNROLL(8)
            for (int v = 0; v < 8; v++) {
                __builtin_prefetch(next + v * x_head);
                sum[v] += (value[v] - (VEC){0}) * LOAD(row + v * x_head);
            }
        }
        STORE *y = (STORE *)p->y + batch * p->y_batch + r * p->y_row + h * y_head;
UNROLL(8)
        for (int v = 0; v < 8; v++) {
            sum[v] *= alpha;
            SAVE(y + v * y_head, sum[v]);
        }
    }
}

#define CASE(n, mode, slots)                                                 \
    case n:                                                                  \
        NAME(block)(n, NAME(mode), slots, p, batch, first, last, at, width); \
        break;
#define CASES(mode, slots) CASE(1, mode, slots) CASE(2, mode, slots) CASE(3, mode, slots) CASE(4, mode, slots)
#define MORE(mode, slots) CASE(5, mode, slots) CASE(6, mode, slots) CASE(7, mode, slots) CASE(8, mode, slots)
#define HEAD_VECTORS 4 /* wider rows of several heads are processed in blocks */
#define SLOT_VECTORS 8 /* the same for scheduled rows */

static void NAME(spmm)(const product *p, int64_t batch, int64_t first, int64_t last) {
    const int one = p->heads == 1 && !p->order, slots = p->place != 0;
#ifdef WIDE
    const int64_t most = !one ? HEAD_VECTORS : slots ? SLOT_VECTORS : MOST_VECTORS;
#else
    const int64_t most = HEAD_VECTORS;
#endif
    if (p->outer > 1 && p->outer % 8 == 0 && p->channels == LANES && !p->z && !p->w) {
        for (int64_t h = 0; h < p->outer; h += 8)
            if (slots)
                NAME(eight_heads)(1, p, batch, first, last, h);
            else
                NAME(eight_heads)(0, p, batch, first, last, h);
        return;
    }
    for (int64_t at = 0, width; at < p->channels; at += width) {
        width = p->channels - at;
        if (width > most * LANES) { /* leave the next block at least one full vector */
            width = most * LANES;
            if (p->channels - at - width < LANES) width -= LANES;
        }
        int64_t n = (width + LANES - 1) / LANES;
        if (p->outer > 1) {
            if (slots)
                switch (n) { CASES(outer, 1) }
            else
                switch (n) { CASES(outer, 0) }
            continue;
        }
        if (!one) {
            if (slots)
                switch (n) { CASES(inner, 1) }
            else
                switch (n) { CASES(inner, 0) }
            continue;
        }
        if (slots) {
            switch (n) {
                CASES(plain, 1)
#ifdef WIDE
                MORE(plain, 1)
#endif
            }
            continue;
        }
        switch (n) {
            CASES(plain, 0)
#ifdef WIDE
            MORE(plain, 0)
#endif
#if defined(WIDE) && MOST_VECTORS == 16
            CASE(9, plain, 0) CASE(10, plain, 0) CASE(11, plain, 0) CASE(12, plain, 0)
            CASE(13, plain, 0) CASE(14, plain, 0) CASE(15, plain, 0) CASE(16, plain, 0)
#endif
        }
    }
}

/* Lane i of the result is the sum of the lanes of x[i], by a tree reduction. x is overwritten. */
#define SHARED(i, d, o) (((i) & (d) ? LANES + (i) - (d) : (i)) + (o))
#if LANES == 16
#define EACH(d, o)                                                                                                  \
    SHARED(0, d, o), SHARED(1, d, o), SHARED(2, d, o), SHARED(3, d, o), SHARED(4, d, o), SHARED(5, d, o),           \
        SHARED(6, d, o), SHARED(7, d, o), SHARED(8, d, o), SHARED(9, d, o), SHARED(10, d, o), SHARED(11, d, o),     \
        SHARED(12, d, o), SHARED(13, d, o), SHARED(14, d, o), SHARED(15, d, o)
#elif LANES == 8
#define EACH(d, o)                                                                                                  \
    SHARED(0, d, o), SHARED(1, d, o), SHARED(2, d, o), SHARED(3, d, o), SHARED(4, d, o), SHARED(5, d, o),           \
        SHARED(6, d, o), SHARED(7, d, o)
#elif LANES == 4
#define EACH(d, o) SHARED(0, d, o), SHARED(1, d, o), SHARED(2, d, o), SHARED(3, d, o)
#else
#define EACH(d, o) SHARED(0, d, o), SHARED(1, d, o)
#endif
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (MASK){__VA_ARGS__})
#endif
#define FOLD(d) \
    for (int j = 0; j < (d); j++) x[j] = PICK(x[j], x[j + (d)], EACH(d, 0)) + PICK(x[j], x[j + (d)], EACH(d, d));
INLINE VEC NAME(lanes)(VEC *x) {
#if LANES == 16
    FOLD(8)
#endif
#if LANES >= 8
    FOLD(4)
#endif
#if LANES >= 4
    FOLD(2)
#endif
    FOLD(1)
    return x[0];
}
#undef FOLD
#undef PICK
#undef EACH
#undef SHARED

/* Inner products of rows; the lanes of LANES of them, of several heads or entries, are summed at once. n vectors cover the
 * channels; the last may overlap the one before, and the lanes that were counted are masked. n is a constant at the call: it
 * is minus the number of channels if they do not fill a vector, and 0 for any number of channels and signals, including
 * none. With n != 0 there must be one signal. */
INLINE void NAME(dots)(const int n, const product *p, int64_t first, int64_t last) {
    const int32_t *crow = p->crow, *col = p->col;
    const int64_t c = p->channels, whole = c / LANES * LANES, end = c - LANES, stop = crow[last], heads = p->heads;
    VEC sums[LANES];
    REAL *out = (REAL *)p->y + crow[first] * heads, rest[LANES];
    MASK fresh;
    for (int v = 0; v < LANES; v++) fresh[v] = -(v >= n * LANES - c), rest[v] = 0;
    int have = 0;
    for (int64_t i = first; i < last; i++)
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
            const STORE *left = (const STORE *)p->z + i * p->z_row, *right = (const STORE *)p->x + col[k] * p->x_row;
            const STORE *next = (const STORE *)p->x + col[k + AHEAD < stop ? k + AHEAD : k] * p->x_row;
            for (int64_t h = 0; h < heads; h++, left += p->z_head, right += p->x_head, next += p->x_head) {
                VEC sum = {0};
                REAL few = 0;
                if (n > 0) {
UNROLL(16)
                    for (int line = 0; line < (int)((n * LANES * sizeof(STORE) + 63) / 64); line++)
                        __builtin_prefetch((const char *)next + 64 * line);
UNROLL(8)
                    for (int v = 0; v < n - 1; v++) sum += LOAD(left + v * LANES) * LOAD(right + v * LANES);
                    sum += (VEC)((MASK)(LOAD(left + end) * LOAD(right + end)) & fresh);
                } else if (n < 0) {
                    __builtin_prefetch(next);
UNROLL(4)
                    for (int j = 0; j < -n; j++) few += LOAD1(left + j) * LOAD1(right + j);
                } else
                    for (int64_t b = 0; b < p->batch; b++) {
                        const STORE *l = left + b * p->z_batch, *r = right + b * p->x_batch;
                        for (int64_t j = 0; j < c * (int64_t)sizeof(STORE) && j < 1024; j += 64)
                            __builtin_prefetch((const char *)(next + b * p->x_batch) + j);
                        for (int64_t j = 0; j < whole; j += LANES) sum += LOAD(l + j) * LOAD(r + j);
                        for (int64_t j = whole; j < c; j++) few += LOAD1(l + j) * LOAD1(r + j);
                    }
                sums[have] = sum;
                if (n <= 0) rest[have] = few;
                have++;
                if (have == LANES) {
                    VEC total = {0};
                    if (n <= 0) total = *(VEC *)rest;
                    if (n >= 0) total += NAME(lanes)(sums);
                    *(VEC *)out = total;
                    out += LANES;
                    have = 0;
                }
            }
        }
    for (int v = have; v < LANES; v++) sums[v] = (VEC){0};
    VEC total = NAME(lanes)(sums);
    for (int v = 0; v < have; v++) out[v] = total[v] + rest[v];
}

/* The same for a multiple of LANES heads whose channels fill one vector, and one signal. */
INLINE void NAME(dots_of_heads)(const product *p, int64_t first, int64_t last) {
    const int32_t *crow = p->crow, *col = p->col;
    const int64_t stop = crow[last], heads = p->heads, x_head = p->x_head, z_head = p->z_head;
    REAL *out = (REAL *)p->y + crow[first] * heads;
    for (int64_t i = first; i < last; i++)
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) {
            const STORE *left = (const STORE *)p->z + i * p->z_row, *right = (const STORE *)p->x + col[k] * p->x_row;
            const STORE *next = (const STORE *)p->x + col[k + AHEAD < stop ? k + AHEAD : k] * p->x_row;
            for (int64_t h = 0; h < heads; h += LANES, out += LANES) {
                VEC sums[LANES];
UNROLL(16)
                for (int v = 0; v < LANES; v++, left += z_head, right += x_head, next += x_head) {
                    __builtin_prefetch(next);
                    sums[v] = LOAD(left) * LOAD(right);
                }
                *(VEC *)out = NAME(lanes)(sums);
            }
        }
}

#define CASE_OF(n)                       \
    case n:                              \
        NAME(dots)(n, p, first, last); \
        break;
static void NAME(sddmm)(const product *p, int64_t first, int64_t last) {
    const int64_t c = p->channels, n = p->batch != 1 ? 0 : c < 4 && c < LANES ? -c : c < LANES ? 0 : (c + LANES - 1) / LANES;
    if (p->batch == 1 && p->heads > 1 && p->heads % LANES == 0 && c == LANES) {
        NAME(dots_of_heads)(p, first, last);
        return;
    }
    switch (n) {
#if LANES * REAL_BYTES == 16 /* the narrowest vectors: only they have rows that are narrower still */
        CASE_OF(-3) CASE_OF(-2) CASE_OF(-1)
#endif
        CASE_OF(1) CASE_OF(2) CASE_OF(3) CASE_OF(4)
#ifdef WIDE
        CASE_OF(6) CASE_OF(8) CASE_OF(16)
#endif
        default: NAME(dots)(0, p, first, last);
    }
}
#undef CASE_OF

#undef CASE
#undef CASES
#undef MORE
#undef HEAD_VECTORS
#undef SLOT_VECTORS
#undef AHEAD
#undef SLOTS
#undef VEC
#undef BITS
#undef HALF
#undef MASK
#undef NAME
