/* Joint attention (GATv2), for one type and one instruction set:
 *
 *     values[e, h] = softmax over the entries e = (i, j) of row i of <p[h], LeakyReLU(t[i, h] + s[j, h])>
 *
 * Nothing is stored per entry and channel: the backward passes recompute t + s. */
#define VEC JOIN(vec, JOIN(ISA, TYPE, full), t)
#define INT JOIN(mask, JOIN(ISA, TYPE, full), t)
#define LANES (VECTOR_BYTES / REAL_BYTES)
#define AHEAD 8

/* The derivative of LeakyReLU at u. */
INLINE VEC JOIN(slope, ISA, TYPE)(VEC u, VEC other) {
    const INT up = (INT)(u > 0);
    return (VEC)((up & (INT)((VEC){0} + 1)) | (~up & (INT)other));
}

INLINE void JOIN(prefetch, ISA, TYPE)(const REAL *row, int64_t heads, int64_t c, int64_t head) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < c; j += 64 / REAL_BYTES) __builtin_prefetch(row + h * head + j);
}

/* y: the values. The lanes of LANES inner products are summed at once. */
INLINE void JOIN(joint_forward_heads, ISA, TYPE)(const int64_t c, const joint *p, int64_t first, int64_t last, REAL *none) {
    (void)none;
    const int64_t heads = p->heads, whole = c / LANES * LANES, stop = p->crow[last];
    const REAL *a = p->p, slope = (REAL)p->slope;
    const VEC other = (VEC){0} + slope;
    REAL *out = (REAL *)p->y + p->crow[first] * heads, rest[LANES];
    VEC sums[LANES];
    int have = 0;
    for (int v = 0; v < LANES; v++) sums[v] = (VEC){0};
    for (int64_t i = first; i < last; i++)
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            const REAL *t = (const REAL *)p->t + i * p->t_row, *s = (const REAL *)p->s + p->col[k] * p->s_row;
            const int64_t next = p->col[k + AHEAD < stop ? k + AHEAD : k];
            JOIN(prefetch, ISA, TYPE)((const REAL *)p->s + next * p->s_row, heads, c, p->s_head);
            for (int64_t h = 0; h < heads; h++, t += p->t_head, s += p->s_head) {
                VEC sum = {0};
                REAL few = 0;
                for (int64_t j = 0; j < whole; j += LANES) {
                    const VEC u = *(const VEC *)(t + j) + *(const VEC *)(s + j);
                    sum += *(const VEC *)(a + h * c + j) * u * JOIN(slope, ISA, TYPE)(u, other);
                }
                for (int64_t j = whole; j < c; j++) {
                    const REAL u = t[j] + s[j];
                    few += a[h * c + j] * u * (u > 0 ? 1 : slope);
                }
                sums[have] = sum;
                rest[have++] = few;
                if (have == LANES) {
                    const VEC total = AT(lanes, full)(sums);
                    for (int v = 0; v < LANES; v++) out[v] = total[v] + rest[v];
                    out += LANES;
                    have = 0;
                }
            }
        }
    const VEC total = AT(lanes, full)(sums);
    for (int v = 0; v < have; v++) out[v] = total[v] + rest[v];
    const edges own = {p->crow, p->col, 0, p->y, 0, p->y, p->rows, heads};
    JOIN(softmax, ISA, TYPE)(&own, first, last);
}

/* From the values and their gradient g: y, the gradient of the logits; dt; and dp of this part in `sums`, followed by a
 * buffer of the same size for dp of one row. */
