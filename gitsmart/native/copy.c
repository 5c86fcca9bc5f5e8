/* Copying the selected entries of packs into one stream: verbatim where their bases allow it, with heads of
 * another length where a base has moved or is named instead, and the caller asked about the rest. */
#include "entries.h"
#include "inflate.h"

/* Why gs_copy returned. */
enum { DONE = 0, FULL = 1, RUN = 2, ORPHAN = 3, ASK = 4, ROOM = 5 };

/* From here on entries have moved by `shift`: where they are in the stream, less where they were in the pack. */
typedef struct {
    uint64_t start;
    int64_t shift;
} gs_moved;

/* A pack of which something is sent, or is a base that the client has. Bits are by rank, (count + 7) / 8 bytes
 * and 8 more. */
typedef struct {
    const gs_entries *pack;
    const uint8_t *send;
    const uint8_t *has;
} gs_part;

typedef struct {
    const gs_part *parts; /* packs before `part` have been written, those behind it have not */
    gs_moved *moved;
    uint64_t moved_count, moved_room;
    uint64_t here;                /* where in the stream comes what is not copied yet */
    uint64_t run_start, run_stop; /* what is not copied yet; with RUN: to be written by the caller */
    uint64_t copied, deltas;      /* entries, and those of them that are deltas */
    uint32_t part_count, part;
    uint32_t rank;      /* where to go on */
    uint32_t ofs_delta; /* allowed */
    uint32_t answered;  /* rank + 1 of the entry that the caller has been asked about */
    uint32_t forward;   /* a delta was copied whose base comes later */
    const uint8_t *ask; /* entries that the caller is asked about, as bits by rank; NULL: about none */
} gs_copier;

#define RUN_LEAST ((uint64_t)64 << 10)
#define HEAD_MOST 64

/* Whether the entry of that name may be a base: it has been sent, or the client has it. 0 also for what is in
 * no part, and for what will be sent only later, which is no base even if the client has it: it might be sent
 * as a delta of what is written now. */
static int in_reach(const gs_copier *copier, const uint8_t *name)
{
    int has = 0;
    for (uint32_t i = 0; i < copier->part_count; i++) {
        const gs_part *part = copier->parts + i;
        uint32_t rank = gs_rank_of_name(part->pack, name);
        if (rank == GS_NOWHERE)
            continue;
        if (gs_has_bit(part->send, rank))
            return i < copier->part;
        has |= part->has && gs_has_bit(part->has, rank);
    }
    return has;
}

static int64_t shift_at(const gs_copier *copier, uint64_t offset)
{
    uint64_t low = 0, high = copier->moved_count;
    if (!high)
        return 0;
    if (copier->moved[high - 1].start <= offset)
        return copier->moved[high - 1].shift;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (copier->moved[middle].start <= offset)
            low = middle;
        else
            high = middle;
    }
    return copier->moved[low].shift;
}

static void note_move(gs_copier *copier, uint64_t offset, uint64_t to)
{
    int64_t shift = (int64_t)(to - offset);
    if (copier->moved_count && copier->moved[copier->moved_count - 1].shift == shift)
        return;
    copier->moved[copier->moved_count].start = offset;
    copier->moved[copier->moved_count++].shift = shift;
}

static uint32_t next_bit(const uint8_t *bits, uint32_t at, uint32_t count)
{
    while (at < count) {
        unsigned left = bits[at >> 3] >> (at & 7);
        if (left) {
            at += (uint32_t)__builtin_ctz(left);
            return at < count ? at : count;
        }
        at = (at | 7) + 1;
        while (at + 64 <= count && !(at & 7)) {
            uint64_t word;
            memcpy(&word, bits + (at >> 3), 8);
            if (word)
                break;
            at += 64;
        }
    }
    return count;
}

static size_t put_distance(uint8_t *out, uint64_t back)
{
    uint8_t bytes[10];
    size_t at = sizeof(bytes);
    bytes[--at] = back & 0x7f;
    while (back >>= 7)
        bytes[--at] = 0x80 | (--back & 0x7f);
    memcpy(out, bytes + at, sizeof(bytes) - at);
    return sizeof(bytes) - at;
}

/* Fill `out` with what comes next of the part `copier->part`; `*used` is how much came.
 *
 * DONE: that was all. FULL: go on with more room. RUN: write what is in `out`, then data[run_start:run_stop] of
 * the pack, set both to 0, and go on. ORPHAN: the base of the entry at `rank` is out of reach; write it in
 * another way, and tell by gs_wrote. ASK: the entry at `rank` is one of `ask`; the same, or go on with `answered`
 * set to rank + 1, and it is copied as it is. ROOM: double `moved`. `out` must hold HEAD_MOST bytes.
 *
 * GS_MALFORMED: the pack is. */
