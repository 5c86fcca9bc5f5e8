/* Which sources a compiled library was made from, so that a stale one is noticed. */
#include "gitsmart.h"

#ifndef GITSMART_SOURCES
#define GITSMART_SOURCES ""
#endif

GS_API int32_t gs_abi(void) { return GS_ABI; }

GS_API const char *gs_sources(void) { return GITSMART_SOURCES; }
