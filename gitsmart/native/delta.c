/* Applying deltas (gitformat-pack, "Deltified representation"). */
#include "gitsmart.h"

/* Sum up what a delta's instructions, which begin at `pos`, would make: the size of the result.
 *
 * GS_MALFORMED: there is a reserved instruction, the delta ends inside one, or the sum has no end. */
GS_API int64_t gs_delta_total(const uint8_t *delta, size_t delta_size, size_t pos)
{
    int64_t total = 0;
    if (pos > delta_size)
        return GS_MALFORMED;
    while (pos < delta_size) {
        unsigned code = delta[pos++];
        size_t size;
        if (code & 0x80) {
            size_t take = (size_t)__builtin_popcount(code & 0x7f);
            if (GS_UNLIKELY(take > delta_size - pos))
                return GS_MALFORMED;
            pos += (size_t)__builtin_popcount(code & 0x0f);
            size = 0;
            if (code & 0x10)
                size = delta[pos++];
            if (code & 0x20)
                size |= (size_t)delta[pos++] << 8;
            if (code & 0x40)
                size |= (size_t)delta[pos++] << 16;
            if (!size)
                size = 0x10000;
        } else {
            size = code;
            if (GS_UNLIKELY(!size || size > delta_size - pos))
                return GS_MALFORMED;
            pos += size;
        }
        total += (int64_t)size; /* at most 2^24 for each byte there is: no overflow */
    }
    return total;
}

/* Make of `base` what the delta's instructions, which begin at `pos`, say: exactly `result_size` bytes.
 *
 * GS_MALFORMED: the delta is malformed, reaches out of the base, or gives more or fewer bytes. */
GS_API int32_t gs_apply_delta(const uint8_t *base, size_t base_size, const uint8_t *delta, size_t delta_size,
                              size_t pos, uint8_t *result, size_t result_size)
{
    size_t left = result_size;
    if (pos > delta_size)
        return GS_MALFORMED;
    while (pos < delta_size) {
        unsigned code = delta[pos++];
        size_t size;
        if (code & 0x80) {
            size_t take = (size_t)__builtin_popcount(code & 0x7f);
            size_t offset = 0;
            size = 0;
            if (GS_UNLIKELY(take > delta_size - pos))
                return GS_MALFORMED;
            if (code & 0x01)
                offset = delta[pos++];
            if (code & 0x02)
                offset |= (size_t)delta[pos++] << 8;
            if (code & 0x04)
                offset |= (size_t)delta[pos++] << 16;
            if (code & 0x08)
                offset |= (size_t)delta[pos++] << 24;
            if (code & 0x10)
                size = delta[pos++];
            if (code & 0x20)
                size |= (size_t)delta[pos++] << 8;
            if (code & 0x40)
                size |= (size_t)delta[pos++] << 16;
            if (!size)
                size = 0x10000;
            if (GS_UNLIKELY(size > left || offset > base_size || size > base_size - offset))
                return GS_MALFORMED;
            memcpy(result, base + offset, size);
        } else {
            size = code;
            if (GS_UNLIKELY(!size || size > delta_size - pos || size > left))
                return GS_MALFORMED;
            memcpy(result, delta + pos, size);
            pos += size;
        }
        result += size;
        left -= size;
    }
    return left ? GS_MALFORMED : GS_OK;
}
