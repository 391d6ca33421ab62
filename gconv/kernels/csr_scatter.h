/* y = S^T x without the transpose: row i of x stays in registers, and its multiples are added to the rows of y at the columns
 * of the entries of row i. Sums are accumulated in the same order as in a product with the sorted transpose. For one type and
 * one instruction set. */
#define VEC JOIN(vec, JOIN(ISA, TYPE, full), t)
#define LANES (VECTOR_BYTES / REAL_BYTES)

/* n vectors of channels and `rest` single channels, from channel `at` on; n is a constant at the call. */
INLINE void JOIN(scatter_block, ISA, TYPE)(const int n, const int rest, const product *p, int64_t batch, int64_t at) {
    const int32_t *restrict crow = p->crow, *restrict col = p->col;
    const int64_t step = p->y_row, x_row = p->x_row, rows = p->rows;
    const REAL *restrict values = p->values, *restrict x = (const REAL *)p->x + batch * p->x_batch + at;
    REAL *restrict y = (REAL *)p->y + batch * p->y_batch + at;
    for (int64_t i = 0; i < rows; i++, x += x_row) {
        VEC row[8];
        REAL few[LANES];
UNROLL(8)
        for (int v = 0; v < n; v++) row[v] = *(const VEC *)(x + v * LANES);
        for (int j = 0; j < rest; j++) few[j] = x[n * LANES + j];
        for (int64_t k = crow[i], stop = crow[i + 1]; k < stop; k++) {
            REAL *to = y + col[k] * step;
            const VEC w = values[k] - (VEC){0};
UNROLL(8)
            for (int v = 0; v < n; v++) *(VEC *)(to + v * LANES) += w * row[v];
            for (int j = 0; j < rest; j++) to[n * LANES + j] += values[k] * few[j];
        }
    }
}

/* Channels first to last, up to eight vectors at a time. */
static __attribute__((noinline)) void JOIN(scatter, ISA, TYPE)(const product *p, int64_t batch, int64_t first, int64_t last) {
    for (; last - first >= 8 * LANES; first += 8 * LANES) JOIN(scatter_block, ISA, TYPE)(8, 0, p, batch, first);
    for (; last - first >= 4 * LANES; first += 4 * LANES) JOIN(scatter_block, ISA, TYPE)(4, 0, p, batch, first);
    const int64_t n = (last - first) / LANES, rest = (last - first) % LANES;
    if (n == 3) JOIN(scatter_block, ISA, TYPE)(3, 0, p, batch, first);
    if (n == 2) JOIN(scatter_block, ISA, TYPE)(2, 0, p, batch, first);
    if (n == 1) JOIN(scatter_block, ISA, TYPE)(1, 0, p, batch, first);
    if (rest) JOIN(scatter_block, ISA, TYPE)(0, rest, p, batch, first + n * LANES);
}

#undef LANES
#undef VEC
