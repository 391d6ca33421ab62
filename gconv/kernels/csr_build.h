/* A sparsity pattern by rows, and its transpose by rows, from a list of entries: sorted by counting. */
/* Where counts (one ahead) become the starts of rows, and the starts, moved on by filling, starts again. */
static void add_up(int32_t *crow, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) crow[i + 1] += crow[i];
}
static void move_back(int32_t *crow, int64_t rows) {
    memmove(crow + 1, crow, rows * sizeof *crow);
    crow[0] = 0;
}

/* The entries (row, col) sorted by row and column, repeated ones in their order, by counting: entry k of the sorted list
 * was entry perm[k]; number p of the list by columns is to_t[p], and from_t the other way round. crow and crow_t come as
 * zeros. Returns -1 where an entry lies outside, 1 where the entries came sorted (perm is not written then), else 0. */
int gconv_build(const int64_t *row, const int64_t *col, int64_t entries, int64_t rows, int64_t cols, int32_t *crow,
                int32_t *column, int32_t *crow_t, int32_t *column_t, int32_t *perm, int32_t *to_t, int32_t *from_t) {
    int sorted = 1;
    for (int64_t e = 0; e < entries; e++) {
        if (row[e] < 0 || row[e] >= rows || col[e] < 0 || col[e] >= cols) return -1;
        if (e && (row[e] < row[e - 1] || (row[e] == row[e - 1] && col[e] < col[e - 1]))) sorted = 0;
        crow[row[e] + 1]++;
        crow_t[col[e] + 1]++;
    }
    add_up(crow, rows);
    add_up(crow_t, cols);
    if (sorted)
        for (int64_t e = 0; e < entries; e++) column[e] = (int32_t)col[e];
    else {
        int32_t *by_column = from_t;
        for (int64_t e = 0; e < entries; e++) by_column[crow_t[col[e]]++] = (int32_t)e;
        move_back(crow_t, cols);
        for (int64_t p = 0; p < entries; p++) {
            int32_t e = by_column[p], k = crow[row[e]]++;
            perm[k] = e;
            column[k] = (int32_t)col[e];
        }
        move_back(crow, rows);
    }
    for (int64_t i = 0; i < rows; i++)
        for (int32_t k = crow[i]; k < crow[i + 1]; k++) {
            int32_t p = crow_t[column[k]]++;
            column_t[p] = (int32_t)i;
            to_t[p] = k;
            from_t[k] = p;
        }
    move_back(crow_t, cols);
    return sorted;
}
