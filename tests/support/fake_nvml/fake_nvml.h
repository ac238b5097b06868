/* A libnvidia-ml.so.1 with simulated H100s, for nvidia-ml-py as it is.
 *
 * Signatures, codes and layouts are those of NVIDIA's public nvml.h; no code of it is used.
 * It is told what to imitate by the file `control` in its own directory, which may be replaced at
 * any time by any process (write another file and rename it), and is read again at the next call:
 *
 *   boot N               another number than before: everything begins anew
 *   gpus N               how many there are (8)
 *   now SECONDS          what time it is; without it, the machine's monotonic clock says
 *   GPU KEY=VALUE ...    what holds of a GPU, or with `*` of all; keys and defaults are in KEYS
 *   xid GPU NUMBER       an event; such lines may only be added
 *   event GPU TYPE DATA  likewise, of any type
 *
 * What is not said has its default again. The file `state` beside it is shared by all processes
 * that have loaded the library and outlives them, as a driver does: energy counters, power limits,
 * locked clocks. Power counts from the first call after it has changed.
 */
#ifndef FAKE_NVML_H
#define FAKE_NVML_H

#include <stdint.h>

#define MAX_GPUS 16
#define MAX_EVENTS 512
#define NUM_LINKS 18
#define MAX_SM_MHZ 1980
#define MEMORY_MHZ 2619
#define MIN_LIMIT_MW 200000
#define MAX_LIMIT_MW 700000
#define EXPORTED __attribute__((visibility("default")))

typedef unsigned long long ull;

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMED_OUT = 10,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

/* power_w is what the work asks for; limits and locked clocks lower it.
 * update_ms: how often the energy counter moves. reset: another number sets the counter to zero.
 * counter, ecc, nvlink, fields: 0 makes the driver say "not supported".
 * hang: calls about this GPU never return. delay_ms: they take so long. error: they fail so.
 * permitted: whether limits may be set. */
#define KEYS(X) \
    X(power_w, 120) X(idle_w, 70) X(update_ms, 0) X(reset, 0) X(counter, 1) \
    X(sm_mhz, MAX_SM_MHZ) X(throttle, 0) X(utilization, 0) X(memory_utilization, 0) \
    X(temperature_c, 34) X(memory_temperature_c, 40) X(memory_used_mb, 0) \
    X(ecc, 1) X(corrected, 0) X(uncorrected, 0) X(sram_worn, 0) \
    X(remap_corrected, 0) X(remap_uncorrected, 0) X(remap_pending, 0) X(remap_failed, 0) \
    X(nvlink, 1) X(nvlink_crc, 0) X(nvlink_replay, 0) X(nvlink_recovery, 0) X(nvlink_down, 0) \
    X(pcie_replays, 0) X(pcie_generation, 5) X(pcie_width, 16) \
    X(fabric_state, 3) X(fabric_status, 0) X(persistence, 1) \
    X(fields, 1) X(recovery, 0) \
    X(lost, 0) X(hang, 0) X(delay_ms, 0) X(error, 0) X(permitted, 1)

enum key {
#define X(name, value) K_##name,
    KEYS(X)
#undef X
    NUM_KEYS
};

struct gpu {
    double value[NUM_KEYS];
    double energy_mj;   /* drawn since the counter began */
    double shown_mj;    /* what the counter shows */
    double limit_mw;
    double locked_mhz;  /* 0: not locked */
};

struct event {
    int gpu;
    ull type, data;
};

struct state {
    uint64_t magic;
    uint64_t control_inode;
    int64_t control_ns, control_bytes, boot;
    double now_s;
    int is_virtual, num_gpus, num_events;
    struct gpu gpus[MAX_GPUS];
    struct event events[MAX_EVENTS];
};

extern struct state *fake; /* only between fake_lock and fake_unlock */

int fake_attach(void);
void fake_lock(void); /* also looks at the control file and lets time pass */
void fake_unlock(void);
double fake_clock_s(void);

/* control.c */
void fake_begin_anew(struct state *state);
void fake_read_control(struct state *state, const char *path, double clock_s);

/* devices.c */
extern int fake_is_open;
void *fake_handle(int index);
int fake_enter(void *device, int *index); /* 0 and the lock held, or an error and no lock */
int fake_text(char *out, unsigned size, const char *text);

/* power.c */
double fake_power_mw(const struct gpu *gpu);
void fake_pass_time(struct state *state, double until_s);
ull fake_counter_mj(struct gpu *gpu, double now_s);

/* A call about one device. In its body `gpu` is the device, `value` its keys, and `code` what it
 * answers. A body may hold commas, hence the dots. */
#define CALL(name, parameters, ...)                             \
    EXPORTED int name parameters                                \
    {                                                           \
        int index, code = fake_enter(device, &index);           \
        if (code)                                               \
            return code;                                        \
        struct gpu *gpu = &fake->gpus[index];                   \
        double *value = gpu->value;                             \
        (void)value;                                            \
        __VA_ARGS__;                                            \
        fake_unlock();                                          \
        return code;                                            \
    }

#define NUMBER(name, expression) \
    CALL(name, (void *device, unsigned *out), *out = (unsigned)(expression))

/* A call that only some GPUs know, by the key that says so. */
#define NUMBER_IF(name, key, type, expression)                   \
    CALL(name, (void *device, type *out), {                      \
        if (value[K_##key])                                      \
            *out = (type)(expression);                           \
        else                                                     \
            code = NOT_SUPPORTED;                                \
    })

#endif
