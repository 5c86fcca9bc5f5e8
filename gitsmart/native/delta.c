/* Deltas (gitformat-pack, "Deltified representation"): applied, and made. */
#include <stdlib.h>

#include "stored.h"

/* Sum up what a delta's instructions, which begin at `pos`, would make: the size of the result.
 *
 * GS_MALFORMED: one of them is, or `pos` lies behind the end. */
GS_API int64_t gs_delta_total(const uint8_t *delta, size_t delta_size, size_t pos)
{
    const uint8_t *at = delta + pos, *end = delta + delta_size;
    int64_t total = 0;
    gs_instruction next;
    if (pos > delta_size)
        return GS_MALFORMED;
    while (at < end) {
        at = gs_read_instruction(at, end, &next);
        if (GS_UNLIKELY(!at))
            return GS_MALFORMED;
        total += next.size; /* at most 2^24 for each byte there is: no overflow */
    }
    return total;
}

/* Make of `base` what the delta's instructions, which begin at `pos`, say: exactly `result_size` bytes.
 *
 * GS_MALFORMED: the delta is malformed, reaches out of the base, or gives more or fewer bytes. */
GS_API int32_t gs_apply_delta(const uint8_t *base, size_t base_size, const uint8_t *delta, size_t delta_size,
                              size_t pos, uint8_t *result, size_t result_size)
{
    const uint8_t *at = delta + pos, *end = delta + delta_size;
    size_t left = result_size;
    gs_instruction next;
    if (pos > delta_size)
        return GS_MALFORMED;
    while (at < end) {
        at = gs_read_instruction(at, end, &next);
        if (GS_UNLIKELY(!at || next.size > left))
            return GS_MALFORMED;
        if (!next.data) {
            if (GS_UNLIKELY(next.offset > base_size || next.size > base_size - next.offset))
                return GS_MALFORMED;
            next.data = base + next.offset;
        }
        memcpy(result, next.data, next.size);
        result += next.size;
        left -= next.size;
    }
    return left ? GS_MALFORMED : GS_OK;
}

/* -- making deltas
 *
 * The base is cut into blocks of BLOCK bytes, which are put into a table by their hash. A hash of the BLOCK bytes
 * that end at each place of the target rolls along; where the table knows it, the match is extended both ways, and
 * the longest one becomes a copy. What has no match is inserted. What both begin and end with is found first,
 * without a table: most versions of a file differ in one place. (As in Rabin's and Karp's string search; the same
 * idea is behind git's diff-delta.c.)
 */

#define BLOCK 16
/* So many blocks of one hash are tried: a file of zeros has one hash only. */
#define TRIES 24
/* A match this long is good enough. */
#define LONG_ENOUGH 4096
/* A shorter one is hardly shorter than what it copies. */
#define COPY_LEAST 8
/* What every reader takes: a copy of more is split. */
#define COPY_MOST 0x10000
#define ROLL 0x9e3779b1u

typedef struct {
    uint8_t *out;
    size_t at, room;
    int full;
} writer;

static void put(writer *to, uint8_t byte)
{
    if (to->at < to->room)
        to->out[to->at++] = byte;
    else
        to->full = 1;
}

static void put_size(writer *to, uint64_t size)
{
    while (size > 0x7f) {
        put(to, (uint8_t)(0x80 | (size & 0x7f)));
        size >>= 7;
    }
    put(to, (uint8_t)size);
}

static void put_insert(writer *to, const uint8_t *data, size_t size)
{
    while (size) {
        size_t piece = size < 127 ? size : 127;
        if (piece + 1 > to->room - to->at) {
            to->full = 1;
            return;
        }
        to->out[to->at++] = (uint8_t)piece;
        memcpy(to->out + to->at, data, piece);
        to->at += piece;
        data += piece;
        size -= piece;
    }
}

static void put_copy(writer *to, uint64_t offset, uint64_t size)
{
    while (size) {
        uint64_t piece = size < COPY_MOST ? size : COPY_MOST, told = piece & 0xffff;
        uint8_t bytes[8];
        size_t number = 1;
        bytes[0] = 0x80;
        for (unsigned i = 0; i < 4; i++)
            if (offset >> 8 * i & 0xff) {
                bytes[0] |= (uint8_t)(1 << i);
                bytes[number++] = (uint8_t)(offset >> 8 * i);
            }
        for (unsigned i = 0; i < 2; i++)
            if (told >> 8 * i & 0xff) {
                bytes[0] |= (uint8_t)(16 << i);
                bytes[number++] = (uint8_t)(told >> 8 * i);
            }
        if (number > to->room - to->at) {
            to->full = 1;
            return;
        }
        memcpy(to->out + to->at, bytes, number);
        to->at += number;
        offset += piece;
        size -= piece;
    }
}

/* How many bytes are the same, going forward, `most` at most. */
static size_t same(const uint8_t *one, const uint8_t *other, size_t most)
{
    size_t at = 0;
    while (most - at >= 8) {
        uint64_t a, b;
        memcpy(&a, one + at, 8);
        memcpy(&b, other + at, 8);
        if (a != b)
            break;
        at += 8;
    }
    while (at < most && one[at] == other[at])
        at++;
    return at;
}

