/* The loops for the base instruction set. */
#include "csr.h"

#define ISA base
#define VECTOR_BYTES 16
#define MOST_VECTORS 8
#include "csr_table.h"
