/* The loops of attention, for one type and one vector width (LANES). A row of c channels is covered by ceil(c / lanes)
 * vectors, of which the last may overlap the one before. */
#define VEC JOIN(lane, JOIN(ISA, TYPE, WIDTH), t)
#define NAME(f) JOIN(JOIN(f, ISA, TYPE), WIDTH, attend)
#if LANES == 1
typedef REAL VEC;
#define LANE(x, v) (x)
INLINE VEC NAME(totals)(VEC *x) { return *x; }
#else
typedef REAL VEC __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define LANE(x, v) (x)[v]
/* The sum of each of x, LANES of them. */
INLINE VEC NAME(totals)(VEC *x) { return (VEC)JOIN(JOIN(lanes, ISA, TYPE), WIDTH, rows)((void *)x); }
#endif

/* Inner products in progress: the lanes of LANES vectors are summed at once; `have` vectors are waiting. */
typedef struct {
    VEC sums[LANES];
    REAL rest[LANES], *out;
    int have;
} NAME(pending);

INLINE void NAME(flush)(NAME(pending) *d) {
    for (int v = d->have; v < LANES; v++) d->sums[v] = (VEC){0};
    const VEC total = NAME(totals)(d->sums);
    for (int v = 0; v < d->have; v++) d->out[v] = LANE(total, v) + d->rest[v];
    d->out += d->have;
    d->have = 0;
}

/* <a[h], b[h]> for all heads, c numbers each, appended to out. */
INLINE void NAME(dots)(NAME(pending) *d, const int64_t heads, const int64_t c, const REAL *a, int64_t a_head, const REAL *b,
                       int64_t b_head) {
    const int64_t whole = c / LANES * LANES;
    if (heads % LANES == 0 && whole == c) { /* no vectors are left waiting */
        for (int64_t h = 0; h < heads; h += LANES) {
            VEC sums[LANES];
UNROLL(8)
            for (int v = 0; v < LANES; v++) {
                sums[v] = (VEC){0};
                for (int64_t j = 0; j < c; j += LANES)
                    sums[v] += *(const VEC *)(a + (h + v) * a_head + j) * *(const VEC *)(b + (h + v) * b_head + j);
            }
            *(VEC *)d->out = NAME(totals)(sums);
            d->out += LANES;
        }
        return;
    }
    for (int64_t h = 0; h < heads; h++, a += a_head, b += b_head) {
        VEC sum = {0};
        REAL few = 0;
        for (int64_t j = 0; j < whole; j += LANES) sum += *(const VEC *)(a + j) * *(const VEC *)(b + j);
        for (int64_t j = whole; j < c; j++) few += a[j] * b[j];
        d->sums[d->have] = sum;
        d->rest[d->have] = few;
        if (++d->have == LANES) NAME(flush)(d);
    }
}

/* s and t. */
INLINE void NAME(scores_of)(const int n, const int64_t heads, const int64_t c, const attention *p, int64_t first,
                            int64_t last, REAL *sums) {
    (void)n, (void)sums;
    for (int u = 0; u < 2; u++) {
        NAME(pending) made = {.out = (REAL *)p->scores + (u * p->rows + first) * heads};
        for (int64_t i = first; i < last; i++)
            NAME(dots)(&made, heads, c, (const REAL *)p->z + i * p->z_row, p->z_head, u ? p->p : p->q, c);
        NAME(flush)(&made);
    }
}

/* y (+)= the sum of w[k] x[at[k]] over `count` entries, for one head and n vectors; if `both`, `also` likewise with v. With
 * `fresh` the results are overwritten instead of added to. */
