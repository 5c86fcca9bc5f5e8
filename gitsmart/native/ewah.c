/* EWAH bitmaps as .bitmap files have them (bitmap-format, Appendix A), from and to plain bits.
 *
 *     bits (4 bytes), words (4), words (8 each), place of the last RLW (4), all big-endian
 *     RLW: bit 0 what is repeated, bits 1-32 how often, bits 33-63 how many literal words follow
 */
#include "stored.h"

static inline void put_be64(uint8_t *at, uint64_t value)
{
    int i;
    for (i = 7; i >= 0; i--, value >>= 8)
        at[i] = (uint8_t)value;
}

static inline void put_be32(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

/* Flip the bits of `out` that are set in the bitmap at `data`: of `out_size` bytes, a multiple of 8, the lowest
 * bit first. Returns how many bytes the bitmap takes; GS_MALFORMED when it is cut short, or has more bits. */
GS_API int64_t gs_ewah_xor(const uint8_t *data, size_t size, uint8_t *out, size_t out_size)
{
    uint64_t words, at, place = 0, out_words = out_size / 8;
    if (size < 12)
        return GS_MALFORMED;
    words = gs_be32(data + 4);
    if (words > (size - 12) / 8 || gs_be32(data) > out_words * 64)
        return GS_MALFORMED;
    data += 8;
    for (at = 0; at < words;) {
        uint64_t head = gs_be64(data + 8 * at++), run = head >> 1 & 0xffffffffu, literals = head >> 33, i;
        if (run > out_words - place || literals > out_words - place - run || literals > words - at)
            return GS_MALFORMED;
        if (head & 1)
            for (i = 8 * place; i < 8 * (place + run); i++)
                out[i] ^= 0xff;
        place += run;
        for (i = 0; i < literals; i++, place++, at++) {
            uint64_t word, had;
            word = gs_be64(data + 8 * at);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            word = __builtin_bswap64(word);
#endif
            memcpy(&had, out + 8 * place, 8);
            had ^= word;
            memcpy(out + 8 * place, &had, 8);
        }
    }
    return (int64_t)(12 + 8 * words);
}

/* Write plain bits, a multiple of 8 bytes of them, as a bitmap. Returns its size; GS_TOO_SMALL: no room. */
GS_API int64_t gs_ewah_write(const uint8_t *bits, size_t bits_size, uint8_t *out, size_t room)
{
    size_t words = bits_size / 8, at = 0, used = 0, last = 0;
    if (words > UINT32_MAX / 64)
        return GS_MALFORMED;
    if (room < 20)
        return GS_TOO_SMALL;
    do {
        uint64_t run = 0, literals = 0, ones = 0, word;
        size_t head = used;
        if (room - 12 < 8 * (used + 1))
            return GS_TOO_SMALL;
        used++;
        last = head;
        if (at < words) {
            memcpy(&word, bits + 8 * at, 8);
            if (word == 0 || word == UINT64_MAX) {
                ones = word & 1;
                for (;;) {
                    run++;
                    at++;
                    if (at == words)
                        break;
                    memcpy(&word, bits + 8 * at, 8);
                    if (word != (ones ? UINT64_MAX : 0))
                        break;
                }
            }
        }
        while (at < words && literals < 0x7fffffff) {
            memcpy(&word, bits + 8 * at, 8);
            if (word == 0 || word == UINT64_MAX)
                break;
            if (room - 12 < 8 * (used + 1))
                return GS_TOO_SMALL;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            word = __builtin_bswap64(word);
#endif
            put_be64(out + 8 + 8 * used, word);
            used++;
            literals++;
            at++;
        }
        put_be64(out + 8 + 8 * head, ones | run << 1 | literals << 33);
    } while (at < words);
    put_be32(out, (uint32_t)(64 * words));
    put_be32(out + 4, (uint32_t)used);
    put_be32(out + 8 + 8 * used, (uint32_t)last);
    return (int64_t)(12 + 8 * used);
}

/* Spread bits to other places: bit i of `bits` sets bit `places[i]` of `out`. GS_MALFORMED: one is outside. */
GS_API int32_t gs_bits_spread(const uint8_t *bits, size_t size, const uint32_t *places, uint32_t number,
                              uint8_t *out, size_t out_size)
{
    size_t i;
    for (i = 0; i < size; i++) {
        unsigned byte = bits[i];
        for (; byte; byte &= byte - 1) {
            uint64_t at = 8 * (uint64_t)i + (unsigned)__builtin_ctz(byte);
            uint32_t place;
            if (at >= number)
                return GS_MALFORMED;
            place = places[at];
            if (place / 8 >= out_size)
                return GS_MALFORMED;
            out[place >> 3] |= (uint8_t)(1u << (place & 7));
        }
    }
    return GS_OK;
}

/* Find the entries of a .bitmap file from `at` on: for each its place in the index, below `number`; where its bitmap
 * begins; which entry before it is xor-ed with, `most` at most, 0 if none. GS_MALFORMED: it is not so. */
GS_API int32_t gs_bitmap_entries(const uint8_t *data, size_t size, size_t at, uint32_t entries, uint32_t number,
                                 uint32_t most, uint32_t *positions, uint64_t *places, uint8_t *bases)
{
    uint32_t row;
    for (row = 0; row < entries; row++) {
        uint64_t words;
        if (at > size || size - at < 18)
            return GS_MALFORMED;
        positions[row] = gs_be32(data + at);
        bases[row] = data[at + 4];
        at += 6;
        places[row] = at;
        words = gs_be32(data + at + 4);
        if (positions[row] >= number || bases[row] > row || bases[row] > most || words > (size - at - 12) / 8)
            return GS_MALFORMED;
        at += 12 + 8 * (size_t)words;
    }
    return GS_OK;
}
