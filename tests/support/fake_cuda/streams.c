/* Streams: a thread and a queue each, so that a copy that does not wait for what it should shows. */
#include "fake_cuda.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

void fake_break(int code);
int fake_broken(void);

struct CUevent_st {
    unsigned long recorded, reached;  /* how often; an event is complete when they are equal */
    struct timespec at;
};

typedef enum { COPY, FILL, RECORD, WAIT, HOLD, END } What;
typedef struct Job {
    struct Job *next;
    What what;
    uintptr_t to, from;
    size_t size;
    int value;
    struct CUevent_st *event;
    unsigned long turn;
} Job;

struct CUstream_st {
    Job *first, **last;
    int busy, held;
    pthread_t thread;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  /* of queues and events */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int held, num_events;
static CUstream legacy;  /* what NULL stands for: the stream that torch computes on */

/* While held, every stream stands still in front of its next copy. For tests, by ctypes. */
void fake_hold(int on) {
    pthread_mutex_lock(&lock);
    held = on;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* The same for one stream; NULL is the default one. */
static CUstream of(CUstream stream);
void fake_hold_stream(CUstream stream, int on) {
    stream = of(stream);
    pthread_mutex_lock(&lock);
    stream->held = on;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* How many events were created and not destroyed. */
int fake_num_events(void) {
    pthread_mutex_lock(&lock);
    int count = num_events;
    pthread_mutex_unlock(&lock);
    return count;
}

static void copy_or_fill(const Job *job) {
    CUresult result = fake_check_access(job->to, job->size, 1);
    if (result == OK && job->what == COPY) result = fake_check_access(job->from, job->size, 0);
    if (result != OK) fake_break((int)result);
    if (fake_broken()) return;
    if (job->what == COPY) memmove((void *)job->to, (const void *)job->from, job->size);
    else memset((void *)job->to, job->value, job->size);
}

static void *drive(void *given) {
    struct CUstream_st *stream = given;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!stream->first) pthread_cond_wait(&changed, &lock);
        Job *job = stream->first;
        stream->first = job->next;
        if (!stream->first) stream->last = &stream->first;
        stream->busy = 1;
        while (job->what == WAIT && job->event->reached < job->turn) pthread_cond_wait(&changed, &lock);
        while ((job->what == COPY || job->what == FILL) && (held || stream->held))
            pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
        if (job->what == COPY || job->what == FILL) copy_or_fill(job);
        pthread_mutex_lock(&lock);
        if (job->what == RECORD && job->event->reached < job->turn) {
            job->event->reached = job->turn;
            clock_gettime(CLOCK_MONOTONIC, &job->event->at);
        }
        stream->busy = 0;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        What what = job->what;
        free(job);
        if (what == END) return NULL;
    }
}

static void put_locked(CUstream stream, Job job) {
    Job *made = malloc(sizeof *made);
    *made = job;
    made->next = NULL;
    *stream->last = made;
    stream->last = &made->next;
    pthread_cond_broadcast(&changed);
}

static void put(CUstream stream, Job job) {
    pthread_mutex_lock(&lock);
    put_locked(stream, job);
    pthread_mutex_unlock(&lock);
}

static CUstream made_stream(void) {
    CUstream made = calloc(1, sizeof *made);
    made->last = &made->first;
    if (pthread_create(&made->thread, NULL, drive, made)) abort();
    return made;
}

static CUstream of(CUstream stream) {
    if (stream) return stream;
    pthread_mutex_lock(&lock);
    if (!legacy) legacy = made_stream();
    pthread_mutex_unlock(&lock);
    return legacy;
}

/* Only streams that do not wait for the default one, for which nothing here lets them wait. */
CUresult CUDAAPI cuStreamCreate(CUstream *stream, unsigned int flags) {
    ENTER("cuStreamCreate");
    if (flags != 1) FAIL(INVALID_VALUE);
    *stream = made_stream();
    return OK;
}

CUresult CUDAAPI cuStreamDestroy_v2(CUstream stream) {
    ENTER("cuStreamDestroy");
    if (!stream) FAIL(INVALID_HANDLE);
    put(stream, (Job){.what = END});
    pthread_join(stream->thread, NULL);
    free(stream);
    return OK;
}

CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
    ENTER("cuStreamSynchronize");
    stream = of(stream);
    pthread_mutex_lock(&lock);
    while (stream->first || stream->busy) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return (CUresult)fake_broken();
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    ENTER("cuStreamWaitEvent");
    if (!event || flags) FAIL(INVALID_VALUE);
    stream = of(stream);
    pthread_mutex_lock(&lock);
    put_locked(stream, (Job){.what = WAIT, .event = event, .turn = event->recorded});
    pthread_mutex_unlock(&lock);
    return OK;
}

