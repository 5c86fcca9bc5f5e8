/* What objects lead to, over packs: commits and trees are read, delta chains unfolded, names looked up.
 *
 * Objects have numbers: those of the first pack, by offset, then those of the second that come by offset, and so
 * on. An object that is in several packs is the one of the first. A walk keeps a set of bits by these numbers, of
 * all that was reached.
 *
 *     commits  a stack: each sets its bit, adds its tree to `pending`, and pushes its parents
 *     trees    `pending`, level by level, by number, so that deltas come behind their bases
 *
 * A tree is mostly stored as a delta of another version of itself. Where that one has been gone through, entries
 * that are copied from it whole can add nothing, and only the others are looked at. Where an entry begins is
 * always known from an exact parse, never guessed: see pack/treedelta.py. Besides, names that were looked up
 * lately are remembered.
 *
 * A walk's memory: its sets of bits, CACHE_BYTES of trees, 1 MiB of names, and what is not in the packs, which
 * the caller fetches.
 */
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "inflate.h"
#include "stored.h"

/* More results of the functions below: there is more to do. */
enum { MORE = 1, STOPPED = 2 };

#define NONE UINT32_MAX
#define CACHE_BYTES ((size_t)24 << 20)
#define TRIM_BYTES ((size_t)4 << 20)
#define OBJECT_BYTES ((uint64_t)256 << 20)
#define MEMO_BITS 15
#define CHAIN_MOST 65536

/* pack/packmap.py has the same. */
typedef struct {
    const uint8_t *data;    /* the pack; entries lie from 12 to `end` */
    const uint8_t *names;   /* of the index, sorted */
    const uint8_t *offsets; /* of the index, 4 bytes each, in the order of names */
    const uint8_t *large;   /* 8 bytes each */
    const uint32_t *order;  /* position in the index by rank (entries.h says what is to be expected of these) */
    const uint32_t *rank;   /* by position in the index: how many entries come before */
    uint8_t *types;         /* by rank, 0 where not known yet */
    const uint32_t *fan;    /* 257, from 0 on */
    uint64_t end;
    uint64_t number_large;
    uint32_t count;
    uint32_t first; /* the number of the first object */
    uint32_t is_v2;
    uint32_t unused;
} gs_pack;

static inline int has(const uint64_t *bits, uint32_t at) { return (int)(bits[at >> 6] >> (at & 63) & 1); }
static inline void put(uint64_t *bits, uint32_t at) { bits[at >> 6] |= (uint64_t)1 << (at & 63); }
static inline void clear(uint64_t *bits, uint32_t at) { bits[at >> 6] &= ~((uint64_t)1 << (at & 63)); }

/* Bits that Python holds are bytes, the lowest bit first. */
static inline int has_byte(const uint8_t *bits, uint32_t at) { return bits[at >> 3] >> (at & 7) & 1; }

/* Where the entry of the index's `at`th name starts; 0 when it is out of bounds. */
static inline uint64_t offset_at(const gs_pack *pack, uint32_t at)
{
    uint64_t offset = gs_be32(pack->offsets + 4 * (size_t)at);
    if (offset & 0x80000000u && pack->is_v2) {
        offset &= 0x7fffffff;
        if (offset >= pack->number_large)
            return 0;
        offset = gs_be64(pack->large + 8 * offset);
    }
    return offset >= 12 && offset < pack->end ? offset : 0;
}

static inline uint32_t position_of_rank(const gs_pack *pack, uint32_t rank)
{
    uint32_t position = pack->order[rank];
    return position < pack->count ? position : 0;
}

/* Look a name up: its place in the index, NONE when it is not there. */
static uint32_t find_in(const gs_pack *pack, const uint8_t *oid, size_t raw_len)
{
    uint32_t low = pack->fan[oid[0]], high = pack->fan[oid[0] + 1], step, at;
    const uint8_t *names = pack->names;
    if (low >= high)
        return NONE;
    /* Names are hashes, so places are known by proportion. */
    at = low + (uint32_t)((uint64_t)(high - low) * gs_be32(oid + 1) >> 32);
    step = 4;
    for (;;) {
        int order = memcmp(names + (size_t)at * raw_len, oid, raw_len);
        if (!order)
            return at;
        if (order < 0) {
            low = at + 1;
            if (low >= high)
                return NONE;
            if (high - low <= step)
                break;
            at = low + step;
        } else {
            high = at;
            if (low >= high)
                return NONE;
            if (high - low <= step)
                break;
            at = high - step;
        }
        step *= 2;
        if (step > 1u << 30)
            break;
    }
    while (low < high) {
        int order;
        at = low + (high - low) / 2;
        order = memcmp(names + (size_t)at * raw_len, oid, raw_len);
        if (!order)
            return at;
        if (order < 0)
            low = at + 1;
        else
            high = at;
    }
    return NONE;
}