INLINE void NAME(gather)(const int n, const int both, const int fresh, const int64_t heads, int64_t count,
                         const int32_t *at, const REAL *w, const REAL *v, const REAL *x, int64_t step, REAL *y, REAL *also,
                         int64_t end) {
    VEC sum[4], other[4];
UNROLL(4)
    for (int j = 0; j < n; j++) {
        sum[j] = fresh ? (VEC){0} : *(VEC *)(y + (j < n - 1 ? j * LANES : end));
        if (both) other[j] = fresh ? (VEC){0} : *(VEC *)(also + (j < n - 1 ? j * LANES : end));
    }
    for (int64_t k = 0; k < count; k++) {
        const REAL *row = x + at[k] * step;
        const VEC a = w[k * heads] - (VEC){0}, b = (both ? v : w)[k * heads] - (VEC){0};
UNROLL(4)
        for (int j = 0; j < n; j++) {
            const VEC z = *(const VEC *)(row + (j < n - 1 ? j * LANES : end));
            sum[j] += a * z;
            if (both) other[j] += b * z;
        }
    }
UNROLL(4)
    for (int j = 0; j < n; j++) {
        *(VEC *)(y + (j < n - 1 ? j * LANES : end)) = sum[j];
        if (both) *(VEC *)(also + (j < n - 1 ? j * LANES : end)) = other[j];
    }
}

/* The same for all heads and any number of channels; n is the number of vectors if it is a constant at the call, else 0. */
INLINE void NAME(gather_heads)(const int n, const int both, const int fresh, const int64_t heads, const int64_t c, int64_t count,
                               const int32_t *at, const REAL *w, const REAL *v, const REAL *x, int64_t step, int64_t head,
                               REAL *y, REAL *also) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t from = 0, width; from < c; from += width) {
            const REAL *own = x + h * head + from;
            REAL *to = y + h * c + from, *too = both ? also + h * c + from : 0;
            width = c - from;
            if (width > 4 * LANES) { /* leave the next block at least one full vector */
                width = 4 * LANES;
                if (c - from - width < LANES) width -= LANES;
            }
#define CASE(n) case n: NAME(gather)(n, both, fresh, heads, count, at, w + h, v + h, own, step, to, too, width - LANES); break;
            switch (n ? n : (width + LANES - 1) / LANES) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
        }
}

/* The same without constant arguments, as a function that is not inlined, to limit the code size. */
static __attribute__((noinline)) void NAME(gather_any)(const int both, const int fresh, const int64_t heads, const int64_t c,
                                                       int64_t count, const int32_t *at, const REAL *w, const REAL *v,
                                                       const REAL *x, int64_t step, int64_t head, REAL *y, REAL *also) {
    if (both && fresh)
        NAME(gather_heads)(0, 1, 1, heads, c, count, at, w, v, x, step, head, y, also);
    else if (both)
        NAME(gather_heads)(0, 1, 0, heads, c, count, at, w, v, x, step, head, y, also);
    else if (fresh)
        NAME(gather_heads)(0, 0, 1, heads, c, count, at, w, w, x, step, head, y, y);
    else
        NAME(gather_heads)(0, 0, 0, heads, c, count, at, w, w, x, step, head, y, y);
}

INLINE void NAME(prefetch)(const REAL *row, const int64_t heads, const int64_t c, int64_t head) {
    if (head == c)
        for (int64_t j = 0; j < heads * c; j += 64 / REAL_BYTES) __builtin_prefetch(row + j);
    else
        for (int64_t h = 0; h < heads; h++)
            for (int64_t j = 0; j < c; j += 64 / REAL_BYTES) __builtin_prefetch(row + h * head + j);
}

INLINE void NAME(scaled)(REAL *x, const int64_t heads, const int64_t c, const REAL *by) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < c; j++) x[h * c + j] *= by[h];
}

INLINE REAL NAME(finite)(REAL top) { return top == -(REAL)__builtin_inff() ? 0 : top; }

/* y, and y_f if needed. The entries of a row are processed in chunks with an online softmax: when the largest logit grows,
 * the sums so far are rescaled. Logits of minus infinity before the first finite one give values of 0, not inf - inf; if all
 * are minus infinity, the sum is 0 and the row NaN, as is any row with a NaN or plus infinity among its logits. */
