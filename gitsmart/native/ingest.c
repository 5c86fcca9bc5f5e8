/* Taking a pack apart: entries scanned and inflated as they arrive, deltas resolved, objects named and read.
 *
 *     gs_ingest_scan   one thread: bytes of the stream --> entries --> ready, or waiting for their base
 *     gs_ingest_work   any number of threads: ready --> object --> name, references, faults --> cache
 *                      what waited for it becomes ready, and goes first: depth first, the base is still cached
 *
 * pack/native_ingest.py drives this and holds what needs Python: the stream, large blobs, objects that look
 * odd (they are handed out, to be read and checked there), bases in the repository. What is accepted here is
 * accepted there; whatever is unusual is left to it.
 *
 * One mutex guards queue, cache and tables; inflating, applying, hashing and reading go on outside. Arrays of
 * one element an object are reserved as address space for all objects that the pack declares, and take memory
 * (or room in a file, when there is one) only as objects come.
 *
 * Everything in the pack is hostile: each length is compared with what is there before it is used.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "inflate.h"
#include "stored.h"

#define SLACK 64 /* bytes behind each buffer that may be read, and written before anything else is there */

enum { KIND_MASK = 7, PLAIN = 8, REPEATED = 16, REF_BASE = 32, DUPLICATE = 64, STREAMED = 128 };
enum { NO_BASE = -1, THIN = -2 };

/* What scan and work return */
enum {
    R_IDLE = 0,   /* work: nothing to do now; scan: a step was done */
    R_DONE = 1,   /* work: all that can be resolved is; scan: all entries are read */
    R_STOP = 2,   /* another thread failed, or gs_ingest_stop was called */
    R_ERROR = 3,  /* engine->error tells */
    R_ODD = 4,    /* work: an object that Python must look at: worker->event */
    R_THIN = 5,   /* work: needs a base of the repository: worker->event.index */
    R_MORE = 6,   /* scan: needs `want` unused bytes */
    R_BIG = 7,    /* scan: the entry at `pos` is for Python to inflate */
    R_FULL = 8,   /* scan: enough is ready */
    RC_LATE = 9   /* inside: leave it to the end */
};

/* engine->error.code; the texts are in native_ingest.py */
enum {
    E_MEMORY = 1,
    E_EOF = 2,
    E_SIZE_FIELD = 3,
    E_BASE_BOUND = 4,
    E_BASE_OBJECT = 5,
    E_TYPE = 6,
    E_LIMIT = 9,
    E_DEPTH = 10,
    E_DELTA_SHORT = 11,
    E_DELTA_HEADER = 12,
    E_DELTA_HUGE = 13,
    E_DELTA_BASE = 14,
    E_DELTA_BOUNDS = 15,
    E_DELTA_RESULT = 16,
    E_DELTA_RESERVED = 17,
    E_DELTA_INSERT = 18,
    E_DELTA_COPY = 19,
    E_HASH = 20,
    E_COLLISION = 21,
    E_COLLISION_TYPES = 22,
    E_STORED = 23,
    E_REBUILT = 24,
    E_OS = 25
};

/* glibc keeps what was freed in pieces until it is told */
extern int malloc_trim(size_t) __attribute__((weak));

#define MAX_RAW 32
#define READY_BYTES (6 << 20)
#define HELD_BYTES (6 << 20)
#define STEP_ENTRIES 128
#define STEP_BYTES (2 << 20)
#define INLINE_BYTES (1 << 20) /* entries from here on are inflated in pieces, by Python */
#define OVERHEAD 192 /* of an entry or a cached object: structures, slack, and what malloc needs */
#define PATIENCE 8
#define REBUILT_TIMES 16
#define REBUILT_BYTES (1ull << 30)
#define CACHE_BUCKETS (1 << 13)
#define MAP_FROM (1 << 18)
#define BIG_RESULT (8u << 20) /* one thread at a time holds a base and a result as large as this */
#define MOST_FRESH 32
#define MOST_STEPS 1000
#define REFS_START (1 << 12)
#define REFS_MOST (1 << 18)
#define GROW_STEP (1 << 16)
#define OWN_FILED (1 << 18)

/* --- what Python gives, and what it reads */

struct gs_config {
    int32_t raw_len;
    int32_t fd;           /* of the pack that is written */
    int32_t array_fd;     /* of an empty file for the arrays; -1: memory */
    int32_t has_fsck;
    int32_t tolerates_0664;
    int32_t hash_kind;    /* 0: hash_a is git_odb_hash; 1: a, b, c are SHA1_Init, _Update, _Final; 2: SHA256 */
    uint64_t total;
    uint64_t longest_name;
    uint64_t object_bytes, delta_bytes, structure_bytes, delta_depth;
    uint64_t cache_bytes;
    uint64_t rebuilt_times, rebuilt_bytes;
    uint64_t key[2];      /* random: nobody can look for oids that meet in the tables */
    void *hash_a, *hash_b, *hash_c;
    const char *directory; /* for what does not fit into memory */
    int32_t os_error;      /* out: why there is no engine */
    int32_t reserved;
};

struct gs_error {
    int32_t code, os_error;
    int64_t index;
    uint64_t offset, a, b;
    uint8_t name[MAX_RAW];
};

struct gs_event {
    int64_t index;
    const uint8_t *data;
    uint64_t size;
    int32_t kind, reserved;
    uint8_t name[MAX_RAW];
};

struct gs_scan {
    uint64_t pos, want; /* in and out: the first unused byte; for R_MORE: unused bytes to have */
    /* for R_BIG */
    uint64_t size, header_bytes;
    int32_t kind, reserved;
};

/* --- inside */

struct object {
    int32_t index;
    uint8_t kind, is_plain, in_cache;
    uint32_t references;
    uint8_t *data;
    size_t size;
    uint32_t *ends; /* of a tree's entries; NULL when it was not read here */
    uint32_t entries;
    struct object *newer, *older, *same;
};

struct entry {
    struct entry *next;
    int32_t index, base; /* base: NO_BASE of a whole object */
    uint8_t kind;
    uint8_t *data; /* NULL: to be inflated again */
    uint32_t size;
};

struct name_wait {
    struct name_wait *same;
    int32_t first;  /* index + 1 */
    int32_t lowest; /* index of the first that waits in the pack's order */
    uint8_t name[MAX_RAW];
};

struct engine {
    struct gs_config c;
    size_t raw_len;
    /* one element an object */
    uint64_t *offsets;
    uint8_t *names, *types;
    uint32_t *crcs;
    int32_t *parents;
    uint16_t *depths;
    int32_t *wait, *next; /* index + 1: the first that waits for this base; the next that waits for the same */
    struct {
        void *address;
        size_t length, width;
        uint64_t place;
    } regions[8];
    int region_count;
    uint64_t backed, capacity, file_end;

    pthread_mutex_t lock, big;
    pthread_cond_t ready_cond;
    int stop, scan_done;
    int64_t scanned, done;
    struct gs_error error;
    struct entry *ready_first, *ready_last;
    uint64_t ready_bytes, held_bytes;
    int active;
    struct entry *held[CACHE_BUCKETS]; /* data of deltas that wait */
    struct name_wait **awaited;
    uint32_t awaited_buckets, awaited_count;
    int32_t *late;
    size_t late_count, late_room;
    uint64_t resolved_bytes, rebuilt_bytes, rebuilt_entries;
    /* cache */
    struct object *buckets[CACHE_BUCKETS];
    struct object *newest, *oldest;
    uint64_t cached_bytes, cached_count;
    /* raw oid -> index + 1, of resolved objects */
    uint32_t *own;
    uint64_t own_mask, own_count;
    int own_is_filed;
    /* files named .gitmodules (1) and .gitattributes (2): a byte and a raw oid each */
    uint8_t *special;
    size_t special_count, special_room;
    int refs_fd;
    uint64_t refs_spilled; /* records */
    struct worker *workers;
    /* facts */
    uint8_t *outside;
    uint64_t outside_count;
    /* the entry that Python inflates */
    struct {
        int32_t kind, base;
        uint8_t name[MAX_RAW];
        uint64_t size;
    } big_entry;
};

struct worker {
    struct engine *e;
    struct worker *next;
    struct entry *current;
    struct object *odd;
    struct object *pinned[2]; /* bases in the repository: of an entry, and of what had its name before */
    struct gs_event event;
    int32_t *chain;
    size_t chain_room;
    uint8_t *refs; /* records of a type and a raw oid; type 0: free */
    uint64_t refs_mask, refs_count;
    uint8_t recent_special[8][1 + MAX_RAW];
    unsigned special_turn;
    /* of the tree that is read */
    uint32_t *fresh; /* entries parsed */
    size_t fresh_room;
    uint64_t reserved;
};

/* --- small things */

static uint32_t crc_table[8][256];

__attribute__((constructor)) static void fill_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int k = 0; k < 8; k++)
            value = value & 1 ? value >> 1 ^ 0xedb88320u : value >> 1;
        crc_table[0][i] = value;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] = crc_table[k - 1][i] >> 8 ^ crc_table[0][crc_table[k - 1][i] & 255];
}

static uint32_t crc32_of(const uint8_t *data, size_t len)
{
    uint32_t crc = 0xffffffffu;
    while (len >= 8) {
        uint32_t low = crc ^ ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24);
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^
              crc_table[4][low >> 24] ^ crc_table[3][data[4]] ^ crc_table[2][data[5]] ^ crc_table[1][data[6]] ^
              crc_table[0][data[7]];
        data += 8;
        len -= 8;
    }
    while (len--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *data++) & 255];
    return ~crc;
}

static inline uint64_t hash_oid(const struct engine *e, const uint8_t *oid)
{
    uint64_t a, b;
    memcpy(&a, oid, 8);
    memcpy(&b, oid + 8, 8);
    /* 128-bit product of keyed halves, folded: differs unpredictably for whoever does not know the key */
    unsigned __int128 product = (unsigned __int128)(a ^ e->c.key[0]) * (b ^ e->c.key[1]);
    uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);
    uint32_t tail;
    memcpy(&tail, oid + 16, 4);
    folded = (folded ^ tail) * 0x9e3779b97f4a7c15ull;
    return folded ^ folded >> 32;
}

static int fail(struct engine *e, int code, int64_t index, uint64_t a, uint64_t b)
{
    pthread_mutex_lock(&e->lock);
    int is_first = !e->stop;
    if (is_first) {
        e->error.code = code;
        e->error.os_error = errno;
        e->error.index = index;
        e->error.offset = index >= 0 ? e->offsets[index] : 0;
        e->error.a = a;
        e->error.b = b;
        e->stop = 1;
    }
    pthread_cond_broadcast(&e->ready_cond);
    pthread_mutex_unlock(&e->lock);
    return is_first ? R_ERROR : R_STOP;
}

static int fail_named(struct engine *e, int code, int64_t index, const uint8_t *name)
{
    uint8_t copy[MAX_RAW];
    memcpy(copy, name, e->raw_len);
    int result = fail(e, code, index, 0, 0);
    if (result == R_ERROR)
        memcpy(e->error.name, copy, e->raw_len);
    return result;
}

static int limit_of(const struct engine *e, int kind, uint64_t *limit)
{
    *limit = kind == GS_BLOB ? e->c.object_bytes : kind >= GS_OFS_DELTA ? e->c.delta_bytes : e->c.structure_bytes;
    return 0;
}

static int is_beyond(const struct engine *e, int kind, uint64_t size, uint64_t *limit)
{
    limit_of(e, kind, limit);
    return size > *limit;
}

