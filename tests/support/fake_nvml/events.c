/* Events: who registers hears of what happens from then on. */
#include "fake_nvml.h"

#include <stdlib.h>
#include <unistd.h>

#define SUPPORTED 0x800BULL /* ECC errors, XIDs, the driver's recovery action */
#define LOOK_AGAIN_US 2000

struct event_set {
    int is_used, next;
    ull types[MAX_GPUS];
};

struct event_data {
    void *device;
    ull type, data;
    unsigned gpu_instance, compute_instance;
};

EXPORTED int nvmlEventSetCreate(struct event_set **out)
{
    if (!fake_is_open)
        return UNINITIALIZED;
    *out = calloc(1, sizeof(struct event_set));
    return *out ? SUCCESS : UNKNOWN;
}

EXPORTED int nvmlEventSetFree(struct event_set *set)
{
    free(set);
    return SUCCESS;
}

CALL(nvmlDeviceGetSupportedEventTypes, (void *device, ull *out), {
    (void)gpu;
    *out = SUPPORTED;
})

CALL(nvmlDeviceRegisterEvents, (void *device, ull types, struct event_set *set), {
    (void)gpu;
    if (types & ~SUPPORTED) {
        code = NOT_SUPPORTED;
    } else {
        if (!set->is_used)
            set->next = fake->num_events;
        set->is_used = 1;
        set->types[index] |= types;
    }
})

static int take_next(struct event_set *set, struct event_data *out)
{
    int is_found = 0;
    fake_lock();
    if (set->next > fake->num_events)
        set->next = fake->num_events; /* everything has begun anew */
    while (!is_found && set->next < fake->num_events) {
        struct event *event = &fake->events[set->next++];
        is_found = event->gpu >= 0 && event->gpu < fake->num_gpus &&
                   (set->types[event->gpu] & event->type);
        if (is_found)
            *out = (struct event_data){fake_handle(event->gpu), event->type, event->data, ~0u, ~0u};
    }
    fake_unlock();
    return is_found;
}

EXPORTED int nvmlEventSetWait_v2(struct event_set *set, struct event_data *out, unsigned wait_ms)
{
    double until_s = fake_clock_s() + wait_ms / 1000.0;
    if (!fake_is_open)
        return UNINITIALIZED;
    if (!set || !out)
        return INVALID_ARGUMENT;
    while (!take_next(set, out)) {
        if (fake_clock_s() >= until_s)
            return TIMED_OUT;
        usleep(LOOK_AGAIN_US);
    }
    return SUCCESS;
}
