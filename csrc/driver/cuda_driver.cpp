// CudaDriver: each method is one call of the CUDA driver, in the right context, with its refusal put into words.
#include "driver/cuda_driver.h"

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <unordered_set>
#include <utility>
#include <vector>

#include "driver/cuda_api.h"
#include "driver/last_error.h"

namespace poolalloc {
namespace {

using cuda::api;

cuda::Stream stream_of(StreamId stream) { return reinterpret_cast<cuda::Stream>(stream); }
cuda::Event event_of(EventHandle event) { return reinterpret_cast<cuda::Event>(event); }

// Puts `result` of the call, written as printf writes it, into words, and sorts it by what the caller can do about it.
__attribute__((format(printf, 2, 3))) Status refused(cuda::Result result, const char* format, ...) {
  char call[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(call, sizeof call, format, arguments);
  va_end(arguments);
  set_last_error("%s: %s", call, cuda::describe(result).c_str());
  if (result == cuda::kOutOfMemory) return Status::out_of_memory;
  if (result == cuda::kNotSupported) return Status::not_supported;
  return Status::failed;
}

// Calls that are not ordered by a stream are forbidden to every thread while a graph is captured in the global mode,
// and would spoil that capture. In the relaxed mode they are allowed; core keeps to the rules that remain (driver.h).
class Relaxed {
 public:
  Relaxed() { api().ThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { api().ThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  int mode_ = cuda::kCaptureModeRelaxed;
};

cuda::AllocationProperties properties_of(int ordinal, bool rdma, bool shareable) {
  cuda::AllocationProperties properties;
  properties.location.id = ordinal;
  properties.requested_handle_types = shareable ? cuda::kHandleTypePosixDescriptor : 0;
  properties.gpu_direct_rdma_capable = rdma ? 1 : 0;
  return properties;
}

// One page through what every allocation needs: made, mapped, opened. Nothing of it stays. The call that was refused is
// named in *call.
cuda::Result try_page(const cuda::AllocationProperties& properties, const char** call) {
  std::size_t bytes = kPageBytes;
  *call = "cuMemGetAllocationGranularity";
  cuda::Result result = api().MemGetAllocationGranularity(&bytes, &properties, cuda::kGranularityMinimum);
  if (result != cuda::kSuccess) return result;
  bytes = round_up(kPageBytes, bytes);
  cuda::AllocationHandle handle = 0;
  *call = "cuMemCreate";
  result = api().MemCreate(&handle, bytes, &properties, 0);
  if (result != cuda::kSuccess) return result;
  cuda::DevicePointer address = 0;
  *call = "cuMemAddressReserve";
  result = api().MemAddressReserve(&address, bytes, 0, 0, 0);
  if (result == cuda::kSuccess) {
    *call = "cuMemMap";
    result = api().MemMap(address, bytes, 0, handle, 0);
    if (result == cuda::kSuccess) {
      cuda::AccessDescription access;
      access.location = properties.location;
      *call = "cuMemSetAccess";
      result = api().MemSetAccess(address, bytes, &access, 1);
      api().MemUnmap(address, bytes);
    }
    api().MemAddressFree(address, bytes);
  }
  api().MemRelease(handle);
  return result;
}

}  // namespace

// --- devices and contexts -------------------------------------------------------------------------------------------

bool CudaDriver::available(std::string* why) {
  if (api().problem.empty()) return true;
  if (why != nullptr) *why = api().problem;
  return false;
}

CudaDriver::~CudaDriver() {
  for (Device& device : devices_)
    if (device.context.load() != nullptr) api().DevicePrimaryCtxRelease(device.ordinal);
}

CudaDriver::Device* CudaDriver::find(DeviceIndex index, const char* call) {
  if (!available()) {
    set_last_error("%s: %s", call, api().problem.c_str());
    return nullptr;
  }
  if (index < 0 || index >= api().devices || index >= kMaxDevices) {
    set_last_error("%s: there is no device %d; the CUDA driver shows %d", call, index, api().devices);
    return nullptr;
  }
  Device& device = devices_[index];
  if (device.known.load(std::memory_order_acquire)) return &device;
  std::lock_guard guard(mutex_);
  if (device.known.load(std::memory_order_relaxed)) return &device;
  int rdma = 0;
  int shareable = 0;
  cuda::Result result = api().DeviceGet(&device.ordinal, index);
  if (result == cuda::kSuccess)
    result = api().DeviceGetAttribute(&rdma, cuda::kAttributeRdmaWithVirtualMemory, device.ordinal);
  if (result == cuda::kSuccess)
    result = api().DeviceGetAttribute(&shareable, cuda::kAttributePosixDescriptors, device.ordinal);
  if (result != cuda::kSuccess) {
    refused(result, "%s: finding device %d", call, index);
    return nullptr;
  }
  device.rdma = rdma != 0;
  device.shareable = shareable != 0;
  device.known.store(true, std::memory_order_release);
  return &device;
}

CudaDriver::Device* CudaDriver::open(DeviceIndex index, const char* call) {
  Device* device = find(index, call);
  if (device == nullptr || device->context.load(std::memory_order_acquire) != nullptr) return device;
  std::lock_guard guard(mutex_);
  if (device->context.load(std::memory_order_relaxed) != nullptr) return device;
  cuda::Context context = nullptr;
  if (const cuda::Result result = api().DevicePrimaryCtxRetain(&context, device->ordinal); result != cuda::kSuccess) {
    refused(result, "%s: opening device %d", call, index);
    return nullptr;
  }
  device->context.store(context, std::memory_order_release);
  return device;
}

bool CudaDriver::in_use(DeviceIndex index) {
  const Device* device = find(index, "in_use");
  if (device == nullptr) return false;
  if (device->context.load(std::memory_order_acquire) != nullptr) return true;
  unsigned flags = 0;
  int active = 0;
  return api().DevicePrimaryCtxGetState(device->ordinal, &flags, &active) == cuda::kSuccess && active != 0;
}

class CudaDriver::Scope {
 public:
  Scope(CudaDriver& driver, DeviceIndex index, const char* call) : device_(driver.open(index, call)) {
    if (device_ == nullptr) return;
    auto context = static_cast<cuda::Context>(device_->context.load(std::memory_order_relaxed));
    cuda::Context current = nullptr;
    if (api().CtxGetCurrent(&current) == cuda::kSuccess && current == context) return;
    cuda::Result result = api().CtxPushCurrent(context);
    if (result != cuda::kSuccess) {
      refused(result, "%s: cuCtxPushCurrent on device %d", call, index);
      device_ = nullptr;
    }
    pushed_ = device_ != nullptr;
  }
  ~Scope() {
    cuda::Context popped = nullptr;
    if (pushed_) api().CtxPopCurrent(&popped);
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  explicit operator bool() const { return device_ != nullptr; }
  Device* operator->() const { return device_; }
  Device& operator*() const { return *device_; }

 private:
  Device* device_;
  bool pushed_ = false;
};

// Some machines announce virtual memory management that answers with errors: WSL2 where memory is for network cards,
// some virtual GPUs for any memory. So a page is tried, with fewer properties each time. One that is refused for want
// of memory tells nothing: then it is tried again the next time. The context of the device is current.
void CudaDriver::try_mapping(Device& device) {
  const std::lock_guard guard(trial_mutex_);
  if (device.tried) return;
  Relaxed relaxed;
  const char* call = nullptr;
  cuda::Result result = cuda::kSuccess;
  const auto refused = [&] {
    result = try_page(properties_of(device.ordinal, device.rdma, device.shareable), &call);
    return result != cuda::kSuccess && result != cuda::kOutOfMemory;
  };
  const auto note = [&](const char* what) {
    device.fault += std::string(device.fault.empty() ? "" : "; ") + what + ": " + call + ": " + cuda::describe(result);
  };
  bool bad = refused();
  if (bad && device.rdma) {
    note("memory that network cards can reach (GPUDirect RDMA) is refused");
    device.rdma = false;
    bad = refused();
  }
  if (bad && device.shareable) {
    note("memory that can be exported to other processes is refused");
    device.shareable = false;
    bad = refused();
  }
  if (bad) {
    device.fault.clear();
    note("mapped memory is refused");
  }
  device.tried = result != cuda::kOutOfMemory;
  device.works = !bad;
}

Status CudaDriver::open_device(DeviceIndex index, DeviceInfo* info) {
  {
    Scope scope(*this, index, "opening a device");
    if (!scope) return Status::failed;
    int virtual_memory = 0;
    if (api().DeviceGetAttribute(&virtual_memory, cuda::kAttributeVirtualMemory, scope->ordinal) == cuda::kSuccess &&
        virtual_memory != 0)
      try_mapping(*scope);
  }
  return device_info(index, info);
}

int CudaDriver::device_count() {
  if (!available()) set_last_error("%s", api().problem.c_str());
  return api().devices;
}

Status CudaDriver::device_info(DeviceIndex index, DeviceInfo* info) {
  const Device* device = find(index, "device_info");
  if (device == nullptr) return Status::failed;
  char name[256] = "";
  std::size_t total = 0;
  std::size_t granularity = kPageBytes;
  int virtual_memory = 0;
  cuda::Result result = api().DeviceGetName(name, sizeof name, device->ordinal);
  if (result == cuda::kSuccess) result = api().DeviceTotalMem(&total, device->ordinal);
  if (result == cuda::kSuccess)
    result = api().DeviceGetAttribute(&virtual_memory, cuda::kAttributeVirtualMemory, device->ordinal);
  std::string fault;
  {
    const std::lock_guard guard(trial_mutex_);
    fault = device->fault;
    if (device->tried && !device->works) virtual_memory = 0;
  }
  if (result == cuda::kSuccess && virtual_memory != 0) {
    cuda::AllocationProperties properties = properties_of(device->ordinal, device->rdma, device->shareable);
    result = api().MemGetAllocationGranularity(&granularity, &properties, cuda::kGranularityMinimum);
  }
  if (result != cuda::kSuccess) return refused(result, "properties of device %d", index);
  *info = {name, total, granularity, virtual_memory != 0, virtual_memory != 0 && device->shareable, fault};
  return Status::ok;
}

Status CudaDriver::memory_info(DeviceIndex device, Bytes* free_bytes, Bytes* total_bytes) {
  Scope scope(*this, device, "cuMemGetInfo");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  std::size_t free_now = 0;
  std::size_t total = 0;
  cuda::Result result = api().MemGetInfo(&free_now, &total);
  if (result != cuda::kSuccess) return refused(result, "cuMemGetInfo on device %d", device);
  *free_bytes = free_now;
  *total_bytes = total;
  return Status::ok;
}

std::string CudaDriver::last_error() const { return last_error_text(); }

// --- memory ---------------------------------------------------------------------------------------------------------

// Drivers keep to an alignment of a page, and what they make of a larger one differs: a range that must be aligned
// further is cut out of a wider one.
Status CudaDriver::reserve(DeviceIndex device, Bytes bytes, Bytes alignment, Address* address) {
  Scope scope(*this, device, "cuMemAddressReserve");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  const Bytes room = alignment > kPageBytes ? alignment - kPageBytes : 0;
  cuda::DevicePointer start = 0;
  cuda::Result result = api().MemAddressReserve(&start, bytes + room, std::min(alignment, kPageBytes), 0, 0);
  if (result != cuda::kSuccess)
    return refused(result, "cuMemAddressReserve(%" PRIu64 " bytes, alignment %" PRIu64 ") on device %d", bytes + room,
                   std::min(alignment, kPageBytes), device);
  *address = round_up(start, alignment);
  if (room != 0) {
    const std::lock_guard guard(mutex_);
    wider_[*address] = {start, bytes + room};
  }
  return Status::ok;
}

Status CudaDriver::release(DeviceIndex device, Address address, Bytes bytes) {
  Scope scope(*this, device, "cuMemAddressFree");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  // Forgotten before it is freed: it may be somebody else's as soon as it is.
  std::unordered_map<Address, Range>::node_type wider;
  {
    const std::lock_guard guard(mutex_);
    wider = wider_.extract(address);
  }
  const Range range = wider.empty() ? Range{address, bytes} : wider.mapped();
  cuda::Result result = api().MemAddressFree(range.base, range.bytes);
  if (result == cuda::kSuccess) return Status::ok;
  if (!wider.empty()) {
    const std::lock_guard guard(mutex_);
    wider_.insert(std::move(wider));
  }
  return refused(result, "cuMemAddressFree(%#" PRIx64 ", %" PRIu64 " bytes) on device %d", range.base, range.bytes,
                 device);
}

Status CudaDriver::create(DeviceIndex device, Bytes bytes, PhysicalHandle* handle) {
  Scope scope(*this, device, "cuMemCreate");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::AllocationProperties properties = properties_of(scope->ordinal, scope->rdma, scope->shareable);
  cuda::AllocationHandle created = 0;
  cuda::Result result = api().MemCreate(&created, bytes, &properties, 0);
  if (result != cuda::kSuccess) return refused(result, "cuMemCreate(%" PRIu64 " bytes) on device %d", bytes, device);
  *handle = created;
  return Status::ok;
}

Status CudaDriver::destroy(DeviceIndex device, PhysicalHandle handle) {
  Scope scope(*this, device, "cuMemRelease");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::Result result = api().MemRelease(handle);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemRelease(handle %#" PRIx64 ") on device %d", handle, device);
}

Status CudaDriver::map(DeviceIndex device, Address address, Bytes bytes, PhysicalHandle handle) {
  Scope scope(*this, device, "cuMemMap");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::Result result = api().MemMap(address, bytes, 0, handle, 0);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemMap(%#" PRIx64 ", %" PRIu64 " bytes, handle %#" PRIx64 ") on device %d", address, bytes,
                 handle, device);
}

// One call for all. A peer is named by its ordinal, which takes no context there.
Status CudaDriver::allow_access(DeviceIndex device, Address address, Bytes bytes, DeviceSet peers) {
  Scope scope(*this, device, "cuMemSetAccess");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::AccessDescription access[1 + kMaxDevices];
  access[0].location.id = scope->ordinal;
  std::size_t count = 1;
  for (peers &= ~(DeviceSet{1} << device); peers != 0; peers &= peers - 1) {
    const int peer = std::countr_zero(peers);
    const cuda::Result result = api().DeviceGet(&access[count++].location.id, peer);
    if (result != cuda::kSuccess) return refused(result, "cuDeviceGet(%d), a peer of device %d", peer, device);
  }
  cuda::Result result = api().MemSetAccess(address, bytes, access, count);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemSetAccess(%#" PRIx64 ", %" PRIu64 " bytes, %zu devices) on device %d", address, bytes,
                 count, device);
}

Status CudaDriver::unmap(DeviceIndex device, Address address, Bytes bytes) {
  Scope scope(*this, device, "cuMemUnmap");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::Result result = api().MemUnmap(address, bytes);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemUnmap(%#" PRIx64 ", %" PRIu64 " bytes) on device %d", address, bytes, device);
}

Status CudaDriver::export_handle(DeviceIndex device, PhysicalHandle handle, int* descriptor) {
  Scope scope(*this, device, "cuMemExportToShareableHandle");
  if (!scope) return Status::failed;
  if (!scope->shareable) return Status::not_supported;
  Relaxed relaxed;
  cuda::Result result = api().MemExportToShareableHandle(descriptor, handle, cuda::kHandleTypePosixDescriptor, 0);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemExportToShareableHandle(handle %#" PRIx64 ") on device %d", handle, device);
}

Status CudaDriver::import_handle(DeviceIndex device, int descriptor, PhysicalHandle* handle) {
  Scope scope(*this, device, "cuMemImportFromShareableHandle");
  if (!scope) return Status::failed;
  if (!scope->shareable) return Status::not_supported;
  Relaxed relaxed;
  cuda::AllocationHandle imported = 0;
  void* named = reinterpret_cast<void*>(static_cast<std::intptr_t>(descriptor));
  cuda::Result result = api().MemImportFromShareableHandle(&imported, named, cuda::kHandleTypePosixDescriptor);
  if (result != cuda::kSuccess)
    return refused(result, "cuMemImportFromShareableHandle(descriptor %d) on device %d", descriptor, device);
  *handle = imported;
  return Status::ok;
}

Status CudaDriver::allocate_segment(DeviceIndex device, Bytes bytes, Address* address) {
  Scope scope(*this, device, "cuMemAlloc");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::DevicePointer start = 0;
  cuda::Result result = api().MemAlloc(&start, bytes);
  if (result != cuda::kSuccess) return refused(result, "cuMemAlloc(%" PRIu64 " bytes) on device %d", bytes, device);
  *address = start;
  return Status::ok;
}

Status CudaDriver::free_segment(DeviceIndex device, Address address) {
  Scope scope(*this, device, "cuMemFree");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::Result result = api().MemFree(address);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemFree(%#" PRIx64 ") on device %d", address, device);
}

// --- copies ---------------------------------------------------------------------------------------------------------

Status CudaDriver::create_stream(DeviceIndex device, StreamId* stream) {
  Scope scope(*this, device, "cuStreamCreate");
  if (!scope) return Status::failed;
  cuda::Stream created = nullptr;
  const cuda::Result result = api().StreamCreate(&created, cuda::kStreamNonBlocking);
  if (result != cuda::kSuccess) return refused(result, "cuStreamCreate on device %d", device);
  *stream = reinterpret_cast<StreamId>(created);
  return Status::ok;
}

Status CudaDriver::destroy_stream(DeviceIndex device, StreamId stream) {
  Scope scope(*this, device, "cuStreamDestroy");
  if (!scope) return Status::failed;
  const cuda::Result result = api().StreamDestroy(stream_of(stream));
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuStreamDestroy(%#" PRIx64 ") on device %d", stream, device);
}

Status CudaDriver::pin_host(DeviceIndex device, Bytes bytes, void** host) {
  Scope scope(*this, device, "cuMemHostAlloc");
  if (!scope) return Status::failed;
  const cuda::Result result = api().MemHostAlloc(host, bytes, 0);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemHostAlloc(%" PRIu64 " bytes) on device %d", bytes, device);
}

Status CudaDriver::unpin_host(DeviceIndex device, void* host) {
  Scope scope(*this, device, "cuMemFreeHost");
  if (!scope) return Status::failed;
  const cuda::Result result = api().MemFreeHost(host);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemFreeHost(%p) on device %d", host, device);
}

Status CudaDriver::copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes, StreamId stream) {
  Scope scope(*this, device, "cuMemcpyDtoHAsync");
  if (!scope) return Status::failed;
  const cuda::Result result = api().MemcpyDtoHAsync(host, address, bytes, stream_of(stream));
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemcpyDtoHAsync(%#" PRIx64 ", %" PRIu64 " bytes) on device %d", address, bytes, device);
}

Status CudaDriver::copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes, StreamId stream) {
  Scope scope(*this, device, "cuMemcpyHtoDAsync");
  if (!scope) return Status::failed;
  const cuda::Result result = api().MemcpyHtoDAsync(address, host, bytes, stream_of(stream));
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuMemcpyHtoDAsync(%#" PRIx64 ", %" PRIu64 " bytes) on device %d", address, bytes, device);
}

// --- events ---------------------------------------------------------------------------------------------------------

Status CudaDriver::create_event(DeviceIndex device, EventHandle* event) {
  Scope scope(*this, device, "cuEventCreate");
  if (!scope) return Status::failed;
  cuda::Event created = nullptr;
  cuda::Result result = api().EventCreate(&created, cuda::kEventDisableTiming);
  if (result != cuda::kSuccess) return refused(result, "cuEventCreate on device %d", device);
  *event = reinterpret_cast<EventHandle>(created);
  return Status::ok;
}

Status CudaDriver::destroy_event(DeviceIndex device, EventHandle event) {
  Scope scope(*this, device, "cuEventDestroy");
  if (!scope) return Status::failed;
  cuda::Result result = api().EventDestroy(event_of(event));
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuEventDestroy(%#" PRIx64 ") on device %d", event, device);
}

Status CudaDriver::record_event(DeviceIndex device, EventHandle event, StreamId stream) {
  Scope scope(*this, device, "cuEventRecord");
  if (!scope) return Status::failed;
  cuda::Result result = api().EventRecord(event_of(event), stream_of(stream));
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuEventRecord(%#" PRIx64 ", stream %#" PRIx64 ") on device %d", event, stream, device);
}

Status CudaDriver::query_event(const MayAsk&, DeviceIndex device, EventHandle event) {
  Scope scope(*this, device, "cuEventQuery");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::Result result = api().EventQuery(event_of(event));
  if (result == cuda::kSuccess) return Status::ok;
  if (result == cuda::kNotReady) return Status::not_ready;
  return refused(result, "cuEventQuery(%#" PRIx64 ") on device %d", event, device);
}

Status CudaDriver::synchronize_event(const MayAsk&, DeviceIndex device, EventHandle event) {
  Scope scope(*this, device, "cuEventSynchronize");
  if (!scope) return Status::failed;
  Relaxed relaxed;
  cuda::Result result = api().EventSynchronize(event_of(event));
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuEventSynchronize(%#" PRIx64 ") on device %d", event, device);
}

Status CudaDriver::stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) {
  Scope scope(*this, device, "cuStreamWaitEvent");
  if (!scope) return Status::failed;
  cuda::Result result = api().StreamWaitEvent(stream_of(stream), event_of(event), 0);
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuStreamWaitEvent(stream %#" PRIx64 ", %#" PRIx64 ") on device %d", stream, event, device);
}

Status CudaDriver::synchronize_device(const NoCapture&, DeviceIndex device) {
  Scope scope(*this, device, "cuCtxSynchronize");
  if (!scope) return Status::failed;
  cuda::Result result = api().CtxSynchronize();
  if (result == cuda::kSuccess) return Status::ok;
  return refused(result, "cuCtxSynchronize on device %d", device);
}

// Device indices are the driver's ordinals, as they are torch's.
Status CudaDriver::stream_device(StreamId stream, DeviceIndex* device) {
  if (!available()) return Status::failed;
  constexpr StreamId kLastDefault = 2;  // legacy and of the thread
  cuda::Context context = nullptr;
  if (stream > kLastDefault) {
    cuda::Result result = api().StreamGetCtx(stream_of(stream), &context);
    if (result == cuda::kSuccess) result = api().CtxPushCurrent(context);
    if (result != cuda::kSuccess) return refused(result, "cuStreamGetCtx(stream %#" PRIx64 ")", stream);
  }
  int ordinal = 0;
  const cuda::Result result = api().CtxGetDevice(&ordinal);
  if (context != nullptr) api().CtxPopCurrent(&context);
  if (result != cuda::kSuccess) return refused(result, "cuCtxGetDevice for stream %#" PRIx64, stream);
  *device = ordinal;
  return Status::ok;
}

Status CudaDriver::stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) {
  Scope scope(*this, device, "cuStreamIsCapturing");
  if (!scope) return Status::failed;
  int status = cuda::kCaptureStatusNone;
  cuda::Result result = api().StreamIsCapturing(stream_of(stream), &status);
  if (result != cuda::kSuccess && result != cuda::kCaptureImplicit)
    return refused(result, "cuStreamIsCapturing(stream %#" PRIx64 ") on device %d", stream, device);
  *capturing = result == cuda::kCaptureImplicit || status != cuda::kCaptureStatusNone;
  return Status::ok;
}

// --- captured graphs ----------------------------------------------------------------------------------------------

namespace {

// The nodes that the stream's next one will follow, and the number of its capture; 0 if there is none.
cuda::Result frontier(StreamId stream, unsigned long long* capture, std::vector<cuda::GraphNode>* nodes) {
  int status = cuda::kCaptureStatusNone;
  const cuda::GraphNode* first = nullptr;
  std::size_t count = 0;
  *capture = 0;
  const cuda::Result result = api().StreamGetCaptureInfo(stream_of(stream), &status, capture, nullptr, &first, &count);
  if (result != cuda::kSuccess) return result;
  if (status != cuda::kCaptureStatusActive) *capture = 0;
  if (*capture != 0) nodes->assign(first, first + count);
  return result;
}

}  // namespace

Status CudaDriver::capture_place(DeviceIndex device, StreamId stream, CapturePlace* place) {
  Scope scope(*this, device, "cuStreamGetCaptureInfo");
  if (!scope) return Status::failed;
  unsigned long long capture = 0;
  std::vector<cuda::GraphNode> nodes;
  const cuda::Result result = frontier(stream, &capture, &nodes);
  if (result != cuda::kSuccess)
    return refused(result, "cuStreamGetCaptureInfo(stream %#" PRIx64 ") on device %d", stream, device);
  if (capture == 0) return Status::failed;
  place->capture = capture;
  for (const cuda::GraphNode node : nodes) place->nodes.push_back(reinterpret_cast<std::uintptr_t>(node));
  return Status::ok;
}

// From where the stream stands, back through what that follows, nearest first: what was joined last is found soon.
Status CudaDriver::capture_behind(DeviceIndex device, StreamId stream, const CapturePlace& place) {
  constexpr std::size_t kMostNodes = 4096;
  Scope scope(*this, device, "cuGraphNodeGetDependencies");
  if (!scope) return Status::failed;
  unsigned long long capture = 0;
  std::vector<cuda::GraphNode> open;
  const cuda::Result result = frontier(stream, &capture, &open);
  if (result != cuda::kSuccess || capture != place.capture) return Status::failed;
  std::unordered_set<std::uint64_t> missing(place.nodes.begin(), place.nodes.end());
  std::unordered_set<cuda::GraphNode> seen(open.begin(), open.end());
  for (std::size_t at = 0; at < open.size() && !missing.empty(); ++at) {
    missing.erase(reinterpret_cast<std::uintptr_t>(open[at]));
    std::size_t count = 0;
    if (seen.size() >= kMostNodes) continue;
    if (api().GraphNodeGetDependencies(open[at], nullptr, &count) != cuda::kSuccess) return Status::not_ready;
    std::vector<cuda::GraphNode> before(count);
    if (count != 0 && api().GraphNodeGetDependencies(open[at], before.data(), &count) != cuda::kSuccess)
      return Status::not_ready;
    for (const cuda::GraphNode node : before)
      if (seen.insert(node).second) open.push_back(node);
  }
  return missing.empty() ? Status::ok : Status::not_ready;
}

}  // namespace poolalloc
