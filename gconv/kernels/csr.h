/* What all files of the kernels share: the structs that native.py fills in, the types of the loops, and small helpers. */
#ifndef GCONV_CSR_H
#define GCONV_CSR_H
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)

/* Loops over few vectors are unrolled: by clang unasked, where the count is a constant. */
#if defined(__clang__)
#define UNROLL(n)
#else
#define UNROLL_(text) _Pragma(#text)
#define UNROLL(n) UNROLL_(GCC unroll n)
#endif

/* One product: the pattern, its values (float64 with float64 signals, else float32), and signals as (batch, row, head,
 * channel) with any stride between batches, rows and heads, channels side by side. z and w may be NULL, and may be y.
 *
 * Entry k of the pattern has the values order[k] * heads + h (or k * heads + h without an order). `outer` heads of y are
 * written apart; `inner` heads of x are summed into each. A plain product has one of each.
 *
 * With a schedule, crow and col hold the rows in another order: slot i is row place[i] of y, z and w, and its entries are
 * those of the pattern as it comes from start[i] on. place and start are NULL without one, and for
 * rows of fewer channels than SCHEDULED in native.py, which have no such loops.
 *
 * Values may differ from signal to signal: then those of a signal begin v_batch numbers after those of the one before, and a
 * sampled product, whose y_batch is not 0, is not summed over the signals. */
typedef struct {
    const int32_t *crow, *col, *order;
    const void *values, *x, *z, *w;
    void *y;
    const int32_t *place, *start;
    int64_t rows, batch, channels, heads, outer, inner;
    int64_t x_batch, x_row, x_head, y_batch, y_row, y_head, z_batch, z_row, z_head, w_batch, w_row;
    double alpha, beta, gamma;
    int64_t v_batch;
} product;

/* What the entries carry: numbers (e, heads) in row order, beside numbers (rows or columns, heads), for each of the signals,
 * which are so many numbers apart. */
typedef struct {
    const int32_t *crow, *col, *order;
    const void *a, *b;
    void *y;
    int64_t rows, heads, batch, a_batch, b_batch, y_batch;
} edges;

/* Attention: z (signals, sites, heads, channels) with any stride between signals, sites and heads, p and q (heads, channels);
 * see csr_attend.h. Of each signal `scores` holds 5 planes (rows, heads); bent is NULL where there will be no derivative. Of
 * that, `known` holds 4 planes side by side (rows, 4, heads), followed by dt and ds (rows, heads), and `sums` a part's dp and
 * dq for each part of each signal. Entries whose hash is below `least` are dropped, the others times `scale`; `before` numbers
 * of entries and heads belong to signals before this one. place and start as in a product, of the rows and of the columns. */
typedef struct {
    const int32_t *crow, *col, *place, *start, *crow_t, *col_t, *place_t, *start_t, *to_t;
    const void *z, *p, *q, *dy;
    void *scores, *y, *bent, *known, *dt, *ds, *dz, *sums;
    int64_t rows, heads, channels, z_row, z_head, z_signal, signals;
    uint64_t before;
    double slope, scale;
    uint32_t seed, least;
} attention;

/* The same where both ends meet before they are bent: s (signals, columns, heads, channels) and t (signals, rows, heads,
 * channels) with any stride between signals, sites and heads, p (heads, channels); see csr_joint.h. `sums` holds two such
 * arrays for each part of each signal. */
typedef struct {
    const int32_t *crow, *col, *crow_t, *col_t, *order;
    const void *s, *t, *p, *values, *g;
    void *y, *ds, *dt, *sums;
    int64_t rows, columns, heads, channels, s_row, s_head, t_row, t_head, s_signal, t_signal, signals;
    double slope;
} joint;

typedef void (*spmm_part)(const product *p, int64_t batch, int64_t first, int64_t last);
typedef void (*sddmm_part)(const product *p, int64_t first, int64_t last);
typedef void (*edges_part)(const edges *p, int64_t first, int64_t last);
typedef void (*attention_part)(const attention *p, int64_t first, int64_t last, void *sums);
typedef void (*joint_part)(const joint *p, int64_t first, int64_t last, void *sums);

INLINE float widen(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* A number that looks random (the constants: C. Wellons, Prospecting for hash functions, "lowbias32"). */
INLINE uint32_t hashed(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352d;
    x = (x ^ x >> 15) * 0x846ca68b;
    return x ^ x >> 16;
}

/* Round to nearest, ties to even; a NaN stays a (quiet) NaN. */
INLINE uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

enum { BASE, AVX2, AVX512, LEVELS };
enum { F32, F64, BF16, TYPES };
enum { SOFTMAX, SOFTMAX_BACK, ENDS, SUMS, EDGES };
enum { SCORES, ATTEND, SUMMED, BACK, VECTORS, ATTENTIONS };
enum { MEET, PART, RETURN, JOINTS };
enum { LARGEST, TIES, SHARES, WEIGHTS, MAXIMA };

/* The loops of one instruction set; what attention and maxima are made of has no bfloat16. */
typedef struct {
    spmm_part spmm[TYPES], scatter[2], maxima[MAXIMA][2];
    sddmm_part sddmm[TYPES];
    edges_part edges[EDGES][2];
    attention_part attention[ATTENTIONS][2];
    joint_part joint[JOINTS][2];
} loops;

#if defined(_WIN32)
#define PRIVATE
#else
#define PRIVATE __attribute__((visibility("hidden")))
#endif
extern PRIVATE const loops gconv_base;

/* The other instruction sets, where the compiler can make code for them. With GCONV_PORTABLE their vectors are there, made
 * of what every processor has: so that the loops of each set can be tested on each machine. With GCONV_BASE they are left
 * out: a build of a third of the time. */
#if !defined(GCONV_BASE) && (defined(GCONV_PORTABLE) || (defined(__x86_64__) && defined(__GNUC__)))
#define HAVE_SETS 1
extern PRIVATE const loops gconv_avx2, gconv_avx512;
#endif

#endif
