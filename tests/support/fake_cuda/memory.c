/* Allocations in memory files, handles to them for other processes, and mapped host memory. */
#include "fake_cuda.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GRANULARITY ((size_t)2 << 20)
#define MAGIC 0x4550494b4146554eULL

static int num_reserved;  /* by cuMemAddressReserve; under the lock */

typedef struct {
    uint64_t magic, inode, size;
    int32_t pid, fd, device;
} Token;

_Static_assert(sizeof(Token) <= sizeof(CUipcMemHandle), "a token fits a handle");

/* As the real allocator may, several small allocations share one that a handle stands for. */
CUresult CUDAAPI cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    ENTER("cuMemAlloc");
    if (!size) FAIL(INVALID_VALUE);
    int fd = fake_memfd("fake-cuda", size);
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) FAIL(OUT_OF_MEMORY);
    pthread_mutex_lock(&fake_lock);
    *fake_new_range() = (Range){.kind = ALLOCATED, .base = (uintptr_t)at, .size = size, .fd = fd,
                                .device = fake_current_device()};
    pthread_mutex_unlock(&fake_lock);
    *pointer = (CUdeviceptr)(uintptr_t)at;
    return OK;
}

static CUresult drop(uintptr_t base, Kind kind) {
    Range *r = fake_find(base);
    if (!r || r->kind != kind || r->base != base) FAIL(INVALID_VALUE);
    if (--r->opens > 0) return OK;
    munmap((void *)r->base, r->size);
    if (r->fd >= 0) close(r->fd);
    if (kind == IPC_OPENED) close(r->pidfd);
    r->kind = NOTHING;
    return OK;
}

static CUresult drop_locked(CUdeviceptr pointer, Kind kind) {
    pthread_mutex_lock(&fake_lock);
    CUresult result = drop((uintptr_t)pointer, kind);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

CUresult CUDAAPI cuMemFree_v2(CUdeviceptr pointer) {
    ENTER("cuMemFree");
    return drop_locked(pointer, ALLOCATED);
}

CUresult CUDAAPI cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr pointer) {
    ENTER("cuMemGetAddressRange");
    pthread_mutex_lock(&fake_lock);
    Range *r = fake_find((uintptr_t)pointer);
    if (r && r->kind == REGISTERED) r = NULL;
    if (r && base) *base = (CUdeviceptr)r->base;
    if (r && size) *size = r->size;
    pthread_mutex_unlock(&fake_lock);
    return r ? OK : (CUresult)NOT_FOUND;
}

CUresult CUDAAPI cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer) {
    ENTER("cuIpcGetMemHandle");
    struct stat status;
    CUresult result = (CUresult)INVALID_VALUE;  /* also for memory of cuMemCreate, as the real one */
    pthread_mutex_lock(&fake_lock);
    Range *r = fake_find((uintptr_t)pointer);
    if (r && r->kind == ALLOCATED && !fstat(r->fd, &status)) {
        Token token = {MAGIC, status.st_ino, r->size, getpid(), r->fd, r->device};
        memset(handle, 0, sizeof *handle);
        memcpy(handle, &token, sizeof token);
        result = OK;
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

static CUresult open_token(const Token *token, uintptr_t *at) {
    for (int i = 0; i < MAX_RANGES; i++) {
        Range *r = &fake_ranges[i];
        if (r->kind == IPC_OPENED && r->owner == token->pid && r->inode == token->inode) {
            r->opens++;
            *at = r->base;
            return OK;
        }
    }
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", token->pid, token->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) FAIL(INVALID_VALUE);
    int pidfd = (int)syscall(SYS_pidfd_open, token->pid, 0);
    void *map = MAP_FAILED;
    if (!fstat(fd, &status) && status.st_ino == token->inode && pidfd >= 0)
        map = mmap(NULL, token->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        close(fd);
        FAIL(MAP_FAILED_);
    }
    *fake_new_range() = (Range){.kind = IPC_OPENED, .base = (uintptr_t)map, .size = token->size,
                                .fd = fd, .device = token->device, .owner = token->pid,
                                .pidfd = pidfd, .inode = token->inode, .opens = 1};
    *at = (uintptr_t)map;
    return OK;
}

CUresult CUDAAPI cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags) {
    ENTER("cuIpcOpenMemHandle");
    Token token;
    memcpy(&token, &handle, sizeof token);
    if (flags != 1 || token.magic != MAGIC) FAIL(INVALID_VALUE);
    if (token.pid == getpid()) FAIL(INVALID_CONTEXT);
    if (!fake_reaches(fake_current_device(), token.device)) FAIL(PEER_UNSUPPORTED);
    uintptr_t at = 0;
    pthread_mutex_lock(&fake_lock);
    CUresult result = open_token(&token, &at);
    pthread_mutex_unlock(&fake_lock);
    *pointer = (CUdeviceptr)at;
    return result;
}

CUresult CUDAAPI cuIpcCloseMemHandle(CUdeviceptr pointer) {
    ENTER("cuIpcCloseMemHandle");
    return drop_locked(pointer, IPC_OPENED);
}

/* How many ranges of addresses are allocated, mapped or registered now; of reserved ones too. */
int fake_num_ranges(void) {
    int count = 0;
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MAX_RANGES; i++) count += fake_ranges[i].kind != NOTHING;
    pthread_mutex_unlock(&fake_lock);
    return count + num_reserved;
}

