/* Sparse products on the CPU, for every instruction set from one text.
 *
 *   spmm      y[b] = alpha S x[b] + beta z[b] + gamma w[b]     S in CSR form, b signals, rows of y in parallel
 *   scatter   y[b] = S^T x[b]                                  from S by rows, for small y
 *   sddmm     v_e  = sum_b <a[b, i], x[b, j]>                  at the entries e = (i, j) of S
 *   softmax   over the entries of each row, and its derivative; ends, what both ends of an entry carry, added
 *   attend    the product by the softmax of logits that are a sum over both ends of an entry, and its derivative
 *   joint     the softmax of logits made from the bent sum of what both ends carry, and its derivative
 *   largest   y[i] = max over the entries (i, j) of v_e x[j], and its derivative
 *   build     S in CSR form, and its transpose, from a list of entries
 *
 * Several matrices on one pattern ("heads") are values (e, heads); x, y and the sampled product then have a head axis.
 *
 * csr_isa.h is included once for each instruction set, under a pragma that lets the compiler use it; in turn it includes
 * csr_rows.h once for each type and vector width. Which set runs is decided when the library is loaded. Sums run over a
 * row's entries in their order, whatever the number of threads: results do not depend on it.
 *
 * bfloat16 is storage only: numbers are widened to float32 as they are read, and rounded once as they are written.
 */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)

/* One product: the pattern, its values (float64 with float64 signals, else float32), and signals as (batch, row, head,
 * channel) with any stride between batches, rows and heads, channels side by side. z and w may be NULL, and may be y.
 *
 * Entry k of the pattern has the values order[k] * heads + h (or k * heads + h without an order). `outer` heads of y are
 * written apart; `inner` heads of x are summed into each. A plain product has one of each.
 *
 * With a schedule, crow and col hold the rows in another order: slot i is row place[i] of y, z and w, and its entries are
 * those of the pattern as it comes from start[i] on. place and start are NULL without one, and for
 * rows of fewer channels than SCHEDULED in native.py, which have no such loops. */
typedef struct {
    const int32_t *crow, *col, *order;
    const void *values, *x, *z, *w;
    void *y;
    const int32_t *place, *start;
    int64_t rows, batch, channels, heads, outer, inner;
    int64_t x_batch, x_row, x_head, y_batch, y_row, y_head, z_batch, z_row, z_head, w_batch, w_row;
    double alpha, beta, gamma;
} product;

/* What the entries carry: numbers (e, heads) in row order, beside numbers (rows or columns, heads). */
typedef struct {
    const int32_t *crow, *col, *order;
    const void *a, *b;
    void *y;
    int64_t rows, heads;
} edges;

/* Attention: z (sites, heads, channels) with any stride between sites and heads, p and q (heads, channels); see
 * csr_attend.h. `scores` holds 5 planes (rows, heads); bent is NULL where there will be no derivative. Of that, `known` holds
 * 4 planes side by side (rows, 4, heads), and `sums` a part's dp and dq for each of the PARTS. Entries whose hash is below
 * `least` are dropped, the others times `scale`. place and start as in a product, of the rows and of the columns. */
typedef struct {
    const int32_t *crow, *col, *place, *start, *crow_t, *col_t, *place_t, *start_t, *to_t;
    const void *z, *p, *q, *dy;
    void *scores, *y, *bent, *known, *dt, *ds, *dz, *sums;
    int64_t rows, heads, channels, z_row, z_head;
    double slope, scale;
    uint32_t seed, least;
} attention;

/* The same where both ends meet before they are bent: s (columns, heads, channels) and t (rows, heads, channels) with any
 * stride between sites and heads, p (heads, channels); see csr_joint.h. `sums` holds two such arrays for each of the PARTS. */
