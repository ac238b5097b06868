/* Devices, contexts, failure on demand, and which addresses are what. */
#include "fake_cuda.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
Range fake_ranges[MAX_RANGES];

static int initialised, sticky, num_visible, visible[MAX_DEVICES];
static int retained[MAX_DEVICES];
static char contexts[MAX_DEVICES];  /* a context is the address of its device's element */
static __thread CUcontext stack[32];
static __thread int depth;

static struct { char name[64]; int code, times; } failures[16];

static int num_machine(void) {
    const char *text = getenv("FAKE_CUDA_DEVICES");
    int count = text ? atoi(text) : 2;
    return count < 0 ? 0 : count > MAX_DEVICES ? MAX_DEVICES : count;
}

static void uuid_of(int device, unsigned char *bytes) {
    memset(bytes, 0, 16);
    bytes[0] = 0xfa, bytes[1] = 0xce, bytes[15] = (unsigned char)device;
}

static int named_device(const char *word) {
    char text[64];
    unsigned char u[16];
    for (int d = 0; d < num_machine(); d++) {
        uuid_of(d, u);
        snprintf(text, sizeof text, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                 u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
        if (strcmp(text, word) == 0) return d;
    }
    char *end;
    long number = strtol(word, &end, 10);
    return *word && !*end && number >= 0 && number < num_machine() ? (int)number : -1;
}

static void find_visible(void) {
    const char *mask = getenv("CUDA_VISIBLE_DEVICES");
    num_visible = 0;
    if (!mask) {
        for (int d = 0; d < num_machine(); d++) visible[num_visible++] = d;
        return;
    }
    char copy[1024], *rest = copy, *word;
    snprintf(copy, sizeof copy, "%s", mask);
    while ((word = strsep(&rest, ",")) && num_visible < MAX_DEVICES) {
        int device = named_device(word);
        if (device < 0) break;  /* as the real one: what follows an unknown device is hidden too */
        visible[num_visible++] = device;
    }
}

/* Make `name` fail with `code` the next `times` times; -1 for ever. For tests, by ctypes. */
void fake_fail(const char *name, int code, int times) {
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < 16; i++)
        if (!failures[i].times || strcmp(failures[i].name, name) == 0) {
            snprintf(failures[i].name, sizeof failures[i].name, "%s", name);
            failures[i].code = code, failures[i].times = times;
            break;
        }
    pthread_mutex_unlock(&fake_lock);
}

static void failures_of_environment(void) {
    const char *text = getenv("FAKE_CUDA_FAIL");  /* cuIpcOpenMemHandle=217,cuInit=999 */
    char copy[512], *rest = copy, *word;
    snprintf(copy, sizeof copy, "%s", text ? text : "");
    while ((word = strsep(&rest, ","))) {
        char *code = strchr(word, '=');
        if (code) *code = 0, fake_fail(word, atoi(code + 1), -1);
    }
}

__attribute__((constructor)) static void at_load(void) { failures_of_environment(); }

static CUresult injected(const char *name) {
    int code = 0;
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < 16; i++)
        if (failures[i].times && strcmp(failures[i].name, name) == 0) {
            code = failures[i].code;
            if (failures[i].times > 0) failures[i].times--;
        }
    pthread_mutex_unlock(&fake_lock);
    return (CUresult)code;
}

CUresult fake_enter(const char *name, int context) {
    if (!initialised) FAIL(NOT_INITIALIZED);
    if (context && depth == 0) FAIL(INVALID_CONTEXT);
    if (context && sticky) FAIL(sticky);
    return injected(name);
}

/* Break this process's contexts for good, as a fault on a device does. */
void fake_break(int code) { sticky = code; }
int fake_broken(void) { return sticky; }

int fake_current_device(void) { return depth ? (int)((char *)stack[depth - 1] - contexts) : -1; }
int fake_visible_to_machine(int ordinal) {
    return ordinal >= 0 && ordinal < num_visible ? visible[ordinal] : -1;
}

int fake_reaches(int device, int peer) {
    const char *none = getenv("FAKE_CUDA_NO_P2P");  /* pairs without a path: 0-1,2-3; or all */
    char pair[2][16];
    if (device == peer || !none) return 1;
    if (strcmp(none, "all") == 0) return 0;
    snprintf(pair[0], 16, "%d-%d", device, peer);
    snprintf(pair[1], 16, "%d-%d", peer, device);
    return !strstr(none, pair[0]) && !strstr(none, pair[1]);
}

Range *fake_find(uintptr_t address) {
    for (int i = 0; i < MAX_RANGES; i++) {
        Range *r = &fake_ranges[i];
        if (r->kind && r->kind != RESERVED && address >= r->base && address - r->base < r->size)
            return r;
    }
    return NULL;
}

Range *fake_new_range(void) {
    for (int i = 0; i < MAX_RANGES; i++)
        if (!fake_ranges[i].kind) return &fake_ranges[i];
    fprintf(stderr, "fake cuda: more than %d ranges\n", MAX_RANGES);
    abort();
}

int fake_memfd(const char *name, size_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)size)) close(fd), fd = -1;
    return fd;
}