/* The same, going back from before both. */
static size_t same_before(const uint8_t *one, const uint8_t *other, size_t most)
{
    size_t at = 0;
    while (most - at >= 8) {
        uint64_t a, b;
        memcpy(&a, one - at - 8, 8);
        memcpy(&b, other - at - 8, 8);
        if (a != b)
            break;
        at += 8;
    }
    while (at < most && one[-1 - (ptrdiff_t)at] == other[-1 - (ptrdiff_t)at])
        at++;
    return at;
}

/* The same as hash = hash * ROLL + at[i] from 0 on, modulo 2^32, in four chains that don't wait for each other. */
static uint32_t hash_of(const uint8_t *at)
{
    const uint32_t two = ROLL * ROLL, four = two * two, eight = four * four;
    uint32_t parts[4];
    for (unsigned i = 0; i < 4; i++)
        parts[i] = ((at[4 * i] * ROLL + at[4 * i + 1]) * two) + at[4 * i + 2] * ROLL + at[4 * i + 3];
    return (parts[0] * four + parts[1]) * eight + parts[2] * four + parts[3];
}

static inline uint32_t slot_of(uint32_t hash, unsigned bits) { return (hash ^ hash >> 15) * 0x85ebca6bu >> (32 - bits); }

/* Make a delta that turns `base` into `target`, in `room` bytes at most. Returns its size.
 *
 * GS_TOO_SMALL: it would be longer, or base or target has 4 GiB. Takes 8 bytes for each 16 of the base, and up to 8
 * more, while it runs. */
GS_API int64_t gs_make_delta(const uint8_t *base, size_t base_size, const uint8_t *target, size_t target_size,
                             uint8_t *out, size_t room)
{
    writer to = {out, 0, room, 0};
    size_t least = base_size < target_size ? base_size : target_size;
    size_t before, behind, at, kept, stop;
    uint32_t *heads = NULL, *next, hash, power = 1;
    uint8_t *checks;
    size_t blocks;
    unsigned bits = 4;
    int rolled = 0;

    if (base_size >= UINT32_MAX || target_size >= UINT32_MAX)
        return GS_TOO_SMALL;
    put_size(&to, base_size);
    put_size(&to, target_size);
    before = same(base, target, least);
    behind = same_before(base + base_size, target + target_size, least - before);
    if (before < COPY_LEAST)
        before = 0;
    if (behind < COPY_LEAST)
        behind = 0;
    put_copy(&to, 0, before);
    /* What of the target is left: from `at` to `stop`; from `kept` on it has not been written. */
    at = kept = before;
    stop = target_size - behind;
    if (stop - at >= BLOCK && base_size >= BLOCK) {
        /* What has changed comes from nearby: of the base, only so much is put into the table. */
        size_t around = 8 * (stop - at) + 8192;
        size_t first = before > around ? (before - around) / BLOCK : 0;
        size_t last = behind > around ? (base_size - behind + around) / BLOCK : base_size / BLOCK;
        blocks = last - first;
        while (bits < 24 && (size_t)1 << bits < blocks)
            bits++;
        heads = malloc(sizeof(*heads) * (((size_t)1 << bits) + blocks) + blocks);
        if (!heads)
            return GS_NO_MEMORY;
        next = heads + ((size_t)1 << bits);
        checks = (uint8_t *)(next + blocks);
        memset(heads, 0xff, sizeof(*heads) << bits);
        /* Backwards, so that each list begins with what comes first. */
        for (size_t block = blocks; block--;) {
            uint32_t slot;
            hash = hash_of(base + (first + block) * BLOCK);
            slot = slot_of(hash, bits);
            checks[block] = (uint8_t)(hash >> 8);
            next[block] = heads[slot];
            heads[slot] = (uint32_t)block;
        }
        for (unsigned i = 1; i < BLOCK; i++)
            power *= ROLL;
        hash = 0;
        while (at + BLOCK <= stop && !to.full) {
            size_t best = 0, best_from = 0, best_back = 0;
            uint32_t block;
            unsigned tries = TRIES;
            hash = rolled ? (hash - target[at - 1] * power) * ROLL + target[at + BLOCK - 1] : hash_of(target + at);
            rolled = 1;
            for (block = heads[slot_of(hash, bits)]; block != UINT32_MAX && tries; block = next[block]) {
                size_t from = (first + block) * BLOCK, size, back, most;
                if (checks[block] != (uint8_t)(hash >> 8))
                    continue;
                tries--;
                most = base_size - from < stop - at ? base_size - from : stop - at;
                size = same(base + from, target + at, most);
                if (size < BLOCK)
                    continue;
                most = from < at - kept ? from : at - kept;
                back = same_before(base + from, target + at, most);
                if (size + back > best) {
                    best = size + back;
                    best_from = from - back;
                    best_back = back;
                    if (best >= LONG_ENOUGH)
                        break;
                }
            }
            if (!best) {
                at++;
                continue;
            }
            put_insert(&to, target + kept, at - best_back - kept);
            put_copy(&to, best_from, best);
            at += best - best_back;
            kept = at;
            rolled = 0;
        }
        free(heads);
    }
    put_insert(&to, target + kept, stop - kept);
    put_copy(&to, base_size - behind, behind);
    return to.full ? GS_TOO_SMALL : (int64_t)to.at;
}