static uint8_t *allocate(size_t size)
{
    return size > SIZE_MAX - SLACK ? NULL : malloc(size + SLACK);
}

/* --- arrays of one element an object */

static void *reserve(struct engine *e, size_t width)
{
    size_t length = (width * (e->capacity + 1) + 0xffff) & ~(size_t)0xffff;
    uint64_t place = e->file_end;
    void *address;
    if (e->c.array_fd >= 0)
        address = ftruncate(e->c.array_fd, (off_t)(place + length))
                      ? MAP_FAILED
                      : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, e->c.array_fd, (off_t)place);
    else
        address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        return NULL;
    e->regions[e->region_count].address = address;
    e->regions[e->region_count].length = length;
    e->regions[e->region_count].width = width;
    e->regions[e->region_count].place = place;
    e->region_count++;
    e->file_end += length;
    return address;
}

/* Make sure that elements up to `index` can be written; 0 or an errno. A full disk must be told by a call: the
 * first touch of a page that has no room would be a SIGBUS. */
static int back(struct engine *e, uint64_t index)
{
    if (index < e->backed || e->c.array_fd < 0)
        return 0;
    uint64_t until = index + GROW_STEP;
    if (until > e->capacity + 1)
        until = e->capacity + 1;
    for (int i = 0; i < e->region_count; i++) {
        int code = posix_fallocate(e->c.array_fd, (off_t)(e->regions[i].place + e->backed * e->regions[i].width),
                                   (off_t)((until - e->backed) * e->regions[i].width));
        if (code)
            return code;
    }
    e->backed = until;
    return 0;
}

GS_API void gs_ingest_free(struct engine *e);

GS_API struct engine *gs_ingest_new(struct gs_config *config)
{
    int code = 0;
    config->os_error = ENOMEM;
    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->c = *config;
    e->raw_len = (size_t)config->raw_len;
    e->refs_fd = -1;
    e->capacity = config->total * 2 + 2; /* each may be a delta on an object that has to be appended */
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->big, NULL);
    pthread_cond_init(&e->ready_cond, NULL);
    if (config->array_fd >= 0 && (e->c.array_fd = fcntl(config->array_fd, F_DUPFD_CLOEXEC, 0)) < 0) {
        config->os_error = errno;
        free(e);
        return NULL;
    }
    e->own_mask = (1 << 12) - 1;
    e->own = calloc(e->own_mask + 1, sizeof *e->own);
    if (!e->own || !(e->offsets = reserve(e, 8)) || !(e->names = reserve(e, e->raw_len)) ||
        !(e->types = reserve(e, 1)) || !(e->crcs = reserve(e, 4)) || !(e->parents = reserve(e, 4)) ||
        !(e->depths = reserve(e, 2)) || !(e->wait = reserve(e, 4)) || !(e->next = reserve(e, 4))) {
        config->os_error = errno;
        e->c.directory = NULL;
        gs_ingest_free(e);
        return NULL;
    }
    e->c.directory = strdup(config->directory);
    if (!e->c.directory || (code = back(e, 0))) {
        if (e->c.directory)
            config->os_error = code;
        gs_ingest_free(e);
        return NULL;
    }
    e->offsets[0] = 12;
    return e;
}

GS_API struct worker *gs_ingest_worker(struct engine *e)
{
    struct worker *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->e = e;
    w->refs_mask = REFS_START - 1;
    w->refs = calloc(REFS_START, e->raw_len + 1);
    if (!w->refs) {
        free(w);
        return NULL;
    }
    pthread_mutex_lock(&e->lock);
    w->next = e->workers;
    e->workers = w;
    pthread_mutex_unlock(&e->lock);
    return w;
}

/* --- the cache; all under the lock */

static void release_object(struct engine *e, struct object *o)
{
    (void)e;
    if (o && !--o->references) {
        free(o->data);
        free(o->ends);
        free(o);
    }
}

static inline unsigned bucket_of(int32_t index)
{
    return ((uint32_t)index * 2654435761u) >> 19; /* CACHE_BUCKETS is 2^13 */
}

static void cache_unlink(struct engine *e, struct object *o)
{
    if (o->newer)
        o->newer->older = o->older;
    else
        e->newest = o->older;
    if (o->older)
        o->older->newer = o->newer;
    else
        e->oldest = o->newer;
}

static void cache_link(struct engine *e, struct object *o)
{
    o->newer = NULL;
    o->older = e->newest;
    if (e->newest)
        e->newest->newer = o;
    else
        e->oldest = o;
    e->newest = o;
}

static uint64_t weight(const struct object *o)
{
    return o->size + 4ull * o->entries + OVERHEAD;
}

static struct object *cache_find(struct engine *e, int32_t index)
{
    struct object *o = e->buckets[bucket_of(index)];
    while (o && o->index != index)
        o = o->same;
    return o;
}

static void cache_evict(struct engine *e, struct object *o)
{
    struct object **at = &e->buckets[bucket_of(o->index)];
    while (*at != o)
        at = &(*at)->same;
    *at = o->same;
    cache_unlink(e, o);
    e->cached_bytes -= weight(o);
    e->cached_count--;
    o->in_cache = 0;
    release_object(e, o);
}

static void cache_put(struct engine *e, struct object *o)
{
    if (cache_find(e, o->index))
        return;
    o->references++;
    o->in_cache = 1;
    unsigned bucket = bucket_of(o->index);
    o->same = e->buckets[bucket];
    e->buckets[bucket] = o;
    cache_link(e, o);
    e->cached_bytes += weight(o);
    e->cached_count++;
    while (e->cached_bytes > e->c.cache_bytes && e->cached_count > 1)
        cache_evict(e, e->oldest);
}

static struct object *cache_take(struct engine *e, int32_t index)
{
    struct object *o = cache_find(e, index);
    if (o) {
        o->references++;
        if (o != e->newest) {
            cache_unlink(e, o);
            cache_link(e, o);
        }
    }
    return o;
}

static struct object *new_object(int32_t index, int kind, uint8_t *data, size_t size)
{
    struct object *o = calloc(1, sizeof *o);
    if (!o)
        return NULL;
    o->index = index;
    o->kind = (uint8_t)kind;
    o->references = 1;
    o->data = data;
    o->size = size;
    return o;
}

/* --- names of resolved objects; under the lock */

static uint32_t *own_slot(const struct engine *e, const uint8_t *name)
{
    uint64_t at = hash_oid(e, name) & e->own_mask;
    while (e->own[at] && memcmp(e->names + (size_t)(e->own[at] - 1) * e->raw_len, name, e->raw_len))
        at = (at + 1) & e->own_mask;
    return &e->own[at];
}

static int64_t own_find(const struct engine *e, const uint8_t *name)
{
    return (int64_t)*own_slot(e, name) - 1;
}

static void own_free(struct engine *e)
{
    if (e->own_is_filed)
        munmap(e->own, (e->own_mask + 1) * sizeof *e->own);
    else
        free(e->own);
}

static uint32_t *own_in_file(struct engine *e, uint64_t size)
{
    size_t length = size * sizeof *e->own;
    if (ftruncate(e->c.array_fd, (off_t)(e->file_end + length)) ||
        posix_fallocate(e->c.array_fd, (off_t)e->file_end, (off_t)length))
        return NULL;
    void *found =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, e->c.array_fd, (off_t)e->file_end);
    if (found == MAP_FAILED)
        return NULL;
    e->file_end += length;
    return found;
}

static int own_reserve(struct engine *e)
{
    if (e->own_count * 10 < (e->own_mask + 1) * 6)
        return 0;
    uint64_t size = (e->own_mask + 1) * 2;
    int is_filed = e->c.array_fd >= 0 && size >= OWN_FILED;
    uint32_t *grown = is_filed ? own_in_file(e, size) : calloc(size, sizeof *grown), *old = e->own;
    if (!grown)
        return -1;
    for (uint64_t i = 0; i <= e->own_mask; i++) {
        if (!old[i])
            continue;
        uint64_t at = hash_oid(e, e->names + (size_t)(old[i] - 1) * e->raw_len) & (size - 1);
        while (grown[at])
            at = (at + 1) & (size - 1);
        grown[at] = old[i];
    }
    own_free(e);
    e->own = grown;
    e->own_mask = size - 1;
    e->own_is_filed = is_filed;
    return 0;
}

/* --- references */

static int write_all(int fd, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t written = write(fd, data, len);
        if (written < 0) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        data += written;
        len -= (size_t)written;
    }
    return 0;
}

/* Drop what the pack has, so that the table never grows with the pack; under the lock. */
static uint64_t refs_sweep(struct worker *w)
{
    struct engine *e = w->e;
    size_t stride = e->raw_len + 1;
    uint64_t kept = 0;
    uint8_t *old = w->refs;
    for (uint64_t i = 0; i <= w->refs_mask; i++) {
        uint8_t *record = old + i * stride;
        if (!record[0])
            continue;
        int64_t index = own_find(e, record + 1);
        if (index >= 0 && (e->types[index] & KIND_MASK) == record[0])
            record[0] = 0;
        else
            kept++;
    }
    return kept;
}

static int refs_rehash(struct worker *w, uint64_t size)
{
    struct engine *e = w->e;
    size_t stride = e->raw_len + 1;
    uint8_t *old = w->refs, *fresh = calloc(size, stride);
    if (!fresh)
        return -1;
    uint64_t count = 0;
    for (uint64_t i = 0; i <= w->refs_mask; i++) {
        const uint8_t *record = old + i * stride;
        if (!record[0])
            continue;
        uint64_t at = hash_oid(e, record + 1) & (size - 1);
        while (fresh[at * stride])
            at = (at + 1) & (size - 1);
        memcpy(fresh + at * stride, record, stride);
        count++;
    }
    free(old);
    w->refs = fresh;
    w->refs_mask = size - 1;
    w->refs_count = count;
    return 0;
}

static int refs_spill(struct worker *w)
{
    struct engine *e = w->e;
    size_t stride = e->raw_len + 1;
    uint8_t block[512 * (1 + MAX_RAW)];
    size_t filled = 0;
    if (e->refs_fd < 0) {
        char path[4096];
        size_t length = strlen(e->c.directory);
        if (length + 20 > sizeof path)
            return -1;
        memcpy(path, e->c.directory, length);
        memcpy(path + length, "/tmp_refs_XXXXXX", 17);
        e->refs_fd = mkostemp(path, O_CLOEXEC);
        if (e->refs_fd < 0 || unlink(path))
            return -1;
    }
    for (uint64_t i = 0; i <= w->refs_mask; i++) {
        uint8_t *record = w->refs + i * stride;
        if (!record[0])
            continue;
        memcpy(block + filled, record, stride);
        filled += stride;
        e->refs_spilled++;
        if (filled + stride > sizeof block) {
            if (write_all(e->refs_fd, block, filled))
                return -1;
            filled = 0;
        }
    }
    if (write_all(e->refs_fd, block, filled))
        return -1;
    memset(w->refs, 0, (w->refs_mask + 1) * stride);
    w->refs_count = 0;
    return 0;
}

static int refs_make_room(struct worker *w)
{
    struct engine *e = w->e;
    uint64_t size = w->refs_mask + 1;
    int result = 0;
    if (size < REFS_MOST)
        return refs_rehash(w, size * 2);
    pthread_mutex_lock(&e->lock);
    uint64_t kept = refs_sweep(w);
    if (kept * 10 > size * 4)
        result = refs_spill(w);
    pthread_mutex_unlock(&e->lock);
    return result ? result : refs_rehash(w, size);
}

