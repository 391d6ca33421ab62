/* Attention whose logits are a sum over both ends of an entry, for one type and one instruction set:
 *
 *     values[e, h] = softmax over the entries e = (i, j) of row i of bend(<z[i, h], p[h]> + <z[j, h], q[h]>)
 *
 * bend(l) is l where it is positive and slope l elsewhere. `scores` (n, 2, heads) are the two inner products of each site;
 * no number of an entry and a channel is made. */
#define HEADS 64 /* at most; the caller sees to it */

#define VEC JOIN(vec, JOIN(ISA, TYPE, full), t)
#define INT JOIN(mask, JOIN(ISA, TYPE, full), t)
#define LANES (VECTOR_BYTES / REAL_BYTES)
#define AHEAD 8 /* entries: how far ahead of its use a gathered row is asked for */

/* The slope of bend at y, in place. */
INLINE void JOIN(slopes, ISA, TYPE)(REAL *y, int64_t n, REAL slope) {
    const VEC one = (VEC){0} + 1, other = (VEC){0} + slope;
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        const INT up = (INT)(*(VEC *)(y + j) > 0);
        *(VEC *)(y + j) = (VEC)((up & (INT)one) | (~up & (INT)other));
    }
    for (; j < n; j++) y[j] = y[j] > 0 ? 1 : slope;
}

/* y = bend(y) in place. */
INLINE void JOIN(bends, ISA, TYPE)(REAL *y, int64_t n, REAL slope) {
    const VEC one = (VEC){0} + 1, other = (VEC){0} + slope;
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        const VEC l = *(VEC *)(y + j);
        const INT up = (INT)(l > 0);
        *(VEC *)(y + j) = l * (VEC)((up & (INT)one) | (~up & (INT)other));
    }
    for (; j < n; j++) y[j] *= y[j] > 0 ? 1 : slope;
}

/* As many products as a vector has lanes are summed together. */
INLINE void JOIN(scores_heads, ISA, TYPE)(const int64_t c, const attention *p, int64_t first, int64_t last) {
    const int64_t heads = p->heads, whole = c / LANES * LANES;
    VEC sums[LANES];
    REAL rest[LANES];
    for (int v = 0; v < LANES; v++) sums[v] = (VEC){0};
    for (int64_t i = first; i < last; i++) {
        REAL *out = (REAL *)p->scores + 2 * i * heads;
        int have = 0;
        for (int64_t u = 0; u < 2 * heads; u++) {
            const int64_t h = u < heads ? u : u - heads;
            const REAL *z = (const REAL *)p->z + i * p->z_row + h * p->z_head, *a = (const REAL *)(u < heads ? p->p : p->q) + h * c;
            VEC sum = {0};
            REAL few = 0;
            for (int64_t j = 0; j < whole; j += LANES) sum += *(const VEC *)(z + j) * *(const VEC *)(a + j);
            for (int64_t j = whole; j < c; j++) few += z[j] * a[j];
            sums[have] = sum;
            rest[have++] = few;
            if (have == LANES || u == 2 * heads - 1) {
                VEC total = AT(lanes, full)(sums);
                for (int v = 0; v < have; v++) *out++ = total[v] + rest[v];
                have = 0;
            }
        }
    }
}

/* y: the values. */
INLINE void JOIN(attend_heads, ISA, TYPE)(const int64_t heads, const attention *p, int64_t first, int64_t last) {
    const REAL slope = (REAL)p->slope, *scores = p->scores;
    REAL *restrict y = p->y;
    const edges own = {p->crow, p->col, 0, y, 0, y, p->rows, heads};
    const int64_t stop = p->crow[last];
    for (int64_t i = first; i < last; i++) {
        const REAL *t = scores + 2 * i * heads;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            const REAL *s = scores + (2 * p->col[k] + 1) * heads;
            __builtin_prefetch(scores + (2 * p->col[k + AHEAD < stop ? k + AHEAD : k] + 1) * heads);
            for (int64_t h = 0; h < heads; h++) y[k * heads + h] = t[h] + s[h];
        }
    }
    JOIN(bends, ISA, TYPE)(y + p->crow[first] * heads, (p->crow[last] - p->crow[first]) * heads, slope);
    JOIN(softmax_heads, ISA, TYPE)(heads, &own, first, last);
}

