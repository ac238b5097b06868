/* The library itself, and what a device is. */
#include "fake_nvml.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FIRST_HANDLE 0x1000
#define MEMORY_BYTES 85520809984ULL
#define MEMORY_V2 0x02000028
#define ARCHITECTURE_HOPPER 9

struct pci_info {
    char legacy_id[16];
    unsigned domain, bus, device, ids, subsystem;
    char id[32];
};

struct memory {
    ull total, free, used;
};

struct memory_v2 {
    unsigned version;
    ull total, reserved, free, used;
};

int fake_is_open;

EXPORTED int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (fake_attach())
        return UNKNOWN;
    fake_is_open++;
    return SUCCESS;
}

EXPORTED int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORTED int nvmlShutdown(void)
{
    if (!fake_is_open)
        return UNINITIALIZED;
    fake_is_open--;
    return SUCCESS;
}

EXPORTED const char *nvmlErrorString(int code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case TIMED_OUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case VERSION_MISMATCH: return "Argument Version Mismatch";
    default: return "Unknown Error";
    }
}

int fake_text(char *out, unsigned size, const char *text)
{
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

EXPORTED int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    return fake_text(out, size, "580.95.05");
}

EXPORTED int nvmlSystemGetNVMLVersion(char *out, unsigned size)
{
    return fake_text(out, size, "13.580.95.05");
}

EXPORTED int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    *out = 13000;
    return SUCCESS;
}

static int num_gpus(void)
{
    int found;
    fake_lock();
    found = fake->num_gpus;
    fake_unlock();
    return found;
}

void *fake_handle(int index) { return (void *)(intptr_t)(FIRST_HANDLE + index); }

int fake_enter(void *device, int *index)
{
    struct gpu *gpu;
    int is_lost, error;
    if (!fake_is_open)
        return UNINITIALIZED;
    *index = (int)((intptr_t)device - FIRST_HANDLE);
    if (*index < 0 || *index >= MAX_GPUS)
        return INVALID_ARGUMENT;
    fake_lock();
    gpu = &fake->gpus[*index];
    while (gpu->value[K_hang]) { /* nobody else waits for who hangs */
        fake_unlock();
        usleep(5000);
        fake_lock();
    }
    if (gpu->value[K_delay_ms] > 0) {
        useconds_t delay_us = (useconds_t)(gpu->value[K_delay_ms] * 1000);
        fake_unlock();
        usleep(delay_us);
        fake_lock();
    }
    is_lost = gpu->value[K_lost] != 0 || *index >= fake->num_gpus;
    error = (int)gpu->value[K_error];
    if (is_lost || error) {
        fake_unlock();
        return is_lost ? GPU_IS_LOST : error;
    }
    return SUCCESS;
}

EXPORTED int nvmlDeviceGetCount_v2(unsigned *out)
{
    if (!fake_is_open)
        return UNINITIALIZED;
    *out = (unsigned)num_gpus();
    return SUCCESS;
}

EXPORTED int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    int found, code;
    if (!fake_is_open)
        return UNINITIALIZED;
    if ((int)index >= num_gpus())
        return INVALID_ARGUMENT;
    code = fake_enter(fake_handle((int)index), &found);
    if (code)
        return code;
    fake_unlock();
    *out = fake_handle((int)index);
    return SUCCESS;
}

static void write_uuid(int index, char *out)
{
    sprintf(out, "GPU-fa4e0000-0000-0000-0000-%012d", index);
}

EXPORTED int nvmlDeviceGetHandleByUUID(const char *uuid, void **out)
{
    char own[64];
    if (!fake_is_open)
        return UNINITIALIZED;
    for (int i = 0; i < num_gpus(); i++) {
        write_uuid(i, own);
        if (strcmp(uuid, own) == 0)
            return nvmlDeviceGetHandleByIndex_v2((unsigned)i, out);
    }
    return NOT_FOUND;
}

NUMBER(nvmlDeviceGetIndex, index)
NUMBER(nvmlDeviceGetMinorNumber, index)
NUMBER(nvmlDeviceGetArchitecture, ARCHITECTURE_HOPPER)
NUMBER(nvmlDeviceGetPerformanceState, 0)

CALL(nvmlDeviceGetName, (void *device, char *out, unsigned size),
     code = fake_text(out, size, "NVIDIA H100 80GB HBM3"))

CALL(nvmlDeviceGetUUID, (void *device, char *out, unsigned size), {
    char uuid[64];
    write_uuid(index, uuid);
    code = fake_text(out, size, uuid);
})

CALL(nvmlDeviceGetSerial, (void *device, char *out, unsigned size), {
    char serial[32];
    sprintf(serial, "16500230000%02d", index);
    code = fake_text(out, size, serial);
})

CALL(nvmlDeviceGetCudaComputeCapability, (void *device, int *major, int *minor), {
    *major = 9;
    *minor = 0;
})

CALL(nvmlDeviceGetPciInfo_v3, (void *device, struct pci_info *out), {
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)(0x19 + 0x10 * index) & 0xFF;
    out->ids = 0x233010de;
    out->subsystem = 0x16c110de;
    snprintf(out->legacy_id, sizeof out->legacy_id, "0000:%02X:00.0", out->bus);
    snprintf(out->id, sizeof out->id, "00000000:%02X:00.0", out->bus);
})

CALL(nvmlDeviceGetMemoryInfo, (void *device, struct memory *out), {
    out->total = MEMORY_BYTES;
    out->used = (ull)value[K_memory_used_mb] << 20;
    out->free = out->total - out->used;
})

CALL(nvmlDeviceGetMemoryInfo_v2, (void *device, struct memory_v2 *out), {
    if (out->version == MEMORY_V2) {
        out->total = MEMORY_BYTES;
        out->reserved = 0;
        out->used = (ull)value[K_memory_used_mb] << 20;
        out->free = out->total - out->used;
    } else {
        code = VERSION_MISMATCH;
    }
})

CALL(nvmlDeviceGetMigMode, (void *device, unsigned *current, unsigned *pending),
     *current = *pending = 0)

NUMBER(nvmlDeviceGetPersistenceMode, value[K_persistence])

CALL(nvmlDeviceGetComputeRunningProcesses_v3, (void *device, unsigned *count, void *out), {
    (void)out;
    *count = 0;
})

CALL(nvmlDeviceGetP2PStatus, (void *device, void *peer, unsigned kind, unsigned *out), {
    (void)peer;
    (void)kind;
    (void)gpu;
    *out = 0;
})