static int add_ref(struct worker *w, int kind, const uint8_t *name)
{
    struct engine *e = w->e;
    size_t stride = e->raw_len + 1;
    uint64_t at = hash_oid(e, name) & w->refs_mask;
    uint8_t *record;
    while ((record = w->refs + at * stride)[0]) {
        if (record[0] == kind && !memcmp(record + 1, name, e->raw_len))
            return 0;
        at = (at + 1) & w->refs_mask;
    }
    record[0] = (uint8_t)kind;
    memcpy(record + 1, name, e->raw_len);
    if (++w->refs_count * 10 > (w->refs_mask + 1) * 7)
        return refs_make_room(w);
    return 0;
}

/* --- deltas */

static int delta_size(const uint8_t *delta, size_t len, size_t *pos, uint64_t *size)
{
    unsigned shift = 0;
    *size = 0;
    for (;;) {
        if (*pos >= len)
            return E_DELTA_HEADER;
        uint8_t byte = delta[(*pos)++];
        *size |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return 0;
        shift += 7;
        if (shift > 56)
            return E_DELTA_HUGE;
    }
}

/* Check all instructions against the sizes, before memory is taken for the result. */
static int delta_check(const uint8_t *p, const uint8_t *end, uint64_t base_size, uint64_t result_size)
{
    uint64_t total = 0;
    gs_instruction next;
    while (p < end) {
        const uint8_t *after = gs_read_instruction(p, end, &next);
        if (!after)
            return *p & 128 ? E_DELTA_COPY : *p ? E_DELTA_INSERT : E_DELTA_RESERVED;
        if (!next.data && (uint64_t)next.offset + next.size > base_size)
            return E_DELTA_BOUNDS;
        total += next.size;
        if (total > result_size)
            return E_DELTA_RESULT;
        p = after;
    }
    return total == result_size ? 0 : E_DELTA_RESULT;
}

/* Apply what delta_check() found good; base, delta and result have SLACK bytes behind them. */
static void delta_apply(const uint8_t *base, const uint8_t *p, const uint8_t *end, uint8_t *out)
{
    gs_instruction next;
    while (p < end) {
        const uint8_t *from;
        p = gs_known_instruction(p, &next);
        from = next.data ? next.data : base + next.offset;
        if (next.size <= 32)
            memcpy(out, from, 32);
        else
            memcpy(out, from, next.size);
        out += next.size;
    }
}

/* --- trees and commits: what git writes; anything else is left to Python */

enum { NAME_ODD = 1, NAME_MODULES = 2, NAME_ATTRIBUTES = 3 };

/* Tell what fsck would say of an entry's name: 0 for nothing. `is_file`: mode 100xxx. */
static int name_fault(const uint8_t *name, size_t len, int is_file)
{
    int tilde = 0;
    for (size_t i = 0; i < len; i++) {
        if (name[i] == '/' || name[i] == '\\')
            return NAME_ODD;
        tilde |= name[i] == '~';
    }
    switch (name[0]) {
    case 0xe2:
    case 0xef:
        return NAME_ODD;
    case 'g':
    case 'G':
    case 'm':
    case 'M':
        return tilde ? NAME_ODD : 0;
    case '.':
        break;
    default:
        return 0;
    }
    if (len == 1)
        return NAME_ODD;
    switch (name[1]) {
    case '.':
    case 'G':
    case 'M':
    case 0xe2:
    case 0xef:
        return NAME_ODD;
    case 'g':
    case 'm':
        break;
    default:
        return 0;
    }
    if (is_file) {
        if (len == 10 && !memcmp(name, ".gitignore", 10))
            return 0;
        if (len == 8 && !memcmp(name, ".mailmap", 8))
            return 0;
        if (len == 11 && !memcmp(name, ".gitmodules", 11))
            return NAME_MODULES;
        if (len == 14 && !memcmp(name, ".gitattributes", 14))
            return NAME_ATTRIBUTES;
    }
    if (len == 7 && !memcmp(name, ".github", 7))
        return 0;
    return NAME_ODD;
}

struct tree_entry {
    const uint8_t *name, *oid;
    size_t len;
    int kind;      /* GS_TREE, GS_BLOB, 0 for a gitlink */
    int is_file;
    int is_0664;
};

/* Read the entry at `p`; the byte after it, or NULL for what is none or has a mode that git does not write.
 * `limit` is readable for SLACK bytes beyond. */
static inline const uint8_t *read_entry(const uint8_t *p, const uint8_t *limit, size_t raw_len, struct tree_entry *entry)
{
    entry->is_file = entry->is_0664 = 0;
    if (p[0] == '1') {
        if (!memcmp(p, "100644 ", 7) || !memcmp(p, "100755 ", 7)) {
            entry->is_file = 1;
            entry->kind = GS_BLOB;
        } else if (!memcmp(p, "120000 ", 7)) {
            entry->kind = GS_BLOB;
        } else if (!memcmp(p, "160000 ", 7)) {
            entry->kind = 0;
        } else if (!memcmp(p, "100664 ", 7)) {
            entry->is_file = entry->is_0664 = 1;
            entry->kind = GS_BLOB;
        } else {
            return NULL;
        }
        p += 7;
    } else if (!memcmp(p, "40000 ", 6)) {
        entry->kind = GS_TREE;
        p += 6;
    } else {
        return NULL;
    }
    if (p >= limit)
        return NULL;
    const uint8_t *nul = memchr(p, 0, (size_t)(limit - p));
    if (!nul || nul == p || (size_t)(limit - nul - 1) < raw_len)
        return NULL;
    entry->name = p;
    entry->len = (size_t)(nul - p);
    entry->oid = nul + 1;
    return nul + 1 + raw_len;
}

/* git's order: folders as if their names ended in a slash. -1, 0 or 1; 0 also for `a` and `a/`. */
static int compare_entries(const struct tree_entry *a, const struct tree_entry *b)
{
    size_t common = a->len < b->len ? a->len : b->len;
    int order = memcmp(a->name, b->name, common);
    if (order)
        return order;
    if (a->len == b->len)
        return 0;
    int left = a->len > common ? a->name[common] : a->kind == GS_TREE ? '/' : 0;
    int right = b->len > common ? b->name[common] : b->kind == GS_TREE ? '/' : 0;
    return left - right;
}

static int is_null(const uint8_t *oid, size_t raw_len)
{
    for (size_t i = 0; i < raw_len; i++)
        if (oid[i])
            return 0;
    return 1;
}

static int note_special(struct worker *w, int what, const uint8_t *oid)
{
    struct engine *e = w->e;
    size_t stride = e->raw_len + 1;
    for (int i = 0; i < 8; i++)
        if (w->recent_special[i][0] == what && !memcmp(w->recent_special[i] + 1, oid, e->raw_len))
            return 0;
    uint8_t *recent = w->recent_special[w->special_turn++ & 7];
    recent[0] = (uint8_t)what;
    memcpy(recent + 1, oid, e->raw_len);
    int result = 0;
    pthread_mutex_lock(&e->lock);
    if (e->special_count == e->special_room) {
        size_t room = e->special_room ? e->special_room * 2 : 64;
        uint8_t *grown = realloc(e->special, room * stride);
        if (grown) {
            e->special = grown;
            e->special_room = room;
        } else {
            result = -1;
        }
    }
    if (!result)
        memcpy(e->special + e->special_count++ * stride, recent, stride);
    pthread_mutex_unlock(&e->lock);
    return result;
}

/* Tell whether fsck has nothing to say of one entry: 1, 0, or -1 when memory is out. */
static int is_plain_entry(struct worker *w, const struct tree_entry *entry)
{
    struct engine *e = w->e;
    if (entry->is_0664 && !e->c.tolerates_0664)
        return 0;
    if (entry->len > e->c.longest_name || is_null(entry->oid, e->raw_len))
        return 0;
    int fault = name_fault(entry->name, entry->len, entry->is_file);
    if (!fault)
        return 1;
    if (fault == NAME_ODD)
        return 0;
    return note_special(w, fault == NAME_MODULES ? 1 : 2, entry->oid) ? -1 : 1;
}

static int add_entry_ref(struct worker *w, const struct tree_entry *entry)
{
    return entry->kind ? add_ref(w, entry->kind, entry->oid) : 0;
}

static int begins_with(const struct tree_entry *entry, const struct tree_entry *start)
{
    return entry->len >= start->len && !memcmp(entry->name, start->name, start->len);
}

/* A tree's entries, all of them. 0: read, o->ends is set, o->is_plain says whether fsck is content; 1: Python
 * must read it; -1: out of memory. */
static int read_tree(struct worker *w, struct object *o, int has_fsck, int notes)
{
    struct engine *e = w->e;
    const uint8_t *p = o->data, *limit = o->data + o->size;
    size_t room = o->size / (e->raw_len + 8) + 1; /* an entry has a mode, a blank, a name, a NUL, an oid */
    struct tree_entry before = {0}, entry;
    /* Files `a` that a folder `a` may follow, with others between them: each begins with the one before */
    struct tree_entry candidates[16];
    int candidate_count = 0, is_plain = 1;
    uint32_t *ends = malloc(room * sizeof *ends + 4);
    uint32_t count = 0;
    if (!ends)
        return -1;
    while (p < limit) {
        const uint8_t *start = p;
        p = read_entry(p, limit, e->raw_len, &entry);
        if (!p || count == room) {
            free(ends);
            return 1;
        }
        if (notes && add_entry_ref(w, &entry)) {
            free(ends);
            return -1;
        }
        if (has_fsck && is_plain) {
            is_plain = is_plain_entry(w, &entry);
            if (is_plain < 0) {
                free(ends);
                return -1;
            }
            if (is_plain && start != o->data) {
                while (candidate_count && !begins_with(&entry, &candidates[candidate_count - 1]))
                    candidate_count--;
                if (compare_entries(&before, &entry) >= 0)
                    is_plain = 0;
                else if (before.kind != GS_TREE && entry.len > before.len && entry.name[before.len] < '/' &&
                         !memcmp(entry.name, before.name, before.len)) {
                    if (candidate_count == 16)
                        is_plain = 0;
                    else
                        candidates[candidate_count++] = before;
                }
                if (entry.kind == GS_TREE)
                    for (int i = 0; i < candidate_count; i++)
                        if (candidates[i].len == entry.len && !memcmp(candidates[i].name, entry.name, entry.len))
                            is_plain = 0;
            }
            before = entry;
        }
        ends[count++] = (uint32_t)(p - o->data);
    }
    uint32_t *fitting = realloc(ends, count * sizeof *ends + 4);
    o->ends = fitting ? fitting : ends;
    o->entries = count;
    o->is_plain = (uint8_t)(has_fsck && is_plain);
    return 0;
}

