/* What packs and objects are written in (gitformat-pack): numbers, names, heads of entries, instructions of deltas. */
#ifndef GITSMART_STORED_H
#define GITSMART_STORED_H

#include "gitsmart.h"

enum { GS_COMMIT = 1, GS_TREE = 2, GS_BLOB = 3, GS_TAG = 4, GS_OFS_DELTA = 6, GS_REF_DELTA = 7 };

static inline uint32_t gs_be32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline uint64_t gs_be64(const uint8_t *at)
{
    return (uint64_t)gs_be32(at) << 32 | gs_be32(at + 4);
}

static inline int gs_hex_digit(uint8_t digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit |= 32;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* Read the 2 * raw_len hex digits at `at`. GS_MALFORMED: they are none. */
static inline int32_t gs_read_hex(const uint8_t *at, size_t raw_len, uint8_t *oid)
{
    for (size_t i = 0; i < raw_len; i++) {
        int high = gs_hex_digit(at[2 * i]), low = gs_hex_digit(at[2 * i + 1]);
        if (high < 0 || low < 0)
            return GS_MALFORMED;
        oid[i] = (uint8_t)(high << 4 | low);
    }
    return GS_OK;
}

typedef struct {
    uint64_t size;  /* inflated, of a delta if it is one */
    uint64_t base;  /* OFS_DELTA: where the base starts */
    uint64_t start; /* of the zlib stream */
    uint64_t tail;  /* after type and size: where the base is named, or `start` */
    int kind;
} gs_entry;

/* Read the head of the entry at `offset` of a pack, which goes up to `stop`. A REF_DELTA's base is named at
 * entry->tail.
 *
 * GS_MALFORMED: it is cut short, or has a type that is none, or a base outside of the pack. */
static inline int32_t gs_read_head(const uint8_t *pack, uint64_t offset, uint64_t stop, size_t raw_len,
                                   gs_entry *entry)
{
    uint64_t at = offset, value;
    unsigned byte, shift = 4;
    if (offset < 12 || at >= stop)
        return GS_MALFORMED;
    byte = pack[at++];
    entry->kind = byte >> 4 & 7;
    value = byte & 15;
    while (byte & 0x80) {
        if (at == stop || shift > 60)
            return GS_MALFORMED;
        byte = pack[at++];
        value |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    }
    entry->size = value;
    entry->tail = at;
    entry->base = 0;
    if (entry->kind == GS_OFS_DELTA) {
        if (at == stop)
            return GS_MALFORMED;
        byte = pack[at++];
        value = byte & 0x7f;
        while (byte & 0x80) {
            if (at == stop || value >> 50)
                return GS_MALFORMED;
            byte = pack[at++];
            value = (value + 1) << 7 | (byte & 0x7f);
        }
        if (!value || value > offset - 12)
            return GS_MALFORMED;
        entry->base = offset - value;
    } else if (entry->kind == GS_REF_DELTA) {
        if (stop - at < raw_len)
            return GS_MALFORMED;
        at += raw_len;
    } else if (entry->kind < GS_COMMIT || entry->kind > GS_TAG) {
        return GS_MALFORMED;
    }
    if (at >= stop)
        return GS_MALFORMED;
    entry->start = at;
    return GS_OK;
}

/* Read one of the two sizes at a delta's start, which lies at `at`: where what comes behind it lies.
 *
 * NULL: the delta ends in it, or it has more than 63 bits. */
static inline const uint8_t *gs_read_size(const uint8_t *at, const uint8_t *end, uint64_t *size)
{
    unsigned shift = 0, byte;
    *size = 0;
    do {
        if (at == end || shift > 56)
            return NULL;
        byte = *at++;
        *size |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    return at;
}

typedef struct {
    const uint8_t *data; /* the bytes to insert; NULL: to copy, from `offset` of the base */
    uint32_t offset;
    uint32_t size; /* at least 1, less than 2^24 */
} gs_instruction;

/* Read the instruction at `at`, which is known to be whole, and no reserved one: where the next one lies. */
static inline const uint8_t *gs_known_instruction(const uint8_t *at, gs_instruction *read)
{
    unsigned code = *at++;
    uint32_t offset = 0, size = 0;
    if (!(code & 0x80)) {
        read->data = at;
        read->size = code;
        return at + code;
    }
    if (code & 0x01)
        offset = *at++;
    if (code & 0x02)
        offset |= (uint32_t)*at++ << 8;
    if (code & 0x04)
        offset |= (uint32_t)*at++ << 16;
    if (code & 0x08)
        offset |= (uint32_t)*at++ << 24;
    if (code & 0x10)
        size = *at++;
    if (code & 0x20)
        size |= (uint32_t)*at++ << 8;
    if (code & 0x40)
        size |= (uint32_t)*at++ << 16;
    read->data = NULL;
    read->offset = offset;
    read->size = size ? size : 0x10000;
    return at;
}

/* Read the instruction at `at`, before `end`: where the next one lies. NULL: it is the reserved one, or cut short. */
static inline const uint8_t *gs_read_instruction(const uint8_t *at, const uint8_t *end, gs_instruction *read)
{
    unsigned code = *at;
    size_t more = code & 0x80 ? (size_t)__builtin_popcount(code & 0x7f) : code;
    if (GS_UNLIKELY(!code || more > (size_t)(end - at - 1)))
        return NULL;
    return gs_known_instruction(at, read);
}

/* delta.c */
int64_t gs_delta_total(const uint8_t *delta, size_t delta_size, size_t pos);
int32_t gs_apply_delta(const uint8_t *base, size_t base_size, const uint8_t *delta, size_t delta_size, size_t pos,
                       uint8_t *result, size_t result_size);

#endif
