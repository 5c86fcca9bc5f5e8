/* Inflating whole zlib streams (inflate.c). */
#ifndef GITSMART_INFLATE_H
#define GITSMART_INFLATE_H

#include "gitsmart.h"

/* Inflate the zlib stream at `in` to exactly `out_size` bytes, its checksum included; what follows the stream
 * is let be. With `partial`: the first `out_size` bytes only, and no more is looked at.
 *
 * GS_MALFORMED: it is broken, or has another size. Takes no memory but 9 KiB of stack. */
int32_t gs_inflate(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size, int partial);

/* Inflate as gs_inflate() does a whole stream, and tell how many bytes of `in` it takes. */
int32_t gs_inflate_used(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size, size_t *used);

#endif