/* What a device sees when it touches `size` bytes at `address`; plain host memory is fine. */
CUresult fake_check_access(uintptr_t address, size_t size, int writes) {
    (void)writes;
    CUresult result = OK;
    pthread_mutex_lock(&fake_lock);
    Range *r = fake_find(address);
    if (r && address - r->base + size > r->size) result = (CUresult)ILLEGAL_ADDRESS;
    if (r && r->kind == VMM_MAPPED && !r->readable) result = (CUresult)ILLEGAL_ADDRESS;
    const char *death = getenv("FAKE_CUDA_EXPORTER_DEATH");
    if (r && r->kind == IPC_OPENED && !(death && strcmp(death, "readable") == 0)) {
        struct pollfd ended = {r->pidfd, POLLIN, 0};
        if (poll(&ended, 1, 0) == 1) result = (CUresult)ILLEGAL_ADDRESS;
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

CUresult CUDAAPI cuInit(unsigned int flags) {
    (void)flags;
    CUresult result = injected("cuInit");
    if (result != OK) return result;
    if (!initialised) find_visible();
    if (!num_visible) FAIL(NO_DEVICE);
    initialised = 1;
    return OK;
}

CUresult CUDAAPI cuDriverGetVersion(int *version) {
    *version = 13000;
    return OK;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char **name) {
    static const struct { int code; const char *name; } names[] = {
        {0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"},
        {3, "CUDA_ERROR_NOT_INITIALIZED"}, {100, "CUDA_ERROR_NO_DEVICE"},
        {101, "CUDA_ERROR_INVALID_DEVICE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
        {205, "CUDA_ERROR_MAP_FAILED"}, {208, "CUDA_ERROR_ALREADY_MAPPED"},
        {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"}, {400, "CUDA_ERROR_INVALID_HANDLE"},
        {500, "CUDA_ERROR_NOT_FOUND"}, {600, "CUDA_ERROR_NOT_READY"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
        {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"},
        {999, "CUDA_ERROR_UNKNOWN"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == (int)error) {
            *name = names[i].name;
            return OK;
        }
    *name = NULL;
    FAIL(INVALID_VALUE);
}

CUresult CUDAAPI cuDeviceGetCount(int *count) {
    ENTER_BARE("cuDeviceGetCount");
    *count = num_visible;
    return OK;
}

CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER_BARE("cuDeviceGet");
    if (ordinal < 0 || ordinal >= num_visible) FAIL(INVALID_DEVICE);
    *device = ordinal;
    return OK;
}

CUresult CUDAAPI cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER_BARE("cuDeviceGetName");
    const char *part = getenv("FAKE_CUDA_MIG") ? " MIG 1g.5gb" : "";
    snprintf(name, (size_t)length, "Fake GPU %d%s", fake_visible_to_machine(device), part);
    return OK;
}

CUresult CUDAAPI cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    ENTER_BARE("cuDeviceGetUuid");
    if (fake_visible_to_machine(device) < 0) FAIL(INVALID_DEVICE);
    uuid_of(fake_visible_to_machine(device), (unsigned char *)uuid->bytes);
    return OK;
}

CUresult CUDAAPI cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
    ENTER_BARE("cuDeviceGetPCIBusId");
    snprintf(text, (size_t)length, "0000:%02x:00.0", 0x10 + fake_visible_to_machine(device));
    return OK;
}

CUresult CUDAAPI cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER_BARE("cuDeviceTotalMem");
    (void)device;
    *bytes = (size_t)1 << 30;
    return OK;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER_BARE("cuDeviceGetAttribute");
    (void)device;
    *value = (attribute == 102 || attribute == 103) && !getenv("FAKE_CUDA_NO_VMM");
    return OK;
}

CUresult CUDAAPI cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    ENTER_BARE("cuDeviceCanAccessPeer");
    int from = fake_visible_to_machine(device), to = fake_visible_to_machine(peer);
    if (from < 0 || to < 0) FAIL(INVALID_DEVICE);
    *can = from != to && fake_reaches(from, to);
    return OK;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER_BARE("cuDevicePrimaryCtxRetain");
    int machine = fake_visible_to_machine(device);
    if (machine < 0) FAIL(INVALID_DEVICE);
    retained[machine]++;
    *context = (CUcontext)&contexts[machine];
    return OK;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER_BARE("cuDevicePrimaryCtxRelease");
    int machine = fake_visible_to_machine(device);
    if (machine < 0 || !retained[machine]) FAIL(INVALID_CONTEXT);
    retained[machine]--;
    return OK;
}

CUresult CUDAAPI cuCtxPushCurrent_v2(CUcontext context) {
    ENTER_BARE("cuCtxPushCurrent");
    if ((char *)context < contexts || (char *)context >= contexts + MAX_DEVICES || depth == 32)
        FAIL(INVALID_CONTEXT);
    stack[depth++] = context;
    return OK;
}

CUresult CUDAAPI cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER_BARE("cuCtxPopCurrent");
    if (!depth) FAIL(INVALID_CONTEXT);
    depth--;
    if (context) *context = stack[depth];
    return OK;
}
