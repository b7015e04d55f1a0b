// Copies between memory of a device and contents that are kept elsewhere, through two pinned buffers: while the device
// fills or reads one, this thread empties or fills the other.
#pragma once

#include <functional>
#include <vector>

#include "core/base/types.h"
#include "core/sleep/contents.h"
#include "core/streams/capture.h"
#include "driver/driver.h"

namespace poolalloc {

// Bytes of a device, and where in the contents they lie.
struct SavedBytes {
  Address address = 0;
  Bytes bytes = 0;
  Bytes at = 0;
};

class Copier {
 public:
  static constexpr Bytes kBufferBytes = Bytes{16} << 20;

  // Throws DriverError if the driver refuses its stream, its events or its buffers.
  Copier(Driver& driver, const NoCapture& token, DeviceIndex device);
  ~Copier();
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  // Work that uses the memory has completed. Both throw DriverError if a copy fails, or the file does.
  void save(const std::vector<SavedBytes>& parts, Contents* contents);
  void restore(const std::vector<SavedBytes>& parts, const Contents& contents);

 private:
  struct Buffer {
    char* memory = nullptr;
    EventHandle event = 0;  // behind the last copy from or to it
  };

  // Calls step(part, buffer, number) for pieces that fit a buffer.
  void each_piece(const std::vector<SavedBytes>& parts, const std::function<void(const SavedBytes&, Buffer&)>& step);
  void record(const Buffer& buffer);
  void await(const Buffer& buffer);
  void release();
  void check(Status status, const char* what) const;

  Driver& driver_;
  const NoCapture& token_;
  const DeviceIndex device_;
  StreamId stream_ = 0;
  Buffer buffers_[2];
};

}  // namespace poolalloc