typedef struct {
    const int32_t *crow, *col, *crow_t, *col_t, *order;
    const void *s, *t, *p, *values, *g;
    void *y, *ds, *dt, *sums;
    int64_t rows, columns, heads, channels, s_row, s_head, t_row, t_head;
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

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAVE_X86 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#define ISA avx512
#define VECTOR_BYTES 64
#define MOST_VECTORS 16
#include "csr_isa.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define ISA avx2
#define VECTOR_BYTES 32
#define MOST_VECTORS 8
#include "csr_isa.h"
#pragma GCC pop_options
#endif
#define ISA base
#define VECTOR_BYTES 16
#define MOST_VECTORS 8
#include "csr_isa.h"

enum { BASE, AVX2, AVX512, LEVELS };
enum { F32, F64, BF16, TYPES };

#ifdef HAVE_X86
#define OF(f, type) {f##_base_##type, f##_avx2_##type, f##_avx512_##type}
#else
#define OF(f, type) {f##_base_##type, f##_base_##type, f##_base_##type}
#endif
static const spmm_part SPMM[TYPES][LEVELS] = {OF(spmm, f32), OF(spmm, f64), OF(spmm, bf16)};
static const spmm_part SCATTER[2][LEVELS] = {OF(scatter, f32), OF(scatter, f64)};
static const sddmm_part SDDMM[TYPES][LEVELS] = {OF(sddmm, f32), OF(sddmm, f64), OF(sddmm, bf16)};
enum { SOFTMAX, SOFTMAX_BACK, ENDS, SUMS, EDGES };
static const edges_part EDGE[EDGES][2][LEVELS] = {
    {OF(softmax, f32), OF(softmax, f64)},
    {OF(softmax_back, f32), OF(softmax_back, f64)},
    {OF(ends, f32), OF(ends, f64)},
    {OF(sums, f32), OF(sums, f64)},
};
enum { SCORES, ATTEND, SUMMED, BACK, VECTORS, ATTENTIONS };
static const attention_part ATTENTION[ATTENTIONS][2][LEVELS] = {
    {OF(attend_scores, f32), OF(attend_scores, f64)},
    {OF(attend_attend, f32), OF(attend_attend, f64)},
    {OF(attend_sums, f32), OF(attend_sums, f64)},
    {OF(attend_back, f32), OF(attend_back, f64)},
    {OF(attend_vectors, f32), OF(attend_vectors, f64)},
};
enum { MEET, PART, RETURN, JOINTS };
static const joint_part JOINT[JOINTS][2][LEVELS] = {
    {OF(meet, f32), OF(meet, f64)},
    {OF(part, f32), OF(part, f64)},
    {OF(return, f32), OF(return, f64)},
};
enum { LARGEST, TIES, SHARES, WEIGHTS, MAXIMA };
static const spmm_part MAX[MAXIMA][2][LEVELS] = {
    {OF(largest, f32), OF(largest, f64)},
    {OF(ties, f32), OF(ties, f64)},
    {OF(shares, f32), OF(shares, f64)},
    {OF(weights, f32), OF(weights, f64)},
};

/* Of the structs above and the functions below: native.py has the same number. */
int gconv_interface(void) { return 11; }

/* The highest level this processor has. */
int gconv_level(void) {
#ifdef HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return BASE;
}

/* The level whose widest vectors a row of so many channels fills. */
static int level_of(int level, int64_t channels, int type) {
    return level == AVX512 && channels < (type == F64 ? 8 : 16) ? AVX2 : level;
}

/* The first row of part c of `parts`, chosen so that parts have about equal numbers of rows and entries together. */
static int64_t boundary(const int32_t *crow, int64_t rows, int64_t c, int64_t parts) {
    int64_t low = 0, high = rows, work = (crow[rows] - crow[0] + rows) * c / parts;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (crow[middle] - crow[0] + middle < work)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#define PARTS 64 /* of the rows: enough to balance threads, few enough to cost nothing */

static int64_t parts_of(int64_t rows, int threads) {
    return threads == 1 ? 1 : rows < PARTS ? (rows ? rows : 1) : PARTS;
}

void gconv_spmm(const product *p, int type, int level, int threads) {
    int64_t parts = parts_of(p->rows, threads), tasks = parts * p->batch;
    spmm_part run = SPMM[type][level_of(level, p->channels, type)];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < tasks; t++) {
        int64_t c = t % parts;
        run(p, t / parts, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
    }
}

/* y, (batch, columns of the pattern, channels) of zeros, becomes S^T x; it has numbers. Threads take blocks of channels. */
void gconv_scatter(const product *p, int type, int level, int threads) {
    const int64_t parts = p->batch < threads ? (threads + p->batch - 1) / p->batch : 1;
    const int64_t width = ((p->channels + parts - 1) / parts + 15) / 16 * 16, blocks = (p->channels + width - 1) / width;
    spmm_part run = SCATTER[type][level];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < blocks * p->batch; t++) {
        int64_t first = t % blocks * width, last = first + width;
        run(p, t / blocks, first, last < p->channels ? last : p->channels);
    }
}

void gconv_sddmm(const product *p, int type, int level, int threads) {
    int64_t parts = parts_of(p->rows, threads);
    sddmm_part run = SDDMM[type][level_of(level, p->channels, type)];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t c = 0; c < parts; c++)
        run(p, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
}

void gconv_max(const product *p, int what, int type, int level, int threads) {
    int64_t parts = parts_of(p->rows, threads), tasks = what == WEIGHTS ? parts : parts * p->batch;
    spmm_part run = MAX[what][type][level];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < tasks; t++) {
        int64_t c = t % parts;
        run(p, t / parts, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
    }
}

void gconv_edges(const edges *p, int what, int type, int level, int threads) {
    int64_t parts = parts_of(p->rows, threads);
    edges_part run = EDGE[what][type][level];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t c = 0; c < parts; c++)
        run(p, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
}

/* The numbers of each of the PARTS, `step` apart, are added to those of the first. */
static void add_parts(void *sums, int64_t numbers, int64_t step, int type) {
    for (int64_t c = 1; c < PARTS; c++)
        for (int64_t j = 0; j < numbers; j++) {
            if (type == F64)
                ((double *)sums)[j] += ((double *)sums)[c * step + j];
            else
                ((float *)sums)[j] += ((float *)sums)[c * step + j];
        }
}

/* y of attention; with `back`, from dy and what the forward pass made, dz and (2, heads, channels) dp and dq, which are
 * written to the first of `sums`. Parts are the same for any number of threads, for sums over sites are added part by part. */
void gconv_attend(const attention *p, int back, int type, int level, int threads) {
    int64_t numbers = 2 * p->heads * p->channels, bytes = numbers * (type == F64 ? 8 : 4);
    for (int what = back ? SUMMED : SCORES; what <= (back ? VECTORS : ATTEND); what++) {
        attention_part run = ATTENTION[what][type][level_of(level, p->channels, type)];
        const int32_t *crow = what == BACK ? p->crow_t : what == ATTEND ? p->crow : 0; /* else a part is so many rows */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (int64_t c = 0; c < PARTS; c++) {
            int64_t first = crow ? boundary(crow, p->rows, c, PARTS) : p->rows * c / PARTS;
            int64_t last = crow ? boundary(crow, p->rows, c + 1, PARTS) : p->rows * (c + 1) / PARTS;
            run(p, first, last, (char *)p->sums + c * bytes);
        }
    }
    if (back) add_parts(p->sums, numbers, numbers, type);
}

/* The values; with `back`, from the gradient g that arrives, ds, dt and, in the first of `sums`, dp. */
void gconv_joint(const joint *p, int back, int type, int level, int threads) {
    int64_t numbers = p->heads * p->channels, bytes = 2 * numbers * (type == F64 ? 8 : 4);
    for (int what = back ? PART : MEET; what <= (back ? RETURN : MEET); what++) {
        joint_part run = JOINT[what][type][level];
        const int32_t *crow = what == RETURN ? p->crow_t : p->crow;
        int64_t rows = what == RETURN ? p->columns : p->rows;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (int64_t c = 0; c < PARTS; c++)
            run(p, boundary(crow, rows, c, PARTS), boundary(crow, rows, c + 1, PARTS), (char *)p->sums + c * bytes);
    }
    if (back) add_parts(p->sums, numbers, 2 * numbers, type);
}

#include "csr_build.h"