GS_API int32_t gs_copy(gs_copier *copier, uint8_t *out, size_t out_size, size_t *used)
{
    const gs_part *part = copier->parts + copier->part;
    const gs_entries *pack = part->pack;
    const uint8_t *send = part->send, *has = part->has;
    size_t at = 0;
    int32_t result;

    for (;;) {
        uint32_t rank = next_bit(send, copier->rank, pack->count), base_rank;
        uint64_t offset, stop;
        gs_entry entry;
        uint8_t head[HEAD_MOST];
        size_t head_size = 0;
        int asks = 0, forward = 0;

        copier->rank = rank;
        if (rank == pack->count) {
            offset = stop = 0;
        } else {
            if (copier->moved_count + 2 > copier->moved_room) {
                result = ROOM;
                break;
            }
            offset = gs_start_of(pack, rank);
            stop = gs_start_of(pack, rank + 1);
            if (gs_read_entry(pack, offset, stop, &entry)) {
                result = GS_MALFORMED;
                break;
            }
            if (entry.kind == GS_OFS_DELTA) {
                uint64_t head_stop = entry.tail;
                base_rank = gs_rank_of(pack, entry.base, rank);
                if (base_rank == GS_NOWHERE) {
                    result = GS_MALFORMED;
                    break;
                }
                if (gs_has_bit(send, base_rank) && copier->ofs_delta) {
                    int64_t shift = shift_at(copier, entry.base);
                    uint64_t to = copier->here + (copier->run_stop - copier->run_start);
                    if ((int64_t)(to - offset) != shift) {
                        head_size = (size_t)(head_stop - offset);
                        memcpy(head, pack->data + offset, head_size);
                        head_size += put_distance(head + head_size, to - (uint64_t)((int64_t)entry.base + shift));
                    }
                } else {
                    const uint8_t *name = gs_name_of(pack, base_rank);
                    if (gs_has_bit(send, base_rank) || (has && gs_has_bit(has, base_rank)) ||
                        in_reach(copier, name)) {
                        head_size = (size_t)(head_stop - offset);
                        memcpy(head, pack->data + offset, head_size);
                        head[0] = (uint8_t)((head[0] & 0x8f) | GS_REF_DELTA << 4);
                        memcpy(head + head_size, name, pack->raw_len);
                        head_size += pack->raw_len;
                    } else {
                        asks = ORPHAN;
                    }
                }
            } else if (entry.kind == GS_REF_DELTA) {
                const uint8_t *name = pack->data + entry.tail;
                base_rank = gs_rank_of_name(pack, name);
                if (base_rank == GS_NOWHERE) {
                    result = GS_MALFORMED;
                    break;
                }
                if (gs_has_bit(send, base_rank))
                    forward = base_rank > rank;
                else if (!(has && gs_has_bit(has, base_rank)) && !in_reach(copier, name))
                    asks = ORPHAN;
            }
            if (!asks && copier->ask && gs_has_bit(copier->ask, rank) && copier->answered != rank + 1)
                asks = ASK;
        }

        if (copier->run_stop && (asks || head_size || offset != copier->run_stop)) {
            uint64_t size = copier->run_stop - copier->run_start;
            if (size >= RUN_LEAST) {
                copier->here += size;
                result = RUN;
                break;
            }
            if (size > out_size - at) {
                result = FULL;
                break;
            }
            memcpy(out + at, pack->data + copier->run_start, (size_t)size);
            at += (size_t)size;
            copier->here += size;
            copier->run_start = copier->run_stop = 0;
        }
        if (rank == pack->count) {
            result = DONE;
            break;
        }
        if (asks) {
            result = asks;
            break;
        }
        if (head_size) {
            if (head_size > out_size - at) {
                result = FULL;
                break;
            }
            note_move(copier, offset, copier->here);
            memcpy(out + at, head, head_size);
            at += head_size;
            copier->here += head_size;
            copier->run_start = entry.start;
            copier->run_stop = stop;
        } else {
            if (!copier->run_stop) {
                note_move(copier, offset, copier->here);
                copier->run_start = offset;
            }
            copier->run_stop = stop;
        }
        /* What follows this entry directly has moved with its end. */
        if (head_size)
            note_move(copier, stop, copier->here + (stop - entry.start));
        copier->copied++;
        copier->deltas += entry.kind >= GS_OFS_DELTA;
        copier->forward |= (uint32_t)forward;
        copier->rank = rank + 1;
    }
    *used = at;
    return result;
}

