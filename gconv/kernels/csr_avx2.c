/* The loops for AVX2. */
#include "csr.h"

#ifdef HAVE_SETS
#define ISA avx2
#define VECTOR_BYTES 32
#define MOST_VECTORS 8
#if defined(GCONV_PORTABLE)
#include "csr_table.h"
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "csr_table.h"
#pragma clang attribute pop
#else
#pragma GCC target("avx2,fma")
#include "csr_table.h"
#endif
#endif
