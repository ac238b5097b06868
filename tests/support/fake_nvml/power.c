/* Energy, power, clocks, temperatures and utilisation. */
#include "fake_nvml.h"

#include <math.h>

#define CLOCK_MEMORY 2
#define REASON_IDLE 0x1
#define REASON_POWER_CAP 0x4
#define TEMPERATURE_V1 0x100000C
#define MARGIN_V1 0x1000008
#define SLOWDOWN_C 89

/* A locked clock scales what is above idle by its square; then the limit bites. */
double fake_power_mw(const struct gpu *gpu)
{
    double power_mw = gpu->value[K_power_w] * 1000, idle_mw = gpu->value[K_idle_w] * 1000;
    double share = gpu->locked_mhz > 0 ? gpu->locked_mhz / MAX_SM_MHZ : 1;
    if (power_mw > idle_mw)
        power_mw = idle_mw + (power_mw - idle_mw) * share * share;
    return power_mw > gpu->limit_mw ? gpu->limit_mw : power_mw;
}

void fake_pass_time(struct state *state, double until_s)
{
    if (until_s <= state->now_s)
        return;
    for (int i = 0; i < MAX_GPUS; i++) {
        struct gpu *gpu = &state->gpus[i];
        gpu->energy_mj += fake_power_mw(gpu) * (until_s - state->now_s);
    }
    state->now_s = until_s;
}

ull fake_counter_mj(struct gpu *gpu, double now_s)
{
    double update_s = gpu->value[K_update_ms] / 1000;
    double reached_mj = gpu->energy_mj;
    if (update_s > 0)
        reached_mj -= fake_power_mw(gpu) * fmod(now_s, update_s);
    if (reached_mj > gpu->shown_mj)
        gpu->shown_mj = reached_mj;
    return (ull)(gpu->shown_mj + 1e-3); /* sums of doubles end just below whole numbers */
}

NUMBER_IF(nvmlDeviceGetTotalEnergyConsumption, counter, ull, fake_counter_mj(gpu, fake->now_s))
NUMBER(nvmlDeviceGetPowerUsage, fake_power_mw(gpu))
NUMBER(nvmlDeviceGetPowerManagementLimit, gpu->limit_mw)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, gpu->limit_mw)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, MAX_LIMIT_MW)

CALL(nvmlDeviceGetPowerManagementLimitConstraints,
     (void *device, unsigned *lowest, unsigned *highest), {
    *lowest = MIN_LIMIT_MW;
    *highest = MAX_LIMIT_MW;
})

CALL(nvmlDeviceSetPowerManagementLimit, (void *device, unsigned limit_mw), {
    if (!value[K_permitted])
        code = NO_PERMISSION;
    else if (limit_mw < MIN_LIMIT_MW || limit_mw > MAX_LIMIT_MW)
        code = INVALID_ARGUMENT;
    else
        gpu->limit_mw = limit_mw;
})

CALL(nvmlDeviceSetGpuLockedClocks, (void *device, unsigned lowest, unsigned highest), {
    if (!value[K_permitted])
        code = NO_PERMISSION;
    else if (lowest > highest || highest > MAX_SM_MHZ || lowest < 210)
        code = INVALID_ARGUMENT;
    else
        gpu->locked_mhz = highest;
})

CALL(nvmlDeviceResetGpuLockedClocks, (void *device), {
    if (value[K_permitted])
        gpu->locked_mhz = 0;
    else
        code = NO_PERMISSION;
})

CALL(nvmlDeviceGetClockInfo, (void *device, unsigned kind, unsigned *out), {
    double sm_mhz = value[K_sm_mhz];
    if (gpu->locked_mhz > 0 && gpu->locked_mhz < sm_mhz)
        sm_mhz = gpu->locked_mhz;
    *out = kind == CLOCK_MEMORY ? MEMORY_MHZ : (unsigned)sm_mhz;
})

CALL(nvmlDeviceGetMaxClockInfo, (void *device, unsigned kind, unsigned *out), {
    (void)gpu;
    *out = kind == CLOCK_MEMORY ? MEMORY_MHZ : MAX_SM_MHZ;
})

static ull reasons(const struct gpu *gpu)
{
    ull found = (ull)gpu->value[K_throttle];
    if (gpu->value[K_power_w] * 1000 > gpu->limit_mw && fake_power_mw(gpu) >= gpu->limit_mw)
        found |= REASON_POWER_CAP;
    return found || gpu->value[K_utilization] ? found : REASON_IDLE;
}

CALL(nvmlDeviceGetCurrentClocksEventReasons, (void *device, ull *out), *out = reasons(gpu))
CALL(nvmlDeviceGetCurrentClocksThrottleReasons, (void *device, ull *out), *out = reasons(gpu))

CALL(nvmlDeviceGetUtilizationRates, (void *device, unsigned *out), {
    out[0] = (unsigned)value[K_utilization];
    out[1] = (unsigned)value[K_memory_utilization];
})

CALL(nvmlDeviceGetTemperature, (void *device, unsigned sensor, unsigned *out), {
    if (sensor)
        code = INVALID_ARGUMENT;
    else
        *out = (unsigned)value[K_temperature_c];
})

CALL(nvmlDeviceGetTemperatureV, (void *device, unsigned *out), {
    if (out[0] == TEMPERATURE_V1)
        out[2] = (unsigned)value[K_temperature_c];
    else
        code = VERSION_MISMATCH;
})

CALL(nvmlDeviceGetTemperatureThreshold, (void *device, unsigned kind, unsigned *out), {
    static const unsigned thresholds_c[] = {92, SLOWDOWN_C, 95, 87};
    (void)gpu;
    if (kind < 4)
        *out = thresholds_c[kind];
    else
        code = INVALID_ARGUMENT;
})

CALL(nvmlDeviceGetMarginTemperature, (void *device, int *out), {
    if (out[0] == MARGIN_V1)
        out[1] = SLOWDOWN_C - (int)value[K_temperature_c];
    else
        code = VERSION_MISMATCH;
})