CUresult CUDAAPI cuEventCreate(CUevent *event, unsigned int flags) {
    ENTER("cuEventCreate");
    (void)flags;
    *event = calloc(1, sizeof **event);
    pthread_mutex_lock(&lock);
    num_events++;
    pthread_mutex_unlock(&lock);
    return OK;
}

/* The memory stays: a stream may still have the event in its queue. */
CUresult CUDAAPI cuEventDestroy_v2(CUevent event) {
    ENTER("cuEventDestroy");
    if (!event) FAIL(INVALID_HANDLE);
    pthread_mutex_lock(&lock);
    num_events--;
    pthread_mutex_unlock(&lock);
    return OK;
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    ENTER("cuEventRecord");
    if (!event) FAIL(INVALID_HANDLE);
    stream = of(stream);
    pthread_mutex_lock(&lock);
    put_locked(stream, (Job){.what = RECORD, .event = event, .turn = ++event->recorded});
    pthread_mutex_unlock(&lock);
    return OK;
}

CUresult CUDAAPI cuEventSynchronize(CUevent event) {
    ENTER("cuEventSynchronize");
    pthread_mutex_lock(&lock);
    while (event->reached < event->recorded) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return (CUresult)fake_broken();
}

CUresult CUDAAPI cuEventElapsedTime_v2(float *ms, CUevent begin, CUevent end) {
    ENTER("cuEventElapsedTime");
    if (begin->reached < begin->recorded || end->reached < end->recorded) FAIL(NOT_READY);
    *ms = (float)((double)(end->at.tv_sec - begin->at.tv_sec) * 1e3 +
                  (double)(end->at.tv_nsec - begin->at.tv_nsec) / 1e6);
    return OK;
}

CUresult CUDAAPI cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER("cuMemcpyAsync");
    put(of(stream), (Job){.what = COPY, .to = (uintptr_t)to, .from = (uintptr_t)from, .size = size});
    return OK;
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
    ENTER("cuMemsetD8Async");
    put(of(stream), (Job){.what = FILL, .to = (uintptr_t)to, .size = size, .value = value});
    return OK;
}

#ifndef FAKE_WITHOUT_BATCH
static CUresult batch(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                      CUmemcpyAttributes *attributes, size_t *indexes, size_t num, CUstream stream) {
    ENTER("cuMemcpyBatchAsync");
    if (!stream || !count || num != 1 || indexes[0] != 0 || (int)attributes->srcAccessOrder != 1)
        FAIL(INVALID_VALUE);
    for (size_t i = 0; i < count; i++)
        if (!sizes[i]) FAIL(INVALID_VALUE);
    for (size_t i = 0; i < count; i++)
        put(stream, (Job){.what = COPY, .to = (uintptr_t)to[i], .from = (uintptr_t)from[i],
                          .size = sizes[i]});
    return OK;
}
#ifndef FAKE_ONLY_OLD_BATCH
CUresult CUDAAPI cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                                       CUmemcpyAttributes *attributes, size_t *indexes, size_t num,
                                       CUstream stream) {
    return batch(to, from, sizes, count, attributes, indexes, num, stream);
}
#endif
#ifdef cuMemcpyBatchAsync
#undef cuMemcpyBatchAsync  /* cuda.h names the newest one so */
#endif
CUresult CUDAAPI cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                                    CUmemcpyAttributes *attributes, size_t *indexes, size_t num,
                                    size_t *failed, CUstream stream) {
    CUresult result = batch(to, from, sizes, count, attributes, indexes, num, stream);
    if (result != OK && failed) *failed = SIZE_MAX;
    return result;
}
#endif