/* Note that the caller has written the entry at `rank`, in `size` bytes of the stream. */
GS_API int32_t gs_wrote(gs_copier *copier, uint64_t size)
{
    const gs_entries *pack = copier->parts[copier->part].pack;
    if (copier->rank >= pack->count || copier->moved_count + 1 > copier->moved_room)
        return GS_MALFORMED;
    note_move(copier, gs_start_of(pack, copier->rank), copier->here);
    copier->here += size;
    copier->rank++;
    return GS_OK;
}

/* Whether the entry at `base_rank` may be a base of the one at `rank`, of the same pack. From the first delta on
 * whose base comes later only what the client has may be: otherwise circles could come about. */
static int may_refer_to(const gs_copier *copier, uint32_t rank, uint32_t base_rank)
{
    const gs_part *part = copier->parts + copier->part;
    if (gs_has_bit(part->send, base_rank))
        return base_rank < rank && !copier->forward;
    if (part->has && gs_has_bit(part->has, base_rank))
        return 1;
    return copier->part_count > 1 && in_reach(copier, gs_name_of(part->pack, base_rank));
}

static uint32_t base_rank_of(const gs_entries *pack, uint32_t rank, const gs_entry *entry)
{
    if (entry->kind == GS_OFS_DELTA)
        return gs_rank_of(pack, entry->base, rank);
    return gs_rank_of_name(pack, pack->data + entry->tail);
}

/* The same for callers. */
GS_API int32_t gs_may_refer_to(const gs_copier *copier, uint32_t rank, uint32_t base_rank)
{
    uint32_t count = copier->parts[copier->part].pack->count;
    return rank < count && base_rank < count && may_refer_to(copier, rank, base_rank);
}

/* Let the heap of sizes, smallest first, take the place of its first element. */
static void sift_down(uint32_t *ranks, uint64_t *sizes, size_t count, size_t at, uint32_t rank, uint64_t size)
{
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && sizes[child + 1] < sizes[child])
            child++;
        if (sizes[child] >= size)
            break;
        sizes[at] = sizes[child];
        ranks[at] = ranks[child];
        at = child;
    }
    sizes[at] = size;
    ranks[at] = rank;
}

/* A delta of so many bytes more than an entry of another kind is of an object as large as that, and as dear. */
#define DELTA_WEIGHT 4

/* Find the entries of the current part that are largest, `least` bytes or more, though the client may have a
 * version of them: trees and blobs that are no deltas, or deltas of something that isn't sent (a fourth of their size
 * counts). Writes rank and what counts of each, `room` at most, in no order. Returns how many. GS_MALFORMED: the pack is. */
GS_API int64_t gs_large_entries(const gs_copier *copier, uint64_t least, uint32_t *ranks, uint64_t *sizes, size_t room)
{
    const gs_part *part = copier->parts + copier->part;
    const gs_entries *pack = part->pack;
    size_t found = 0;
    if (!room)
        return 0;
    for (uint32_t rank = next_bit(part->send, 0, pack->count); rank < pack->count;
         rank = next_bit(part->send, rank + 1, pack->count)) {
        uint64_t offset = gs_start_of(pack, rank), stop = gs_start_of(pack, rank + 1), size = stop - offset;
        gs_entry entry;
        if (size < least || (found == room && size <= sizes[0]))
            continue;
        if (gs_read_entry(pack, offset, stop, &entry))
            return GS_MALFORMED;
        if (entry.kind == 1 || entry.kind == 4)
            continue;
        if (entry.kind >= GS_OFS_DELTA) {
            uint32_t base = base_rank_of(pack, rank, &entry);
            if (base == GS_NOWHERE)
                return GS_MALFORMED;
            if (gs_has_bit(part->send, base))
                continue;
            size /= DELTA_WEIGHT;
            if (size < least || (found == room && size <= sizes[0]))
                continue;
        }
        if (found == room) {
            sift_down(ranks, sizes, found, 0, rank, size);
            continue;
        }
        ranks[found] = rank;
        sizes[found++] = size;
        if (found == room)
            for (size_t at = room / 2; at--;)
                sift_down(ranks, sizes, room, at, ranks[at], sizes[at]);
    }
    return (int64_t)found;
}

