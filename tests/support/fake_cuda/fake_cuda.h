/* What the files of the fake driver share. Types and values are those of cuda.h (13.0); compiled
 * with -include cuda.h, the compiler compares every signature with the real one's. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#ifndef CUDA_VERSION
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef int CUdevice_attribute;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
typedef struct { int type; int id; } CUmemLocation;
typedef struct {
    int srcAccessOrder;
    CUmemLocation srcLocHint, dstLocHint;
    unsigned int flags;
} CUmemcpyAttributes;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef int CUmemAllocationHandleType;
typedef int CUmemAllocationGranularity_flags;
typedef struct {
    int type, requestedHandleTypes;
    CUmemLocation location;
    void *win32HandleMetaData;
    unsigned char allocFlags[8];
} CUmemAllocationProp;
typedef struct { CUmemLocation location; int flags; } CUmemAccessDesc;
#define CUDAAPI
#endif

#define OK ((CUresult)0)
#define FAIL(code) return (CUresult)(code)
enum {
    INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, MAP_FAILED_ = 205, PEER_UNSUPPORTED = 217,
    INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, NOT_SUPPORTED_ = 801, UNKNOWN_ = 999,
};

enum { MAX_DEVICES = 16, MAX_RANGES = 256 };

/* What lies at some addresses of this process. */
typedef enum { NOTHING = 0, ALLOCATED, IPC_OPENED, VMM_MAPPED, RESERVED, REGISTERED } Kind;
typedef struct {
    Kind kind;
    uintptr_t base;
    size_t size;
    int fd, device;      /* the memory's file; its device as the machine counts them */
    int owner, pidfd;    /* of IPC_OPENED */
    uint64_t inode;
    int opens;
    int readable;        /* of VMM_MAPPED: cuMemSetAccess was called */
} Range;

extern pthread_mutex_t fake_lock;
extern Range fake_ranges[MAX_RANGES];

/* Returns an injected failure, a sticky error, or OK; needs a context where `context` is set. */
CUresult fake_enter(const char *name, int context);
int fake_current_device(void);  /* as the machine counts them */
int fake_visible_to_machine(int ordinal);
int fake_reaches(int device, int peer);
Range *fake_find(uintptr_t address);
Range *fake_new_range(void);
int fake_memfd(const char *name, size_t size);
CUresult fake_check_access(uintptr_t address, size_t size, int writes);

#define ENTER(name) do { CUresult r_ = fake_enter(name, 1); if (r_ != OK) return r_; } while (0)
#define ENTER_BARE(name) do { CUresult r_ = fake_enter(name, 0); if (r_ != OK) return r_; } while (0)

#endif
