// NCCL's functions that must do more than succeed: communicators know their rank and size, and memory is real.
// Collectives stay within the rank: each behaves as if every rank held what this one holds, and reductions do not
// reduce. That is enough for the checks that torch makes across ranks. No rank waits for another, so ranks meet only
// where torch itself makes them meet.
// Not for device-side communicators, one-sided signals, windows and changing a communicator's size: refused.
#include <cstring>
#include <vector>

#include "stub.h"

extern "C" int cudaMalloc(void** pointer, std::size_t bytes);
extern "C" int cudaFree(void* pointer);
extern "C" int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int kind, void* stream);

namespace poolalloc::simgpu_stubs {
namespace {

constexpr int kUnhandledCudaError = 1;
constexpr int kInvalidUsage = 5;
constexpr int kFirstCustomOperation = 5;  // behind sum, product, maximum, minimum, average

struct Communicator {
  int size;
  int rank;
};

// Messages between the calls that begin and end a group, which belong to a thread.
struct Message {
  void* buffer;
  std::size_t bytes;
  int peer, rank;
  void* stream;
};
struct Group {
  int depth = 0;
  std::vector<Message> sent, received, broadcast;
};
thread_local Group group;

struct UniqueId {
  char text[128];
};

std::size_t type_bytes(int type) {
  constexpr std::size_t kBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};  // ncclInt8 to ncclFloat8e5m2
  return kBytes[type];
}

int copy(void* to, const void* from, std::size_t bytes, void* stream) {
  constexpr int kDeviceToDevice = 3;
  if (to == from || bytes == 0) {
    return 0;
  }
  return cudaMemcpyAsync(to, from, bytes, kDeviceToDevice, stream) == 0 ? 0 : kUnhandledCudaError;
}

char* part(void* buffer, std::size_t bytes, int index) { return static_cast<char*>(buffer) + bytes * index; }
const char* part(const void* buffer, std::size_t bytes, int index) {
  return static_cast<const char*>(buffer) + bytes * index;
}

int make_communicator(Communicator** communicator, int size, int rank) {
  *communicator = new Communicator{size, rank};
  return 0;
}

}  // namespace

SIMGPU_STUB int ncclGetVersion(int* version) {
  *version = 22809;
  return 0;
}
SIMGPU_STUB const char* ncclGetErrorString(int status) {
  return status == 0               ? "no error"
         : status == kInvalidUsage ? "not supported by the simulated NCCL"
                                   : "error of the simulated NCCL";
}
SIMGPU_STUB const char* ncclGetLastError(const Communicator*) { return ""; }

// --- communicators ---
SIMGPU_STUB int ncclGetUniqueId(UniqueId* id) {
  static std::atomic<std::uint64_t> next{1};
  const std::uint64_t number = next.fetch_add(1);
  *id = {};
  std::memcpy(id->text, &number, sizeof number);
  return 0;
}
SIMGPU_STUB int ncclCommInitRank(Communicator** communicator, int size, UniqueId, int rank) {
  return make_communicator(communicator, size, rank);
}
SIMGPU_STUB int ncclCommInitRankConfig(Communicator** communicator, int size, UniqueId, int rank, void*) {
  return make_communicator(communicator, size, rank);
}
SIMGPU_STUB int ncclCommInitRankScalable(Communicator** communicator, int size, int rank, int, UniqueId*, void*) {
  return make_communicator(communicator, size, rank);
}
SIMGPU_STUB int ncclCommInitAll(Communicator** communicators, int size, const int*) {
  for (int rank = 0; rank < size; ++rank) {
    make_communicator(&communicators[rank], size, rank);
  }
  return 0;
}
// Who else has this colour is known only by asking the other ranks. torch passes the new rank as the key and keeps the
// group's size itself, so the parent's size stands in.
SIMGPU_STUB int ncclCommSplit(const Communicator* communicator, int color, int key, Communicator** split, void*) {
  *split = nullptr;
  return color < 0 ? 0 : make_communicator(split, communicator->size, key);
}
SIMGPU_STUB int ncclCommDestroy(Communicator* communicator) {
  delete communicator;
  return 0;
}
SIMGPU_STUB int ncclCommAbort(Communicator* communicator) { return ncclCommDestroy(communicator); }
SIMGPU_STUB int ncclCommCount(const Communicator* communicator, int* size) {
  *size = communicator->size;
  return 0;
}
SIMGPU_STUB int ncclCommUserRank(const Communicator* communicator, int* rank) {
  *rank = communicator->rank;
  return 0;
}
SIMGPU_STUB int ncclCommGetAsyncError(const Communicator*, int* error) {
  *error = 0;
  return 0;
}
SIMGPU_STUB int ncclCommRegister(const Communicator*, void*, std::size_t, void** handle) {
  *handle = new_handle();
  return 0;
}
SIMGPU_STUB int ncclRedOpCreatePreMulSum(int* operation, void*, int, int, const Communicator*) {
  *operation = kFirstCustomOperation;
  return 0;
}

