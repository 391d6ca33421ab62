/* The loops for what every processor has. */
#include "csr.h"

#define ISA base
#define VECTOR_BYTES 16
#define MOST_VECTORS 8
#include "csr_table.h"
