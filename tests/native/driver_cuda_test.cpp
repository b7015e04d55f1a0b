// CudaDriver against whatever libcuda.so.1 the machine shows: a real one, the simulated one, or none.
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "core/streams/capture.h"
#include "driver/cuda_api.h"
#include "driver/cuda_driver.h"
#include "skip.h"

using namespace poolalloc;

namespace {

constexpr Bytes kMiB = Bytes{1} << 20;

bool has(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

bool without_device() { return !CudaDriver::available(); }

TEST_CASE("without a driver every call says so") {
  if (!without_device()) SKIP("there is a driver with a device");
  std::string why;
  CHECK((!CudaDriver::available(&why) && has(why, "CUDA driver") && !has(why, "\n")));
  CudaDriver driver;
  CHECK((driver.device_count() == 0 && driver.last_error() == why));
  DeviceInfo info;
  PhysicalHandle handle = 0;
  CHECK(driver.device_info(0, &info) == Status::failed);
  CHECK(driver.create(0, 2 * kMiB, &handle) == Status::failed);
  CHECK((has(driver.last_error(), "cuMemCreate") && has(driver.last_error(), why.c_str())));
}

TEST_CASE("a device describes itself") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  CHECK(driver.device_count() > 0);
  DeviceInfo info;
  CHECK(driver.device_info(0, &info) == Status::ok);
  CHECK((!info.name.empty() && info.total_bytes > 0 && info.granularity > 0));
  Bytes free_bytes = 0;
  Bytes total = 0;
  CHECK(driver.memory_info(0, &free_bytes, &total) == Status::ok);
  CHECK((free_bytes > 0 && free_bytes <= total && total <= info.total_bytes));
  CHECK(driver.device_info(driver.device_count(), &info) == Status::failed);
  CHECK(has(driver.last_error(), "no device"));
  CHECK(driver.device_info(-1, &info) == Status::failed);
}

TEST_CASE("what a device says of itself opens no context") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  const bool before = driver.in_use(0);  // by another test
  DeviceInfo info;
  const DeviceIndex last = driver.device_count() - 1;
  CHECK((driver.device_info(last, &info) == Status::ok && !driver.in_use(last)));
  Bytes free_bytes = 0;
  Bytes total = 0;
  CHECK((driver.memory_info(last, &free_bytes, &total) == Status::ok && driver.in_use(last)));
  CHECK((last == 0 || driver.in_use(0) == before));
  CHECK((!driver.in_use(-1) && !driver.in_use(last + 1)));
}

TEST_CASE("physical memory appears at two addresses and is freed after the last") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  DeviceInfo info;
  CHECK(driver.device_info(0, &info) == Status::ok);
  if (!info.virtual_memory) SKIP("the device has no virtual memory management");
  const Bytes page = info.granularity;
  Bytes before = 0;
  Bytes during = 0;
  Bytes after = 0;
  Bytes total = 0;
  Address base = 0;
  PhysicalHandle one = 0;
  PhysicalHandle two = 0;
  CHECK(driver.memory_info(0, &before, &total) == Status::ok);
  CHECK((driver.reserve(0, 16 * page, page, &base) == Status::ok && base % page == 0));
  CHECK(driver.create(0, page, &one) == Status::ok);
  CHECK(driver.create(0, 2 * page, &two) == Status::ok);
  CHECK(driver.map(0, base, page, one) == Status::ok);
  CHECK(driver.map(0, base + page, 2 * page, two) == Status::ok);
  CHECK(driver.map(0, base + 8 * page, page, one) == Status::ok);
  CHECK(driver.allow_access(0, base, 3 * page) == Status::ok);  // two mappings at once
  CHECK(driver.allow_access(0, base + 8 * page, page) == Status::ok);
  const std::vector<char> written(4096, 'p');
  CHECK(driver.copy_from_host(0, base, written.data(), written.size(), 0) == Status::ok);
  std::vector<char> read(written.size());
  CHECK(driver.synchronize_device(NoCapture::unchecked(), 0) == Status::ok);
  StreamId stream = 0;
  void* pinned = nullptr;
  CHECK((driver.create_stream(0, &stream) == Status::ok && driver.pin_host(0, read.size(), &pinned) == Status::ok));
  CHECK(driver.copy_to_host(0, pinned, base + 8 * page, read.size(), stream) == Status::ok);
  CHECK(driver.synchronize_device(NoCapture::unchecked(), 0) == Status::ok);
  std::memcpy(read.data(), pinned, read.size());
  CHECK((driver.unpin_host(0, pinned) == Status::ok && driver.destroy_stream(0, stream) == Status::ok));
  CHECK(read == written);
  CHECK((driver.destroy(0, one) == Status::ok && driver.destroy(0, two) == Status::ok));
  CHECK((driver.memory_info(0, &during, &total) == Status::ok && during + 3 * page <= before));
  CHECK(driver.unmap(0, base, 3 * page) == Status::ok);
  CHECK(driver.unmap(0, base + 8 * page, page) == Status::ok);
  CHECK((driver.memory_info(0, &after, &total) == Status::ok && after >= during + 3 * page));
  CHECK(driver.release(0, base, 16 * page) == Status::ok);
}