static int overlaps(uintptr_t base, size_t size) {
    for (int i = 0; i < MAX_RANGES; i++) {
        Range *r = &fake_ranges[i];
        if (r->kind && base < r->base + r->size && r->base < base + size) return 1;
    }
    return 0;
}

/* How much host memory is registered now. */
size_t fake_registered_bytes(void) {
    size_t bytes = 0;
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MAX_RANGES; i++)
        if (fake_ranges[i].kind == REGISTERED) bytes += fake_ranges[i].size;
    pthread_mutex_unlock(&fake_lock);
    return bytes;
}

CUresult CUDAAPI cuMemHostRegister_v2(void *address, size_t size, unsigned int flags) {
    ENTER("cuMemHostRegister");
    (void)flags;
    CUresult result = OK;
    pthread_mutex_lock(&fake_lock);
    if ((uintptr_t)address % 4096 || !size) result = (CUresult)INVALID_VALUE;
    else if (overlaps((uintptr_t)address, size)) result = (CUresult)ALREADY_REGISTERED;
    else *fake_new_range() = (Range){.kind = REGISTERED, .base = (uintptr_t)address, .size = size,
                                     .fd = -1};
    pthread_mutex_unlock(&fake_lock);
    return result;
}

CUresult CUDAAPI cuMemHostUnregister(void *address) {
    ENTER("cuMemHostUnregister");
    pthread_mutex_lock(&fake_lock);
    Range *r = fake_find((uintptr_t)address);
    int found = r && r->kind == REGISTERED && r->base == (uintptr_t)address;
    if (found) r->kind = NOTHING;
    pthread_mutex_unlock(&fake_lock);
    return found ? OK : (CUresult)NOT_REGISTERED;
}

/* ---------------------------------------------------------------- virtual memory management
 * A generic handle is the memory's file descriptor plus one. */

CUresult CUDAAPI cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                               CUmemAllocationGranularity_flags option) {
    ENTER("cuMemGetAllocationGranularity");
    (void)option;
    if ((int)prop->type != 1 || (int)prop->location.type != 1) FAIL(INVALID_VALUE);
    *granularity = GRANULARITY;
    return OK;
}

CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
                             const CUmemAllocationProp *prop, unsigned long long flags) {
    ENTER("cuMemCreate");
    if (size % GRANULARITY || !size || flags || (int)prop->type != 1) FAIL(INVALID_VALUE);
    if ((int)prop->requestedHandleTypes != 1) FAIL(NOT_SUPPORTED_);
    if (fake_visible_to_machine(prop->location.id) < 0) FAIL(INVALID_DEVICE);
    int fd = fake_memfd("fake-cuda-vmm", size);
    if (fd < 0) FAIL(OUT_OF_MEMORY);
    *handle = (CUmemGenericAllocationHandle)fd + 1;
    return OK;
}

CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle) {
    ENTER("cuMemRelease");
    return close((int)handle - 1) ? (CUresult)INVALID_VALUE : OK;
}

