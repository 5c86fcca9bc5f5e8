/* What all C sources of gitsmart share: how functions are exported, and what they return.
 *
 * Rules (docs/decisions/0006): a function is told the length of everything it is given and stays within it; it
 * answers with one of these codes, or a number >= 0; it keeps nothing between calls; what it allocates it frees,
 * and takes no more memory than a small multiple of bytes that are really there. Python.h is not needed.
 */
#ifndef GITSMART_H
#define GITSMART_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Raised with every change of a function's arguments or meaning; gitsmart/native/__init__.py has the same number. */
#define GS_ABI 1

#define GS_API __attribute__((visibility("default")))

enum {
    GS_OK = 0,
    GS_MALFORMED = -1, /* what was given is not what it should be */
    GS_TOO_SMALL = -2, /* the result has no room */
    GS_NO_MEMORY = -3
};

#define GS_LIKELY(x) __builtin_expect(!!(x), 1)
#define GS_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif
