/* Entries of a pack: in order, by name, by offset; their heads (gitformat-pack). */
#include <stdlib.h>

#include "entries.h"

/* Where the entry of the index's `place`th name starts; 0 if that is out of bounds. */
static uint64_t position(const gs_entries *pack, uint32_t place)
{
    uint64_t offset = gs_be32(pack->positions + 4 * (size_t)place);
    if (pack->is_v2 && offset & 0x80000000u) {
        offset &= 0x7fffffffu;
        if (offset >= pack->large_count)
            return 0;
        offset = gs_be64(pack->large + 8 * offset);
    }
    return offset >= 12 && offset < pack->end ? offset : 0;
}

typedef struct {
    uint64_t offset;
    uint32_t place;
} placed;

#define DIGIT 11

/* Sort by offset, all of which are below `end`; `other` has as much room. Returns where the result is. */
static placed *sorted(placed *from, placed *other, size_t count, uint64_t end)
{
    for (unsigned shift = 0; shift < 64 && end >> shift; shift += DIGIT) {
        size_t starts[1 << DIGIT] = {0};
        size_t total = 0;
        for (size_t i = 0; i < count; i++)
            starts[from[i].offset >> shift & ((1 << DIGIT) - 1)]++;
        for (size_t digit = 0; digit < 1 << DIGIT; digit++) {
            size_t here = starts[digit];
            starts[digit] = total;
            total += here;
        }
        for (size_t i = 0; i < count; i++)
            other[starts[from[i].offset >> shift & ((1 << DIGIT) - 1)]++] = from[i];
        placed *had = from;
        from = other;
        other = had;
    }
    return from;
}

/* Bring a pack's entries in order: fill `offsets` (8 bytes each if pack->wide, else 4), `order` and `ranks`.
 *
 * `reverse`: the table of a reverse index, 4 bytes big-endian for each entry, or NULL. Uses of `pack` all but what is
 * filled. Takes 32 bytes an entry for a while, without `reverse`.
 *
 * GS_MALFORMED: an offset or place is out of bounds, or two entries share an offset, or `reverse` is wrong. */
GS_API int32_t gs_sort_entries(const gs_entries *pack, const uint8_t *reverse, void *offsets, uint32_t *order,
                               uint32_t *ranks)
{
    size_t count = pack->count;
    uint64_t before = 0;
    placed *both = NULL, *found = NULL;
    int32_t result = GS_MALFORMED;
    if (!reverse) {
        both = malloc(2 * sizeof(placed) * (count ? count : 1));
        if (!both)
            return GS_NO_MEMORY;
        for (size_t i = 0; i < count; i++) {
            both[i].offset = position(pack, (uint32_t)i);
            both[i].place = (uint32_t)i;
        }
        found = sorted(both, both + count, count, pack->end);
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t place = found ? found[i].place : gs_be32(reverse + 4 * i);
        uint64_t offset;
        if (place >= count)
            goto done;
        offset = found ? found[i].offset : position(pack, place);
        if (offset <= before || (!pack->wide && offset > UINT32_MAX))
            goto done;
        before = offset;
        order[i] = place;
        ranks[place] = (uint32_t)i;
        if (pack->wide)
            ((uint64_t *)offsets)[i] = offset;
        else
            ((uint32_t *)offsets)[i] = (uint32_t)offset;
    }
    result = GS_OK;
done:
    free(both);
    return result;
}

/* Whether `offsets`, `order` and `ranks` are what gs_sort_entries() makes of the index; else GS_MALFORMED. */
GS_API int32_t gs_check_order(const gs_entries *pack)
{
    uint64_t before = 0;
    for (uint32_t rank = 0; rank < pack->count; rank++) {
        uint32_t place = pack->order[rank];
        uint64_t offset;
        if (place >= pack->count || pack->ranks[place] != rank)
            return GS_MALFORMED;
        offset = position(pack, place);
        if (offset <= before || offset != gs_start_of(pack, rank))
            return GS_MALFORMED;
        before = offset;
    }
    return GS_OK;
}

/* How many entries come before the one at `offset`; GS_NOWHERE if none starts there. Searches outward from
 * `near`: a delta's base is rarely far away. */