static uint32_t find_object(const gs_pack *packs, uint32_t number, const uint8_t *oid, size_t raw_len)
{
    uint32_t i;
    for (i = 0; i < number; i++) {
        uint32_t at = find_in(packs + i, oid, raw_len);
        if (at != NONE && packs[i].rank[at] < packs[i].count)
            return packs[i].first + packs[i].rank[at];
    }
    return NONE;
}

/* Give the numbers of `amount` names; NONE for those in no pack. */
GS_API void gs_find_objects(const gs_pack *packs, uint32_t number, const uint8_t *oids, uint32_t amount,
                            uint32_t raw_len, uint32_t *found)
{
    uint32_t i;
    for (i = 0; i < amount; i++)
        found[i] = find_object(packs, number, oids + (size_t)i * raw_len, raw_len);
}

/* Give the names of the objects whose bits are set, in order; returns how many. `room`: how many fit. */
GS_API int64_t gs_name_objects(const gs_pack *pack, const uint8_t *bits, size_t size, uint32_t raw_len,
                               uint8_t *names, uint64_t room)
{
    uint64_t number = 0;
    size_t i;
    for (i = 0; i < size; i++) {
        unsigned byte = bits[i];
        for (; byte; byte &= byte - 1) {
            uint64_t rank = 8 * (uint64_t)i + (unsigned)__builtin_ctz(byte);
            if (rank >= pack->count)
                return GS_MALFORMED;
            if (number == room)
                return GS_TOO_SMALL;
            memcpy(names + number * raw_len, pack->names + (size_t)position_of_rank(pack, (uint32_t)rank) * raw_len,
                   raw_len);
            number++;
        }
    }
    return (int64_t)number;
}

/* Give the names of those of the index's entries from `low` up to `high` whose bits, by rank, are set: sorted.
 * Returns how many. `room`: how many fit. */
GS_API int64_t gs_sorted_names(const gs_pack *pack, const uint8_t *bits, size_t size, uint32_t raw_len,
                               uint32_t low, uint32_t high, uint8_t *names, uint64_t room)
{
    uint64_t number = 0;
    uint32_t at;
    if (low > high || high > pack->count)
        return GS_MALFORMED;
    for (at = low; at < high; at++) {
        uint32_t rank = pack->rank[at];
        if (rank >> 3 >= size || !has_byte(bits, rank))
            continue;
        if (number == room)
            return GS_TOO_SMALL;
        memcpy(names + number * raw_len, pack->names + (size_t)at * raw_len, raw_len);
        number++;
    }
    return (int64_t)number;
}

/* -- entries */

/* Read an entry's head: its stored type, or GS_MALFORMED. As packfile.PackFile.entry(). */
static int read_entry(const gs_pack *pack, uint64_t offset, size_t raw_len, gs_entry *entry)
{
    if (gs_read_head(pack->data, offset, pack->end, raw_len, entry))
        return GS_MALFORMED;
    if (entry->kind == GS_REF_DELTA) {
        uint32_t place = find_in(pack, pack->data + entry->tail, raw_len);
        if (place == NONE)
            return GS_MALFORMED;
        entry->base = offset_at(pack, place);
        if (!entry->base)
            return GS_MALFORMED;
    }
    return entry->kind;
}

/* Find out the types of all of a pack's objects. Each delta is followed once, wherever its base lies: what was
 * found at the chain's end is noted for all that was passed. */
GS_API int32_t gs_types(const gs_pack *pack, uint32_t raw_len)
{
    uint32_t count = pack->count, i;
    uint64_t *offsets = malloc(8 * (size_t)count + 8);
    uint32_t *chain = malloc(4 * (size_t)count + 4);
    int32_t result = !offsets || !chain ? GS_NO_MEMORY : GS_OK;
    for (i = 0; i < count && !result; i++)
        offsets[i] = offset_at(pack, position_of_rank(pack, i));
    for (i = 0; i < count && !result; i++) {
        uint32_t at = i, depth = 0;
        int kind;
        while (!(kind = pack->types[at])) {
            gs_entry entry;
            uint32_t low = 0, high = count;
            kind = read_entry(pack, offsets[at], raw_len, &entry);
            if (kind < 0 || depth == count) { /* as many deltas as objects: they go in a circle */
                result = GS_MALFORMED;
                break;
            }
            chain[depth++] = at;
            if (kind < GS_OFS_DELTA)
                break;
            while (low < high) {
                uint32_t middle = low + (high - low) / 2;
                if (offsets[middle] < entry.base)
                    low = middle + 1;
                else
                    high = middle;
            }
            if (low == count || offsets[low] != entry.base) {
                result = GS_MALFORMED;
                break;
            }
            at = low;
        }
        while (depth && !result)
            pack->types[chain[--depth]] = (uint8_t)kind;
    }
    free(offsets);
    free(chain);
    return result;
}

/* Set the bits of the objects of a type (types must be known). `out` has (count + 7) / 8 bytes. */
GS_API void gs_of_type(const gs_pack *pack, uint32_t type, uint8_t *out)
{
    uint32_t i;
    memset(out, 0, ((size_t)pack->count + 7) / 8);
    for (i = 0; i < pack->count; i++)
        if (pack->types[i] == type)
            out[i >> 3] |= (uint8_t)(1u << (i & 7));
}

