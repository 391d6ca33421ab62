/* The table of the loops of one instruction set, named gconv_ISA. */
#include "csr_isa.h"

#define OF(f) {JOIN(f, ISA, f32), JOIN(f, ISA, f64)}
#define ALL(f) {JOIN(f, ISA, f32), JOIN(f, ISA, f64), JOIN(f, ISA, bf16)}
#define TABLE_(isa) gconv_##isa
#define TABLE(isa) TABLE_(isa)
PRIVATE const loops TABLE(ISA) = {
    .spmm = ALL(spmm),
    .scatter = OF(scatter),
    .maxima = {OF(largest), OF(ties), OF(shares), OF(weights)},
    .sddmm = ALL(sddmm),
    .edges = {OF(softmax), OF(softmax_back), OF(ends), OF(sums)},
    .attention = {OF(attend_scores), OF(attend_attend), OF(attend_sums), OF(attend_back), OF(attend_vectors)},
    .joint = {OF(joint_forward), OF(joint_back_rows), OF(joint_back_columns)},
};
