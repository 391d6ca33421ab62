/* One type for one instruction set: full vectors, 16-byte vectors, and the two entry points that choose between them.
 *
 * Unused widths are not compiled: csr.c passes rows narrower than a 64-byte vector to the set with 32-byte vectors (NARROW),
 * and if full vectors have 16 bytes there is no smaller width (SLIM). */
#define NARROW (VECTOR_BYTES < 64)
#define SLIM (VECTOR_BYTES == 32)
#define LANES (VECTOR_BYTES / REAL_BYTES)
#define WIDTH full
#define WIDE 1 /* rows may have more than four vectors */
#include "csr_rows.h"
#undef WIDE
#undef LANES
#undef WIDTH
#if SLIM
#define LANES (16 / REAL_BYTES)
#define WIDTH slim
#include "csr_rows.h"
#undef LANES
#undef WIDTH
#endif

#define AT(f, width) JOIN(JOIN(f, ISA, TYPE), width, rows)

#if NARROW
/* Rows with fewer channels than a vector has lanes; c, and outer = inner = 1 for a single head, are constants at the call. */
INLINE void JOIN(few, ISA, TYPE)(const int c, const int64_t outer, const int64_t inner, const product *p, int64_t batch,
                                 int64_t first, int64_t last) {
    const REAL *values = p->values;
    const STORE *x = (const STORE *)p->x + batch * p->x_batch;
    for (int64_t i = first; i < last; i++)
        for (int64_t h = 0; h < outer; h++) {
            REAL sum[4] = {0};
            for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
                const REAL *value = values + (p->order ? p->order[k] : k) * p->heads + h;
                const STORE *row = x + p->col[k] * p->x_row + h * p->x_head;
                for (int64_t g = 0; g < inner; g++)
                    for (int j = 0; j < c; j++) sum[j] += value[g] * LOAD1(row + g * p->x_head + j);
            }
            STORE *y = (STORE *)p->y + batch * p->y_batch + i * p->y_row + h * p->y_head;
            const STORE *z = p->z ? (const STORE *)p->z + batch * p->z_batch + i * p->z_row : 0;
            const STORE *w = p->w ? (const STORE *)p->w + batch * p->w_batch + i * p->w_row : 0;
            for (int j = 0; j < c; j++) {
                REAL value = (REAL)p->alpha * sum[j];
                if (z) value += (REAL)p->beta * LOAD1(z + j);
                if (w) value += (REAL)p->gamma * LOAD1(w + j);
                SAVE1(y + j, value);
            }
        }
}
#endif

static __attribute__((noinline)) void JOIN(spmm, ISA, TYPE)(const product *p, int64_t batch, int64_t first, int64_t last) {
    int64_t c = p->channels;
    if (!NARROW || c >= VECTOR_BYTES / REAL_BYTES) {
        AT(spmm, full)(p, batch, first, last);
        return;
    }
#if SLIM
    if (c >= 16 / REAL_BYTES) {
        AT(spmm, slim)(p, batch, first, last);
        return;
    }
#endif
#if NARROW
    if (p->heads > 1) {
        if (c == 1)
            JOIN(few, ISA, TYPE)(1, p->outer, p->inner, p, batch, first, last);
        else if (c == 2)
            JOIN(few, ISA, TYPE)(2, p->outer, p->inner, p, batch, first, last);
        else if (c == 3)
            JOIN(few, ISA, TYPE)(3, p->outer, p->inner, p, batch, first, last);
    } else if (c == 1)
        JOIN(few, ISA, TYPE)(1, 1, 1, p, batch, first, last);
    else if (c == 2)
        JOIN(few, ISA, TYPE)(2, 1, 1, p, batch, first, last);
    else if (c == 3)
        JOIN(few, ISA, TYPE)(3, 1, 1, p, batch, first, last);
#endif
}

static __attribute__((noinline)) void JOIN(sddmm, ISA, TYPE)(const product *p, int64_t first, int64_t last) {
#if SLIM
    if (p->channels < VECTOR_BYTES / REAL_BYTES) {
        AT(sddmm, slim)(p, first, last);
        return;
    }
#endif
    AT(sddmm, full)(p, first, last);
}

#ifdef FLOATING
#include "csr_edges.h"
#include "csr_attend.h"
#include "csr_joint.h"
#include "csr_max.h"
#include "csr_scatter.h"
#endif

#undef AT
#undef NARROW
#undef SLIM
#undef STORE
#undef REAL
#undef TYPE
#undef LOAD
#undef SAVE
#undef LOAD1
#undef SAVE1