/* -- a walk */

typedef struct {
    uint8_t *data;
    uint32_t *ends; /* where each entry of a tree ends; NULL when not known */
    size_t size;
    uint64_t offset;
    uint32_t number_ends;
    uint32_t pack;
    uint32_t newer, older; /* neighbours in order of use */
    uint32_t chained;      /* the next slot of the same bucket */
    uint8_t kind;
    uint8_t is_closed; /* all that it refers to is in the set already */
    uint8_t is_used;
} gs_slot;

typedef struct {
    const gs_pack *packs;
    uint32_t number;
    uint32_t raw_len;
    uint32_t total;
    size_t words;
    uint64_t *seen;
    uint64_t *pending; /* trees to go through */
    uint64_t *level;   /* those of them that are on the way */
    size_t level_word; /* where the level has got to */
    int has_level;
    int closing; /* a pack is gone through in its order: what lies before is closed */
    int failed;

    uint32_t *stack; /* commits */
    size_t stack_size, stack_room;

    uint8_t *missing; /* type and name of what is in no pack */
    size_t missing_size, missing_room;

    uint8_t *memo;

    gs_slot *slots;
    uint32_t *buckets;
    uint32_t number_slots;
    uint32_t free_slot;
    uint32_t newest, oldest;
    size_t cached;
    uint64_t number_dropped;

    uint8_t *delta;
    size_t delta_room;
    uint32_t *new_ends;
    size_t new_ends_room;
} gs_walk;

#define SLOTS 16384
#define BUCKETS 16384

GS_API void gs_walk_free(gs_walk *walk)
{
    uint32_t i;
    if (!walk)
        return;
    if (walk->slots)
        for (i = 0; i < walk->number_slots; i++) {
            free(walk->slots[i].data);
            free(walk->slots[i].ends);
        }
    free(walk->slots);
    free(walk->buckets);
    free(walk->seen);
    free(walk->pending);
    free(walk->level);
    free(walk->stack);
    free(walk->missing);
    free(walk->memo);
    free(walk->delta);
    free(walk->new_ends);
#ifdef __GLIBC__
    /* Thousands of small pieces leave the heap full of holes, which glibc keeps: 30 MB for as long as the
     * process lives, once for each thread's arena. */
    if (walk->number_dropped || walk->cached > TRIM_BYTES) {
        free(walk);
        malloc_trim(0);
        return;
    }
#endif
    free(walk);
}

/* Start one over packs, whose memory the caller holds as long as the walk. NULL: no memory. */
GS_API gs_walk *gs_walk_new(const gs_pack *packs, uint32_t number, uint32_t raw_len)
{
    gs_walk *walk = calloc(1, sizeof *walk);
    uint32_t i;
    if (!walk)
        return NULL;
    walk->packs = packs;
    walk->number = number;
    walk->raw_len = raw_len;
    walk->total = number ? packs[number - 1].first + packs[number - 1].count : 0;
    walk->words = (size_t)walk->total / 64 + 1;
    walk->seen = calloc(walk->words, 8);
    walk->pending = calloc(walk->words, 8);
    walk->level = calloc(walk->words, 8);
    walk->memo = calloc((size_t)1 << MEMO_BITS, 32);
    walk->slots = calloc(SLOTS, sizeof *walk->slots);
    walk->buckets = malloc(BUCKETS * 4);
    walk->newest = walk->oldest = walk->free_slot = NONE;
    if (!walk->seen || !walk->pending || !walk->level || !walk->memo || !walk->slots || !walk->buckets) {
        gs_walk_free(walk);
        return NULL;
    }
    memset(walk->buckets, 0xff, BUCKETS * 4);
    for (i = 0; i < 32; i++)
        walk->memo[i] = 0xff; /* a name that belongs elsewhere */
    return walk;
}

/* Begin anew, with what is held of objects. */
GS_API void gs_walk_reset(gs_walk *walk)
{
    uint32_t i;
    memset(walk->seen, 0, 8 * walk->words);
    memset(walk->pending, 0, 8 * walk->words);
    memset(walk->level, 0, 8 * walk->words);
    walk->has_level = 0;
    walk->stack_size = 0;
    walk->missing_size = 0;
    memset(walk->memo, 0, (size_t)32 << MEMO_BITS);
    memset(walk->memo, 0xff, 32);
    for (i = 0; i < walk->number_slots; i++)
        walk->slots[i].is_closed = 0;
}

/* Add bits, as Python holds them: these objects, and all that they refer to, are reached. */
GS_API void gs_walk_add_bits(gs_walk *walk, const uint8_t *bits, size_t size)
{
    uint8_t *seen = (uint8_t *)walk->seen;
    size_t i;
    if (size > walk->words * 8)
        size = walk->words * 8;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (i = 0; i < size; i++)
        seen[i] |= bits[i];
#else
    (void)seen;
    for (i = 0; i < size; i++)
        walk->seen[i >> 3] |= (uint64_t)bits[i] << 8 * (i & 7);
#endif
}

