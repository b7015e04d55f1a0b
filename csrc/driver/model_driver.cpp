// ModelDriver: the devices themselves, their memory, addresses and mappings. Events are in model_events.cpp.
#include "driver/model_driver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/errors.h"
#include "driver/last_error.h"
#include "driver/model_device.h"

namespace poolalloc {
namespace {

constexpr int kMaxDevices = 64;

}  // namespace

ModelDriver::ModelDriver(const ModelOptions& options)
    : options_(options), addresses_(std::make_unique<AddressSpace>()) {
  if (options.devices < 1 || options.devices > kMaxDevices)
    throw UsageError("model driver: " + std::to_string(options.devices) + " devices; allowed: 1 to " +
                     std::to_string(kMaxDevices));
  if (!std::has_single_bit(options.granularity))
    throw UsageError("model driver: a granularity of " + std::to_string(options.granularity) +
                     " bytes; allowed: a power of two");
  for (int index = 0; index < options.devices; ++index) devices_.push_back(std::make_unique<Device>(index, options));
}

ModelDriver::~ModelDriver() = default;

// --- entering a call, and refusing one ------------------------------------------------------------------------------

void ModelDriver::fail(DriverCall call, std::uint64_t nth, Status status) {
  std::lock_guard guard(mutex_);
  failures_.push_back({call, std::max<std::uint64_t>(nth, 1), status});
  failures_waiting_.store(static_cast<int>(failures_.size()), std::memory_order_relaxed);
}

bool ModelDriver::take_failure(DriverCall call, Status* status) {
  std::lock_guard guard(mutex_);
  bool taken = false;
  for (Failure& failure : failures_) {
    if (failure.call != call || --failure.countdown != 0 || taken) continue;
    *status = failure.status;
    taken = true;
  }
  std::erase_if(failures_, [](const Failure& failure) { return failure.countdown == 0; });
  failures_waiting_.store(static_cast<int>(failures_.size()), std::memory_order_relaxed);
  return taken;
}

ModelDriver::Entry ModelDriver::enter(DriverCall call, DeviceIndex device) {
  Entry entry;
  if (failures_waiting_.load(std::memory_order_relaxed) != 0 && take_failure(call, &entry.status)) {
    set_last_error("model driver: %s on device %d: failed because the test asked for it", driver_call_name(call),
                   device);
    return entry;
  }
  if (device < 0 || device >= options_.devices) {
    entry.status = misuse(call, device, "there are %d devices", options_.devices);
    return entry;
  }
  entry.status = Status::ok;
  entry.device = devices_[static_cast<std::size_t>(device)].get();
  entry.lock = std::unique_lock(entry.device->mutex);
  return entry;
}

ModelDriver::Device& ModelDriver::at(DeviceIndex device) const {
  if (device < 0 || device >= options_.devices)
    throw UsageError("model driver: no device " + std::to_string(device) + "; there are " +
                     std::to_string(options_.devices));
  return *devices_[static_cast<std::size_t>(device)];
}

Status ModelDriver::misuse(DriverCall call, DeviceIndex device, const char* format, ...) {
  char problem[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(problem, sizeof problem, format, arguments);
  va_end(arguments);
  set_last_error("model driver: %s on device %d: %s", driver_call_name(call), device, problem);
  violations_.fetch_add(1, std::memory_order_relaxed);
  std::lock_guard guard(mutex_);
  if (first_violation_.empty()) first_violation_ = last_error_text();
  return Status::failed;
}

std::string ModelDriver::last_error() const { return last_error_text(); }

std::string ModelDriver::first_violation() const {
  std::lock_guard guard(mutex_);
  return first_violation_;
}

// --- devices --------------------------------------------------------------------------------------------------------

int ModelDriver::device_count() { return options_.devices; }

Status ModelDriver::device_info(DeviceIndex device, DeviceInfo* info) {
  if (device < 0 || device >= options_.devices) {
    set_last_error("model driver: device_info on device %d: there are %d devices", device, options_.devices);
    return Status::failed;
  }
  *info = {"model",
           options_.memory_bytes,
           options_.granularity,
           options_.virtual_memory,
           options_.virtual_memory && options_.shareable,
           ""};
  return Status::ok;
}

Status ModelDriver::memory_info(DeviceIndex device, Bytes* free_bytes, Bytes* total_bytes) {
  Entry entry = enter(DriverCall::memory_info, device);
  if (entry.stopped()) return entry.status;
  *free_bytes = options_.memory_bytes - entry->used;
  *total_bytes = options_.memory_bytes;
  return Status::ok;
}

Bytes ModelDriver::used_bytes(DeviceIndex device) const {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  return d.used;
}

Bytes ModelDriver::peak_used_bytes(DeviceIndex device) const {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  return d.peak_used;
}

// --- addresses ------------------------------------------------------------------------------------------------------

Status ModelDriver::reserve(DeviceIndex device, Bytes bytes, Bytes alignment, Address* address) {
  Entry entry = enter(DriverCall::reserve, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  if (bytes == 0 || bytes % options_.granularity != 0 || !std::has_single_bit(alignment))
    return misuse(DriverCall::reserve, device, "%" PRIu64 " bytes aligned to %" PRIu64, bytes, alignment);
  Address start = addresses_->take(bytes, std::max(alignment, options_.granularity));
  if (start == 0) {
    set_last_error("model driver: reserve on device %d: no %" PRIu64 " bytes of addresses left", device, bytes);
    return Status::out_of_memory;
  }
  entry->insert_range(start, {bytes, 0, {}});
  *address = start;
  return Status::ok;
}

Status ModelDriver::release(DeviceIndex device, Address address, Bytes bytes) {
  Entry entry = enter(DriverCall::release, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  std::size_t place = entry->find_range(address);
  if (place == entry->ranges.size() || entry->range_starts[place] != address || entry->ranges[place].bytes != bytes ||
      entry->ranges[place].segment != 0)
    return misuse(DriverCall::release, device, "%" PRIu64 " bytes at %#" PRIx64 " were not reserved as one", bytes,
                  address);
  const auto& pages = entry->ranges[place].pages;
  auto mapped = std::find_if(pages.begin(), pages.end(), [](std::uint32_t page) { return page != 0; });
  if (mapped != pages.end())
    return misuse(DriverCall::release, device, "the range at %#" PRIx64 " has a mapping at %#" PRIx64, address,
                  address + static_cast<Bytes>(mapped - pages.begin()) * options_.granularity);
  entry->erase_range(place);
  addresses_->give_back(address, bytes);
  return Status::ok;
}

// --- physical memory ------------------------------------------------------------------------------------------------

Status ModelDriver::take_memory(DriverCall call, DeviceIndex index, Device& device, Bytes bytes,
                                PhysicalHandle* handle) {
  if (bytes > options_.memory_bytes - device.used) {
    set_last_error("model driver: %s on device %d: %" PRIu64 " bytes asked, %" PRIu64 " of %" PRIu64 " in use",
                   driver_call_name(call), index, bytes, device.used, options_.memory_bytes);
    return Status::out_of_memory;
  }
  device.used += bytes;
  device.peak_used = std::max(device.peak_used, device.used);
  *handle = device.handles.add({bytes, 0, 1});
  return Status::ok;
}

Status ModelDriver::create(DeviceIndex device, Bytes bytes, PhysicalHandle* handle) {
  Entry entry = enter(DriverCall::create, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  if (bytes == 0 || bytes % options_.granularity != 0)
    return misuse(DriverCall::create, device, "%" PRIu64 " bytes, no multiple of %" PRIu64, bytes,
                  options_.granularity);
  return take_memory(DriverCall::create, device, *entry.device, bytes, handle);
}

Status ModelDriver::destroy(DeviceIndex device, PhysicalHandle handle) {
  Entry entry = enter(DriverCall::destroy, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  Device::Physical* physical = entry->handles.find(handle);
  if (physical == nullptr || physical->handles == 0)
    return misuse(DriverCall::destroy, device, "handle %#" PRIx64 " is not a live handle", handle);
  --physical->handles;
  entry->drop_if_unused(handle, *physical);
  return Status::ok;
}

// A descriptor of a file that says which handle it names.
Status ModelDriver::export_handle(DeviceIndex device, PhysicalHandle handle, int* descriptor) {
  Entry entry = enter(DriverCall::export_handle, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory || !options_.shareable) return Status::not_supported;
  const Device::Physical* physical = entry->handles.find(handle);
  if (physical == nullptr || physical->handles == 0)
    return misuse(DriverCall::export_handle, device, "handle %#" PRIx64 " is not a live handle", handle);
  const int file = memfd_create("model-device", MFD_CLOEXEC);
  if (file < 0 || write(file, &handle, sizeof handle) != static_cast<ssize_t>(sizeof handle)) {
    if (file >= 0) close(file);
    set_last_error("export_handle: no file descriptor is left");
    return Status::failed;
  }
  *descriptor = file;
  return Status::ok;
}

Status ModelDriver::import_handle(DeviceIndex device, int descriptor, PhysicalHandle* handle) {
  Entry entry = enter(DriverCall::import_handle, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory || !options_.shareable) return Status::not_supported;
  PhysicalHandle named = 0;
  const bool read = pread(descriptor, &named, sizeof named, 0) == static_cast<ssize_t>(sizeof named);
  Device::Physical* physical = read ? entry->handles.find(named) : nullptr;
  if (physical == nullptr) {
    set_last_error("import_handle: descriptor %d names no memory of device %d", descriptor, device);
    return Status::failed;
  }
  ++physical->handles;
  *handle = named;
  return Status::ok;
}

Status ModelDriver::allocate_segment(DeviceIndex device, Bytes bytes, Address* address) {
  Entry entry = enter(DriverCall::allocate_segment, device);
  if (entry.stopped()) return entry.status;
  if (bytes == 0) return misuse(DriverCall::allocate_segment, device, "0 bytes");
  if (bytes <= options_.memory_bytes) bytes = round_up(bytes, options_.granularity);  // beyond it, it might overflow
  PhysicalHandle handle = 0;
  Status status = take_memory(DriverCall::allocate_segment, device, *entry.device, bytes, &handle);
  if (status != Status::ok) return status;
  *address = addresses_->take(bytes, options_.granularity);
  if (*address == 0) {
    entry->used -= bytes;
    entry->handles.remove(handle);
    set_last_error("model driver: allocate_segment on device %d: no addresses left", device);
    return Status::out_of_memory;
  }
  entry->insert_range(*address, {bytes, handle, {}});
  return Status::ok;
}

Status ModelDriver::free_segment(DeviceIndex device, Address address) {
  Entry entry = enter(DriverCall::free_segment, device);
  if (entry.stopped()) return entry.status;
  std::size_t place = entry->find_range(address);
  if (place == entry->ranges.size() || entry->range_starts[place] != address || entry->ranges[place].segment == 0)
    return misuse(DriverCall::free_segment, device, "%#" PRIx64 " is not the start of a live segment", address);
  Bytes bytes = entry->ranges[place].bytes;
  entry->handles.remove(entry->ranges[place].segment);
  entry->used -= bytes;
  entry->erase_range(place);
  addresses_->give_back(address, bytes);
  return Status::ok;
}

// --- mappings -------------------------------------------------------------------------------------------------------

Status ModelDriver::map(DeviceIndex device, Address address, Bytes bytes, PhysicalHandle handle) {
  Entry entry = enter(DriverCall::map, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  Device::Physical* physical = entry->handles.find(handle);
  if (physical == nullptr || physical->handles == 0)
    return misuse(DriverCall::map, device, "handle %#" PRIx64 " is not a live handle", handle);
  if (physical->bytes != bytes)
    return misuse(DriverCall::map, device, "%" PRIu64 " bytes, but handle %#" PRIx64 " has %" PRIu64, bytes, handle,
                  physical->bytes);
  Device::Span span;
  if (!entry->find_span(address, bytes, options_.granularity, &span))
    return misuse(DriverCall::map, device, "%" PRIu64 " bytes at %#" PRIx64 " are not inside one reserved range", bytes,
                  address);
  auto& pages = span.range->pages;
  if (pages.size() < span.end)
    pages.resize(std::min<std::size_t>(std::max(span.end, pages.size() * 2), span.range->bytes / options_.granularity));
  for (std::size_t page = span.begin; page < span.end; ++page)
    if (pages[page] != 0)
      return misuse(DriverCall::map, device, "%" PRIu64 " bytes at %#" PRIx64 " overlap a live mapping", bytes,
                    address);
  std::uint32_t number = entry->add_mapping(
      {handle, static_cast<std::uint32_t>(span.begin), static_cast<std::uint32_t>(span.end - span.begin), false});
  std::fill(pages.begin() + static_cast<std::ptrdiff_t>(span.begin),
            pages.begin() + static_cast<std::ptrdiff_t>(span.end), number + 1);
  ++physical->mappings;
  return Status::ok;
}

Status ModelDriver::allow_access(DeviceIndex device, Address address, Bytes bytes, DeviceSet peers) {
  Entry entry = enter(DriverCall::allow_access, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  Device::Span span;
  if (!entry->find_span(address, bytes, options_.granularity, &span) || !entry->whole_mappings(span))
    return misuse(DriverCall::allow_access, device, "%" PRIu64 " bytes at %#" PRIx64 " are not whole mappings", bytes,
                  address);
  for (std::size_t page = span.begin; page < span.end;) {
    Device::Mapping& mapping = *entry->mapping_at(*span.range, page);
    mapping.accessible = true;
    mapping.peers |= peers;
    page += mapping.pages;
  }
  return Status::ok;
}

Status ModelDriver::unmap(DeviceIndex device, Address address, Bytes bytes) {
  Entry entry = enter(DriverCall::unmap, device);
  if (entry.stopped()) return entry.status;
  if (!options_.virtual_memory) return Status::not_supported;
  if (entry->captures_announced.load() != 0)
    return misuse(DriverCall::unmap, device, "at %#" PRIx64 " during a capture", address);
  Device::Span span;
  if (!entry->find_span(address, bytes, options_.granularity, &span) || !entry->whole_mappings(span))
    return misuse(DriverCall::unmap, device, "%" PRIu64 " bytes at %#" PRIx64 " are not whole mappings", bytes,
                  address);
  auto& pages = span.range->pages;
  for (std::size_t page = span.begin; page < span.end;) {
    std::uint32_t number = pages[page] - 1;
    Device::Mapping& mapping = entry->mappings[number];
    Device::Physical* physical = entry->handles.find(mapping.handle);
    --physical->mappings;
    entry->drop_if_unused(mapping.handle, *physical);
    std::fill_n(pages.begin() + static_cast<std::ptrdiff_t>(page), mapping.pages, 0);
    page += mapping.pages;
    entry->free_mappings.push_back(number);
  }
  return Status::ok;
}

bool ModelDriver::physical(DeviceIndex device, Address address, PhysicalHandle* handle, Bytes* offset) const {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  return d.physical(address, options_.granularity, handle, offset);
}

DeviceSet ModelDriver::peers(DeviceIndex device, Address address) const {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  const std::size_t place = d.find_range(address);
  if (place == d.ranges.size()) return 0;
  const Device::Mapping* mapping =
      d.mapping_at(d.ranges[place], (address - d.range_starts[place]) / options_.granularity);
  return mapping != nullptr ? mapping->peers : 0;
}

// --- copies ---------------------------------------------------------------------------------------------------------

// Handles from above what a program or CUDA hands out.
Status ModelDriver::create_stream(DeviceIndex device, StreamId* stream) {
  Entry entry = enter(DriverCall::create_stream, device);
  if (entry.stopped()) return entry.status;
  static std::atomic<StreamId> last{StreamId{1} << 48};
  *stream = ++last;
  return Status::ok;
}

Status ModelDriver::destroy_stream(DeviceIndex device, StreamId) {
  return enter(DriverCall::destroy_stream, device).status;
}

Status ModelDriver::pin_host(DeviceIndex device, Bytes bytes, void** host) {
  Entry entry = enter(DriverCall::pin_host, device);
  if (entry.stopped()) return entry.status;
  if (entry->capturing()) return misuse(DriverCall::pin_host, device, "during a capture");
  *host = std::malloc(bytes);
  return *host != nullptr ? Status::ok : Status::out_of_memory;
}

Status ModelDriver::unpin_host(DeviceIndex device, void* host) {
  Entry entry = enter(DriverCall::unpin_host, device);
  if (entry.stopped()) return entry.status;
  std::free(host);
  return Status::ok;
}

template <typename Visit>
Status ModelDriver::copy(DriverCall call, DeviceIndex device, Address address, Bytes bytes, StreamId stream,
                         Visit visit) {
  if (elsewhere(call, device, stream)) return Status::failed;
  Entry entry = enter(call, device);
  if (entry.stopped()) return entry.status;
  if (entry->capturing()) return misuse(call, device, "during a capture");
  const Bytes granularity = options_.granularity;
  for (Bytes at = 0, length = 0; at < bytes; at += length) {
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    if (!entry->physical(address + at, granularity, &handle, &offset))
      return misuse(call, device, "%" PRIu64 " bytes at %#" PRIx64 ": nothing accessible at %#" PRIx64, bytes, address,
                    address + at);
    length = std::min(bytes - at, granularity - offset % granularity);
    visit(*entry.device, handle, offset, at, length);
  }
  return Status::ok;
}

Status ModelDriver::copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes, StreamId stream) {
  return copy(DriverCall::copy_to_host, device, address, bytes, stream,
              [&](Device& d, PhysicalHandle handle, Bytes offset, Bytes at, Bytes length) {
                char* const to = static_cast<char*>(host) + at;
                const std::vector<char>* const page = d.contents.find({handle, offset / options_.granularity});
                if (page != nullptr)
                  std::memcpy(to, page->data() + offset % options_.granularity, length);
                else
                  std::memset(to, 0, length);
              });
}

Status ModelDriver::copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes,
                                   StreamId stream) {
  return copy(DriverCall::copy_from_host, device, address, bytes, stream,
              [&](Device& d, PhysicalHandle handle, Bytes offset, Bytes at, Bytes length) {
                const char* const from = static_cast<const char*>(host) + at;
                const auto page = std::pair{handle, offset / options_.granularity};
                const bool zeros = std::all_of(from, from + length, [](char byte) { return byte == 0; });
                if (zeros && d.contents.find(page) == nullptr) return;
                std::memcpy(d.contents.make(page, options_.granularity).data() + offset % options_.granularity, from,
                            length);
              });
}

}  // namespace poolalloc