CUresult CUDAAPI cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                              CUmemAllocationHandleType type, unsigned long long flags) {
    ENTER("cuMemExportToShareableHandle");
    if ((int)type != 1 || flags) FAIL(INVALID_VALUE);
    int fd = fcntl((int)handle - 1, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) FAIL(INVALID_VALUE);
    *(int *)shareable = fd;
    return OK;
}

CUresult CUDAAPI cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
                                                CUmemAllocationHandleType type) {
    ENTER("cuMemImportFromShareableHandle");
    struct stat status;
    int fd = fcntl((int)(intptr_t)shareable, F_DUPFD_CLOEXEC, 0);
    if ((int)type != 1 || fd < 0 || fstat(fd, &status) || status.st_size % (off_t)GRANULARITY) {
        if (fd >= 0) close(fd);
        FAIL(INVALID_VALUE);
    }
    *handle = (CUmemGenericAllocationHandle)fd + 1;
    return OK;
}

CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment,
                                     CUdeviceptr address, unsigned long long flags) {
    ENTER("cuMemAddressReserve");
    (void)alignment;
    if (size % GRANULARITY || !size || address || flags) FAIL(INVALID_VALUE);
    void *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) FAIL(OUT_OF_MEMORY);
    pthread_mutex_lock(&fake_lock);
    num_reserved++;
    pthread_mutex_unlock(&fake_lock);
    *pointer = (CUdeviceptr)(uintptr_t)at;
    return OK;
}

CUresult CUDAAPI cuMemAddressFree(CUdeviceptr pointer, size_t size) {
    ENTER("cuMemAddressFree");
    if (fake_find((uintptr_t)pointer)) FAIL(INVALID_VALUE);  /* still mapped */
    pthread_mutex_lock(&fake_lock);
    num_reserved--;
    pthread_mutex_unlock(&fake_lock);
    return munmap((void *)(uintptr_t)pointer, size) ? (CUresult)INVALID_VALUE : OK;
}

CUresult CUDAAPI cuMemMap(CUdeviceptr pointer, size_t size, size_t offset,
                          CUmemGenericAllocationHandle handle, unsigned long long flags) {
    ENTER("cuMemMap");
    struct stat status;
    int fd = (int)handle - 1;
    if (flags || fstat(fd, &status) || offset + size > (size_t)status.st_size) FAIL(INVALID_VALUE);
    void *at = mmap((void *)(uintptr_t)pointer, size, PROT_NONE, MAP_SHARED | MAP_FIXED, fd,
                    (off_t)offset);
    if (at == MAP_FAILED) FAIL(MAP_FAILED_);
    pthread_mutex_lock(&fake_lock);
    *fake_new_range() = (Range){.kind = VMM_MAPPED, .base = (uintptr_t)at, .size = size, .fd = -1,
                                .device = fake_current_device()};
    pthread_mutex_unlock(&fake_lock);
    return OK;
}

CUresult CUDAAPI cuMemSetAccess(CUdeviceptr pointer, size_t size, const CUmemAccessDesc *desc,
                                size_t count) {
    ENTER("cuMemSetAccess");
    if (count != 1 || (int)desc->location.type != 1) FAIL(INVALID_VALUE);
    int protection = (int)desc->flags == 3 ? PROT_READ | PROT_WRITE : PROT_READ;
    pthread_mutex_lock(&fake_lock);
    Range *r = fake_find((uintptr_t)pointer);
    int good = r && r->kind == VMM_MAPPED && size <= r->size &&
               !mprotect((void *)(uintptr_t)pointer, size, protection);
    if (good) r->readable = 1;
    pthread_mutex_unlock(&fake_lock);
    return good ? OK : (CUresult)INVALID_VALUE;
}

CUresult CUDAAPI cuMemUnmap(CUdeviceptr pointer, size_t size) {
    ENTER("cuMemUnmap");
    pthread_mutex_lock(&fake_lock);
    Range *r = fake_find((uintptr_t)pointer);
    int good = r && r->kind == VMM_MAPPED && r->size == size;
    if (good) {
        r->kind = NOTHING;
        mmap((void *)(uintptr_t)pointer, size, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    }
    pthread_mutex_unlock(&fake_lock);
    return good ? OK : (CUresult)INVALID_VALUE;
}
