/* Additive attention, softmax and product fused, for one type and one instruction set. With a the softmax over the entries
 * e = (i, j) of row i of LeakyReLU(t[i, h] + s[j, h]):
 *
 *     y[i, h] = sum of a[e, h] m[e, h] z[j, h],        t[i, h] = <z[i, h], p[h]>,    s[j, h] = <z[j, h], q[h]>
 *
 * m is the dropout mask: 1 without dropout, else 0 for a fraction `share` of the entries and 1 / (1 - share) for the others,
 * from a hash of signal, entry, head and seed. Nothing is stored per entry. The gradient of the logits of row i,
 *
 *     dl[e, h] = a f (m <dy[i, h], z[j, h]> - d[i, h]),    d = <dy[i, h], y[i, h]>,    f = 1 or slope,
 *
 * is linear in dy: its sum over the row is <dy[i, h], y_f[i, h]> - d g with y_f = sum of a f m z and g = sum of a f, which
 * the forward pass computes together with y. The backward pass therefore needs a single pass, over the columns.
 *
 * `scores` are arrays (rows, heads): s, t, the largest logit of each row, 1 / (sum of its exponentials), and g. */
#define HEADS 64 /* maximum, checked by the caller */
#define CHUNK_NUMBERS 512 /* (entry, head) pairs processed at a time */
#define BUFFER (CHUNK_NUMBERS + 64 / REAL_BYTES) /* padded by one vector */
#define AHEAD 8 /* prefetch distance, in entries */

#define VEC JOIN(vec, JOIN(ISA, TYPE, full), t)
#define INT JOIN(mask, JOIN(ISA, TYPE, full), t)
#define LANES (VECTOR_BYTES / REAL_BYTES)

/* l = LeakyReLU(l) and f = its derivative, for n numbers, rounded up to a whole vector. */
static __attribute__((noinline)) void JOIN(leaky_relu, ISA, TYPE)(REAL *restrict l, REAL *restrict f, int64_t n, REAL slope) {
    const VEC one = (VEC){0} + 1, other = (VEC){0} + slope;
    for (int64_t j = 0; j < n; j += LANES) {
        const VEC u = *(VEC *)(l + j);
        const INT up = (INT)(u > 0);
        const VEC v = (VEC)((up & (INT)one) | (~up & (INT)other));
        *(VEC *)(f + j) = v;
        *(VEC *)(l + j) = u * v;
    }
}

/* x = e^x for n non-positive numbers, rounded up to a whole vector. */
INLINE void JOIN(exponentials_in_place, ISA, TYPE)(REAL *restrict x, int64_t n) {
    JOIN(exponentials, ISA, TYPE)(x, (n + LANES - 1) / LANES * LANES);
}

/* The dropout factor m of (entry, head) pair `at`. */
INLINE REAL JOIN(factor, ISA, TYPE)(const attention *p, uint64_t at) {
    at += p->before;
    return hashed(hashed((uint32_t)at ^ 0x9e3779b9 * (uint32_t)(at >> 32)) + p->seed) < p->least ? 0 : (REAL)p->scale;
}

#undef LANES
#undef INT
#undef VEC

#define LANES (VECTOR_BYTES / REAL_BYTES)
#define WIDTH full
#include "csr_attend_rows.h"
#undef LANES
#undef WIDTH
#if SLIM
#define LANES (16 / REAL_BYTES)
#define WIDTH slim
#include "csr_attend_rows.h"
#undef LANES
#undef WIDTH
#endif
#if NARROW
#define LANES 1
#define WIDTH one
#include "csr_attend_rows.h"
#undef LANES
#undef WIDTH
#endif

#define AS(f, width) JOIN(JOIN(f, ISA, TYPE), width, attend)(p, first, last, sums)
#if SLIM
#define CHOOSE(f) p->channels >= VECTOR_BYTES / REAL_BYTES ? AS(f, full) : p->channels >= 16 / REAL_BYTES ? AS(f, slim) : AS(f, one)
#elif NARROW
#define CHOOSE(f) p->channels >= VECTOR_BYTES / REAL_BYTES ? AS(f, full) : AS(f, one)
#else
#define CHOOSE(f) AS(f, full)
#endif

#define ENTRY(f) \
    static void JOIN(attend_##f, ISA, TYPE)(const attention *p, int64_t first, int64_t last, void *sums) { CHOOSE(f); }
ENTRY(scores) ENTRY(attend) ENTRY(sums) ENTRY(back) ENTRY(vectors)

#undef ENTRY
#undef CHOOSE
#undef AS
#undef AHEAD
#undef BUFFER
#undef CHUNK_NUMBERS
#undef HEADS