INLINE void NAME(each_row)(const int n, const int both, const int64_t heads, const int64_t c, const attention *p,
                           int64_t first, int64_t last) {
    const int64_t plane = p->rows * heads, stop = p->crow[last], many = CHUNK_NUMBERS / heads;
    const REAL *s = p->scores, *t = s + plane, *z = p->z;
    REAL *tops = (REAL *)p->scores + 2 * plane, *inverse = tops + plane, *shares = inverse + plane;
    REAL w[BUFFER] = {0}, f[BUFFER], top[HEADS], sum[HEADS], share[HEADS], shrink[HEADS + 64 / REAL_BYTES] = {0};
    for (int64_t slot = first; slot < last; slot++) {
        const int64_t i = p->place ? p->place[slot] : slot;
        REAL *restrict y = (REAL *)p->y + i * heads * c, *restrict also = both ? (REAL *)p->y_f + i * heads * c : 0;
        const int64_t start = p->crow[slot], entries = p->crow[slot + 1] - start, entry = p->place ? p->start[slot] : start;
        if (!entries) {
            for (int64_t j = 0; j < heads * c; j++) y[j] = 0;
            if (both)
                for (int64_t j = 0; j < heads * c; j++) also[j] = 0;
        }
        for (int64_t h = 0; h < heads; h++) top[h] = sum[h] = share[h] = 0;
        for (int64_t from = 0; from < entries; from += many) {
            const int64_t count = entries - from < many ? entries - from : many;
            const int32_t *at = p->col + start + from;
            for (int64_t k = 0; k < count; k++) {
                const int64_t e = start + from + k, next = p->col[e + AHEAD < stop ? e + AHEAD : e];
                NAME(prefetch)(z + next * p->z_row, heads, c, p->z_head);
                __builtin_prefetch(s + next * heads);
                for (int64_t h = 0; h < heads; h++) w[k * heads + h] = t[i * heads + h] + s[at[k] * heads + h];
            }
            JOIN(leaky_relu, ISA, TYPE)(w, f, count * heads, (REAL)p->slope);
            for (int64_t h = 0; h < heads; h++) {
                shrink[h] = top[h];
                if (!from) top[h] = w[h];
            }
            for (int64_t k = 0; k < count; k++)
                for (int64_t h = 0; h < heads; h++) top[h] = w[k * heads + h] > top[h] ? w[k * heads + h] : top[h];
            if (from) {
                for (int64_t h = 0; h < heads; h++) shrink[h] -= NAME(finite)(top[h]);
                JOIN(exponentials_in_place, ISA, TYPE)(shrink, heads);
                for (int64_t h = 0; h < heads; h++) sum[h] *= shrink[h], share[h] *= shrink[h];
                NAME(scaled)(y, heads, c, shrink);
                if (both) NAME(scaled)(also, heads, c, shrink);
            }
            for (int64_t k = 0; k < count; k++)
                for (int64_t h = 0; h < heads; h++) w[k * heads + h] -= NAME(finite)(top[h]);
            JOIN(exponentials_in_place, ISA, TYPE)(w, count * heads);
            for (int64_t k = 0; k < count; k++)
                for (int64_t h = 0; h < heads; h++) {
                    const REAL a = w[k * heads + h], b = a * f[k * heads + h];
                    sum[h] += a;
                    share[h] += b;
                }
            if (p->least)
                for (int64_t u = 0; u < count * heads; u++) w[u] *= JOIN(factor, ISA, TYPE)(p, (entry + from) * heads + u);
            if (entries <= many) { /* most rows: a single chunk */
                for (int64_t h = 0; h < heads; h++) sum[h] = 1 / sum[h];
                for (int64_t k = 0; k < count; k++)
                    for (int64_t h = 0; h < heads; h++) w[k * heads + h] *= sum[h];
            }
            if (both)
                for (int64_t u = 0; u < count * heads; u++) f[u] *= w[u];
            if (!n)
                NAME(gather_any)(both, !from, heads, c, count, at, w, f, z, p->z_row, p->z_head, y, also);
            else if (from)
                NAME(gather_heads)(n, both, 0, heads, c, count, at, w, f, z, p->z_row, p->z_head, y, also);
            else
                NAME(gather_heads)(n, both, 1, heads, c, count, at, w, f, z, p->z_row, p->z_head, y, also);
        }
        if (entries > many) {
            for (int64_t h = 0; h < heads; h++) sum[h] = 1 / sum[h];
            NAME(scaled)(y, heads, c, sum);
            if (both) NAME(scaled)(also, heads, c, sum);
        }
        if (both)
            for (int64_t h = 0; h < heads; h++) {
                tops[i * heads + h] = top[h];
                inverse[i * heads + h] = sum[h];
                shares[i * heads + h] = share[h] * sum[h];
            }
    }
}