/* Copy the set out, as Python holds bits. */
GS_API void gs_walk_bits(gs_walk *walk, uint8_t *bits, size_t size)
{
    size_t i;
    for (i = 0; i < size && i < walk->words * 8; i++)
        bits[i] = (uint8_t)(walk->seen[i >> 3] >> 8 * (i & 7));
}

static int grow(void **memory, size_t *room, size_t wanted, size_t unit)
{
    size_t more = *room ? *room : 256;
    void *grown;
    if (wanted <= *room)
        return 0;
    while (more < wanted)
        more *= 2;
    grown = realloc(*memory, more * unit);
    if (!grown)
        return -1;
    *memory = grown;
    *room = more;
    return 0;
}

/* -- held objects */

static inline uint32_t bucket_of(uint32_t pack, uint64_t offset)
{
    return (uint32_t)((offset * 0x9e3779b97f4a7c15u) >> 40) + pack * 7919u;
}

static gs_slot *held_object(gs_walk *walk, uint32_t pack, uint64_t offset)
{
    uint32_t at = walk->buckets[bucket_of(pack, offset) % BUCKETS];
    while (at != NONE) {
        gs_slot *slot = walk->slots + at;
        if (slot->offset == offset && slot->pack == pack)
            return slot;
        at = slot->chained;
    }
    return NULL;
}

static void unlink_slot(gs_walk *walk, uint32_t at)
{
    gs_slot *slot = walk->slots + at;
    if (slot->newer != NONE)
        walk->slots[slot->newer].older = slot->older;
    else
        walk->newest = slot->older;
    if (slot->older != NONE)
        walk->slots[slot->older].newer = slot->newer;
    else
        walk->oldest = slot->newer;
}

static void link_newest(gs_walk *walk, uint32_t at)
{
    gs_slot *slot = walk->slots + at;
    slot->newer = NONE;
    slot->older = walk->newest;
    if (walk->newest != NONE)
        walk->slots[walk->newest].newer = at;
    walk->newest = at;
    if (walk->oldest == NONE)
        walk->oldest = at;
}

static void touch(gs_walk *walk, gs_slot *slot)
{
    uint32_t at = (uint32_t)(slot - walk->slots);
    if (walk->newest != at) {
        unlink_slot(walk, at);
        link_newest(walk, at);
    }
}

static size_t weight(const gs_slot *slot) { return slot->size + 4 * (size_t)slot->number_ends; }

static void drop_oldest(gs_walk *walk)
{
    uint32_t at = walk->oldest, *from;
    gs_slot *slot = walk->slots + at;
    from = &walk->buckets[bucket_of(slot->pack, slot->offset) % BUCKETS];
    while (*from != at)
        from = &walk->slots[*from].chained;
    *from = slot->chained;
    unlink_slot(walk, at);
    walk->cached -= weight(slot);
    walk->number_dropped++;
    free(slot->data);
    free(slot->ends);
    memset(slot, 0, sizeof *slot);
    slot->chained = walk->free_slot;
    walk->free_slot = at;
}

/* Hold an object, whose memory is taken over. Never drops the two that were used last. */
static gs_slot *hold_object(gs_walk *walk, uint32_t pack, uint64_t offset, int kind, uint8_t *data, size_t size)
{
    uint32_t at, bucket = bucket_of(pack, offset) % BUCKETS;
    gs_slot *slot;
    while (walk->newest != NONE && walk->oldest != walk->newest &&
           walk->slots[walk->newest].older != walk->oldest &&
           (walk->cached + size > CACHE_BYTES || (walk->free_slot == NONE && walk->number_slots == SLOTS)))
        drop_oldest(walk);
    if (walk->free_slot != NONE) {
        at = walk->free_slot;
        walk->free_slot = walk->slots[at].chained;
    } else {
        at = walk->number_slots++;
    }
    slot = walk->slots + at;
    memset(slot, 0, sizeof *slot);
    slot->data = data;
    slot->size = size;
    slot->kind = (uint8_t)kind;
    slot->pack = pack;
    slot->offset = offset;
    slot->is_used = 1;
    slot->chained = walk->buckets[bucket];
    walk->buckets[bucket] = at;
    walk->cached += size;
    link_newest(walk, at);
    return slot;
}

/* -- trees */

/* Find the end of the entry that starts at `at`: 0 when it is none. `name`: where its oid is. */
static inline size_t parse_entry(const uint8_t *data, size_t size, size_t at, size_t raw_len, unsigned *mode)
{
    unsigned value = 0;
    size_t start = at;
    const uint8_t *nul;
    while (at < size && data[at] >= '0' && data[at] <= '7') {
        value = value << 3 | (data[at] - '0');
        if (value > 0xffff)
            return 0;
        at++;
    }
    if (at == start || at + 1 >= size || data[at] != ' ' || !data[at + 1])
        return 0;
    at++;
    nul = memchr(data + at, 0, size - at);
    if (!nul)
        return 0;
    at = (size_t)(nul - data) + 1;
    if (size - at < raw_len)
        return 0;
    *mode = value;
    return at + raw_len;
}

