/* ECC, row remapping, NVLink, PCIe, fabric, and values by field number. */
#include "fake_nvml.h"


#define FABRIC_VERSIONS 0xFF000000
#define SRAM_V1 0x1000068

enum { AS_UNSIGNED = 1, AS_ULL = 3 };

struct fabric {
    unsigned version;
    unsigned char cluster[16];
    unsigned status, clique;
    unsigned char state;
    unsigned health;
};

struct sram {
    unsigned version;
    ull counts[11];
    unsigned is_worn;
};

struct field {
    uint32_t id, scope;
    int64_t at_us, latency_us;
    uint32_t type, code;
    union {
        double d;
        unsigned u;
        ull q;
    } value;
};

CALL(nvmlDeviceGetEccMode, (void *device, unsigned *current, unsigned *pending), {
    *current = *pending = 1;
    if (!value[K_ecc])
        code = NOT_SUPPORTED;
})

CALL(nvmlDeviceGetTotalEccErrors, (void *device, unsigned kind, unsigned counter, ull *out), {
    (void)counter;
    *out = (ull)value[kind ? K_uncorrected : K_corrected];
    if (!value[K_ecc])
        code = NOT_SUPPORTED;
})

CALL(nvmlDeviceGetRemappedRows,
     (void *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
      unsigned *failed), {
    *corrected = (unsigned)value[K_remap_corrected];
    *uncorrected = (unsigned)value[K_remap_uncorrected];
    *pending = (unsigned)value[K_remap_pending];
    *failed = (unsigned)value[K_remap_failed];
    if (!value[K_ecc])
        code = NOT_SUPPORTED;
})

CALL(nvmlDeviceGetSramEccErrorStatus, (void *device, struct sram *out), {
    if (!value[K_ecc])
        code = NOT_SUPPORTED;
    else if (out->version != SRAM_V1)
        code = VERSION_MISMATCH;
    else
        out->is_worn = (unsigned)value[K_sram_worn];
})

NUMBER(nvmlDeviceGetPcieReplayCounter, value[K_pcie_replays])
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, value[K_pcie_generation])
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, value[K_pcie_width])
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, 5)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, 16)

CALL(nvmlDeviceGetNvLinkState, (void *device, unsigned link, unsigned *out), {
    if (link >= NUM_LINKS)
        code = INVALID_ARGUMENT;
    else if (!value[K_nvlink])
        code = NOT_SUPPORTED;
    else
        *out = !((ull)value[K_nvlink_down] >> link & 1);
})

/* All errors are those of link 0. */
CALL(nvmlDeviceGetNvLinkErrorCounter, (void *device, unsigned link, unsigned kind, ull *out), {
    static const enum key kinds[] = {K_nvlink_replay, K_nvlink_recovery, K_nvlink_crc};
    if (link >= NUM_LINKS)
        code = INVALID_ARGUMENT;
    else if (!value[K_nvlink] || kind > 2)
        code = NOT_SUPPORTED;
    else
        *out = link ? 0 : (ull)value[kinds[kind]];
})

CALL(nvmlDeviceGetGpuFabricInfoV, (void *device, struct fabric *out), {
    if (out->version & FABRIC_VERSIONS) {
        out->status = (unsigned)value[K_fabric_status];
        out->clique = 0;
        out->state = (unsigned char)value[K_fabric_state];
        out->health = 0;
    } else {
        code = VERSION_MISMATCH;
    }
})

static void answer(struct field *field, struct gpu *gpu)
{
    double *value = gpu->value;
    field->at_us = (int64_t)(fake->now_s * 1e6);
    field->latency_us = 0;
    field->code = SUCCESS;
    field->type = AS_UNSIGNED;
    field->value.q = 0;
    switch (field->id) {
    case 38: case 45: case 52: case 59: /* NVLink errors over all links */
        field->type = AS_ULL;
        field->value.q = (ull)value[field->id == 38   ? K_nvlink_crc
                                    : field->id == 52 ? K_nvlink_replay
                                                      : K_nvlink_recovery];
        if (field->id == 45)
            field->value.q = 0;
        if (!value[K_nvlink])
            field->code = NOT_SUPPORTED;
        return;
    case 82: field->value.u = (unsigned)value[K_memory_temperature_c]; return;
    case 83: /* energy */
        field->type = AS_ULL;
        if (value[K_counter])
            field->value.q = fake_counter_mj(gpu, fake->now_s);
        else
            field->code = NOT_SUPPORTED;
        return;
    case 185: case 186: /* power over a second, and now */
        field->value.u = (unsigned)fake_power_mw(gpu);
        if (field->scope)
            field->code = NOT_SUPPORTED; /* of the memory alone */
        return;
    case 230: field->value.u = (unsigned)value[K_recovery]; return;
    default: field->code = NOT_SUPPORTED;
    }
}

CALL(nvmlDeviceGetFieldValues, (void *device, int count, struct field *fields), {
    for (int i = 0; i < count; i++) {
        if (value[K_fields])
            answer(&fields[i], gpu);
        else
            fields[i].code = NOT_SUPPORTED;
    }
})