TEST_CASE("ranges are aligned as asked and go back whole") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  DeviceInfo info;
  CHECK(driver.device_info(0, &info) == Status::ok);
  if (!info.virtual_memory) SKIP("the device has no virtual memory management");
  const Bytes page = info.granularity;
  constexpr Bytes kFar = Bytes{4} << 30;
  Address ranges[3] = {};
  Address between = 0;
  for (Address& range : ranges) {
    CHECK((driver.reserve(0, 16 * page, kFar, &range) == Status::ok && range % kFar == 0));
    CHECK(driver.reserve(0, page, page, &between) == Status::ok);  // so that the next cannot lie well by chance
    PhysicalHandle handle = 0;
    CHECK(driver.create(0, page, &handle) == Status::ok);
    CHECK(driver.map(0, range + 15 * page, page, handle) == Status::ok);
    CHECK(driver.allow_access(0, range + 15 * page, page) == Status::ok);
    CHECK((driver.unmap(0, range + 15 * page, page) == Status::ok && driver.destroy(0, handle) == Status::ok));
    CHECK(driver.release(0, between, page) == Status::ok);
  }
  CHECK((ranges[0] != ranges[1] && ranges[1] != ranges[2] && ranges[0] != ranges[2]));
  for (const Address range : ranges) CHECK(driver.release(0, range, 16 * page) == Status::ok);
}

TEST_CASE("a refusal names the call its arguments and the code") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  DeviceInfo info;
  CHECK(driver.device_info(0, &info) == Status::ok);
  PhysicalHandle handle = 42;
  const Bytes too_much = round_up(info.total_bytes, info.granularity) + 16 * info.granularity;
  if (info.virtual_memory) {
    CHECK((driver.create(0, too_much, &handle) == Status::out_of_memory && handle == 42));
    CHECK((has(driver.last_error(), "cuMemCreate(") && has(driver.last_error(), std::to_string(too_much).c_str())));
    CHECK(has(driver.last_error(), "CUDA_ERROR_OUT_OF_MEMORY (2)"));
    CHECK(driver.unmap(0, info.granularity, info.granularity) == Status::failed);
    CHECK((has(driver.last_error(), "cuMemUnmap(") && has(driver.last_error(), "CUDA_ERROR_")));
  }
  Address segment = 42;
  CHECK((driver.allocate_segment(0, too_much, &segment) == Status::out_of_memory && segment == 42));
  CHECK(has(driver.last_error(), "cuMemAlloc("));
}

TEST_CASE("segments are allocated and freed") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  Address segment = 0;
  CHECK((driver.allocate_segment(0, 20 * kMiB, &segment) == Status::ok && segment != 0));
  CHECK(driver.free_segment(0, segment) == Status::ok);
}

TEST_CASE("events complete and order streams") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  EventHandle event = 0;
  CHECK((driver.create_event(0, &event) == Status::ok && event != 0));
  CHECK(driver.query_event(MayAsk::unchecked(), 0, event) == Status::ok);  // never recorded
  CHECK(driver.record_event(0, event, 0) == Status::ok);
  CHECK(driver.stream_wait_event(0, 0, event) == Status::ok);
  CHECK(driver.synchronize_event(MayAsk::unchecked(), 0, event) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, event) == Status::ok);
  bool capturing = true;
  CHECK((driver.stream_capturing(0, 0, &capturing) == Status::ok && !capturing));
  CHECK(driver.destroy_event(0, event) == Status::ok);
}

TEST_CASE("a thread keeps the context it had") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  std::thread([&] {
    cuda::Context current = nullptr;
    CHECK((cuda::api().CtxGetCurrent(&current) == cuda::kSuccess && current == nullptr));
    Address segment = 0;
    CHECK(driver.allocate_segment(0, 2 * kMiB, &segment) == Status::ok);
    CHECK((cuda::api().CtxGetCurrent(&current) == cuda::kSuccess && current == nullptr));
    CHECK(driver.free_segment(0, segment) == Status::ok);
  }).join();
}

TEST_CASE("devices have memory of their own") {
  if (CudaDriver driver; driver.device_count() < 2) SKIP("there are not two devices");
  CudaDriver driver;
  Bytes before = 0;
  Bytes after = 0;
  Bytes total = 0;
  Address segment = 0;
  CHECK(driver.memory_info(0, &before, &total) == Status::ok);
  CHECK(driver.allocate_segment(1, 64 * kMiB, &segment) == Status::ok);
  CHECK((driver.memory_info(0, &after, &total) == Status::ok && after == before));
  CHECK(driver.free_segment(1, segment) == Status::ok);
}