static int report_missing(gs_walk *walk, int kind, const uint8_t *oid)
{
    size_t each = walk->raw_len + 1;
    if (grow((void **)&walk->missing, &walk->missing_room, walk->missing_size + each, 1))
        return GS_NO_MEMORY;
    walk->missing[walk->missing_size] = (uint8_t)kind;
    memcpy(walk->missing + walk->missing_size + 1, oid, walk->raw_len);
    walk->missing_size += each;
    return GS_OK;
}

/* Reach a tree or blob by its name. */
static inline int reach_name(gs_walk *walk, unsigned mode, const uint8_t *oid)
{
    uint8_t *memo;
    uint32_t at;
    int kind;
    if ((mode & 0170000) == 0160000)
        return GS_OK;
    memo = walk->memo + 32 * (size_t)((gs_be32(oid + 4)) >> (32 - MEMO_BITS));
    if (!memcmp(memo, oid, 20) && (walk->raw_len == 20 || !memcmp(memo + 20, oid + 20, 12)))
        return GS_OK;
    memcpy(memo, oid, walk->raw_len);
    kind = (mode & 0170000) == 0040000 ? GS_TREE : GS_BLOB;
    at = find_object(walk->packs, walk->number, oid, walk->raw_len);
    if (at == NONE)
        return report_missing(walk, kind, oid);
    if (!has(walk->seen, at)) {
        put(walk->seen, at);
        if (kind == GS_TREE)
            put(walk->pending, at);
    }
    return GS_OK;
}

static int note_end(gs_walk *walk, size_t *number, size_t end)
{
    if (*number >= walk->new_ends_room &&
        grow((void **)&walk->new_ends, &walk->new_ends_room, *number + 1, 4))
        return GS_NO_MEMORY;
    walk->new_ends[(*number)++] = (uint32_t)end;
    return GS_OK;
}

static int keep_ends(gs_walk *walk, gs_slot *slot, size_t number)
{
    uint32_t *ends = malloc(4 * number + 4);
    if (!ends)
        return GS_NO_MEMORY;
    if (number)
        memcpy(ends, walk->new_ends, 4 * number);
    free(slot->ends);
    walk->cached -= 4 * (size_t)slot->number_ends;
    slot->ends = ends;
    slot->number_ends = (uint32_t)number;
    walk->cached += 4 * number;
    return GS_OK;
}

/* Go through a tree whole. With `reaching` unset, only where entries end is found out. */
static int whole_tree(gs_walk *walk, gs_slot *slot, int reaching)
{
    size_t at = 0, number = 0;
    while (at < slot->size) {
        unsigned mode = 0;
        size_t end = parse_entry(slot->data, slot->size, at, walk->raw_len, &mode);
        int code;
        if (!end)
            return GS_MALFORMED;
        if (reaching && (code = reach_name(walk, mode, slot->data + end - walk->raw_len)) < 0)
            return code;
        if ((code = note_end(walk, &number, end)) < 0)
            return code;
        at = end;
    }
    return keep_ends(walk, slot, number);
}

/* Go through a tree that is a delta of one which was gone through: only what is not copied whole. */
static int changed_tree(gs_walk *walk, const gs_slot *base, gs_slot *slot, const uint8_t *at, const uint8_t *end)
{
    const uint32_t *ends = base->ends;
    size_t done = 0, start = 0, number = 0, raw_len = walk->raw_len;
    gs_instruction next;
    int code;

#define PARSE_ONE()                                                                                               \
    do {                                                                                                          \
        unsigned mode = 0;                                                                                        \
        size_t after = parse_entry(slot->data, slot->size, done, raw_len, &mode);                                 \
        if (!after)                                                                                               \
            return GS_MALFORMED;                                                                                  \
        if ((code = reach_name(walk, mode, slot->data + after - raw_len)) < 0)                                    \
            return code;                                                                                          \
        if ((code = note_end(walk, &number, after)) < 0)                                                          \
            return code;                                                                                          \
        done = after;                                                                                             \
    } while (0)

    for (; at < end; start += next.size) {
        size_t offset, stop;
        at = gs_read_instruction(at, end, &next);
        if (!at)
            return GS_MALFORMED;
        if (next.data)
            continue;
        offset = next.offset;
        stop = start + next.size;
        while (done < start)
            PARSE_ONE();
        while (done < stop) {
            /* Does an entry of the base begin where one begins here? */
            size_t wanted = done - start + offset, low = 0, high = base->number_ends, last;
            while (low < high) {
                size_t middle = low + (high - low) / 2;
                if (ends[middle] < wanted)
                    low = middle + 1;
                else
                    high = middle;
            }
            if (!wanted || (low < base->number_ends && ends[low] == wanted)) {
                size_t first = wanted ? low + 1 : 0, i, from;
                last = first;
                high = base->number_ends;
                low = first;
                while (low < high) {
                    size_t middle = low + (high - low) / 2;
                    if (ends[middle] <= offset + next.size)
                        low = middle + 1;
                    else
                        high = middle;
                }
                last = low;
                if (last > first) {
                    if (grow((void **)&walk->new_ends, &walk->new_ends_room, number + (last - first), 4))
                        return GS_NO_MEMORY;
                    from = start - offset; /* may wrap around, and back again */
                    for (i = first; i < last; i++)
                        walk->new_ends[number++] = (uint32_t)(ends[i] + from);
                    done = walk->new_ends[number - 1];
                }
                break;
            }
            PARSE_ONE();
        }
    }
    while (done < slot->size)
        PARSE_ONE();
#undef PARSE_ONE
    return keep_ends(walk, slot, number);
}

