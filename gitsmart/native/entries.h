/* One pack and its index in memory (entries.c); gitsmart/native/entries.py has the same. */
#ifndef GITSMART_ENTRIES_H
#define GITSMART_ENTRIES_H

#include "stored.h"

#define GS_NOWHERE UINT32_MAX

typedef struct {
    const uint8_t *data;      /* the pack; entries lie from 12 to `end` */
    const uint8_t *names;     /* of the index, sorted: `count` times `raw_len` bytes */
    const uint8_t *positions; /* of the index: where each name's entry starts, 4 bytes, big-endian */
    const uint8_t *large;     /* of the index: 8 bytes each, `large_count` of them */
    const uint32_t *fan;      /* 257 numbers: how many names begin with less than each byte; not falling, up to count */
    const void *offsets;      /* where entries start, rising: 4 bytes each, 8 if `wide`; between 12 and `end` */
    uint32_t *sizes;          /* of each entry by offset, its object's size as far as it was looked up, or 0 */
    const uint32_t *order;    /* of each entry by offset, its place among the names; below `count` */
    uint64_t end;
    uint64_t large_count;
    uint32_t count;
    uint32_t raw_len;
    uint32_t is_v2;
    uint32_t wide;
} gs_entries;

/* Where the entry starts that comes as the `rank`th; `end` after the last. */
static inline uint64_t gs_start_of(const gs_entries *pack, uint32_t rank)
{
    if (rank >= pack->count)
        return pack->end;
    return pack->wide ? ((const uint64_t *)pack->offsets)[rank] : ((const uint32_t *)pack->offsets)[rank];
}

static inline int gs_has_bit(const uint8_t *bits, uint32_t at) { return bits[at >> 3] >> (at & 7) & 1; }

uint32_t gs_rank_of(const gs_entries *pack, uint64_t offset, uint32_t near);
uint32_t gs_place_of(const gs_entries *pack, const uint8_t *name);
uint32_t gs_rank_of_name(const gs_entries *pack, const uint8_t *name);

/* Read the head of the entry at `offset`, which goes up to `stop`. */
static inline int32_t gs_read_entry(const gs_entries *pack, uint64_t offset, uint64_t stop, gs_entry *entry)
{
    return gs_read_head(pack->data, offset, stop, pack->raw_len, entry);
}

#endif