INLINE void NAME(attend_of)(const int n, const int64_t heads, const int64_t c, const attention *p, int64_t first,
                            int64_t last, REAL *sums) {
    (void)sums;
    if (!n)
        NAME(each_row)(0, p->y_f != 0, heads, c, p, first, last);
    else if (p->y_f)
        NAME(each_row)(n, 1, heads, c, p, first, last);
    else
        NAME(each_row)(n, 0, heads, c, p, first, last);
}

/* The data of each row that the pass over the columns reads, contiguous: t, the largest logit, 1 / sum, and d. Also dt. */
INLINE void NAME(sums_of)(const int n, const int64_t heads, const int64_t c, const attention *p, int64_t first,
                          int64_t last, REAL *sums) {
    (void)n, (void)sums;
    const int64_t plane = p->rows * heads;
    const REAL *scores = p->scores, *dy = p->dy;
    REAL *restrict known = p->known, *restrict dt = p->dt, d[HEADS], b[HEADS];
    for (int64_t i = first; i < last; i++) {
        NAME(pending) ds = {.out = d}, bs = {.out = b};
        NAME(dots)(&ds, heads, c, dy + i * heads * c, c, (const REAL *)p->y + i * heads * c, c);
        NAME(dots)(&bs, heads, c, dy + i * heads * c, c, (const REAL *)p->y_f + i * heads * c, c);
        NAME(flush)(&ds);
        NAME(flush)(&bs);
        for (int64_t h = 0; h < heads; h++) {
            const REAL *own = scores + i * heads + h;
            REAL *to = known + i * 4 * heads + h;
            to[0] = own[plane];
            to[heads] = own[2 * plane];
            to[2 * heads] = own[3 * plane];
            to[3 * heads] = d[h];
            dt[i * heads + h] = b[h] - d[h] * own[4 * plane];
        }
    }
}

/* By rows of the transpose: dz and ds. */
INLINE void NAME(back_of)(const int n, const int64_t heads, const int64_t c, const attention *p, int64_t first,
                          int64_t last, REAL *restrict sums) {
    (void)sums;
    const int64_t stop = p->crow_t[last], many = CHUNK_NUMBERS / heads;
    const REAL *restrict s = p->scores, *restrict known = p->known, *dy = p->dy, *dt = p->dt, *a = p->p, *b = p->q;
    REAL w[BUFFER] = {0}, f[BUFFER], g[BUFFER], m[BUFFER], top[BUFFER], inverse[BUFFER], d[BUFFER];
    for (int64_t slot = first; slot < last; slot++) {
        const int64_t j = p->place_t ? p->place_t[slot] : slot;
        const REAL *z = (const REAL *)p->z + j * p->z_row;
        REAL *restrict dz = (REAL *)p->dz + j * heads * c, *restrict source = (REAL *)p->ds + j * heads;
        const int64_t start = p->crow_t[slot], entries = p->crow_t[slot + 1] - start;
        const int32_t *entry = p->to_t + (p->place_t ? p->start_t[slot] : start);
        if (!entries)
            for (int64_t v = 0; v < heads * c; v++) dz[v] = 0;
        for (int64_t h = 0; h < heads; h++) source[h] = 0;
        for (int64_t from = 0; from < entries; from += many) {
            const int64_t count = entries - from < many ? entries - from : many;
            const int32_t *at = p->col_t + start + from;
            NAME(pending) products = {.out = g};
            for (int64_t k = 0; k < count; k++) {
                const int64_t e = start + from + k, next = p->col_t[e + AHEAD < stop ? e + AHEAD : e];
                const REAL *own = known + (int64_t)at[k] * 4 * heads;
                NAME(prefetch)(dy + next * heads * c, heads, c, c);
                NAME(prefetch)(known + next * 4 * heads, 4, heads, heads);
                for (int64_t h = 0; h < heads; h++) w[k * heads + h] = own[h] + s[j * heads + h];
                for (int64_t h = 0; h < heads; h++) top[k * heads + h] = own[heads + h];
                for (int64_t h = 0; h < heads; h++) inverse[k * heads + h] = own[2 * heads + h];
                for (int64_t h = 0; h < heads; h++) d[k * heads + h] = own[3 * heads + h];
                NAME(dots)(&products, heads, c, dy + at[k] * heads * c, c, z, p->z_head);
            }
            NAME(flush)(&products);
            if (p->least)
                for (int64_t k = 0; k < count; k++)
                    for (int64_t h = 0; h < heads; h++) {
                        m[k * heads + h] = JOIN(factor, ISA, TYPE)(p, entry[from + k] * heads + h);
                        g[k * heads + h] *= m[k * heads + h];
                    }
            JOIN(leaky_relu, ISA, TYPE)(w, f, count * heads, (REAL)p->slope);
            for (int64_t u = 0; u < count * heads; u++) w[u] -= top[u];
            JOIN(exponentials_in_place, ISA, TYPE)(w, count * heads);
            for (int64_t u = 0; u < count * heads; u++) {
                w[u] *= inverse[u];
                f[u] *= w[u] * (g[u] - d[u]);
            }
            for (int64_t k = 0; k < count; k++)
                for (int64_t h = 0; h < heads; h++) source[h] += f[k * heads + h];
            if (p->least)
                for (int64_t u = 0; u < count * heads; u++) w[u] *= m[u];
            if (!n)
                NAME(gather_any)(0, !from, heads, c, count, at, w, w, dy, heads * c, c, dz, 0);
            else if (from)
                NAME(gather_heads)(n, 0, 0, heads, c, count, at, w, w, dy, heads * c, c, dz, 0);
            else
                NAME(gather_heads)(n, 0, 1, heads, c, count, at, w, w, dy, heads * c, c, dz, 0);
        }
        for (int64_t h = 0; h < heads; h++)
            for (int64_t v = 0; v < c; v++) dz[h * c + v] += dt[j * heads + h] * a[h * c + v] + source[h] * b[h * c + v];
    }
}

/* dp and dq of this part. */
INLINE void NAME(vectors_of)(const int n, const int64_t heads, const int64_t c, const attention *p, int64_t first,
                             int64_t last, REAL *restrict sums) {
    (void)n;
    const REAL *dt = p->dt, *ds = p->ds;
    for (int64_t j = 0; j < 2 * heads * c; j++) sums[j] = 0;
    for (int64_t i = first; i < last; i++)
        for (int64_t h = 0; h < heads; h++) {
            const REAL *z = (const REAL *)p->z + i * p->z_row + h * p->z_head, t = dt[i * heads + h], s = ds[i * heads + h];
            for (int64_t v = 0; v < c; v++) sums[h * c + v] += t * z[v];
            for (int64_t v = 0; v < c; v++) sums[(heads + h) * c + v] += s * z[v];
        }
}

/* The numbers of heads, channels and vectors are constants for common layers. */
#define ENTRY(f, ...)                                                                                         \
    static __attribute__((noinline)) void NAME(f)(const attention *p, int64_t first, int64_t last, void *sums) { \
        if (p->heads == 8 && p->channels == 8 && LANES <= 8)                                                  \
            NAME(f##_of)(8 / LANES, 8, 8, p, first, last, sums);                                              \
        else if (p->heads == 1)                                                                               \
            NAME(f##_of)(0, 1, p->channels, p, first, last, sums);                                            \
        else                                                                                                  \
            NAME(f##_of)(0, p->heads, p->channels, p, first, last, sums);                                     \
    }
ENTRY(scores) ENTRY(attend) ENTRY(sums) ENTRY(back) ENTRY(vectors)

#undef ENTRY
#undef LANE
#undef VEC
#undef NAME