/* What a stream of that many bytes can't inflate to is not worth taking memory for. */
static int is_plausible(uint64_t size, uint64_t stored)
{
    return size <= OBJECT_BYTES && size / 1040 <= stored;
}

/* Read an object, and the bases that it needs. `for_tree`: if it is a tree, go through it as well.
 *
 * Bits are set for what it refers to; the object itself is the caller's. */
static int read_object(gs_walk *walk, uint32_t which, uint64_t offset, int for_tree, gs_slot **found)
{
    const gs_pack *pack = walk->packs + which;
    struct {
        uint64_t offset, size, start;
    } local[64], *chain = local;
    size_t depth = 0, room = 64;
    gs_slot *slot = NULL;
    uint64_t at = offset;
    gs_entry entry;
    int kind = 0, code = GS_OK;
    void *whole_chain = NULL;
    for (;;) {
        slot = held_object(walk, which, at);
        if (slot) {
            touch(walk, slot);
            break;
        }
        kind = read_entry(pack, at, walk->raw_len, &entry);
        if (kind < 0 || !is_plausible(entry.size, pack->end - entry.start)) {
            code = GS_MALFORMED;
            goto out;
        }
        if (kind < GS_OFS_DELTA) {
            uint8_t *data = malloc(entry.size + 1);
            if (!data) {
                code = GS_NO_MEMORY;
                goto out;
            }
            if (gs_inflate(pack->data + entry.start, pack->end - entry.start, data, entry.size, 0) < 0) {
                free(data);
                code = GS_MALFORMED;
                goto out;
            }
            slot = hold_object(walk, which, at, kind, data, entry.size);
            if (walk->closing && at < offset)
                slot->is_closed = 1;
            break;
        }
        if (depth == room) {
            void *more;
            if (depth >= CHAIN_MOST || depth > pack->count) {
                code = GS_MALFORMED;
                goto out;
            }
            more = malloc(2 * room * sizeof *chain);
            if (!more) {
                code = GS_NO_MEMORY;
                goto out;
            }
            memcpy(more, chain, depth * sizeof *chain);
            free(whole_chain);
            whole_chain = more;
            chain = more;
            room *= 2;
        }
        chain[depth].offset = at;
        chain[depth].size = entry.size;
        chain[depth].start = entry.start;
        depth++;
        at = entry.base;
    }
    while (depth) {
        gs_slot *from = slot;
        uint64_t base_size, result_size, size, start;
        const uint8_t *first, *end;
        uint8_t *data;
        depth--;
        at = chain[depth].offset;
        size = chain[depth].size;
        start = chain[depth].start;
        if (size > walk->delta_room && grow((void **)&walk->delta, &walk->delta_room, size, 1)) {
            code = GS_NO_MEMORY;
            goto out;
        }
        /* git: delta.h DELTA_SIZE_MIN is 4 */
        if (size < 4 || gs_inflate(pack->data + start, pack->end - start, walk->delta, size, 0) < 0 ||
            !(first = gs_read_size(walk->delta, end = walk->delta + size, &base_size)) || base_size != from->size ||
            !(first = gs_read_size(first, end, &result_size)) || result_size > OBJECT_BYTES) {
            code = GS_MALFORMED;
            goto out;
        }
        data = malloc(result_size + 1);
        if (!data || gs_apply_delta(from->data, from->size, walk->delta, size, (size_t)(first - walk->delta), data,
                                    result_size)) {
            code = data ? GS_MALFORMED : GS_NO_MEMORY;
            free(data);
            goto out;
        }
        /* The base was used last, so it stays. */
        slot = hold_object(walk, which, at, from->kind, data, result_size);
        if (walk->closing && at < offset)
            slot->is_closed = 1;
        if (for_tree && !depth && slot->kind == GS_TREE && from->is_closed) {
            if (!from->ends && (code = whole_tree(walk, from, 0)) < 0)
                goto out;
            code = changed_tree(walk, from, slot, first, end);
            slot->is_closed = code >= 0;
            goto out;
        }
    }
    if (for_tree && slot->kind == GS_TREE && !slot->is_closed) {
        code = whole_tree(walk, slot, 1);
        slot->is_closed = code >= 0;
    }
out:
    free(whole_chain);
    *found = slot;
    return code;
}

