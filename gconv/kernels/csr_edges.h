/* Functions of the entries of each row, for one type and one instruction set, on arrays (e, heads). */
#define VEC JOIN(edge, JOIN(vec, ISA, TYPE), t)
#define INT JOIN(edge, JOIN(int, ISA, TYPE), t)
typedef REAL VEC __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER INT __attribute__((vector_size(VECTOR_BYTES), may_alias));
#define LANES (VECTOR_BYTES / (int)sizeof(REAL))

/* e^x for x <= 0: with x = n ln 2 + r, the Taylor polynomial of e^r (|r| < 0.35) times 2^n; 0 on underflow, NaN for NaN. */
INLINE VEC JOIN(exp, ISA, TYPE)(VEC x) {
    const int single = sizeof(REAL) == 4, terms = single ? 7 : 13, bits = single ? 23 : 52, bias = single ? 127 : 1023;
    const REAL least = single ? -87 : -708, shift = (REAL)1.5 * (single ? 1 << 23 : (REAL)(1LL << 52));
    const REAL high = single ? 0.693359375 : 0.693145751953125, low = 0.69314718055994530942 - (double)high;
    const INT alive = ~(INT)(x < least);
    x = (VEC)((INT)x & alive);
    VEC shifted = x * (REAL)1.44269504088896340736 + shift, n = shifted - shift;
    VEC r = x - n * high - n * low, y = (VEC){0} + 1;
    for (int k = terms; k > 0; k--) y = y * (r * (REAL)(1.0 / k)) + 1;
    INT power = ((INT)shifted - (INT)((VEC){0} + shift) + bias) << bits;
    return (VEC)((INT)(y * (VEC)power) & alive);
}

/* y = exp(y) in place, for n non-positive numbers. */
static __attribute__((noinline)) void JOIN(exponentials, ISA, TYPE)(REAL *y, int64_t n) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) *(VEC *)(y + j) = JOIN(exp, ISA, TYPE)(*(VEC *)(y + j));
    if (j < n) {
        VEC rest = {0};
        for (int v = 0; v < n - j; v++) rest[v] = y[j + v];
        rest = JOIN(exp, ISA, TYPE)(rest);
        for (int v = 0; v < n - j; v++) y[j + v] = rest[v];
    }
}

#define HEADS 64 /* maximum, checked by the caller */

/* a: logits. Common numbers of heads are constants at the call. A NaN or plus infinity among the logits of a row makes the
 * whole row NaN, because the sum is NaN; minus infinity together with a finite logit gives a value of 0. */
INLINE void JOIN(softmax_heads, ISA, TYPE)(const int64_t heads, const edges *p, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const int64_t start = p->crow[i], stop = p->crow[i + 1];
        const REAL *a = (const REAL *)p->a;
        REAL *y = p->y, top[HEADS], sum[HEADS];
        for (int64_t h = 0; h < heads; h++) top[h] = start < stop ? a[start * heads + h] : 0, sum[h] = 0;
        for (int64_t k = start + 1; k < stop; k++)
            for (int64_t h = 0; h < heads; h++) top[h] = a[k * heads + h] > top[h] ? a[k * heads + h] : top[h];
        for (int64_t k = start; k < stop; k++)
            for (int64_t h = 0; h < heads; h++) y[k * heads + h] = a[k * heads + h] - top[h];
        JOIN(exponentials, ISA, TYPE)(y + start * heads, (stop - start) * heads);
        for (int64_t k = start; k < stop; k++)
            for (int64_t h = 0; h < heads; h++) sum[h] += y[k * heads + h];
        for (int64_t h = 0; h < heads; h++) sum[h] = 1 / sum[h];
        for (int64_t k = start; k < stop; k++)
            for (int64_t h = 0; h < heads; h++) y[k * heads + h] *= sum[h];
    }
}

/* a: the softmax, b: its gradient; y = a (b - sum over the row of a b). */
INLINE void JOIN(softmax_back_heads, ISA, TYPE)(const int64_t heads, const edges *p, int64_t first, int64_t last) {
    const REAL *a = p->a, *b = p->b;
    REAL *y = p->y, sum[HEADS];
    for (int64_t i = first; i < last; i++) {
        for (int64_t h = 0; h < heads; h++) sum[h] = 0;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++)
            for (int64_t h = 0; h < heads; h++) sum[h] += a[k * heads + h] * b[k * heads + h];
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++)
            for (int64_t h = 0; h < heads; h++) y[k * heads + h] = a[k * heads + h] * (b[k * heads + h] - sum[h]);
    }
}

/* a: (rows, heads), b: (columns, heads); y = a_i + b_j at the entries (i, j). */
INLINE void JOIN(ends_heads, ISA, TYPE)(const int64_t heads, const edges *p, int64_t first, int64_t last) {
    const REAL *a = p->a, *b = p->b;
    REAL *y = p->y;
    for (int64_t i = first; i < last; i++)
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++)
            for (int64_t h = 0; h < heads; h++) y[k * heads + h] = a[i * heads + h] + b[p->col[k] * heads + h];
}

/* a: (e, heads), read through `order` if it is given; y: (rows, heads), the sums over the entries of each row. */
INLINE void JOIN(sums_heads, ISA, TYPE)(const int64_t heads, const edges *p, int64_t first, int64_t last) {
    const REAL *a = p->a;
    REAL *y = p->y, sum[HEADS];
    for (int64_t i = first; i < last; i++) {
        for (int64_t h = 0; h < heads; h++) sum[h] = 0;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++)
            for (int64_t h = 0; h < heads; h++) sum[h] += a[(p->order ? p->order[k] : k) * heads + h];
        for (int64_t h = 0; h < heads; h++) y[i * heads + h] = sum[h];
    }
}

#define ENTRY(f)                                                                                              \
    static __attribute__((noinline)) void JOIN(f, ISA, TYPE)(const edges *p, int64_t first, int64_t last) {   \
        switch (p->heads) {                                                                                   \
            case 1: JOIN(f##_heads, ISA, TYPE)(1, p, first, last); break;                                     \
            case 4: JOIN(f##_heads, ISA, TYPE)(4, p, first, last); break;                                     \
            case 8: JOIN(f##_heads, ISA, TYPE)(8, p, first, last); break;                                     \
            default: JOIN(f##_heads, ISA, TYPE)(p->heads, p, first, last);                                    \
        }                                                                                                     \
    }
ENTRY(softmax) ENTRY(softmax_back) ENTRY(ends) ENTRY(sums)

#undef ENTRY
#undef HEADS
#undef LANES
#undef INT
#undef VEC
