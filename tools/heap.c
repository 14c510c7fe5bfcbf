/* What glibc's allocator holds in this process, for tools/resources.R: in all its arenas, in bytes. */
#include <malloc.h>
#include <Rinternals.h>

/* In use, and free but kept for later. */
SEXP heap_sizes(void) {
  struct mallinfo2 sizes = mallinfo2();
  SEXP out = Rf_allocVector(REALSXP, 2);
  REAL(out)[0] = sizes.uordblks + sizes.hblkhd;
  REAL(out)[1] = sizes.fordblks;
  return out;
}

/* Gives back to the system what is free. */
SEXP heap_trim(void) { return Rf_ScalarLogical(malloc_trim(0)); }