/* values and g, the gradient that arrives; y: the gradient of the sums over both ends; d_scores: its sums over rows. */
INLINE void JOIN(bent_heads, ISA, TYPE)(const int64_t heads, const attention *p, int64_t first, int64_t last) {
    const REAL slope = (REAL)p->slope, *scores = p->scores, *a = p->values, *g = p->g;
    REAL *restrict y = p->y, *restrict d_scores = p->d_scores, sum[HEADS], total[HEADS];
    const int64_t stop = p->crow[last];
    for (int64_t i = first; i < last; i++) {
        const REAL *t = scores + 2 * i * heads;
        for (int64_t h = 0; h < heads; h++) sum[h] = 0, total[h] = 0;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            const REAL *s = scores + (2 * p->col[k] + 1) * heads;
            __builtin_prefetch(scores + (2 * p->col[k + AHEAD < stop ? k + AHEAD : k] + 1) * heads);
            for (int64_t h = 0; h < heads; h++) sum[h] += a[k * heads + h] * g[k * heads + h];
            for (int64_t h = 0; h < heads; h++) y[k * heads + h] = t[h] + s[h];
        }
        JOIN(slopes, ISA, TYPE)(y + p->crow[i] * heads, (p->crow[i + 1] - p->crow[i]) * heads, slope);
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++)
            for (int64_t h = 0; h < heads; h++) {
                REAL l = a[k * heads + h] * (g[k * heads + h] - sum[h]) * y[k * heads + h];
                y[k * heads + h] = l;
                total[h] += l;
            }
        for (int64_t h = 0; h < heads; h++) d_scores[2 * i * heads + h] = total[h];
    }
}

/* On the transpose, y read in `order`: d_scores of the sources, dz, and the sums of this part's dp and dq into `sums`. */
INLINE void JOIN(spread_heads, ISA, TYPE)(const int64_t heads, const int64_t c, const attention *p, int64_t first,
                                          int64_t last, REAL *restrict sums) {
    const REAL *y = p->y, *a = p->p, *b = p->q, *d_scores = p->d_scores;
    REAL *restrict dz = p->dz, source[HEADS];
    const int64_t stop = p->crow_t[last];
    for (int64_t j = 0; j < 2 * heads * c; j++) sums[j] = 0;
    for (int64_t j = first; j < last; j++) {
        for (int64_t h = 0; h < heads; h++) source[h] = 0;
        for (int64_t k = p->crow_t[j]; k < p->crow_t[j + 1]; k++) {
            __builtin_prefetch(y + p->order[k + AHEAD < stop ? k + AHEAD : k] * heads);
            for (int64_t h = 0; h < heads; h++) source[h] += y[p->order[k] * heads + h];
        }
        for (int64_t h = 0; h < heads; h++) {
            const REAL *z = (const REAL *)p->z + j * p->z_row + h * p->z_head, t = d_scores[2 * j * heads + h], s = source[h];
            for (int64_t v = 0; v < c; v++) dz[(j * heads + h) * c + v] = t * a[h * c + v] + s * b[h * c + v];
            for (int64_t v = 0; v < c; v++) sums[h * c + v] += t * z[v];
            for (int64_t v = 0; v < c; v++) sums[(heads + h) * c + v] += s * z[v];
        }
    }
}

static __attribute__((noinline)) void JOIN(scores, ISA, TYPE)(const attention *p, int64_t first, int64_t last, void *sums) {
    if (p->channels == 8)
        JOIN(scores_heads, ISA, TYPE)(8, p, first, last);
    else
        JOIN(scores_heads, ISA, TYPE)(p->channels, p, first, last);
}

#define ENTRY(f, ...)                                                                                                   \
    static __attribute__((noinline)) void JOIN(f, ISA, TYPE)(const attention *p, int64_t first, int64_t last, void *sums) { \
        switch (p->heads) {                                                                                             \
            case 1: JOIN(f##_heads, ISA, TYPE)(1, __VA_ARGS__); break;                                                  \
            case 4: JOIN(f##_heads, ISA, TYPE)(4, __VA_ARGS__); break;                                                  \
            case 8: JOIN(f##_heads, ISA, TYPE)(8, __VA_ARGS__); break;                                                  \
            default: JOIN(f##_heads, ISA, TYPE)(p->heads, __VA_ARGS__);                                                 \
        }                                                                                                               \
    }
ENTRY(attend, p, first, last) ENTRY(bent, p, first, last) ENTRY(spread, p->channels, p, first, last, sums)

#undef ENTRY
#undef AHEAD
#undef LANES
#undef INT
#undef VEC
#undef HEADS