/* The number of the entry that begins at `offset`, -1 when none does. */
static int64_t place_of(const uint32_t *ends, uint32_t count, uint64_t offset)
{
    if (!offset)
        return 0;
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (ends[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && ends[low] == offset ? (int64_t)low + 1 : -1;
}

static uint32_t ends_within(const uint32_t *ends, uint32_t from, uint32_t count, uint64_t offset)
{
    uint32_t low = from, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (ends[middle] <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void entry_at(const struct object *o, size_t raw_len, uint32_t number, struct tree_entry *entry)
{
    read_entry(o->data + (number ? o->ends[number - 1] : 0), o->data + o->size, raw_len, entry);
}

/* Whether a tree is plain that differs from a plain one in the entries w->fresh[0..count], each of them an
 * entry that was parsed, or (top bit) the first of a run that was copied. Order is checked where these meet
 * their neighbours; that also shows that no entry was copied twice. */
static int is_plain_change(struct worker *w, const struct object *o, size_t count)
{
    size_t raw_len = w->e->raw_len;
    int steps = 0;
    for (size_t k = 0; k < count; k++) {
        uint32_t number = w->fresh[k] & 0x7fffffff;
        struct tree_entry entry = {0}, other = {0};
        entry_at(o, raw_len, number, &entry);
        if (number) {
            entry_at(o, raw_len, number - 1, &other);
            if (compare_entries(&other, &entry) >= 0)
                return 0;
        }
        if (w->fresh[k] >> 31)
            continue;
        int plain = is_plain_entry(w, &entry);
        if (plain <= 0)
            return plain;
        /* a file and a folder of one name, with others in between */
        if (entry.kind == GS_TREE) {
            for (uint32_t at = number; at--;) {
                entry_at(o, raw_len, at, &other);
                if (!begins_with(&other, &entry))
                    break;
                if (other.len == entry.len || ++steps > MOST_STEPS)
                    return 0;
            }
        } else {
            for (uint32_t at = number + 1; at < o->entries; at++) {
                entry_at(o, raw_len, at, &other);
                if (!begins_with(&other, &entry))
                    break;
                if (other.len == entry.len || ++steps > MOST_STEPS)
                    return 0;
                if (other.name[entry.len] >= '/')
                    break;
            }
        }
    }
    return 1;
}

/* A tree that `delta` made of `base`, whose entries are known: only what is new is parsed, see treedelta.py.
 * Results as read_tree(). */
static int read_tree_delta(struct worker *w, struct object *o, const struct object *base, const uint8_t *delta,
                           const uint8_t *delta_end)
{
    struct engine *e = w->e;
    size_t raw_len = e->raw_len;
    size_t room = o->size / (raw_len + 8) + 1;
    size_t fresh_count = 0, parsed = 0;
    uint32_t *ends = malloc(room * sizeof *ends + 4);
    uint32_t count = 0;
    uint64_t done = 0, start = 0;
    int result = -1, fits = 1;
    struct tree_entry entry;
    if (!ends)
        return -1;

#define NOTE_FRESH(number)                                                      \
    do {                                                                        \
        if (fresh_count == w->fresh_room) {                                     \
            size_t grown_room = w->fresh_room ? w->fresh_room * 2 : 64;         \
            uint32_t *grown = realloc(w->fresh, grown_room * sizeof *w->fresh); \
            if (!grown)                                                         \
                goto out;                                                       \
            w->fresh = grown;                                                   \
            w->fresh_room = grown_room;                                         \
        }                                                                       \
        w->fresh[fresh_count++] = (number);                                     \
    } while (0)
#define PARSE_ONE()                                                                             \
    do {                                                                                        \
        const uint8_t *after = read_entry(o->data + done, o->data + o->size, raw_len, &entry);  \
        if (!after || count == room) {                                                          \
            result = 1;                                                                         \
            goto out;                                                                           \
        }                                                                                       \
        if (add_entry_ref(w, &entry))                                                           \
            goto out;                                                                           \
        if (fits) {                                                                             \
            NOTE_FRESH(count);                                                                  \
            fits = ++parsed <= MOST_FRESH && fresh_count < 4 * MOST_FRESH;                      \
        }                                                                                       \
        done = (uint64_t)(after - o->data);                                                     \
        ends[count++] = (uint32_t)done;                                                         \
    } while (0)

    while (delta < delta_end) {
        gs_instruction next;
        delta = gs_known_instruction(delta, &next);
        uint64_t stop = start + next.size;
        if (next.data) {
            start = stop;
            continue;
        }
        uint32_t offset = next.offset, size = next.size;
        while (done < start)
            PARSE_ONE();
        while (done < stop) {
            /* where in the base what stands at `done` came from */
            int64_t first = place_of(base->ends, base->entries, done - start + offset);
            if (first >= 0) {
                uint32_t last = ends_within(base->ends, (uint32_t)first, base->entries, (uint64_t)offset + size);
                if (last > (uint32_t)first) {
                    if (last - (uint32_t)first > room - count) {
                        result = 1;
                        goto out;
                    }
                    if (fits) {
                        NOTE_FRESH(count | 0x80000000u);
                        fits = fresh_count < 4 * MOST_FRESH;
                    }
                    uint32_t shift = (uint32_t)(start - offset); /* modulo 2^32 */
                    for (uint32_t i = (uint32_t)first; i < last; i++)
                        ends[count++] = base->ends[i] + shift;
                    done = ends[count - 1];
                }
                break;
            }
            PARSE_ONE();
        }
        start = stop;
    }
    while (done < o->size)
        PARSE_ONE();
    o->ends = ends;
    o->entries = count;
    if (e->c.has_fsck && base->is_plain && fits) {
        int plain = is_plain_change(w, o, fresh_count);
        if (plain < 0)
            return -1; /* o owns the ends */
        o->is_plain = (uint8_t)plain;
    }
    if (e->c.has_fsck && !o->is_plain) {
        struct object copy = *o;
        copy.ends = NULL;
        result = read_tree(w, &copy, 1, 0);
        free(copy.ends);
        if (result < 0)
            return -1;
        o->is_plain = copy.is_plain && !result;
    }
    return 0;
out:
    free(ends);
    return result;
}

/* Behind a good `author` or `committer` line, or NULL: name, <mail>, seconds and zone as git writes them. */
static const uint8_t *good_ident(const uint8_t *p, const uint8_t *limit, const char *word)
{
    size_t len = strlen(word);
    if ((size_t)(limit - p) < len || memcmp(p, word, len))
        return NULL;
    p += len;
    const uint8_t *from = p;
    while (p < limit && *p != '<') {
        if (*p == '>' || *p == '\n')
            return NULL;
        p++;
    }
    if (p == limit || p == from || p[-1] != ' ')
        return NULL;
    p++;
    while (p < limit && *p != '>') {
        if (*p == '<' || *p == '\n')
            return NULL;
        p++;
    }
    if (limit - p < 2 || p[1] != ' ')
        return NULL;
    p += 2;
    from = p;
    while (p < limit && *p >= '0' && *p <= '9')
        p++;
    if (p == from || p - from > 18 || (*from == '0' && p - from > 1))
        return NULL;
    if (limit - p < 7 || p[0] != ' ' || (p[1] != '+' && p[1] != '-') || p[6] != '\n')
        return NULL;
    for (int i = 2; i < 6; i++)
        if (p[i] < '0' || p[i] > '9')
            return NULL;
    return p + 7;
}

/* A commit: 0 and its references noted, 1 for Python to read, -1 out of memory. */
static int read_commit(struct worker *w, struct object *o)
{
    struct engine *e = w->e;
    size_t raw_len = e->raw_len, hex_len = 2 * raw_len;
    const uint8_t *p = o->data, *limit = o->data + o->size;
    uint8_t oid[MAX_RAW];
    if (o->size < 6 + hex_len || memcmp(p, "tree ", 5) || p[5 + hex_len] != '\n' || gs_read_hex(p + 5, raw_len, oid))
        return 1;
    const uint8_t *parents = p += 6 + hex_len;
    while ((size_t)(limit - p) >= 8 + hex_len && !memcmp(p, "parent ", 7)) {
        uint8_t parent[MAX_RAW];
        if (p[7 + hex_len] != '\n' || gs_read_hex(p + 7, raw_len, parent))
            return 1;
        p += 8 + hex_len;
    }
    if (limit - p >= 7 && !memcmp(p, "parent ", 7))
        return 1;
    if (add_ref(w, GS_TREE, oid))
        return -1;
    for (const uint8_t *at = parents; at < p; at += 8 + hex_len) {
        if (!gs_read_hex(at + 7, raw_len, oid) && add_ref(w, GS_COMMIT, oid))
            return -1;
    }
    if (e->c.has_fsck) {
        const uint8_t *header = good_ident(p, limit, "author ");
        if (header)
            header = good_ident(header, limit, "committer ");
        o->is_plain = header && !memchr(o->data, 0, o->size) &&
                      (limit[-1] == '\n' || memmem(header - 1, (size_t)(limit - header + 1), "\n\n", 2));
    }
    return 0;
}

/* --- hashing */

static size_t object_header(uint8_t *out, int kind, uint64_t size)
{
    static const char *const words[5] = {"", "commit ", "tree ", "blob ", "tag "};
    size_t len = strlen(words[kind]);
    memcpy(out, words[kind], len);
    char digits[20];
    int count = 0;
    do {
        digits[count++] = (char)('0' + size % 10);
        size /= 10;
    } while (size);
    while (count)
        out[len++] = (uint8_t)digits[--count];
    out[len++] = 0;
    return len;
}

static int hash_object(const struct engine *e, int kind, const uint8_t *data, size_t size, uint8_t *name)
{
    uint8_t out[64] __attribute__((aligned(16)));
    if (e->c.hash_kind == 0) {
        int (*odb_hash)(void *, const void *, size_t, int) = (int (*)(void *, const void *, size_t, int))e->c.hash_a;
        if (odb_hash(out, data, size, kind))
            return -1;
    } else {
        uint8_t state[512] __attribute__((aligned(64))), header[32]; /* SHA_CTX takes 96, SHA256_CTX 112 */
        int (*init)(void *) = (int (*)(void *))e->c.hash_a;
        int (*update)(void *, const void *, size_t) = (int (*)(void *, const void *, size_t))e->c.hash_b;
        int (*final)(void *, void *) = (int (*)(void *, void *))e->c.hash_c;
        if (!init(state) || !update(state, header, object_header(header, kind, size)) || !update(state, data, size) ||
            !final(out, state))
            return -1;
    }
    memcpy(name, out, e->raw_len);
    return 0;
}

/* For Python to compare with hashlib before it trusts the functions it was given. */
GS_API int gs_ingest_hash(const struct gs_config *config, int kind, const uint8_t *data, uint64_t size, uint8_t *name)
{
    struct engine e;
    memset(&e, 0, sizeof e);
    e.c = *config;
    e.raw_len = (size_t)config->raw_len;
    return hash_object(&e, kind, data, size, name);
}

/* --- entries in the file */

/* Read a stored entry's header, found good before: inflated size, and how many bytes it takes. */
static int stored_header(const struct engine *e, const uint8_t *p, size_t len, int *kind, uint64_t *size, size_t *used)
{
    size_t pos = 0;
    if (!len)
        return -1;
    uint8_t byte = p[pos++];
    *kind = byte >> 4 & 7;
    *size = byte & 15;
    for (unsigned shift = 4; byte & 128; shift += 7) {
        if (pos >= len || shift > 60)
            return -1;
        byte = p[pos++];
        *size |= (uint64_t)(byte & 127) << shift;
    }
    if (*kind == GS_OFS_DELTA) {
        do {
            if (pos >= len)
                return -1;
        } while (p[pos++] & 128);
    } else if (*kind == GS_REF_DELTA) {
        pos += e->raw_len;
    }
    if (pos > len)
        return -1;
    *used = pos;
    return 0;
}

static int read_at(int fd, uint8_t *out, size_t len, uint64_t offset)
{
    while (len) {
        ssize_t count = pread(fd, out, len, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return -1;
        out += count;
        len -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 0;
}

/* Inflate an entry again. R_IDLE, or what fail() gave. */
static int load_entry(struct engine *e, int32_t index, uint8_t **data, size_t *size)
{
    uint64_t offset = e->offsets[index], length = e->offsets[index + 1] - offset;
    uint8_t small[4096], *stored = small, *mapped = NULL, *inflated = NULL;
    size_t page = (size_t)offset & 0xffff, used, header;
    int kind, result = E_STORED;
    uint64_t declared;
    if (length > MAP_FROM) {
        mapped = mmap(NULL, length + page, PROT_READ, MAP_SHARED, e->c.fd, (off_t)(offset - page));
        if (mapped == MAP_FAILED)
            return fail(e, E_OS, index, 0, 0);
        stored = mapped + page;
    } else {
        if (length > sizeof small && !(stored = malloc(length)))
            return fail(e, E_MEMORY, index, 0, 0);
        if (read_at(e->c.fd, stored, length, offset))
            goto out;
    }
    if (stored_header(e, stored, length, &kind, &declared, &header))
        goto out;
    uint64_t limit;
    if (is_beyond(e, GS_OFS_DELTA, declared, &limit)) { /* a blob that deltas build on is held in memory */
        result = fail(e, E_LIMIT, index, declared, limit);
        goto done;
    }
    inflated = allocate(declared);
    if (!inflated) {
        result = E_MEMORY;
        goto out;
    }
    if (!gs_inflate_used(stored + header, length - header, inflated, declared, &used))
        result = 0;
out:
    if (result)
        result = fail(e, result, index, 0, 0);
done:
    if (mapped)
        munmap(mapped, length + page);
    else if (stored != small)
        free(stored);
    if (result) {
        free(inflated);
        return result;
    }
    *data = inflated;
    *size = declared;
    return R_IDLE;
}

/* Make an object of a base and a delta that was inflated. R_IDLE, or what fail() gave. */
static int apply(struct engine *e, int32_t index, const struct object *base, const uint8_t *delta, size_t delta_len,
                 struct object **out)
{
    uint64_t base_size, result_size, limit;
    size_t pos = 0;
    int code;
    if ((code = delta_size(delta, delta_len, &pos, &base_size)) ||
        (code = delta_size(delta, delta_len, &pos, &result_size)))
        return fail(e, code, index, 0, 0);
    uint64_t larger = base_size > result_size ? base_size : result_size;
    if (is_beyond(e, GS_OFS_DELTA, larger, &limit))
        return fail(e, E_LIMIT, index, larger, limit);
    if (is_beyond(e, base->kind, result_size, &limit))
        return fail(e, E_LIMIT, index, result_size, limit);
    if (delta_len < 4)
        return fail(e, E_DELTA_SHORT, index, 0, 0);
    if (base_size != base->size)
        return fail(e, E_DELTA_BASE, index, 0, 0);
    if ((code = delta_check(delta + pos, delta + delta_len, base_size, result_size)))
        return fail(e, code, index, 0, 0);
    uint8_t *data = allocate(result_size);
    struct object *o = data ? new_object(index, base->kind, data, result_size) : NULL;
    if (!o) {
        free(data);
        return fail(e, E_MEMORY, index, 0, 0);
    }
    delta_apply(base->data, delta + pos, delta + delta_len, data);
    *out = o;
    return R_IDLE;
}

/* Find the entries of a tree that was built again: its references were noted when it was new. */
static int restore_tree(struct worker *w, struct object *o)
{
    if (o->kind != GS_TREE || o->index < 0)
        return 0;
    int result = read_tree(w, o, 0, 0);
    o->is_plain = o->ends && w->e->types[o->index] & PLAIN;
    return result < 0 ? -1 : 0;
}

/* Let go of the repository's objects that an entry needed; under the lock. */
static void unpin(struct worker *w)
{
    for (int i = 0; i < 2; i++) {
        release_object(w->e, w->pinned[i]);
        w->pinned[i] = NULL;
    }
}

/* Give an object, out of the cache or built again from the file, with a reference of the caller's own. */
static int content(struct worker *w, int32_t index, int may_be_late, struct object **out)
{
    struct engine *e = w->e;
    struct object *o = NULL;
    size_t links = 0;
    int32_t at = index;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        for (int i = 0; i < 2 && !o; i++)
            if (w->pinned[i] && w->pinned[i]->index == at)
                o = w->pinned[i];
        if (o) {
            o->references++;
            break;
        }
        if ((o = cache_take(e, at)))
            break;
        if (at <= THIN) {
            pthread_mutex_unlock(&e->lock);
            w->event.index = THIN - at;
            return R_THIN;
        }
        if (e->parents[at] == NO_BASE)
            break;
        if (links == w->chain_room) {
            size_t room = w->chain_room ? w->chain_room * 2 : 64;
            int32_t *grown = realloc(w->chain, room * sizeof *grown);
            if (!grown) {
                pthread_mutex_unlock(&e->lock);
                return fail(e, E_MEMORY, index, 0, 0);
            }
            w->chain = grown;
            w->chain_room = room;
        }
        w->chain[links++] = at;
        at = e->parents[at];
    }
    int is_late = may_be_late && !e->scan_done && links >= PATIENCE;
    if (is_late && o)
        release_object(e, o);
    pthread_mutex_unlock(&e->lock);
    if (is_late)
        return RC_LATE;
    int result;
    if (!o) {
        uint8_t *data;
        size_t size;
        if ((result = load_entry(e, at, &data, &size)))
            return result;
        o = new_object(at, e->types[at] & KIND_MASK, data, size);
        if (!o || restore_tree(w, o)) {
            if (o)
                release_object(e, o);
            else
                free(data);
            return fail(e, E_MEMORY, index, 0, 0);
        }
        pthread_mutex_lock(&e->lock);
        e->rebuilt_entries++;
        cache_put(e, o);
        pthread_mutex_unlock(&e->lock);
    }
    while (links) {
        uint8_t *delta;
        size_t delta_len;
        struct object *next = NULL;
        at = w->chain[--links];
        result = load_entry(e, at, &delta, &delta_len);
        if (!result) {
            result = apply(e, at, o, delta, delta_len, &next);
            free(delta);
        }
        if (!result && restore_tree(w, next)) {
            release_object(e, next);
            result = fail(e, E_MEMORY, at, 0, 0);
        }
        pthread_mutex_lock(&e->lock);
        release_object(e, o);
        int is_costly = 0;
        if (!result) {
            cache_put(e, next);
            e->rebuilt_entries++;
            e->rebuilt_bytes += next->size;
            is_costly = e->rebuilt_bytes > e->c.rebuilt_times * e->resolved_bytes + e->c.rebuilt_bytes;
            if (is_costly)
                release_object(e, next);
        }
        int stopped = e->stop;
        pthread_mutex_unlock(&e->lock);
        if (result)
            return result;
        if (is_costly)
            return fail(e, E_REBUILT, at, 0, 0);
        o = next;
        if (stopped) {
            pthread_mutex_lock(&e->lock);
            release_object(e, o);
            pthread_mutex_unlock(&e->lock);
            return R_STOP;
        }
    }
    *out = o;
    return R_IDLE;
}

/* --- the queue; all under the lock */

static void push_back(struct engine *e, struct entry *entry)
{
    entry->next = NULL;
    if (e->ready_last)
        e->ready_last->next = entry;
    else
        e->ready_first = entry;
    e->ready_last = entry;
    if (entry->data)
        e->ready_bytes += entry->size + OVERHEAD;
}

static void push_front(struct engine *e, struct entry *entry)
{
    entry->next = e->ready_first;
    e->ready_first = entry;
    if (!e->ready_last)
        e->ready_last = entry;
    if (entry->data)
        e->ready_bytes += entry->size + OVERHEAD;
}

static struct entry *pop_front(struct engine *e)
{
    struct entry *entry = e->ready_first;
    if (entry) {
        e->ready_first = entry->next;
        if (!e->ready_first)
            e->ready_last = NULL;
        if (entry->data)
            e->ready_bytes -= entry->size + OVERHEAD;
    }
    return entry;
}

static void wait_for(struct engine *e, int32_t base, struct entry *entry)
{
    e->next[entry->index] = e->wait[base];
    e->wait[base] = entry->index + 1;
}

/* Keep the data of a delta that waits, if there is room; the entry is taken over. */
static void hold(struct engine *e, struct entry *entry)
{
    if (!entry->data || e->held_bytes + entry->size + OVERHEAD > HELD_BYTES) {
        free(entry->data);
        free(entry);
        return;
    }
    e->held_bytes += entry->size + OVERHEAD;
    unsigned bucket = bucket_of(entry->index);
    entry->next = e->held[bucket];
    e->held[bucket] = entry;
}

static struct entry *take_held(struct engine *e, int32_t index)
{
    struct entry **at = &e->held[bucket_of(index)];
    while (*at && (*at)->index != index)
        at = &(*at)->next;
    struct entry *entry = *at;
    if (entry) {
        *at = entry->next;
        e->held_bytes -= entry->size + OVERHEAD;
    }
    return entry;
}

static int wake(struct engine *e, int32_t base, int32_t first, int with_waiters, int *count)
{
    for (int32_t at = first; at;) {
        int32_t index = at - 1;
        at = e->next[index];
        if ((e->wait[index] != 0) != with_waiters)
            continue;
        struct entry *entry = take_held(e, index);
        if (!entry) {
            entry = calloc(1, sizeof *entry);
            if (!entry)
                return -1;
            entry->index = index;
            entry->kind = GS_OFS_DELTA;
        }
        entry->base = base;
        push_front(e, entry);
        ++*count;
    }
    return 0;
}

static struct name_wait **awaited_slot(struct engine *e, const uint8_t *name)
{
    struct name_wait **at = &e->awaited[hash_oid(e, name) & (e->awaited_buckets - 1)];
    while (*at && memcmp((*at)->name, name, e->raw_len))
        at = &(*at)->same;
    return at;
}

static int await_name(struct engine *e, const uint8_t *name, int32_t index)
{
    if (!e->awaited || e->awaited_count > e->awaited_buckets) {
        uint32_t buckets = e->awaited ? e->awaited_buckets * 2 : 256, old_buckets = e->awaited_buckets;
        struct name_wait **old = e->awaited, **grown = calloc(buckets, sizeof *grown);
        if (!grown)
            return -1;
        e->awaited = grown;
        e->awaited_buckets = buckets;
        for (uint32_t i = 0; old && i < old_buckets; i++)
            for (struct name_wait *node = old[i], *following; node; node = following) {
                following = node->same;
                struct name_wait **at = &grown[hash_oid(e, node->name) & (buckets - 1)];
                node->same = *at;
                *at = node;
            }
        free(old);
    }
    struct name_wait **at = awaited_slot(e, name);
    if (!*at) {
        *at = calloc(1, sizeof **at);
        if (!*at)
            return -1;
        memcpy((*at)->name, name, e->raw_len);
        (*at)->lowest = index;
        e->awaited_count++;
    }
    e->next[index] = (*at)->first;
    (*at)->first = index + 1;
    return 0;
}

/* What waited for `index` becomes ready, as deltas on `base`: last what others wait for, so that the leaves
 * come first, while their base is cached. */
static int wake_all(struct engine *e, int32_t index, int32_t base, const uint8_t *name)
{
    int count = 0;
    int32_t first = index >= 0 ? e->wait[index] : 0;
    if (first) {
        e->wait[index] = 0;
        if (wake(e, base, first, 1, &count) || wake(e, base, first, 0, &count))
            return -1;
    }
    if (name && e->awaited_count) {
        struct name_wait **at = awaited_slot(e, name), *node = *at;
        if (node) {
            *at = node->same;
            e->awaited_count--;
            if (index >= 0)
                e->types[index] |= REF_BASE;
            first = node->first;
            free(node);
            if (wake(e, base, first, 1, &count) || wake(e, base, first, 0, &count))
                return -1;
        }
    }
    if (count > 1)
        pthread_cond_broadcast(&e->ready_cond);
    else if (count)
        pthread_cond_signal(&e->ready_cond);
    return 0;
}

/* --- resolving */

/* Compare an object with the one that came before under the same name. */
static int check_repeated(struct worker *w, int32_t first, const struct object *o, const uint8_t *name)
{
    struct engine *e = w->e;
    struct object *earlier = NULL;
    int kind = e->types[first] & KIND_MASK;
    if (kind != o->kind)
        return fail_named(e, E_COLLISION_TYPES, o->index, name);
    if (e->parents[first] == NO_BASE) {
        uint8_t header[64];
        uint64_t length = e->offsets[first + 1] - e->offsets[first], size;
        size_t used;
        int stored;
        if (length > sizeof header)
            length = sizeof header;
        if (read_at(e->c.fd, header, length, e->offsets[first]) || stored_header(e, header, length, &stored, &size, &used))
            return fail(e, E_STORED, first, 0, 0);
        if (size != o->size)
            return fail_named(e, E_COLLISION, o->index, name);
    }
    int result = content(w, first, 0, &earlier);
    if (result)
        return result;
    int differs = earlier->size != o->size || memcmp(earlier->data, o->data, o->size);
    pthread_mutex_lock(&e->lock);
    release_object(e, earlier);
    pthread_mutex_unlock(&e->lock);
    return differs ? fail_named(e, E_COLLISION, o->index, name) : R_IDLE;
}

/* Record a resolved object, under the lock. `*first`: the one that has the name already, or -1; when it is not
 * the one that was `compared` with this, nothing is done but to tell: 1. -1: out of memory. */
static int record(struct engine *e, int32_t index, int flags, const uint8_t *name, int32_t parent, unsigned depth,
                  int32_t compared, int32_t *first)
{
    if (own_reserve(e))
        return -1;
    uint32_t *slot = own_slot(e, name);
    *first = (int32_t)*slot - 1;
    if (*first != compared)
        return 1;
    memcpy(e->names + (size_t)index * e->raw_len, name, e->raw_len);
    e->parents[index] = parent;
    e->depths[index] = (uint16_t)depth;
    if (*slot) {
        e->types[*first] |= REPEATED;
        flags |= DUPLICATE;
    } else {
        *slot = (uint32_t)index + 1;
        e->own_count++;
    }
    e->types[index] = (uint8_t)flags;
    e->done++;
    /* Deltas that name their base by oid mean the first of that name */
    return wake_all(e, index, index, *first < 0 ? name : NULL);
}

/* Resolve one entry, which is used up unless R_THIN is returned. */
static int resolve(struct worker *w, struct entry *entry)
{
    struct engine *e = w->e;
    struct object *o = NULL, *base = NULL;
    uint8_t *delta = NULL, name[MAX_RAW];
    size_t delta_len = 0;
    unsigned depth = 0;
    int result = R_IDLE, is_big = 0, is_odd = 0, unread = 0;
    int32_t index = entry->index, first;

    if (entry->base == NO_BASE) {
        o = new_object(index, entry->kind, entry->data, entry->size);
        if (!o)
            return fail(e, E_MEMORY, index, 0, 0);
        entry->data = NULL;
    } else {
        depth = entry->base <= THIN ? 1 : e->depths[entry->base] + 1u;
        if (depth > e->c.delta_depth)
            return fail(e, E_DEPTH, index, e->c.delta_depth, 0);
        if (!entry->data) {
            size_t size;
            if ((result = load_entry(e, index, &entry->data, &size)))
                return result;
            entry->size = (uint32_t)size; /* delta_bytes is below 2^32, see gs_ingest_new's caller */
            pthread_mutex_lock(&e->lock);
            e->rebuilt_entries++;
            pthread_mutex_unlock(&e->lock);
        }
        delta = entry->data;
        delta_len = entry->size;
        uint64_t base_size = 0, result_size = 0;
        size_t pos = 0;
        if (delta_size(delta, delta_len, &pos, &base_size) || delta_size(delta, delta_len, &pos, &result_size))
            base_size = result_size = 0; /* apply() tells what is wrong */
        is_big = base_size > BIG_RESULT || result_size > BIG_RESULT;
        uint64_t limit, larger = base_size > result_size ? base_size : result_size;
        if (is_beyond(e, GS_OFS_DELTA, larger, &limit))
            return fail(e, E_LIMIT, index, larger, limit);
        if (is_big)
            pthread_mutex_lock(&e->big);
        result = content(w, entry->base, 1, &base);
        if (!result)
            result = apply(e, index, base, delta, delta_len, &o);
        if (result)
            goto out;
    }
    if (hash_object(e, o->kind, o->data, o->size, name)) {
        result = fail(e, E_HASH, index, 0, 0);
        goto out;
    }
    if (o->kind == GS_TREE) {
        if (base && base->ends && delta_len * 4 < o->size) {
            size_t pos = 0;
            uint64_t skip;
            delta_size(delta, delta_len, &pos, &skip);
            delta_size(delta, delta_len, &pos, &skip);
            unread = read_tree_delta(w, o, base, delta + pos, delta + delta_len);
        } else {
            unread = read_tree(w, o, e->c.has_fsck, 1);
        }
    } else if (o->kind == GS_COMMIT) {
        unread = read_commit(w, o);
    } else if (o->kind == GS_TAG) {
        unread = 1;
    }
    if (unread < 0) {
        result = fail(e, E_MEMORY, index, 0, 0);
        goto out;
    }
    is_odd = o->kind != GS_BLOB && (unread || (e->c.has_fsck && !o->is_plain));
    for (int32_t compared = -1;; compared = first) {
        pthread_mutex_lock(&e->lock);
        int recorded =
            record(e, index, o->kind | (o->is_plain ? PLAIN : 0), name, entry->base, depth, compared, &first);
        if (!recorded) {
            e->resolved_bytes += o->size;
            cache_put(e, o);
        }
        pthread_mutex_unlock(&e->lock);
        if (!recorded)
            break;
        result = recorded < 0 ? fail(e, E_MEMORY, index, 0, 0) : check_repeated(w, first, o, name);
        if (result == R_THIN && entry->base == NO_BASE) { /* the entry comes again */
            entry->data = o->data;
            o->data = NULL;
        }
        if (result)
            goto out;
    }
    if (is_odd) {
        w->odd = o;
        w->event.index = index;
        w->event.data = o->data;
        w->event.size = o->size;
        w->event.kind = o->kind | (unread ? 0 : 256);
        memcpy(w->event.name, name, e->raw_len);
        o = NULL;
        result = R_ODD;
    }
out:
    pthread_mutex_lock(&e->lock);
    release_object(e, o);
    release_object(e, base);
    if (result != R_THIN)
        unpin(w);
    pthread_mutex_unlock(&e->lock);
    if (is_big)
        pthread_mutex_unlock(&e->big);
    return result;
}

static int note_late(struct engine *e, struct entry *entry)
{
    if (e->late_count == e->late_room) {
        size_t room = e->late_room ? e->late_room * 2 : 256;
        int32_t *grown = realloc(e->late, room * sizeof *grown);
        if (!grown)
            return -1;
        e->late = grown;
        e->late_room = room;
    }
    if (!e->wait[entry->base])
        e->late[e->late_count++] = entry->base;
    wait_for(e, entry->base, entry);
    return 0;
}

/* Resolve what is ready. `wait_ms`: how long to wait for more when nothing is; 0: return R_IDLE at once.
 * `most_bytes`: return R_IDLE when no more than this is ready. `most_objects`: return R_IDLE after so many. */
GS_API int gs_ingest_work(struct worker *w, int wait_ms, uint64_t most_bytes, int most_objects)
{
    struct engine *e = w->e;
    int result;
    struct timespec deadline;
    if (w->odd) {
        pthread_mutex_lock(&e->lock);
        release_object(e, w->odd);
        pthread_mutex_unlock(&e->lock);
        w->odd = NULL;
    }
    if (wait_ms) {
        clock_gettime(CLOCK_REALTIME, &deadline);
        deadline.tv_nsec += (long)(wait_ms % 1000) * 1000000;
        deadline.tv_sec += wait_ms / 1000 + deadline.tv_nsec / 1000000000;
        deadline.tv_nsec %= 1000000000;
    }
    for (;;) {
        struct entry *entry = w->current;
        w->current = NULL;
        pthread_mutex_lock(&e->lock);
        if (!entry) {
            for (;;) {
                if (e->stop) {
                    result = R_STOP;
                    break;
                }
                result = R_IDLE;
                if (most_bytes && e->ready_bytes <= most_bytes)
                    break;
                if (most_objects-- <= 0)
                    break;
                entry = pop_front(e);
                if (entry) {
                    e->active++;
                    break;
                }
                if (e->scan_done && !e->active) {
                    pthread_cond_broadcast(&e->ready_cond);
                    result = R_DONE;
                    break;
                }
                most_objects++;
                if (!wait_ms || pthread_cond_timedwait(&e->ready_cond, &e->lock, &deadline))
                    break;
            }
        }
        pthread_mutex_unlock(&e->lock);
        if (!entry)
            return result;
        result = resolve(w, entry);
        if (result == R_THIN) {
            w->current = entry;
            return R_THIN;
        }
        pthread_mutex_lock(&e->lock);
        int out_of_memory = 0, index = entry->index;
        if (result == RC_LATE && e->scan_done) {
            push_back(e, entry);
            entry = NULL;
        } else if (result == RC_LATE) {
            out_of_memory = note_late(e, entry);
        }
        e->active--;
        if (e->scan_done && !e->active && !e->ready_first)
            pthread_cond_broadcast(&e->ready_cond);
        pthread_mutex_unlock(&e->lock);
        if (entry) {
            free(entry->data);
            free(entry);
        }
        if (out_of_memory)
            return fail(e, E_MEMORY, index, 0, 0);
        if (result != R_IDLE && result != RC_LATE)
            return result;
    }
}

/* --- scanning; one thread */

static int64_t index_at(const struct engine *e, uint64_t offset)
{
    int64_t low = 0, high = e->scanned;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (e->offsets[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < e->scanned && e->offsets[low] == offset ? low : -1;
}

/* Take in an entry that was inflated, under the lock; `entry` is taken over. */
static int enqueue(struct engine *e, struct entry *entry, int32_t base, const uint8_t *base_name)
{
    entry->base = base;
    if (base_name) {
        int64_t found = own_find(e, base_name);
        if (found < 0) {
            if (await_name(e, base_name, entry->index))
                return -1;
            hold(e, entry);
            return 0;
        }
        e->types[found] |= REF_BASE;
        entry->base = (int32_t)found;
    } else if (base >= 0 && !e->types[base]) {
        wait_for(e, base, entry);
        hold(e, entry);
        return 0;
    }
    push_back(e, entry);
    return 0;
}

/* Read entries out of buf[s->pos..len), which stands at `start` + pos of the stream. `is_all`: no more comes. */
GS_API int gs_ingest_scan(struct engine *e, const uint8_t *buf, uint64_t len, uint64_t start, int is_all,
                          struct gs_scan *s)
{
    uint64_t step_bytes = 0;
    int queued = 0, result = R_IDLE;
    struct { struct entry *entry; int32_t base; int has_name; uint8_t name[MAX_RAW]; } batch[STEP_ENTRIES];
    int batched = 0;

    while (result == R_IDLE) {
        int64_t index = e->scanned;
        if ((uint64_t)index == e->c.total) {
            result = R_DONE;
            break;
        }
        if (batched == STEP_ENTRIES || step_bytes > STEP_BYTES)
            break;
        const uint8_t *first = buf + s->pos, *p = first, *end = buf + len;
        uint64_t offset = start + s->pos;
        uint64_t header_most = 32 + e->raw_len;
        if ((uint64_t)(end - first) < header_most && !is_all) {
            s->want = header_most;
            result = R_MORE;
            break;
        }
#define NEXT_BYTE()                                \
    do {                                           \
        if (p >= end) {                            \
            result = fail(e, E_EOF, -1, 0, 0);     \
            goto flush;                            \
        }                                          \
        byte = *p++;                               \
    } while (0)
        uint8_t byte;
        NEXT_BYTE();
        int kind = byte >> 4 & 7;
        uint64_t size = byte & 15;
        unsigned shift = 4;
        while (byte & 128) {
            NEXT_BYTE();
            if (shift > 60 || (shift == 60 && (byte & 127) > 15)) {
                /* More than 64 bits: no limit is that large, and where zeros follow git refuses too */
                result = fail(e, E_SIZE_FIELD, -1, offset, 0);
                goto flush;
            }
            size |= (uint64_t)(byte & 127) << shift;
            shift += 7;
        }
        int32_t base = NO_BASE;
        const uint8_t *base_name = NULL;
        if (kind == GS_OFS_DELTA) {
            NEXT_BYTE();
            uint64_t back_by = byte & 127;
            while (byte & 128) {
                NEXT_BYTE();
                back_by = ((back_by + 1) << 7) | (byte & 127);
                if (back_by > offset)
                    break;
            }
            if (back_by > offset || offset - back_by < 12 || !back_by) {
                result = fail(e, E_BASE_BOUND, -1, offset, 0);
                goto flush;
            }
            int64_t found = index_at(e, offset - back_by);
            if (found < 0) {
                result = fail(e, E_BASE_OBJECT, -1, offset, 0);
                goto flush;
            }
            base = (int32_t)found;
        } else if (kind == GS_REF_DELTA) {
            if ((uint64_t)(end - p) < e->raw_len) {
                result = fail(e, E_EOF, -1, 0, 0);
                goto flush;
            }
            base_name = p;
            p += e->raw_len;
        } else if (kind < GS_COMMIT || kind > GS_TAG) {
            result = fail(e, E_TYPE, -1, offset, (uint64_t)kind);
            goto flush;
        }
        uint64_t limit;
        if (is_beyond(e, kind, size, &limit)) {
            result = fail(e, E_LIMIT, -1, size, limit);
            goto flush;
        }
        int code = back(e, (uint64_t)index + 1);
        if (code) {
            errno = code;
            result = fail(e, E_OS, -1, 0, 0);
            goto flush;
        }
        e->offsets[index] = offset;
        int is_big = size >= INLINE_BYTES;
        size_t used = 0;
        uint8_t *data = NULL;
        if (!is_big) {
            data = allocate(size);
            if (!data) {
                result = fail(e, E_MEMORY, -1, 0, 0);
                goto flush;
            }
            if (gs_inflate_used(p, (size_t)(end - p), data, size, &used)) {
                uint64_t have = (uint64_t)(end - first), most = (uint64_t)(p - first) + size + (size >> 9) + 4096;
                free(data);
                if (have < most && !is_all) {
                    s->want = have * 2 < have + 65536 ? have + 65536 : have * 2;
                    if (s->want > most)
                        s->want = most;
                    result = R_MORE;
                    break;
                }
                is_big = 1; /* broken, or drawn out with empty blocks: Python goes through it piece by piece */
            }
        }
        if (is_big) {
            e->big_entry.kind = kind;
            e->big_entry.base = base;
            e->big_entry.size = size;
            if (base_name)
                memcpy(e->big_entry.name, base_name, e->raw_len);
            s->kind = kind;
            s->size = size;
            s->header_bytes = (uint64_t)(p - first);
            result = R_BIG;
            break;
        }
        struct entry *entry = malloc(sizeof *entry);
        if (!entry) {
            free(data);
            result = fail(e, E_MEMORY, -1, 0, 0);
            goto flush;
        }
        entry->index = (int32_t)index;
        entry->kind = (uint8_t)kind;
        entry->data = data;
        entry->size = (uint32_t)size;
        batch[batched].entry = entry;
        batch[batched].base = base;
        batch[batched].has_name = base_name != NULL;
        if (base_name)
            memcpy(batch[batched].name, base_name, e->raw_len);
        batched++;
        step_bytes += size;
        e->crcs[index] = crc32_of(first, (size_t)(p - first) + used);
        s->pos += (uint64_t)(p - first) + used;
        e->offsets[index + 1] = start + s->pos;
        e->scanned = index + 1;
    }
flush:
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < batched; i++) {
        if (queued < 0)
            continue;
        if (enqueue(e, batch[i].entry, batch[i].base, batch[i].has_name ? batch[i].name : NULL))
            queued = -1;
        else
            queued++;
    }
    if (queued)
        pthread_cond_broadcast(&e->ready_cond);
    int is_full = e->ready_bytes > READY_BYTES, stopped = e->stop;
    pthread_mutex_unlock(&e->lock);
    if (queued < 0)
        return fail(e, E_MEMORY, -1, 0, 0);
    if (stopped && result != R_ERROR)
        return R_STOP;
    return result == R_IDLE && is_full ? R_FULL : result;
}

/* Take in the entry that Python inflated: `data` is copied. */
GS_API int gs_ingest_add_big(struct engine *e, const uint8_t *data, uint32_t crc, uint64_t end)
{
    int64_t index = e->scanned;
    uint64_t size = e->big_entry.size;
    struct entry *entry = malloc(sizeof *entry);
    uint8_t *copy = allocate(size);
    if (!entry || !copy) {
        free(entry);
        free(copy);
        return fail(e, E_MEMORY, -1, 0, 0);
    }
    memcpy(copy, data, size);
    entry->index = (int32_t)index;
    entry->kind = (uint8_t)e->big_entry.kind;
    entry->data = copy;
    entry->size = (uint32_t)size;
    e->crcs[index] = crc;
    e->offsets[index + 1] = end;
    pthread_mutex_lock(&e->lock);
    e->scanned = index + 1;
    int result = enqueue(e, entry, e->big_entry.base, e->big_entry.kind == GS_REF_DELTA ? e->big_entry.name : NULL);
    pthread_cond_broadcast(&e->ready_cond);
    pthread_mutex_unlock(&e->lock);
    return result ? fail(e, E_MEMORY, -1, 0, 0) : R_IDLE;
}

/* Take in the blob that Python inflated and named. `*first`: the object that has the name already, or -1. */
GS_API int gs_ingest_add_streamed(struct engine *e, const uint8_t *name, uint32_t crc, uint64_t end, int32_t *first)
{
    int64_t index = e->scanned;
    e->crcs[index] = crc;
    e->offsets[index + 1] = end;
    pthread_mutex_lock(&e->lock);
    e->scanned = index + 1;
    e->resolved_bytes += e->big_entry.size;
    *first = (int32_t)own_find(e, name); /* the caller compares the two */
    int result = record(e, (int32_t)index, GS_BLOB | STREAMED, name, NO_BASE, 0, *first, first);
    int kind = *first >= 0 ? e->types[*first] & KIND_MASK : GS_BLOB;
    pthread_mutex_unlock(&e->lock);
    if (result)
        return fail(e, E_MEMORY, -1, 0, 0);
    return kind == GS_BLOB ? R_IDLE : fail_named(e, E_COLLISION_TYPES, index, name);
}

static int compare_int32(const void *a, const void *b)
{
    int32_t left = *(const int32_t *)a, right = *(const int32_t *)b;
    return (left > right) - (left < right);
}

/* All entries are read: what was left to the end becomes ready, sorted by base, since neighbours have bases in
 * common. */
GS_API int gs_ingest_scan_done(struct engine *e)
{
    int count = 0, result = 0;
    pthread_mutex_lock(&e->lock);
    e->scan_done = 1; /* what turns out to be late from now on is queued again at once */
    if (e->late_count)
        qsort(e->late, e->late_count, sizeof *e->late, compare_int32);
    for (size_t i = 0; i < e->late_count && !result; i++) {
        int32_t base = e->late[i], first = e->wait[base];
        e->wait[base] = 0;
        for (int32_t at = first; at && !result;) {
            int32_t index = at - 1;
            at = e->next[index];
            struct entry *entry = calloc(1, sizeof *entry);
            if (!entry) {
                result = -1;
                break;
            }
            entry->index = index;
            entry->kind = GS_OFS_DELTA;
            entry->base = base;
            push_back(e, entry);
            count++;
        }
    }
    e->late_count = 0;
    pthread_cond_broadcast(&e->ready_cond);
    pthread_mutex_unlock(&e->lock);
    return result ? fail(e, E_MEMORY, -1, 0, 0) : R_IDLE;
}

/* --- what Python does in between */

GS_API void gs_ingest_stop(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stop = 1;
    pthread_cond_broadcast(&e->ready_cond);
    pthread_mutex_unlock(&e->lock);
}

/* Note references that Python read: `count` raw oids of one type. */
GS_API int gs_ingest_add_refs(struct worker *w, int kind, const uint8_t *names, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (add_ref(w, kind, names + i * w->e->raw_len))
            return fail(w->e, E_MEMORY, -1, 0, 0);
    return R_IDLE;
}

/* Give the content of the repository's object number `place`, for the entry that R_THIN was returned for, or
 * (without an entry) for gs_ingest_content. */
GS_API int gs_ingest_put_thin(struct worker *w, int32_t place, int kind, const uint8_t *data, uint64_t size)
{
    struct engine *e = w->e;
    uint8_t *copy = allocate(size);
    struct object *o = copy ? new_object(THIN - place, kind, copy, size) : NULL;
    if (!o) {
        free(copy);
        return fail(e, E_MEMORY, -1, 0, 0);
    }
    memcpy(copy, data, size);
    pthread_mutex_lock(&e->lock);
    cache_put(e, o);
    /* Both are kept until the entry is done, however little the cache holds: else they would take turns */
    release_object(e, w->pinned[1]);
    w->pinned[1] = w->pinned[0];
    w->pinned[0] = o;
    pthread_mutex_unlock(&e->lock);
    return R_IDLE;
}

/* Tell that awaited deltas may build on the repository's object number `place`. */
GS_API int gs_ingest_found_thin(struct engine *e, int32_t place, const uint8_t *name)
{
    pthread_mutex_lock(&e->lock);
    int result = wake_all(e, -1, THIN - place, name);
    pthread_mutex_unlock(&e->lock);
    return result ? fail(e, E_MEMORY, -1, 0, 0) : R_IDLE;
}

/* Give up to `room` raw oids that are awaited, each with the index of the first delta that waits for it, from
 * bucket `*place` on; their number. */
GS_API uint64_t gs_ingest_awaited(struct engine *e, uint32_t *place, uint8_t *names, int32_t *indexes, uint64_t room)
{
    uint64_t count = 0;
    pthread_mutex_lock(&e->lock);
    while (*place < e->awaited_buckets) {
        uint64_t before = count;
        struct name_wait *node = e->awaited[*place];
        for (; node && count < room; node = node->same) {
            indexes[count] = node->lowest;
            memcpy(names + count++ * e->raw_len, node->name, e->raw_len);
        }
        if (node && before) { /* a bucket that does not fit comes again, alone */
            count = before;
            break;
        }
        ++*place;
        if (count == room)
            break;
    }
    pthread_mutex_unlock(&e->lock);
    return count;
}

/* Build an object for Python: R_IDLE and w->event, valid until the next call with this worker; R_THIN. */
GS_API int gs_ingest_content(struct worker *w, int32_t index)
{
    struct engine *e = w->e;
    struct object *o = NULL;
    pthread_mutex_lock(&e->lock);
    release_object(e, w->odd);
    w->odd = NULL;
    pthread_mutex_unlock(&e->lock);
    int result = content(w, index, 0, &o);
    if (result)
        return result;
    w->odd = o;
    w->event.index = index;
    w->event.data = o->data;
    w->event.size = o->size;
    w->event.kind = o->kind;
    pthread_mutex_lock(&e->lock);
    unpin(w);
    pthread_mutex_unlock(&e->lock);
    return R_IDLE;
}

GS_API int64_t gs_ingest_find(struct engine *e, const uint8_t *name)
{
    pthread_mutex_lock(&e->lock);
    int64_t index = own_find(e, name);
    pthread_mutex_unlock(&e->lock);
    return index;
}

/* Append a base that completes a thin pack: it is no object of the peer's, so no name leads to it. */
GS_API int gs_ingest_append(struct engine *e, int kind, const uint8_t *name, uint32_t crc, uint64_t offset, uint64_t end)
{
    int64_t index = e->scanned;
    int code = (uint64_t)index >= e->capacity ? ENOMEM : back(e, (uint64_t)index + 1);
    if (code) {
        errno = code;
        return fail(e, E_OS, -1, 0, 0);
    }
    e->offsets[index] = offset;
    e->offsets[index + 1] = end;
    e->crcs[index] = crc;
    e->types[index] = (uint8_t)kind;
    e->parents[index] = NO_BASE;
    memcpy(e->names + (size_t)index * e->raw_len, name, e->raw_len);
    e->scanned++;
    return R_IDLE;
}

struct gs_state {
    uint64_t *offsets;
    uint8_t *names, *types;
    uint32_t *crcs;
    int32_t *parents;
    uint16_t *depths;
    const uint8_t *special;
    uint64_t special_count;
    uint64_t scanned, done, resolved_bytes, rebuilt_entries, outside_count;
    const uint8_t *outside;
    struct gs_error error;
};

GS_API void gs_ingest_state(struct engine *e, struct gs_state *s)
{
    pthread_mutex_lock(&e->lock);
    s->offsets = e->offsets;
    s->names = e->names;
    s->types = e->types;
    s->crcs = e->crcs;
    s->parents = e->parents;
    s->depths = e->depths;
    s->special = e->special;
    s->special_count = e->special_count;
    s->scanned = (uint64_t)e->scanned;
    s->done = (uint64_t)e->done;
    s->resolved_bytes = e->resolved_bytes;
    s->rebuilt_entries = e->rebuilt_entries;
    s->outside_count = e->outside_count;
    s->outside = e->outside;
    s->error = e->error;
    pthread_mutex_unlock(&e->lock);
}

GS_API struct gs_event *gs_ingest_event(struct worker *w)
{
    return &w->event;
}

/* Free the cache: nothing will be asked for any more. */
GS_API void gs_ingest_clear(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    while (e->oldest)
        cache_evict(e, e->oldest);
    pthread_mutex_unlock(&e->lock);
    if (malloc_trim && e->c.total > 10000)
        malloc_trim(0);
}

/* --- facts */

/* Sort records of `width` bytes in place: heap sort, no matter what stands in them. */
static void sort_records(uint8_t *records, uint64_t count, size_t width)
{
    uint8_t spare[1 + MAX_RAW];
    if (count < 2)
        return;
    uint64_t start = count / 2, end = count;
    for (;;) {
        if (start) {
            memcpy(spare, records + --start * width, width);
        } else {
            if (!--end)
                return;
            memcpy(spare, records + end * width, width);
            memcpy(records + end * width, records, width);
        }
        uint64_t root = start, child;
        while ((child = 2 * root + 1) < end) {
            if (child + 1 < end && memcmp(records + child * width, records + (child + 1) * width, width) < 0)
                child++;
            if (memcmp(spare, records + child * width, width) >= 0)
                break;
            memcpy(records + root * width, records + child * width, width);
            root = child;
        }
        memcpy(records + root * width, spare, width);
    }
}

static int keep_outside(struct engine *e, const uint8_t *record, uint64_t *room)
{
    size_t stride = e->raw_len + 1;
    int64_t index = own_find(e, record + 1);
    if (index >= 0 && (e->types[index] & KIND_MASK) == record[0])
        return 0;
    if (e->outside_count == *room) {
        uint64_t grown_room = *room ? *room * 2 : 1024;
        uint8_t *grown = realloc(e->outside, grown_room * stride);
        if (!grown)
            return -1;
        e->outside = grown;
        *room = grown_room;
    }
    uint8_t *out = e->outside + e->outside_count++ * stride;
    memcpy(out, record + 1, e->raw_len);
    out[e->raw_len] = record[0];
    return 0;
}

/* Gather what the objects refer to and the pack does not hold with that type: records of a raw oid and a type,
 * sorted, each once. Nobody else is at work any more. */
GS_API int gs_ingest_facts(struct engine *e)
{
    size_t stride = e->raw_len + 1;
    uint64_t room = 0;
    for (struct worker *w = e->workers; w; w = w->next) {
        for (uint64_t i = 0; i <= w->refs_mask; i++)
            if (w->refs[i * stride] && keep_outside(e, w->refs + i * stride, &room))
                return fail(e, E_MEMORY, -1, 0, 0);
        memset(w->refs, 0, (w->refs_mask + 1) * stride);
        w->refs_count = 0;
    }
    uint8_t block[512 * (1 + MAX_RAW)];
    uint64_t per_block = sizeof block / stride;
    for (uint64_t at = 0; at < e->refs_spilled;) {
        uint64_t count = e->refs_spilled - at < per_block ? e->refs_spilled - at : per_block;
        if (read_at(e->refs_fd, block, count * stride, at * stride))
            return fail(e, E_OS, -1, 0, 0);
        for (uint64_t i = 0; i < count; i++)
            if (keep_outside(e, block + i * stride, &room))
                return fail(e, E_MEMORY, -1, 0, 0);
        at += count;
    }
    sort_records(e->outside, e->outside_count, stride);
    uint64_t kept = 0;
    for (uint64_t i = 0; i < e->outside_count; i++) {
        const uint8_t *from = e->outside + i * stride;
        if (kept && !memcmp(e->outside + (kept - 1) * stride, from, stride))
            continue;
        memmove(e->outside + kept++ * stride, from, stride);
    }
    e->outside_count = kept;
    return R_IDLE;
}

GS_API void gs_ingest_free(struct engine *e)
{
    for (struct worker *w = e->workers, *following; w; w = following) {
        following = w->next;
        release_object(e, w->odd);
        unpin(w);
        if (w->current) {
            free(w->current->data);
            free(w->current);
        }
        free(w->chain);
        free(w->refs);
        free(w->fresh);
        free(w);
    }
    while (e->oldest)
        cache_evict(e, e->oldest);
    for (struct entry *entry = e->ready_first, *following; entry; entry = following) {
        following = entry->next;
        free(entry->data);
        free(entry);
    }
    for (int i = 0; i < CACHE_BUCKETS; i++)
        for (struct entry *entry = e->held[i], *following; entry; entry = following) {
            following = entry->next;
            free(entry->data);
            free(entry);
        }
    for (uint32_t i = 0; i < e->awaited_buckets; i++)
        for (struct name_wait *node = e->awaited[i], *following; node; node = following) {
            following = node->same;
            free(node);
        }
    free(e->awaited);
    free(e->late);
    if (e->own)
        own_free(e);
    free(e->special);
    free(e->outside);
    if (e->refs_fd >= 0)
        close(e->refs_fd);
    if (e->c.array_fd >= 0)
        close(e->c.array_fd);
    for (int i = 0; i < e->region_count; i++)
        munmap(e->regions[i].address, e->regions[i].length);
    if (e->c.directory && malloc_trim && e->c.total > 10000)
        malloc_trim(0);
    free((void *)e->c.directory);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->big);
    pthread_cond_destroy(&e->ready_cond);
    free(e);
}

/* --- writing the index */

static int compare_names(const uint8_t *names, size_t raw_len, uint32_t a, uint32_t b)
{
    int order = memcmp(names + (size_t)a * raw_len, names + (size_t)b * raw_len, raw_len);
    return order ? order : a < b ? -1 : a > b;
}

static void sort_positions(const uint8_t *names, size_t raw_len, uint32_t *order, size_t count)
{
    if (count <= 24) {
        for (size_t i = 1; i < count; i++) {
            uint32_t position = order[i];
            size_t at = i;
            for (; at && compare_names(names, raw_len, order[at - 1], position) > 0; at--)
                order[at] = order[at - 1];
            order[at] = position;
        }
        return;
    }
    for (size_t start = count / 2, end = count;;) { /* heap sort: whoever chose the names */
        uint32_t position;
        if (start) {
            position = order[--start];
        } else {
            if (!--end)
                return;
            position = order[end];
            order[end] = order[0];
        }
        size_t root = start, child;
        while ((child = 2 * root + 1) < end) {
            if (child + 1 < end && compare_names(names, raw_len, order[child], order[child + 1]) < 0)
                child++;
            if (compare_names(names, raw_len, position, order[child]) >= 0)
                break;
            order[root] = order[child];
            root = child;
        }
        order[root] = position;
    }
}

/* Fill `order` with the positions 0..count by the names at them; equal names keep their order. */
GS_API int32_t gs_index_order(const uint8_t *names, uint64_t count, uint64_t raw_len, uint32_t *order)
{
    uint32_t *ends = calloc(1 << 16, sizeof *ends);
    if (!ends)
        return GS_NO_MEMORY;
    for (uint64_t i = 0; i < count; i++)
        ends[names[i * raw_len] << 8 | names[i * raw_len + 1]]++;
    uint32_t total = 0;
    for (int i = 0; i < 1 << 16; i++) {
        uint32_t here = ends[i];
        ends[i] = total;
        total += here;
    }
    for (uint64_t i = 0; i < count; i++)
        order[ends[names[i * raw_len] << 8 | names[i * raw_len + 1]]++] = (uint32_t)i;
    uint32_t start = 0;
    for (int i = 0; i < 1 << 16; start = ends[i++])
        sort_positions(names, (size_t)raw_len, order + start, ends[i] - start);
    free(ends);
    return GS_OK;
}

/* Gather elements of `width` bytes in the order of `order`; with `swap`, 4-byte numbers become big-endian. */
GS_API void gs_index_gather(const uint8_t *table, uint64_t width, const uint32_t *order, uint64_t count, int32_t swap,
                            uint8_t *out)
{
    for (uint64_t i = 0; i < count; i++, out += width) {
        memcpy(out, table + (size_t)order[i] * width, width);
        if (swap) {
            uint32_t value;
            memcpy(&value, out, 4);
            out[0] = (uint8_t)(value >> 24);
            out[1] = (uint8_t)(value >> 16);
            out[2] = (uint8_t)(value >> 8);
            out[3] = (uint8_t)value;
        }
    }
}
