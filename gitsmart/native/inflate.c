/* Inflating (RFC 1950, RFC 1951), for objects that are read in C: one call a stream, input and output in memory.
 *
 * A code is looked up by its first bits in a table; longer ones go on in a table behind it. What zlib refuses
 * is refused: codes that are over-subscribed, or incomplete but for a single code of one bit.
 */
#include "inflate.h"

#define LITERAL_ROOT 10
#define DISTANCE_ROOT 8
/* The most entries that codes of 15 bits can need (zlib's examples/enough.c: 288, 10, 15 and 32, 8, 15). */
#define LITERAL_ENTRIES 1334
#define DISTANCE_ENTRIES 402
#define LENGTHS_ENTRIES 128

/* An entry: bits 0-7 the bits to drop, 8-15 what to do, 16-31 a value. */
enum { OP_VALUE = 0, OP_BASE = 0x10, OP_END = 0x20, OP_TABLE = 0x40, OP_BAD = 0x80 };
#define ENTRY(bits, op, value) ((uint32_t)(bits) | (uint32_t)(op) << 8 | (uint32_t)(value) << 16)

enum { FOR_LENGTHS, FOR_LITERALS, FOR_DISTANCES };

static const uint16_t length_base[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                         31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                         2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t distance_base[30] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,
                                           33,  49,  65,  97,  129, 193,  257,  385,  513,  769,
                                           1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
static const uint8_t distance_extra[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                           6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};

static inline uint32_t entry_of(int kind, unsigned symbol, unsigned bits)
{
    if (kind == FOR_LENGTHS || (kind == FOR_LITERALS && symbol < 256))
        return ENTRY(bits, OP_VALUE, symbol);
    if (kind == FOR_LITERALS) {
        if (symbol == 256)
            return ENTRY(bits, OP_END, 0);
        if (symbol < 286)
            return ENTRY(bits, OP_BASE | length_extra[symbol - 257], length_base[symbol - 257]);
    } else if (symbol < 30) {
        return ENTRY(bits, OP_BASE | distance_extra[symbol], distance_base[symbol]);
    }
    return ENTRY(bits, OP_BAD, 0);
}

/* Make a table of code lengths; return how many bits its first part is for, 0 when the code is refused. */
static unsigned build(int kind, const uint8_t *lengths, unsigned number, uint32_t *table, unsigned room,
                      unsigned root)
{
    unsigned count[16] = {0}, first[16], used, most = 15, i, code = 0, length, sub_bits = 0;
    uint32_t *sub = NULL, sub_low = (uint32_t)-1;
    uint16_t sorted[288];
    int left = 1;
    for (i = 0; i < number; i++)
        count[lengths[i]]++;
    while (most && !count[most])
        most--;
    for (i = 1; i <= 15; i++) {
        left = (left << 1) - (int)count[i];
        if (left < 0)
            return 0;
    }
    if (left > 0 && most && (kind == FOR_LENGTHS || most != 1))
        return 0;
    if (!most && kind == FOR_LENGTHS)
        return 0;
    if (root > most)
        root = most ? most : 1;
    if (left > 0)
        for (i = 0; i < 1u << root; i++)
            table[i] = ENTRY(0, OP_BAD, 0);
    first[1] = 0;
    for (i = 1; i < 15; i++)
        first[i + 1] = first[i] + count[i];
    for (i = 0; i < number; i++)
        if (lengths[i])
            sorted[first[lengths[i]]++] = (uint16_t)i;
    used = 1u << root;
    i = 0;
    for (length = 1; length <= most; length++) {
        unsigned left_of_length = count[length];
        for (; left_of_length; left_of_length--, i++) {
            uint32_t entry = entry_of(kind, sorted[i], length);
            unsigned step, at, bit;
            if (length <= root) {
                for (at = code, step = 1u << length; at < 1u << root; at += step)
                    table[at] = entry;
            } else {
                uint32_t low = code & ((1u << root) - 1);
                if (low != sub_low) {
                    int room_left;
                    sub_bits = length - root;
                    room_left = 1 << sub_bits;
                    room_left -= (int)left_of_length;
                    while (sub_bits + root < most && room_left > 0) {
                        sub_bits++;
                        room_left = (room_left << 1) - (int)count[sub_bits + root];
                    }
                    if (used + (1u << sub_bits) > room)
                        return 0;
                    sub = table + used;
                    table[low] = ENTRY(root, OP_TABLE | sub_bits, used);
                    used += 1u << sub_bits;
                    sub_low = low;
                }
                for (at = code >> root, step = 1u << (length - root); at < 1u << sub_bits; at += step)
                    sub[at] = entry;
            }
            /* Codes count up from their first bit on, which is the lowest here. */
            bit = 1u << (length - 1);
            while (code & bit)
                bit >>= 1;
            code = bit ? (code & (bit - 1)) + bit : 0;
        }
    }
    return root;
}

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static uint32_t adler32(const uint8_t *data, size_t size)
{
    uint32_t a = 1, b = 0;
    while (size) {
        size_t part = size < 5552 ? size : 5552;
        size -= part;
        for (; part >= 8; part -= 8, data += 8) {
            b += 8 * a + 8 * data[0] + 7 * data[1] + 6 * data[2] + 5 * data[3] + 4 * data[4] + 3 * data[5] +
                 2 * data[6] + data[7];
            a += data[0] + data[1] + data[2] + data[3] + data[4] + data[5] + data[6] + data[7];
        }
        for (; part; part--) {
            a += *data++;
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

#define REFILL()                                                                                                  \
    do {                                                                                                          \
        if (GS_LIKELY(end - in >= 8)) {                                                                           \
            bits |= load64(in) << held;                                                                           \
            in += (63 - held) >> 3;                                                                               \
            held |= 56;                                                                                           \
        } else {                                                                                                  \
            if (held < 64 && held)                                                                                \
                bits &= ((uint64_t)1 << held) - 1;                                                                \
            else if (!held)                                                                                       \
                bits = 0;                                                                                         \
            while (held <= 56 && in < end) {                                                                      \
                bits |= (uint64_t)*in++ << held;                                                                  \
                held += 8;                                                                                        \
            }                                                                                                     \
        }                                                                                                         \
    } while (0)
#define DROP(n)                                                                                                   \
    do {                                                                                                          \
        unsigned drop_ = (n);                                                                                     \
        if (GS_UNLIKELY(drop_ > held))                                                                            \
            return GS_MALFORMED;                                                                                  \
        bits >>= drop_;                                                                                           \
        held -= drop_;                                                                                            \
    } while (0)
#define LOW(n) ((uint32_t)(bits & (((uint64_t)1 << (n)) - 1)))

static int32_t inflate_stream(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size, int partial,
                              size_t *used)
{
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const uint8_t *begin = in, *end = in + in_size;
    uint8_t *start = out, *out_end = out + out_size;
    uint64_t bits = 0;
    unsigned held = 0, last = 0;
    uint32_t literals[LITERAL_ENTRIES], distances[DISTANCE_ENTRIES];

    if (in_size < 6 || (in[0] & 15) != 8 || in[0] >> 4 > 7 || (in[0] << 8 | in[1]) % 31 || in[1] & 0x20)
        return GS_MALFORMED;
    in += 2;
    while (!last) {
        unsigned type, literal_root, distance_root;
        uint8_t lengths[320];
        if (partial && out == out_end)
            return GS_OK;
        REFILL();
        last = LOW(1);
        type = LOW(3) >> 1;
        DROP(3);
        if (type == 3)
            return GS_MALFORMED;
        if (!type) {
            size_t size;
            DROP(held & 7);
            in -= held >> 3;
            bits = 0;
            held = 0;
            if (end - in < 4)
                return GS_MALFORMED;
            size = in[0] | (size_t)in[1] << 8;
            if (size != (((unsigned)in[2] | (unsigned)in[3] << 8) ^ 0xffff))
                return GS_MALFORMED;
            in += 4;
            if (size > (size_t)(out_end - out)) {
                if (!partial)
                    return GS_MALFORMED;
                size = (size_t)(out_end - out);
            }
            if (size > (size_t)(end - in))
                return GS_MALFORMED;
            memcpy(out, in, size);
            out += size;
            in += size;
            continue;
        }
        if (type == 1) {
            memset(lengths, 8, 144);
            memset(lengths + 144, 9, 112);
            memset(lengths + 256, 7, 24);
            memset(lengths + 280, 8, 8);
            literal_root = build(FOR_LITERALS, lengths, 288, literals, LITERAL_ENTRIES, 9);
            memset(lengths, 5, 32);
            distance_root = build(FOR_DISTANCES, lengths, 32, distances, DISTANCE_ENTRIES, 5);
        } else {
            uint32_t *codes = distances;
            unsigned number_literals, number_distances, number_codes, i, root;
            REFILL();
            number_literals = LOW(5) + 257;
            number_distances = (LOW(10) >> 5) + 1;
            number_codes = (LOW(14) >> 10) + 4;
            DROP(14);
            if (number_literals > 286 || number_distances > 30)
                return GS_MALFORMED;
            memset(lengths, 0, 19);
            for (i = 0; i < number_codes; i++) {
                REFILL();
                lengths[order[i]] = (uint8_t)LOW(3);
                DROP(3);
            }
            root = build(FOR_LENGTHS, lengths, 19, codes, LENGTHS_ENTRIES, 7);
            if (!root)
                return GS_MALFORMED;
            for (i = 0; i < number_literals + number_distances;) {
                uint32_t entry;
                unsigned value, repeat;
                REFILL();
                entry = codes[LOW(root)];
                DROP(entry & 0xff);
                value = entry >> 16;
                if (value < 16) {
                    lengths[i++] = (uint8_t)value;
                    continue;
                }
                if (value == 16) {
                    if (!i)
                        return GS_MALFORMED;
                    value = lengths[i - 1];
                    repeat = 3 + LOW(2);
                    DROP(2);
                } else if (value == 17) {
                    value = 0;
                    repeat = 3 + LOW(3);
                    DROP(3);
                } else {
                    value = 0;
                    repeat = 11 + LOW(7);
                    DROP(7);
                }
                if (repeat > number_literals + number_distances - i)
                    return GS_MALFORMED;
                memset(lengths + i, (int)value, repeat);
                i += repeat;
            }
            if (!lengths[256])
                return GS_MALFORMED;
            literal_root =
                build(FOR_LITERALS, lengths, number_literals, literals, LITERAL_ENTRIES, LITERAL_ROOT);
            distance_root = build(FOR_DISTANCES, lengths + number_literals, number_distances, distances,
                                  DISTANCE_ENTRIES, DISTANCE_ROOT);
        }
        if (!literal_root || !distance_root)
            return GS_MALFORMED;
        for (;;) {
            uint32_t entry;
            unsigned op, length;
            size_t distance;
            if (held < 48)
                REFILL();
            entry = literals[LOW(literal_root)];
            op = (entry >> 8) & 0xff;
            if (op & OP_TABLE) {
                entry = literals[(entry >> 16) + ((bits >> literal_root) & ((1u << (op & 15)) - 1))];
                op = (entry >> 8) & 0xff;
            }
            DROP(entry & 0xff);
            if (op == OP_VALUE) {
                if (GS_UNLIKELY(out == out_end))
                    return partial ? GS_OK : GS_MALFORMED;
                *out++ = (uint8_t)(entry >> 16);
                continue;
            }
            if (op & OP_END)
                break;
            if (partial && out == out_end)
                return GS_OK;
            if (!(op & OP_BASE))
                return GS_MALFORMED;
            length = (entry >> 16) + LOW(op & 15);
            DROP(op & 15);
            entry = distances[LOW(distance_root)];
            op = (entry >> 8) & 0xff;
            if (op & OP_TABLE) {
                entry = distances[(entry >> 16) + ((bits >> distance_root) & ((1u << (op & 15)) - 1))];
                op = (entry >> 8) & 0xff;
            }
            DROP(entry & 0xff);
            if (!(op & OP_BASE))
                return GS_MALFORMED;
            distance = (entry >> 16) + LOW(op & 15);
            DROP(op & 15);
            if (GS_UNLIKELY(distance > (size_t)(out - start)))
                return GS_MALFORMED;
            if (GS_UNLIKELY(length > (size_t)(out_end - out))) {
                if (!partial)
                    return GS_MALFORMED;
                length = (unsigned)(out_end - out);
            }
            {
                const uint8_t *from = out - distance;
                uint8_t *stop = out + length;
                if (distance >= 8 && (size_t)(out_end - out) >= (size_t)length + 8) {
                    do {
                        memcpy(out, from, 8);
                        out += 8;
                        from += 8;
                    } while (out < stop);
                    out = stop;
                } else {
                    while (out < stop)
                        *out++ = *from++;
                }
            }
        }
    }
    if (out != out_end)
        return GS_MALFORMED;
    if (partial)
        return GS_OK;
    in -= held >> 3;
    if (end - in < 4)
        return GS_MALFORMED;
    if (adler32(start, out_size) != ((uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3]))
        return GS_MALFORMED;
    *used = (size_t)(in + 4 - begin);
    return GS_OK;
}

int32_t gs_inflate(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size, int partial)
{
    size_t used;
    return inflate_stream(in, in_size, out, out_size, partial, &used);
}

int32_t gs_inflate_used(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size, size_t *used)
{
    return inflate_stream(in, in_size, out, out_size, 0, used);
}

GS_API int32_t gs_inflate_whole(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size, int32_t partial)
{
    return gs_inflate(in, in_size, out, out_size, partial);
}
