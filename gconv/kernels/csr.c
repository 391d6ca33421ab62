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
 * csr_base.c, csr_avx2.c and csr_avx512.c are the same text for one instruction set each: csr_isa.h includes csr_rows.h once
 * for each type and vector width. Which set runs is decided when the library is loaded. Sums run over a row's entries in
 * their order, whatever the number of threads: results do not depend on it.
 *
 * Every function does one of `chunks` pieces of its work, of about equal size: the caller asks for them in turn, and is free
 * to answer an interrupt in between. Results do not depend on their number either.
 *
 * bfloat16 is storage only: numbers are widened to float32 as they are read, and rounded once as they are written.
 */
#include "csr.h"

#ifdef HAVE_SETS
static const loops *const SETS[LEVELS] = {&gconv_base, &gconv_avx2, &gconv_avx512};
#else
static const loops *const SETS[LEVELS] = {&gconv_base, &gconv_base, &gconv_base};
#endif

/* Of the structs in csr.h and the functions below: native.py has the same number. */
int gconv_interface(void) { return 12; }

/* The highest level this processor has. */
int gconv_level(void) {
#if defined(GCONV_PORTABLE)
    return AVX512;
#elif defined(HAVE_SETS)
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

static int64_t parts_of(int64_t rows, int threads, int64_t chunks) {
    const int64_t parts = (threads == 1 ? 1 : PARTS) * chunks;
    return rows < parts ? (rows ? rows : 1) : parts;
}

/* Where piece `chunk` of so many tasks begins. */
static int64_t from(int64_t tasks, int64_t chunk, int64_t chunks) { return tasks * chunk / chunks; }

void gconv_spmm(const product *p, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t parts = parts_of(p->rows, threads, chunks), tasks = parts * p->batch;
    const int64_t last = from(tasks, chunk + 1, chunks);
    spmm_part run = SETS[level_of(level, p->channels, type)]->spmm[type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = from(tasks, chunk, chunks); t < last; t++) {
        int64_t c = t % parts;
        run(p, t / parts, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
    }
}

/* y, (batch, columns of the pattern, channels) of zeros, becomes S^T x; it has numbers. Threads take blocks of channels. */
void gconv_scatter(const product *p, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    if (!p->batch || !p->channels) return;
    const int64_t wanted = threads * chunks, parts = p->batch < wanted ? (wanted + p->batch - 1) / p->batch : 1;
    const int64_t width = ((p->channels + parts - 1) / parts + 15) / 16 * 16, blocks = (p->channels + width - 1) / width;
    const int64_t tasks = blocks * p->batch, last_task = from(tasks, chunk + 1, chunks);
    spmm_part run = SETS[level]->scatter[type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = from(tasks, chunk, chunks); t < last_task; t++) {
        int64_t first = t % blocks * width, last = first + width;
        run(p, t / blocks, first, last < p->channels ? last : p->channels);
    }
}

void gconv_sddmm(const product *p, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t parts = parts_of(p->rows, threads, chunks), last = from(parts, chunk + 1, chunks);
    sddmm_part run = SETS[level_of(level, p->channels, type)]->sddmm[type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t c = from(parts, chunk, chunks); c < last; c++)
        run(p, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
}

void gconv_max(const product *p, int what, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t parts = parts_of(p->rows, threads, chunks), tasks = what == WEIGHTS ? parts : parts * p->batch;
    const int64_t last = from(tasks, chunk + 1, chunks);
    spmm_part run = SETS[level]->maxima[what][type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = from(tasks, chunk, chunks); t < last; t++) {
        int64_t c = t % parts;
        run(p, t / parts, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
    }
}

void gconv_edges(const edges *p, int what, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t parts = parts_of(p->rows, threads, chunks), last = from(parts, chunk + 1, chunks);
    edges_part run = SETS[level]->edges[what][type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t c = from(parts, chunk, chunks); c < last; c++)
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

/* Which of the PARTS of pass number `pass` (of `passes`, one after another) are in this chunk: first, and the one after. */
static int64_t part_of(int64_t pass, int64_t passes, int64_t chunk, int64_t chunks) {
    const int64_t part = from(passes * PARTS, chunk, chunks) - pass * PARTS;
    return part < 0 ? 0 : part < PARTS ? part : PARTS;
}

/* y of attention; with `back`, from dy and what the forward pass made, dz and (2, heads, channels) dp and dq, which are
 * written to the first of `sums`. Parts are the same for any number of threads, for sums over sites are added part by part. */
void gconv_attend(const attention *p, int back, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t numbers = 2 * p->heads * p->channels, bytes = numbers * (type == F64 ? 8 : 4);
    const int begin = back ? SUMMED : SCORES, passes = back ? VECTORS - SUMMED + 1 : ATTEND - SCORES + 1;
    for (int pass = 0; pass < passes; pass++) {
        const int what = begin + pass;
        const int64_t stop = part_of(pass, passes, chunk + 1, chunks);
        attention_part run = SETS[level_of(level, p->channels, type)]->attention[what][type];
        const int32_t *crow = what == BACK ? p->crow_t : what == ATTEND ? p->crow : 0; /* else a part is so many rows */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (int64_t c = part_of(pass, passes, chunk, chunks); c < stop; c++) {
            int64_t first = crow ? boundary(crow, p->rows, c, PARTS) : p->rows * c / PARTS;
            int64_t last = crow ? boundary(crow, p->rows, c + 1, PARTS) : p->rows * (c + 1) / PARTS;
            run(p, first, last, p->sums ? (char *)p->sums + c * bytes : 0);
        }
    }
    if (back && chunk == chunks - 1) add_parts(p->sums, numbers, numbers, type);
}

/* The values; with `back`, from the gradient g that arrives, ds, dt and, in the first of `sums`, dp. */
void gconv_joint(const joint *p, int back, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t numbers = p->heads * p->channels, bytes = 2 * numbers * (type == F64 ? 8 : 4);
    const int begin = back ? PART : MEET, passes = back ? RETURN - PART + 1 : 1;
    for (int pass = 0; pass < passes; pass++) {
        const int what = begin + pass;
        const int64_t stop = part_of(pass, passes, chunk + 1, chunks);
        joint_part run = SETS[level]->joint[what][type];
        const int32_t *crow = what == RETURN ? p->crow_t : p->crow;
        const int64_t rows = what == RETURN ? p->columns : p->rows;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (int64_t c = part_of(pass, passes, chunk, chunks); c < stop; c++)
            run(p, boundary(crow, rows, c, PARTS), boundary(crow, rows, c + 1, PARTS),
                p->sums ? (char *)p->sums + c * bytes : 0);
    }
    if (back && chunk == chunks - 1) add_parts(p->sums, numbers, 2 * numbers, type);
}

#include "csr_build.h"
#include "csr_order.h"
