/* One type for one instruction set: full vectors, 16-byte vectors, and the two entry points that choose between them. */
#define LANES (VECTOR_BYTES / (int)sizeof(REAL))
#define WIDTH full
#include "csr_rows.h"
#undef LANES
#undef WIDTH
#define LANES (16 / (int)sizeof(REAL))
#define WIDTH slim
#include "csr_rows.h"
#undef LANES
#undef WIDTH

#define AT(f, width) JOIN(JOIN(f, ISA, TYPE), width, rows)
#define FULL (VECTOR_BYTES / (int)sizeof(REAL))
#define SLIM (16 / (int)sizeof(REAL))

/* Rows of fewer channels than a vector has lanes; c is a constant where this is called. */
INLINE void JOIN(few, ISA, TYPE)(const int c, const product *p, int64_t batch, int64_t first, int64_t last) {
    const REAL *values = p->values;
    const STORE *x = (const STORE *)p->x + batch * p->x_batch;
    for (int64_t i = first; i < last; i++) {
        REAL sum[4] = {0};
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++)
            for (int j = 0; j < c; j++) sum[j] += values[k] * LOAD1(x + p->col[k] * p->x_row + j);
        STORE *y = (STORE *)p->y + batch * p->y_batch + i * p->y_row;
        const STORE *z = p->z ? (const STORE *)p->z + batch * p->z_batch + i * p->z_row : 0;
        for (int j = 0; j < c; j++) {
            REAL value = (REAL)p->alpha * sum[j];
            if (z) value += (REAL)p->beta * LOAD1(z + j);
            SAVE1(y + j, value);
        }
    }
}

static __attribute__((noinline)) void JOIN(spmm, ISA, TYPE)(const product *p, int64_t batch, int64_t first, int64_t last) {
    int64_t c = p->channels;
    if (c >= FULL)
        AT(spmm, full)(p, batch, first, last);
    else if (c >= SLIM)
        AT(spmm, slim)(p, batch, first, last);
    else if (c == 1)
        JOIN(few, ISA, TYPE)(1, p, batch, first, last);
    else if (c == 2)
        JOIN(few, ISA, TYPE)(2, p, batch, first, last);
    else if (c == 3)
        JOIN(few, ISA, TYPE)(3, p, batch, first, last);
}

static __attribute__((noinline)) void JOIN(sddmm, ISA, TYPE)(const product *p, int64_t first, int64_t last) {
    if (p->channels >= FULL)
        AT(sddmm, full)(p, first, last);
    else
        AT(sddmm, slim)(p, first, last);
}

#undef AT
#undef FULL
#undef SLIM
#undef STORE
#undef REAL
#undef TYPE
#undef LOAD
#undef SAVE
#undef LOAD1
#undef SAVE1
