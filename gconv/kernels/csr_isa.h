/* All types for one instruction set: ISA is its name, VECTOR_BYTES the size of its vectors, MOST_VECTORS the number of sums
 * that fit in its registers.
 *
 * There are up to two vector widths for each type: full vectors for rows with at least that many channels, and 16-byte
 * vectors for narrower rows. A row of c channels is covered by ceil(c / lanes) vectors, of which the last may overlap the one
 * before. */
#define STORE float
#define REAL float
#define REAL_BYTES 4
#define INTEGER int32_t
#define TYPE f32
#define FLOATING 1
#define LOAD(p) (*(const VEC *)(p))
#define SAVE(p, v) (*(VEC *)(p) = (v))
#define LOAD1(p) (*(p))
#define SAVE1(p, v) (*(p) = (v))
#include "csr_type.h"
#undef FLOATING
#undef INTEGER
#undef REAL_BYTES

#define STORE double
#define REAL double
#define REAL_BYTES 8
#define INTEGER int64_t
#define TYPE f64
#define FLOATING 1
#define LOAD(p) (*(const VEC *)(p))
#define SAVE(p, v) (*(VEC *)(p) = (v))
#define LOAD1(p) (*(p))
#define SAVE1(p, v) (*(p) = (v))
#include "csr_type.h"
#undef FLOATING
#undef INTEGER
#undef REAL_BYTES

#define STORE uint16_t
#define REAL float
#define REAL_BYTES 4
#define INTEGER int32_t
#define TYPE bf16
#define BITS16 1
#define LOAD(p) ((VEC)(__builtin_convertvector(*(const HALF *)(p), BITS) << 16))
#define SAVE(p, v)                                                                                       \
    do {                                                                                                 \
        VEC value = (v);                                                                                 \
        BITS bits = (BITS)value, nan = (BITS)(value != value);                                           \
        BITS even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;                                          \
        *(HALF *)(p) = __builtin_convertvector((even & ~nan) | (((bits >> 16) | 0x40) & nan), HALF);     \
    } while (0)
#define LOAD1(p) widen(*(p))
#define SAVE1(p, v) (*(p) = narrow(v))
#include "csr_type.h"
#undef INTEGER
#undef REAL_BYTES
#undef BITS16

