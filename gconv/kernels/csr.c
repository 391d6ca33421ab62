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
 * Several matrices on one pattern ("heads") are values (e, heads); x, y and the sampled product then have a head axis. Where
 * each signal has matrices of its own on the pattern, what the entries carry has an axis of signals, and (signals, rows) are
 * gone through in parallel.
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
int gconv_interface(void) { return 13; }

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

/* Where `numbers` numbers of so many bytes end; NULL stays NULL. */
static void *beyond(const void *p, int64_t numbers, int64_t bytes) { return p ? (char *)p + numbers * bytes : 0; }

void gconv_spmm(const product *p, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t parts = parts_of(p->rows, threads, chunks), tasks = parts * p->batch;
    const int64_t last = from(tasks, chunk + 1, chunks);
    spmm_part run = SETS[level_of(level, p->channels, type)]->spmm[type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = from(tasks, chunk, chunks); t < last; t++) {
        int64_t c = t % parts;
        product own = *p;
        own.values = beyond(p->values, t / parts * p->v_batch, type == F64 ? 8 : 4);
        run(&own, t / parts, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
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
    const int64_t parts = parts_of(p->rows, threads, chunks), tasks = parts * (p->y_batch ? p->batch : 1);
    const int64_t last = from(tasks, chunk + 1, chunks), bytes = type == F64 ? 8 : type == BF16 ? 2 : 4;
    sddmm_part run = SETS[level_of(level, p->channels, type)]->sddmm[type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = from(tasks, chunk, chunks); t < last; t++) {
        const int64_t c = t % parts, b = t / parts;
        product own = *p;
        if (p->y_batch) {
            own.batch = 1;
            own.x = beyond(p->x, b * p->x_batch, bytes);
            own.z = beyond(p->z, b * p->z_batch, bytes);
            own.y = beyond(p->y, b * p->y_batch, type == F64 ? 8 : 4);
        }
        run(&own, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
    }
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
    const int64_t parts = parts_of(p->rows, threads, chunks), tasks = parts * p->batch;
    const int64_t last = from(tasks, chunk + 1, chunks), bytes = type == F64 ? 8 : 4;
    edges_part run = SETS[level]->edges[what][type];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t t = from(tasks, chunk, chunks); t < last; t++) {
        const int64_t c = t % parts, b = t / parts;
        edges own = *p;
        own.a = beyond(p->a, b * p->a_batch, bytes);
        own.b = beyond(p->b, b * p->b_batch, bytes);
        own.y = beyond(p->y, b * p->y_batch, bytes);
        run(&own, boundary(p->crow, p->rows, c, parts), boundary(p->crow, p->rows, c + 1, parts));
    }
}

/* The numbers of each of the parts, `step` apart, are added to those of the first. */
static void add_parts(void *sums, int64_t parts, int64_t numbers, int64_t step, int type) {
    for (int64_t c = 1; c < parts; c++)
        for (int64_t j = 0; j < numbers; j++) {
            if (type == F64)
                ((double *)sums)[j] += ((double *)sums)[c * step + j];
            else
                ((float *)sums)[j] += ((float *)sums)[c * step + j];
        }
}

/* How attention over many signals is divided. The rows of each signal are divided into `parts`, so that there are about PARTS
 * in all, the same for any number of threads: sums over sites are added part by part. So many signals go through all passes
 * before the next ones begin: what a pass wrote is still in the cache. */
typedef struct {
    int64_t signals, passes, parts, together, steps;
} division;

static division divided(int64_t signals, int64_t passes, int threads) {
    const int64_t some = signals < PARTS ? signals : PARTS, together = threads == 1 ? 1 : some;
    const division d = {signals, passes, PARTS / some, together, (signals + together - 1) / together * passes};
    return d;
}

/* Which tasks (signal and part) of a step, one pass of some signals, are in this chunk: the first, and the one after. */
static int64_t task_of(const division *d, int64_t step, int64_t chunk, int64_t chunks) {
    const int64_t width = d->together * d->parts, first = step / d->passes * width, rest = d->signals * d->parts - first;
    const int64_t task = from(d->steps * width, chunk, chunks) - step * width, most = width < rest ? width : rest;
    return first + (task < 0 ? 0 : task < most ? task : most);
}

static attention attention_of(const attention *p, int64_t b, int64_t bytes) {
    const int64_t sites = p->rows * p->heads, all = sites * p->channels;
    attention own = *p;
    own.z = beyond(p->z, b * p->z_signal, bytes);
    own.dy = beyond(p->dy, b * all, bytes);
    own.y = beyond(p->y, b * all, bytes);
    own.bent = beyond(p->bent, b * all, bytes);
    own.dz = beyond(p->dz, b * all, bytes);
    own.scores = beyond(p->scores, 5 * b * sites, bytes);
    own.known = beyond(p->known, 6 * b * sites, bytes);
    own.dt = beyond(p->dt, 6 * b * sites, bytes);
    own.ds = beyond(p->ds, 6 * b * sites, bytes);
    own.before = (uint64_t)(b * p->crow[p->rows] * p->heads);
    return own;
}

/* y of attention; with `back`, from dy and what the forward pass made, dz and (2, heads, channels) dp and dq, which are
 * written to the first of `sums`. There is at least one signal. */
void gconv_attend(const attention *p, int back, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t numbers = 2 * p->heads * p->channels, bytes = type == F64 ? 8 : 4;
    const int begin = back ? SUMMED : SCORES, passes = back ? VECTORS - SUMMED + 1 : ATTEND - SCORES + 1;
    const division d = divided(p->signals, passes, threads);
    for (int64_t step = 0; step < d.steps; step++) {
        const int what = begin + (int)(step % passes);
        const int64_t stop = task_of(&d, step, chunk + 1, chunks);
        attention_part run = SETS[level_of(level, p->channels, type)]->attention[what][type];
        const int32_t *crow = what == BACK ? p->crow_t : what == ATTEND ? p->crow : 0; /* else a part is so many rows */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (int64_t t = task_of(&d, step, chunk, chunks); t < stop; t++) {
            const int64_t c = t % d.parts;
            const attention own = attention_of(p, t / d.parts, bytes);
            int64_t first = crow ? boundary(crow, p->rows, c, d.parts) : p->rows * c / d.parts;
            int64_t last = crow ? boundary(crow, p->rows, c + 1, d.parts) : p->rows * (c + 1) / d.parts;
            run(&own, first, last, beyond(p->sums, t * numbers, bytes));
        }
    }
    if (back && chunk == chunks - 1) add_parts(p->sums, d.signals * d.parts, numbers, numbers, type);
}

static joint joint_of(const joint *p, int64_t b, int64_t bytes) {
    const int64_t entries = p->crow[p->rows] * p->heads, numbers = p->heads * p->channels;
    joint own = *p;
    own.s = beyond(p->s, b * p->s_signal, bytes);
    own.t = beyond(p->t, b * p->t_signal, bytes);
    own.values = beyond(p->values, b * entries, bytes);
    own.g = beyond(p->g, b * entries, bytes);
    own.y = beyond(p->y, b * entries, bytes);
    own.ds = beyond(p->ds, b * p->columns * numbers, bytes);
    own.dt = beyond(p->dt, b * p->rows * numbers, bytes);
    return own;
}

/* The values; with `back`, from the gradient g that arrives, ds, dt and, in the first of `sums`, dp. There is at least one
 * signal. */
void gconv_joint(const joint *p, int back, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t numbers = p->heads * p->channels, bytes = type == F64 ? 8 : 4;
    const int begin = back ? PART : MEET, passes = back ? RETURN - PART + 1 : 1;
    const division d = divided(p->signals, passes, threads);
    for (int64_t step = 0; step < d.steps; step++) {
        const int what = begin + (int)(step % passes);
        const int64_t stop = task_of(&d, step, chunk + 1, chunks);
        joint_part run = SETS[level]->joint[what][type];
        const int32_t *crow = what == RETURN ? p->crow_t : p->crow;
        const int64_t rows = what == RETURN ? p->columns : p->rows;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
        for (int64_t t = task_of(&d, step, chunk, chunks); t < stop; t++) {
            const int64_t c = t % d.parts;
            const joint own = joint_of(p, t / d.parts, bytes);
            run(&own, boundary(crow, rows, c, d.parts), boundary(crow, rows, c + 1, d.parts),
                beyond(p->sums, 2 * t * numbers, bytes));
        }
    }
    if (back && chunk == chunks - 1) add_parts(p->sums, d.signals * d.parts, numbers, 2 * numbers, type);
}

#include "csr_build.h"
#include "csr_order.h"
