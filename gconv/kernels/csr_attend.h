/* Attention whose logits are a sum over both ends of an entry, softmax and product in one pass, for one type and one
 * instruction set; a is the softmax over the entries e = (i, j) of row i of bend(t[i, h] + s[j, h]):
 *
 *     y[i, h] = sum of a[e, h] m[e, h] z[j, h],        t[i, h] = <z[i, h], p[h]>,    s[j, h] = <z[j, h], q[h]>
 *
 * bend(l) is l where it is positive and slope l elsewhere. m is 1, or 0 for a share of the entries and 1 / (1 - share) for
 * the others, which a hash of signal, entry, head and seed decides. No number of an entry is kept. The derivative of row i's logits,
 *
 *     dl[e, h] = a f (m <dy[i, h], z[j, h]> - d[i, h]),    d = <dy[i, h], y[i, h]>,    f = 1 or slope,
 *
 * is linear in dy: its sum over the row is <dy[i, h], bent[i, h]> - d g with bent = sum of a f m z and g = sum of a f, which
 * the forward pass makes beside y. So one pass over the columns is left for the backward pass.
 *
 * `scores` are planes (rows, heads): s, t, the largest logit of each row, 1 over the sum of its exponentials, and g. */
#define HEADS 64 /* at most; the caller sees to it */
#define NUMBERS 512 /* of the entries at hand */
#define ROOM (NUMBERS + 64 / REAL_BYTES) /* and a vector more */
#define AHEAD 8 /* entries: how far ahead of its use a gathered row is asked for */

#define VEC JOIN(vec, JOIN(ISA, TYPE, full), t)
#define INT JOIN(mask, JOIN(ISA, TYPE, full), t)
#define LANES (VECTOR_BYTES / REAL_BYTES)

/* l = bend(l) and f = its slope there, of n numbers and what follows up to a whole vector. */
static __attribute__((noinline)) void JOIN(bend, ISA, TYPE)(REAL *restrict l, REAL *restrict f, int64_t n, REAL slope) {
    const VEC one = (VEC){0} + 1, other = (VEC){0} + slope;
    for (int64_t j = 0; j < n; j += LANES) {
        const VEC u = *(VEC *)(l + j);
        const INT up = (INT)(u > 0);
        const VEC v = (VEC)((up & (INT)one) | (~up & (INT)other));
        *(VEC *)(f + j) = v;
        *(VEC *)(l + j) = u * v;
    }
}

/* x = e^x of n numbers none of which is positive; what follows up to a whole vector is of no consequence. */
INLINE void JOIN(powers, ISA, TYPE)(REAL *restrict x, int64_t n) {
    JOIN(exponentials, ISA, TYPE)(x, (n + LANES - 1) / LANES * LANES);
}

/* The factor m of number `at`. */
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
#undef ROOM
#undef NUMBERS
#undef HEADS