/* The size of the object at `rank`, of which `entry` is the head. Remembered; 0 if it can't be told. */
static uint32_t object_size(const gs_entries *pack, uint32_t rank, const gs_entry *entry, uint64_t stop)
{
    uint8_t head[20];
    size_t room = entry->size < sizeof(head) ? (size_t)entry->size : sizeof(head), at = 0;
    uint64_t size = entry->size;
    if (pack->sizes[rank])
        return pack->sizes[rank];
    if (entry->kind >= GS_OFS_DELTA) {
        unsigned shift = 0;
        if (gs_inflate(pack->data + entry->start, (size_t)(stop - entry->start), head, room, 1))
            return 0;
        while (at < room && head[at] & 0x80)
            at++;
        at++;
        size = 0;
        do {
            if (at >= room || shift > 56)
                return 0;
            size |= (uint64_t)(head[at] & 0x7f) << shift;
            shift += 7;
        } while (head[at++] & 0x80);
    }
    pack->sizes[rank] = size < UINT32_MAX ? (uint32_t)size : UINT32_MAX;
    return pack->sizes[rank];
}

/* How far around an entry its relatives are looked for; and where to stop if that many others come in a row. */
#define BEFORE 256
#define BEHIND 1024
#define STRANGERS 64
#define CHAIN 64

/* Find objects that hang together with the entry at `rank` by stored deltas and may be its base: of what it is a
 * delta of, and whatever lies around that is a delta of it or of one of its bases, those whose sizes are nearest to
 * its own. git writes versions of one file side by side, and those of about the same age have about the same size.
 *
 * Writes their ranks, the most promising first, `most` (8 or less) at most. Returns how many. GS_MALFORMED: the
 * pack is. */
GS_API int32_t gs_relatives(const gs_copier *copier, uint32_t rank, uint32_t *found, int32_t most)
{
    const gs_entries *pack = copier->parts[copier->part].pack;
    uint32_t bases[CHAIN], base_count = 0, low, high, at, own, strangers = 0;
    uint32_t distances[8];
    uint8_t related[BEFORE + BEHIND] = {0};
    int32_t number = 0;
    gs_entry entry;

    if (rank >= pack->count || most < 1 || most > 8)
        return GS_MALFORMED;
    if (gs_read_entry(pack, gs_start_of(pack, rank), gs_start_of(pack, rank + 1), &entry))
        return GS_MALFORMED;
    own = object_size(pack, rank, &entry, gs_start_of(pack, rank + 1));
    if (!own)
        return 0;
    low = rank > BEFORE ? rank - BEFORE : 0;
    high = pack->count - rank > BEHIND ? rank + BEHIND : pack->count;
    for (at = rank; entry.kind >= GS_OFS_DELTA && base_count < CHAIN;) {
        at = base_rank_of(pack, at, &entry);
        if (at == GS_NOWHERE)
            return GS_MALFORMED;
        bases[base_count++] = at;
        if (gs_read_entry(pack, gs_start_of(pack, at), gs_start_of(pack, at + 1), &entry))
            return GS_MALFORMED;
    }
    /* Deltas come behind their bases, mostly: nothing is to be found before the first of these. */
    if (at > low && at <= rank)
        low = at;
    for (uint32_t next = 0; next < base_count + (high - low); next++) {
        uint32_t size, distance;
        int32_t place;
        if (next < base_count) {
            /* First the bases, wherever they are. */
            at = bases[next];
            if (at >= low && at < high)
                related[at - low] = 1;
            if (gs_read_entry(pack, gs_start_of(pack, at), gs_start_of(pack, at + 1), &entry))
                return GS_MALFORMED;
        } else {
            uint32_t base;
            at = low + (next - base_count);
            if (at == rank)
                related[at - low] = 1;
            if (related[at - low])
                continue;
            if (gs_read_entry(pack, gs_start_of(pack, at), gs_start_of(pack, at + 1), &entry))
                return GS_MALFORMED;
            if (at > rank && ++strangers > STRANGERS)
                break;
            if (entry.kind < GS_OFS_DELTA)
                continue;
            base = base_rank_of(pack, at, &entry);
            if (base == GS_NOWHERE)
                return GS_MALFORMED;
            if (base >= low && base < high)
                related[at - low] = related[base - low];
            else
                for (uint32_t i = 0; i < base_count; i++)
                    related[at - low] |= bases[i] == base;
            if (!related[at - low])
                continue;
            strangers = 0;
        }
        if (!may_refer_to(copier, rank, at))
            continue;
        size = object_size(pack, at, &entry, gs_start_of(pack, at + 1));
        if (!size)
            continue;
        distance = size < own ? own - size : size - own;
        if (number == most && distances[most - 1] <= distance)
            continue;
        for (place = number < most ? number++ : most - 1; place && distances[place - 1] > distance; place--) {
            distances[place] = distances[place - 1];
            found[place] = found[place - 1];
        }
        distances[place] = distance;
        found[place] = at;
    }
    return number;
}