// --- collectives ---
SIMGPU_STUB int ncclAllReduce(const void* from, void* to, std::size_t count, int type, int, const Communicator*,
                              void* stream) {
  return copy(to, from, count * type_bytes(type), stream);
}
SIMGPU_STUB int ncclReduce(const void* from, void* to, std::size_t count, int type, int, int root,
                           const Communicator* communicator, void* stream) {
  return communicator->rank == root ? copy(to, from, count * type_bytes(type), stream) : 0;
}
SIMGPU_STUB int ncclReduceScatter(const void* from, void* to, std::size_t count, int type, int,
                                  const Communicator* communicator, void* stream) {
  const std::size_t bytes = count * type_bytes(type);
  return copy(to, part(from, bytes, communicator->rank), bytes, stream);
}
// Torch gathers by a group of broadcasts, one from each rank. There a rank receives what it sends itself, if that is as
// much; a broadcast alone leaves it with what it has.
SIMGPU_STUB int ncclBroadcast(const void* from, void* to, std::size_t count, int type, int root,
                              const Communicator* communicator, void* stream) {
  const std::size_t bytes = count * type_bytes(type);
  const int rank = communicator->rank;
  if (group.depth > 0 && rank == root) group.sent.push_back({const_cast<void*>(from), bytes, rank, rank, stream});
  if (group.depth > 0 && rank != root) group.broadcast.push_back({to, bytes, root, rank, stream});
  return rank == root ? copy(to, from, bytes, stream) : 0;
}
SIMGPU_STUB int ncclAllGather(const void* from, void* to, std::size_t count, int type, const Communicator* communicator,
                              void* stream) {
  const std::size_t bytes = count * type_bytes(type);
  int status = 0;
  for (int rank = 0; rank < communicator->size && status == 0; ++rank) {
    status = copy(part(to, bytes, rank), from, bytes, stream);
  }
  return status;
}

SIMGPU_STUB int ncclBcast(void* buffer, std::size_t, int, int, const Communicator*, void*) {
  return buffer ? 0 : kInvalidUsage;
}
SIMGPU_STUB int ncclGather(const void* from, void* to, std::size_t count, int type, int root,
                           const Communicator* communicator, void* stream) {
  return communicator->rank == root ? ncclAllGather(from, to, count, type, communicator, stream) : 0;
}
SIMGPU_STUB int ncclAlltoAll(const void* from, void* to, std::size_t count, int type, const Communicator* communicator,
                             void* stream) {
  const std::size_t bytes = count * type_bytes(type);
  int status = 0;
  for (int rank = 0; rank < communicator->size && status == 0; ++rank) {
    status = copy(part(to, bytes, rank), part(from, bytes, communicator->rank), bytes, stream);
  }
  return status;
}

// --- messages: what a rank receives from another is what it sends to itself in the same group, if it sends that much
// ---
SIMGPU_STUB int ncclGroupStart() {
  ++group.depth;
  return 0;
}
SIMGPU_STUB int ncclGroupEnd() {
  if (group.depth == 0) return kInvalidUsage;
  if (--group.depth > 0) return 0;
  int status = 0;
  for (const Message& received : group.received) {
    const Message* sent = nullptr;
    for (const Message& candidate : group.sent) {
      const bool own = candidate.peer == candidate.rank;
      if (candidate.bytes >= received.bytes && (!sent || own)) sent = &candidate;
    }
    if (sent && status == 0) status = copy(received.buffer, sent->buffer, received.bytes, received.stream);
  }
  for (const Message& received : group.broadcast) {
    for (const Message& sent : group.sent) {
      if (sent.bytes != received.bytes || sent.peer != sent.rank || status != 0) continue;
      status = copy(received.buffer, sent.buffer, received.bytes, received.stream);
    }
  }
  group = {};
  return status;
}
SIMGPU_STUB int ncclSend(const void* from, std::size_t count, int type, int peer, const Communicator* communicator,
                         void* stream) {
  if (group.depth > 0) {
    group.sent.push_back({const_cast<void*>(from), count * type_bytes(type), peer, communicator->rank, stream});
  }
  return 0;
}
SIMGPU_STUB int ncclRecv(void* to, std::size_t count, int type, int peer, const Communicator* communicator,
                         void* stream) {
  if (group.depth > 0) group.received.push_back({to, count * type_bytes(type), peer, communicator->rank, stream});
  return 0;
}

// --- memory ---
SIMGPU_STUB int ncclMemAlloc(void** pointer, std::size_t bytes) {
  return cudaMalloc(pointer, bytes) == 0 ? 0 : kUnhandledCudaError;
}
SIMGPU_STUB int ncclMemFree(void* pointer) { return cudaFree(pointer) == 0 ? 0 : kUnhandledCudaError; }

// --- refused ---
#define REFUSE(function) \
  SIMGPU_STUB int function() { return kInvalidUsage; }
REFUSE(ncclCommGetUniqueId)
REFUSE(ncclCommGrow)
REFUSE(ncclCommMemStats)
REFUSE(ncclCommResume)
REFUSE(ncclCommRevoke)
REFUSE(ncclCommShrink)
REFUSE(ncclCommSuspend)
REFUSE(ncclCommWindowDeregister)
REFUSE(ncclCommWindowRegister)
REFUSE(ncclDevCommCreate)
REFUSE(ncclDevCommDestroy)
REFUSE(ncclGetLsaMultimemDevicePointer)
REFUSE(ncclGetPeerDevicePointer)
REFUSE(ncclGroupSimulateEnd)
REFUSE(ncclPutSignal)
REFUSE(ncclSignal)
REFUSE(ncclWaitSignal)
REFUSE(ncclWinGetUserPtr)

}  // namespace poolalloc::simgpu_stubs
