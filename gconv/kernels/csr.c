/* Sparse products on the CPU. The same source is compiled for several instruction sets.
 *
 *   spmm      y[b] = alpha S x[b] + beta z[b] + gamma w[b]     S in CSR form, b signals, rows of y in parallel
 *   scatter   y[b] = S^T x[b]                                  from S by rows, for small y
 *   sddmm     v_e  = sum_b <a[b, i], x[b, j]>                  at the entries e = (i, j) of S
 *   softmax   over the entries of each row, and its derivative
 *   ends      a[i] + b[j] at the entries (i, j)
 *   attend    fused additive attention: softmax and product, and its derivative
 *   joint     the softmax of the logits <p, LeakyReLU(t[i] + s[j])> (GATv2), and its derivative
 *   largest   y[i] = max over the entries (i, j) of v_e x[j], and its derivative
 *   build     S in CSR form, and its transpose, from a list of entries
 *
 * Several matrices with one pattern ("heads") have values (e, heads); x, y and the sampled product then have a head axis. If
 * each signal has its own values, these have an axis of signals, and the loop over (signals, rows) is parallel.
 *
 * csr_base.c, csr_avx2.c and csr_avx512.c compile the loops for one instruction set each: csr_isa.h includes csr_rows.h once
 * for each type and vector width. The set to use is chosen when the library is loaded. Sums run over the entries of a row in
 * order, so that results do not depend on the number of threads.
 *
 * Every function does one of `chunks` pieces of its work, of about equal size. The caller requests them one after another and
 * can handle interrupts in between. Results do not depend on the number of chunks.
 *
 * bfloat16 is a storage format: numbers are converted to float32 when they are read, and rounded once when they are written.
 */
#include "csr.h"

#ifdef HAVE_SETS
static const loops *const SETS[LEVELS] = {&gconv_base, &gconv_avx2, &gconv_avx512};
#else
static const loops *const SETS[LEVELS] = {&gconv_base, &gconv_base, &gconv_base};
#endif

/* The version of the structs in csr.h and of the functions below; must be equal to INTERFACE in native.py. */
int gconv_interface(void) { return 13; }

/* The best instruction set that this processor supports. */
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

/* The widest instruction set, up to `level`, whose vectors are not longer than a row of this many channels. */
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

/* The first task of chunk `chunk`. */
static int64_t from(int64_t tasks, int64_t chunk, int64_t chunks) { return tasks * chunk / chunks; }

/* p + numbers * bytes, in bytes; NULL stays NULL. */
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

/* y += S^T x; the caller passes zeros (batch, columns of the pattern, channels). Threads process blocks of channels. */
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

/* Adds the arrays of all parts, which are `step` numbers apart, to that of the first part. */
static void add_parts(void *sums, int64_t parts, int64_t numbers, int64_t step, int type) {
    for (int64_t c = 1; c < parts; c++)
        for (int64_t j = 0; j < numbers; j++) {
            if (type == F64)
                ((double *)sums)[j] += ((double *)sums)[c * step + j];
            else
                ((float *)sums)[j] += ((float *)sums)[c * step + j];
        }
}

/* The schedule of attention over many signals. The rows of each signal are divided into `parts`, about PARTS in total and
 * independent of the number of threads, because sums over sites are accumulated per part. `together` signals go through all
 * passes before the next ones start, so that the results of a pass are still in cache for the next pass. */
typedef struct {
    int64_t signals, passes, parts, together, steps;
} division;

static division divided(int64_t signals, int64_t passes, int threads) {
    const int64_t some = signals < PARTS ? signals : PARTS, together = threads == 1 ? 1 : some;
    const division d = {signals, passes, PARTS / some, together, (signals + together - 1) / together * passes};
    return d;
}

/* The first task (signal and part) of a chunk within a step, which is one pass over `together` signals. */
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
    own.y_f = beyond(p->y_f, b * all, bytes);
    own.dz = beyond(p->dz, b * all, bytes);
    own.scores = beyond(p->scores, 5 * b * sites, bytes);
    own.known = beyond(p->known, 6 * b * sites, bytes);
    own.dt = beyond(p->dt, 6 * b * sites, bytes);
    own.ds = beyond(p->ds, 6 * b * sites, bytes);
    own.before = (uint64_t)(b * p->crow[p->rows] * p->heads);
    return own;
}

/* y of attention; with `back`, dz, and dp and dq (2, heads, channels) in the first array of `sums`, from dy and the results of
 * the forward pass. There must be at least one signal. */
void gconv_attend(const attention *p, int back, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t numbers = 2 * p->heads * p->channels, bytes = type == F64 ? 8 : 4;
    const int begin = back ? SUMMED : SCORES, passes = back ? VECTORS - SUMMED + 1 : ATTEND - SCORES + 1;
    const division d = divided(p->signals, passes, threads);
    for (int64_t step = 0; step < d.steps; step++) {
        const int what = begin + (int)(step % passes);
        const int64_t stop = task_of(&d, step, chunk + 1, chunks);
        attention_part run = SETS[level_of(level, p->channels, type)]->attention[what][type];
        const int32_t *crow = what == BACK ? p->crow_t : what == ATTEND ? p->crow : 0; /* without entries: equal rows */
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

/* The values; with `back`, ds, dt and, in the first array of `sums`, dp, from the gradient g of the values. There must be at
 * least one signal. */
void gconv_joint(const joint *p, int back, int type, int level, int threads, int64_t chunk, int64_t chunks) {
    const int64_t numbers = p->heads * p->channels, bytes = type == F64 ? 8 : 4;
    const int begin = back ? JOINT_BACK_ROWS : JOINT_FORWARD;
    const int passes = back ? JOINT_BACK_COLUMNS - JOINT_BACK_ROWS + 1 : 1;
    const division d = divided(p->signals, passes, threads);
    for (int64_t step = 0; step < d.steps; step++) {
        const int what = begin + (int)(step % passes);
        const int64_t stop = task_of(&d, step, chunk + 1, chunks);
        joint_part run = SETS[level]->joint[what][type];
        const int32_t *crow = what == JOINT_BACK_COLUMNS ? p->crow_t : p->crow;
        const int64_t rows = what == JOINT_BACK_COLUMNS ? p->columns : p->rows;
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