/* -- commits */

static int push(gs_walk *walk, uint32_t number)
{
    if (walk->stack_size >= walk->stack_room &&
        grow((void **)&walk->stack, &walk->stack_room, walk->stack_size + 1, 4))
        return GS_NO_MEMORY;
    walk->stack[walk->stack_size++] = number;
    return GS_OK;
}

static const gs_pack *pack_of(const gs_walk *walk, uint32_t number, uint32_t *which)
{
    uint32_t low = 0, high = walk->number;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (walk->packs[middle].first <= number)
            low = middle;
        else
            high = middle;
    }
    *which = low;
    return walk->packs + low;
}

static int read_numbered(gs_walk *walk, uint32_t number, int for_tree, gs_slot **slot)
{
    uint32_t which, rank;
    const gs_pack *pack = pack_of(walk, number, &which);
    uint64_t offset;
    int code;
    rank = number - pack->first;
    if (rank >= pack->count)
        return GS_MALFORMED;
    offset = offset_at(pack, position_of_rank(pack, rank));
    code = read_object(walk, which, offset, for_tree, slot);
    if (code >= 0)
        pack->types[rank] = (*slot)->kind;
    return code;
}

enum { NO_TREES = 1, NO_PARENTS = 2 };

/* Reach what a commit refers to. */
static int commit_references(gs_walk *walk, const uint8_t *data, size_t size, unsigned flags)
{
    size_t hex = 2 * (size_t)walk->raw_len, at = 5 + hex + 1, bottom = walk->stack_size;
    uint8_t oid[32];
    int code;
    if (size < at || memcmp(data, "tree ", 5) || data[at - 1] != '\n' || gs_read_hex(data + 5, walk->raw_len, oid))
        return GS_MALFORMED;
    if (!(flags & NO_TREES) && (code = reach_name(walk, 0040000, oid)) < 0)
        return code;
    while (size - at >= 7 && !memcmp(data + at, "parent ", 7)) {
        uint32_t parent;
        at += 7;
        if (size - at < hex + 1 || data[at + hex] != '\n' || gs_read_hex(data + at, walk->raw_len, oid))
            return GS_MALFORMED;
        at += hex + 1;
        if (flags & NO_PARENTS)
            continue;
        parent = find_object(walk->packs, walk->number, oid, walk->raw_len);
        if (parent == NONE) {
            if ((code = report_missing(walk, GS_COMMIT, oid)) < 0)
                return code;
        } else if (!has(walk->seen, parent) && (code = push(walk, parent)) < 0) {
            return code;
        }
    }
    /* The first parent is to be popped first. */
    if (walk->stack_size - bottom > 1) {
        size_t low = bottom, high = walk->stack_size - 1;
        while (low < high) {
            uint32_t other = walk->stack[low];
            walk->stack[low++] = walk->stack[high];
            walk->stack[high--] = other;
        }
    }
    return GS_OK;
}

GS_API int32_t gs_walk_push(gs_walk *walk, uint32_t number)
{
    if (number >= walk->total)
        return GS_MALFORMED;
    return push(walk, number);
}

/* Reach one object: a tree will be gone through, anything else just gets its bit. */
GS_API int32_t gs_walk_reach(gs_walk *walk, uint32_t number, uint32_t is_tree)
{
    if (number >= walk->total)
        return GS_MALFORMED;
    if (!has(walk->seen, number)) {
        put(walk->seen, number);
        if (is_tree)
            put(walk->pending, number);
    }
    return GS_OK;
}

/* Reach what a tree that is in no pack refers to. */
GS_API int32_t gs_walk_tree(gs_walk *walk, const uint8_t *data, size_t size)
{
    size_t at = 0;
    while (at < size) {
        unsigned mode = 0;
        size_t end = parse_entry(data, size, at, walk->raw_len, &mode);
        int code;
        if (!end)
            return GS_MALFORMED;
        if ((code = reach_name(walk, mode, data + end - walk->raw_len)) < 0)
            return code;
        at = end;
    }
    return GS_OK;
}

/* Go through the commits that were pushed. `stops`, `ends`: sets of bytes, or NULL. At one of `stops`, which is
 * given in `stopped` and not reached, the caller adds bits, or pushes it again with other stops. The parents of
 * `ends` are not followed.
 *
 * Returns MORE after `most` commits, STOPPED, or GS_OK when there are none left. */
GS_API int32_t gs_walk_commits(gs_walk *walk, const uint8_t *stops, const uint8_t *ends, uint32_t no_trees,
                               uint32_t most, uint32_t *stopped)
{
    while (walk->stack_size) {
        uint32_t number = walk->stack[--walk->stack_size];
        gs_slot *slot = NULL;
        int code;
        if (has(walk->seen, number))
            continue;
        if (stops && has_byte(stops, number)) {
            *stopped = number;
            return STOPPED;
        }
        if (!most--) {
            walk->stack_size++;
            return MORE;
        }
        put(walk->seen, number);
        code = read_numbered(walk, number, 0, &slot);
        if (code >= 0 && slot->kind != GS_COMMIT)
            code = GS_MALFORMED;
        if (code >= 0)
            code = commit_references(walk, slot->data, slot->size,
                                     (no_trees ? NO_TREES : 0) | (ends && has_byte(ends, number) ? NO_PARENTS : 0));
        if (code < 0)
            return code;
    }
    return GS_OK;
}