INLINE void JOIN(joint_back_rows_heads, ISA, TYPE)(const int64_t c, const joint *p, int64_t first, int64_t last,
                                                   REAL *restrict sums) {
    const int64_t heads = p->heads, whole = c / LANES * LANES, stop = p->crow[last], numbers = heads * c;
    const REAL *a = p->p, slope = (REAL)p->slope, *restrict y = p->y;
    const VEC other = (VEC){0} + slope;
    const edges own = {p->crow, p->col, 0, p->values, p->g, p->y, p->rows, heads};
    JOIN(softmax_back, ISA, TYPE)(&own, first, last);
    REAL *restrict dp = sums + numbers;
    for (int64_t j = 0; j < numbers; j++) sums[j] = 0;
    for (int64_t i = first; i < last; i++) {
        REAL *restrict dt = (REAL *)p->dt + i * numbers;
        for (int64_t j = 0; j < numbers; j++) dt[j] = dp[j] = 0;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            const REAL *t = (const REAL *)p->t + i * p->t_row, *s = (const REAL *)p->s + p->col[k] * p->s_row;
            const int64_t next = p->col[k + AHEAD < stop ? k + AHEAD : k];
            JOIN(prefetch, ISA, TYPE)((const REAL *)p->s + next * p->s_row, heads, c, p->s_head);
            for (int64_t h = 0; h < heads; h++, t += p->t_head, s += p->s_head) {
                const REAL l = y[k * heads + h];
                for (int64_t j = 0; j < whole; j += LANES) {
                    const VEC u = *(const VEC *)(t + j) + *(const VEC *)(s + j), w = l * JOIN(slope, ISA, TYPE)(u, other);
                    *(VEC *)(dt + h * c + j) += w;
                    *(VEC *)(dp + h * c + j) += w * u;
                }
                for (int64_t j = whole; j < c; j++) {
                    const REAL u = t[j] + s[j], w = l * (u > 0 ? 1 : slope);
                    dt[h * c + j] += w;
                    dp[h * c + j] += w * u;
                }
            }
        }
        for (int64_t j = 0; j < numbers; j++) dt[j] *= a[j], sums[j] += dp[j];
    }
}

/* By rows of the transpose, y read through `order`: ds. */
INLINE void JOIN(joint_back_columns_heads, ISA, TYPE)(const int64_t c, const joint *p, int64_t first, int64_t last,
                                                      REAL *sums) {
    (void)sums;
    const int64_t heads = p->heads, whole = c / LANES * LANES, stop = p->crow_t[last], numbers = heads * c;
    const REAL *a = p->p, slope = (REAL)p->slope, *restrict y = p->y;
    const VEC other = (VEC){0} + slope;
    for (int64_t i = first; i < last; i++) {
        REAL *restrict ds = (REAL *)p->ds + i * numbers;
        for (int64_t j = 0; j < numbers; j++) ds[j] = 0;
        for (int64_t k = p->crow_t[i]; k < p->crow_t[i + 1]; k++) {
            const REAL *s = (const REAL *)p->s + i * p->s_row, *t = (const REAL *)p->t + p->col_t[k] * p->t_row;
            const int64_t next = k + AHEAD < stop ? k + AHEAD : k;
            JOIN(prefetch, ISA, TYPE)((const REAL *)p->t + p->col_t[next] * p->t_row, heads, c, p->t_head);
            __builtin_prefetch(y + p->order[next] * heads);
            for (int64_t h = 0; h < heads; h++, t += p->t_head, s += p->s_head) {
                const REAL l = y[p->order[k] * heads + h];
                for (int64_t j = 0; j < whole; j += LANES) {
                    const VEC u = *(const VEC *)(t + j) + *(const VEC *)(s + j);
                    *(VEC *)(ds + h * c + j) += l * JOIN(slope, ISA, TYPE)(u, other);
                }
                for (int64_t j = whole; j < c; j++) ds[h * c + j] += l * (t[j] + s[j] > 0 ? 1 : slope);
            }
        }
        for (int64_t j = 0; j < numbers; j++) ds[j] *= a[j];
    }
}

#define ENTRY(f)                                                                                                    \
    static __attribute__((noinline)) void JOIN(f, ISA, TYPE)(const joint *p, int64_t first, int64_t last, void *sums) { \
        switch (p->channels) {                                                                                      \
            case 8: JOIN(f##_heads, ISA, TYPE)(8, p, first, last, sums); break;                                     \
            case 16: JOIN(f##_heads, ISA, TYPE)(16, p, first, last, sums); break;                                   \
            default: JOIN(f##_heads, ISA, TYPE)(p->channels, p, first, last, sums);                                 \
        }                                                                                                           \
    }
ENTRY(joint_forward) ENTRY(joint_back_rows) ENTRY(joint_back_columns)

#undef ENTRY
#undef AHEAD
#undef LANES
#undef INT
#undef VEC
