/* Shared by all files of the kernels: the structs that native.py fills in, the types of the loops, and small helpers. */
#ifndef GCONV_CSR_H
#define GCONV_CSR_H
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)

/* Loops over a constant number of vectors are unrolled; clang does so without a pragma. */
#if defined(__clang__)
#define UNROLL(n)
#else
#define UNROLL_(text) _Pragma(#text)
#define UNROLL(n) UNROLL_(GCC unroll n)
#endif

/* One product: the pattern, its values (float64 with float64 signals, else float32), and signals as (batch, row, head,
 * channel) with any stride between batches, rows and heads; channels are contiguous. z and w may be NULL, and may be y.
 *
 * Entry k of the pattern has the values order[k] * heads + h (or k * heads + h without an order). The product has `outer`
 * heads, each of which is a sum over `inner` heads of x. A plain product has one of each.
 *
 * With a schedule, crow and col hold the rows in another order: slot i is row place[i] of y, z and w, and its values start at
 * entry start[i] of the original pattern. place and start are NULL without a schedule; rows with fewer channels than
 * SCHEDULED in native.py are never scheduled.
 *
 * If each signal has its own values, these are v_batch numbers apart. A sampled product with y_batch != 0 is not summed over
 * the signals. */
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

/* Arguments of functions of entries: arrays (e, heads) in row order and arrays (rows or columns, heads), for `batch` signals,
 * which are a_batch, b_batch and y_batch numbers apart. */
typedef struct {
    const int32_t *crow, *col, *order;
    const void *a, *b;
    void *y;
    int64_t rows, heads, batch, a_batch, b_batch, y_batch;
} edges;

/* Attention: z (signals, sites, heads, channels) with any stride between signals, sites and heads, p and q (heads, channels);
 * see csr_attend.h. For each signal `scores` holds 5 arrays (rows, heads); y_f is NULL if no derivative is needed. For the
 * backward pass, `known` holds (rows, 4, heads), followed by dt and ds (rows, heads), and `sums` holds dp and dq of each part
 * of each signal. Entries whose hash is below `least` are dropped, the others are multiplied by `scale`; `before` is the
 * number of (entry, head) pairs of earlier signals. place and start as in a product, for rows and for columns. */
typedef struct {
    const int32_t *crow, *col, *place, *start, *crow_t, *col_t, *place_t, *start_t, *to_t;
    const void *z, *p, *q, *dy;
    void *scores, *y, *y_f, *known, *dt, *ds, *dz, *sums;
    int64_t rows, heads, channels, z_row, z_head, z_signal, signals;
    uint64_t before;
    double slope, scale;
    uint32_t seed, least;
} attention;

/* Joint attention: s (signals, columns, heads, channels) and t (signals, rows, heads, channels) with any stride between
 * signals, sites and heads, p (heads, channels); see csr_joint.h. `sums` holds two arrays (heads, channels) for each part of
 * each signal. */
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

/* A hash of 32-bit integers (constants: C. Wellons, Prospecting for hash functions, "lowbias32"). */
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
enum { JOINT_FORWARD, JOINT_BACK_ROWS, JOINT_BACK_COLUMNS, JOINTS };
enum { LARGEST, TIES, SHARES, WEIGHTS, MAXIMA };

/* The loops of one instruction set; attention and maxima have no bfloat16 versions. */
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

/* The other instruction sets, if the compiler supports them. With GCONV_PORTABLE they are compiled with their vector lengths
 * but for the base instruction set, so that all loops can be tested on any machine. With GCONV_BASE they are left out, which
 * reduces the build time to a third. */
#if !defined(GCONV_BASE) && (defined(GCONV_PORTABLE) || (defined(__x86_64__) && defined(__GNUC__)))
#define HAVE_SETS 1
extern PRIVATE const loops gconv_avx2, gconv_avx512;
#endif

#endif