/* Go through pending trees, and those that they lead to. MORE after `most` of them. */
GS_API int32_t gs_walk_trees(gs_walk *walk, uint32_t most)
{
    for (;;) {
        if (!walk->has_level) {
            uint64_t *other = walk->level, any = 0;
            size_t i;
            for (i = 0; i < walk->words; i++)
                any |= walk->pending[i];
            if (!any)
                return GS_OK;
            walk->level = walk->pending;
            walk->pending = other;
            walk->has_level = 1;
            walk->level_word = 0;
        }
        while (walk->level_word < walk->words) {
            uint64_t word = walk->level[walk->level_word];
            gs_slot *slot = NULL;
            uint32_t number;
            int code;
            if (!word) {
                walk->level_word++;
                continue;
            }
            if (!most--)
                return MORE;
            number = (uint32_t)(64 * walk->level_word + (unsigned)__builtin_ctzll(word));
            clear(walk->level, number);
            code = read_numbered(walk, number, 1, &slot);
            if (code >= 0 && slot->kind != GS_TREE)
                code = GS_MALFORMED;
            if (code < 0)
                return code;
        }
        walk->has_level = 0;
    }
}

/* Take what was found to be in no pack: type and name of each. Returns how many bytes. */
GS_API int64_t gs_walk_missing(gs_walk *walk, uint8_t *out, size_t room)
{
    size_t each = walk->raw_len + 1, take = room - room % each;
    if (take > walk->missing_size)
        take = walk->missing_size;
    if (take)
        memcpy(out, walk->missing + walk->missing_size - take, take);
    walk->missing_size -= take;
    return (int64_t)take;
}

GS_API uint64_t gs_walk_missing_size(gs_walk *walk) { return walk->missing_size; }

/* Go through all commits, trees and tags of the only pack, whose types are known, from `rank` on: what they refer
 * to is reached, they are not. Returns the rank to go on at, `count` at the end; at once when something is not in
 * the pack. */
GS_API int64_t gs_walk_pack(gs_walk *walk, uint32_t rank, uint32_t most)
{
    const gs_pack *pack = walk->packs;
    if (walk->number != 1)
        return GS_MALFORMED;
    walk->closing = 1;
    for (; rank < pack->count && most; rank++) {
        int kind = pack->types[rank];
        gs_slot *slot = NULL;
        int code;
        if (kind == GS_BLOB)
            continue;
        most--;
        code = read_numbered(walk, rank, kind == GS_TREE, &slot);
        if (code >= 0 && slot->kind != kind)
            code = GS_MALFORMED;
        if (code >= 0 && kind == GS_COMMIT) {
            size_t i;
            code = commit_references(walk, slot->data, slot->size, 0);
            for (i = 0; code >= 0 && i < walk->stack_size; i++) {
                put(walk->seen, walk->stack[i]);
                if (pack->types[walk->stack[i]] != GS_COMMIT)
                    code = GS_MALFORMED;
            }
            walk->stack_size = 0;
        } else if (code >= 0 && kind == GS_TAG) {
            uint8_t oid[32];
            uint32_t target;
            if (slot->size < 7 + 2 * walk->raw_len || memcmp(slot->data, "object ", 7) ||
                gs_read_hex(slot->data + 7, walk->raw_len, oid))
                return GS_MALFORMED;
            target = find_object(pack, 1, oid, walk->raw_len);
            if (target == NONE)
                code = report_missing(walk, GS_TAG, oid);
            else {
                put(walk->seen, target);
                if (pack->types[target] == GS_TREE)
                    put(walk->pending, target);
            }
        }
        if (code < 0)
            return code;
        if (walk->missing_size)
            break;
    }
    return rank;
}

/* After gs_walk_pack(): whether all that was referred to as a tree is one, and nothing else is. */
GS_API int32_t gs_walk_trees_match(gs_walk *walk)
{
    const gs_pack *pack = walk->packs;
    uint32_t i;
    for (i = 0; i < pack->count; i++)
        if (has(walk->seen, i) && has(walk->pending, i) != (pack->types[i] == GS_TREE))
            return 0;
    return 1;
}

/* -- bits that Python holds */

GS_API void gs_bits_or(uint8_t *to, const uint8_t *from, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++)
        to[i] |= from[i];
}

GS_API void gs_bits_and(uint8_t *to, const uint8_t *from, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++)
        to[i] &= from[i];
}

GS_API void gs_bits_and_not(uint8_t *to, const uint8_t *from, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++)
        to[i] &= (uint8_t)~from[i];
}

GS_API void gs_bits_xor(uint8_t *to, const uint8_t *from, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++)
        to[i] ^= from[i];
}
