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
    const void *offsets;      /* where entries start, rising: 4 bytes each, 8 if `wide` */
    uint32_t *sizes;          /* of each entry by offset, its object's size as far as it was looked up, or 0 */
    const uint32_t *order;    /* of each entry by offset, its place among the names */
    const uint32_t *ranks;    /* of each name, how many entries come before its entry */
    uint64_t end;
    uint64_t large_count;
    uint32_t count;
    uint32_t raw_len;
    uint32_t is_v2;
    uint32_t wide;
} gs_entries;

/* `offsets`, `order` and `ranks` may be a mapped file. They were found right once, by somebody: what they say now
 * may be wrong if the file was changed meanwhile, but must never lead out of the pack and its index. */

/* Where the entry starts that comes as the `rank`th, `end` at most; `end` after the last. */
static inline uint64_t gs_start_of(const gs_entries *pack, uint32_t rank)
{
    uint64_t start;
    if (rank >= pack->count)
        return pack->end;
    start = pack->wide ? ((const uint64_t *)pack->offsets)[rank] : ((const uint32_t *)pack->offsets)[rank];
    return start < pack->end ? start : pack->end;
}

/* The name of the entry that comes as the `rank`th, of those that there are. */
static inline const uint8_t *gs_name_of(const gs_entries *pack, uint32_t rank)
{
    uint32_t place = pack->order[rank];
    return pack->names + (place < pack->count ? place : 0) * (size_t)pack->raw_len;
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
