/* The loops for AVX-512. */
#include "csr.h"

#ifdef HAVE_SETS
#define ISA avx512
#define VECTOR_BYTES 64
#define MOST_VECTORS 16
#if defined(GCONV_PORTABLE)
#include "csr_table.h"
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#include "csr_table.h"
#pragma clang attribute pop
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#include "csr_table.h"
#endif
#endif