// The driver's own calls that begin and end a capture; CudaDriver has no need of them.
template <typename Function>
Function driver_function(const char* name) {
  static void* library = dlopen("libcuda.so.1", RTLD_NOW);
  void* function = library == nullptr ? nullptr : dlsym(library, name);
  CHECK(function != nullptr);
  return reinterpret_cast<Function>(function);
}

TEST_CASE("a capture is seen and survives what the allocator does") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  EventHandle before = 0;
  CHECK(driver.create_event(0, &before) == Status::ok);
  CHECK(driver.record_event(0, before, 0) == Status::ok);
  CHECK(driver.synchronize_event(MayAsk::unchecked(), 0, before) == Status::ok);

  cuda::Device device = 0;
  cuda::Context context = nullptr;
  cuda::Stream stream = nullptr;
  void* graph = nullptr;
  CHECK(cuda::api().DeviceGet(&device, 0) == cuda::kSuccess);
  CHECK(cuda::api().DevicePrimaryCtxRetain(&context, device) == cuda::kSuccess);
  CHECK(cuda::api().CtxPushCurrent(context) == cuda::kSuccess);
  constexpr unsigned kNonBlocking = 1;
  constexpr int kGlobalMode = 0;
  CHECK(driver_function<int (*)(cuda::Stream*, unsigned)>("cuStreamCreate")(&stream, kNonBlocking) == cuda::kSuccess);
  CHECK(driver_function<int (*)(cuda::Stream, int)>("cuStreamBeginCapture_v2")(stream, kGlobalMode) == cuda::kSuccess);

  const auto id = reinterpret_cast<StreamId>(stream);
  bool capturing = false;
  CHECK((driver.stream_capturing(0, id, &capturing) == Status::ok && capturing));
  Address segment = 0;
  EventHandle inside = 0;
  CHECK(driver.allocate_segment(0, 2 * kMiB, &segment) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, before) == Status::ok);
  CHECK(driver.synchronize_event(MayAsk::unchecked(), 0, before) == Status::ok);
  CHECK(driver.create_event(0, &inside) == Status::ok);
  CHECK(driver.record_event(0, inside, id) == Status::ok);
  CHECK(driver.stream_wait_event(0, id, inside) == Status::ok);
  Bytes free_bytes = 0;
  Bytes total = 0;
  CHECK(driver.memory_info(0, &free_bytes, &total) == Status::ok);

  CHECK(driver_function<int (*)(cuda::Stream, void**)>("cuStreamEndCapture")(stream, &graph) == cuda::kSuccess);
  CHECK(graph != nullptr);
  CHECK((driver.stream_capturing(0, id, &capturing) == Status::ok && !capturing));
  DeviceIndex whose = 7;
  CHECK((driver.stream_device(id, &whose) == Status::ok && whose == 0));
  CHECK((driver.stream_device(0, &whose) == Status::ok && whose == 0));
  CHECK(driver.free_segment(0, segment) == Status::ok);
  CHECK((driver.destroy_event(0, before) == Status::ok && driver.destroy_event(0, inside) == Status::ok));
  CHECK(driver_function<int (*)(cuda::Stream)>("cuStreamDestroy_v2")(stream) == cuda::kSuccess);
  CHECK(cuda::api().CtxPopCurrent(&context) == cuda::kSuccess);
  CHECK(cuda::api().DevicePrimaryCtxRelease(device) == cuda::kSuccess);
}

// Objects of a program may free memory when the driver has shut down: it must refuse then, and nothing else.
struct Late {
  CudaDriver* driver = nullptr;
  EventHandle event = 0;
  ~Late() {
    if (driver == nullptr) return;
    const Status status = driver->record_event(0, event, 0);
    const bool simulated = dlsym(RTLD_DEFAULT, "simgpu_used_bytes") != nullptr;
    if (simulated && (status != Status::failed || !has(driver->last_error(), "CUDA_ERROR_DEINITIALIZED"))) {
      std::fprintf(stderr, "after its end the driver said: %s\n", driver->last_error().c_str());
      std::_Exit(1);
    }
  }
} late;  // made before the driver is loaded, so it goes after it

TEST_CASE("a driver that has shut down refuses") {
  if (without_device()) SKIP("there is no driver with a device");
  late.driver = new CudaDriver;
  CHECK(late.driver->create_event(0, &late.event) == Status::ok);
}

TEST_CASE("threads open a device together") {
  if (without_device()) SKIP("there is no driver with a device");
  CudaDriver driver;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&driver] {
      for (int round = 0; round < 50; ++round) {
        EventHandle event = 0;
        CHECK(driver.create_event(0, &event) == Status::ok);
        CHECK(driver.record_event(0, event, 0) == Status::ok);
        CHECK(driver.synchronize_event(MayAsk::unchecked(), 0, event) == Status::ok);
        CHECK(driver.destroy_event(0, event) == Status::ok);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