uint32_t gs_rank_of(const gs_entries *pack, uint64_t offset, uint32_t near)
{
    uint32_t low = 0, high = pack->count, step = 1;
    if (near > high)
        near = high;
    if (gs_start_of(pack, near) > offset) {
        high = near;
        while (step <= high) {
            uint32_t at = high - step;
            if (gs_start_of(pack, at) <= offset) {
                low = at;
                break;
            }
            high = at;
            step *= 2;
        }
    } else {
        low = near;
        while (step < high - low) {
            uint32_t at = low + step;
            if (gs_start_of(pack, at) > offset) {
                high = at;
                break;
            }
            low = at;
            step *= 2;
        }
    }
    /* The first one beyond lies in (low, high], or low itself is the first of all. */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        uint64_t found = gs_start_of(pack, middle);
        if (found == offset)
            return middle;
        if (found < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return GS_NOWHERE;
}

/* The place of a name in the index; GS_NOWHERE if it is not there. */
uint32_t gs_place_of(const gs_entries *pack, const uint8_t *name)
{
    size_t raw_len = pack->raw_len;
    uint32_t low = pack->fan[name[0]], high = pack->fan[name[0] + 1];
    /* Names are hashes: where one lies is known by proportion, give or take. */
    if (high - low > 16) {
        uint64_t part = gs_be32(name) & 0xffffff;
        uint32_t guess = low + (uint32_t)((uint64_t)(high - low) * part >> 24), step = 8;
        if (memcmp(pack->names + guess * raw_len, name, raw_len) <= 0) {
            low = guess;
            while (step < high - low) {
                if (memcmp(pack->names + (low + step) * raw_len, name, raw_len) > 0) {
                    high = low + step;
                    break;
                }
                low += step;
                step *= 2;
            }
        } else {
            high = guess;
            while (step < high - low) {
                if (memcmp(pack->names + (high - step) * raw_len, name, raw_len) <= 0) {
                    low = high - step;
                    break;
                }
                high -= step;
                step *= 2;
            }
        }
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = memcmp(pack->names + middle * raw_len, name, raw_len);
        if (!order)
            return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return GS_NOWHERE;
}

/* As gs_place_of, for an index by itself; `fan` as in gs_entries, `name` of `raw_len` bytes. */
GS_API uint32_t gs_find_place(const uint8_t *names, const uint32_t *fan, uint32_t raw_len, const uint8_t *name)
{
    gs_entries pack = {.names = names, .fan = fan, .raw_len = raw_len};
    return gs_place_of(&pack, name);
}

/* How many entries come before the one of that name; GS_NOWHERE if it is not there. */
uint32_t gs_rank_of_name(const gs_entries *pack, const uint8_t *name)
{
    uint32_t place = gs_place_of(pack, name), rank;
    if (place == GS_NOWHERE)
        return GS_NOWHERE;
    rank = pack->ranks[place];
    return rank < pack->count ? rank : GS_NOWHERE;
}

/* Set the bits, by rank, of those of `number` names that the pack has; note which it has not.
 *
 * `bits` holds (count + 7) / 8 bytes, `missing` room for `number` indexes. Returns how many are missing. */
GS_API int64_t gs_mark_names(const gs_entries *pack, const uint8_t *names, size_t number, uint8_t *bits,
                             uint32_t *missing)
{
    int64_t missed = 0;
    for (size_t i = 0; i < number; i++) {
        uint32_t rank = gs_rank_of_name(pack, names + i * pack->raw_len);
        if (rank == GS_NOWHERE)
            missing[missed++] = (uint32_t)i;
        else
            bits[rank >> 3] |= (uint8_t)(1 << (rank & 7));
    }
    return missed;
}

/* Write out the names of all entries whose bits are set, in the pack's order; `bits` holds (count + 7) / 8
 * bytes. Returns how many; GS_TOO_SMALL if there are more than `room`. */
GS_API int64_t gs_names_of(const gs_entries *pack, const uint8_t *bits, uint8_t *names, size_t room)
{
    size_t found = 0;
    for (uint32_t at = 0; at < pack->count; at++) {
        if (!bits[at >> 3]) {
            at |= 7;
            continue;
        }
        if (gs_has_bit(bits, at)) {
            if (found == room)
                return GS_TOO_SMALL;
            memcpy(names + found++ * pack->raw_len, gs_name_of(pack, at), pack->raw_len);
        }
    }
    return (int64_t)found;
}
