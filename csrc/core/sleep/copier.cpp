#include "core/sleep/copier.h"

#include <algorithm>
#include <optional>
#include <string>

#include "core/base/errors.h"

namespace poolalloc {

Copier::Copier(Driver& driver, const NoCapture& token, DeviceIndex device)
    : driver_(driver), token_(token), device_(device) {
  try {
    check(driver_.create_stream(device_, &stream_), "a stream for copies");
    for (Buffer& buffer : buffers_) {
      void* memory = nullptr;
      check(driver_.pin_host(device_, kBufferBytes, &memory), "pinned memory for copies");
      buffer.memory = static_cast<char*>(memory);
      check(driver_.create_event(device_, &buffer.event), "an event for copies");
    }
  } catch (...) {
    release();
    throw;
  }
}

Copier::~Copier() { release(); }

void Copier::release() {
  for (Buffer& buffer : buffers_) {
    if (buffer.event != 0) {
      driver_.synchronize_event(token_, device_, buffer.event);  // a copy that failed elsewhere may still be under way
      driver_.destroy_event(device_, buffer.event);
    }
    if (buffer.memory != nullptr) driver_.unpin_host(device_, buffer.memory);
    buffer = {};
  }
  if (stream_ != 0) driver_.destroy_stream(device_, stream_);
  stream_ = 0;
}

void Copier::check(Status status, const char* what) const {
  if (status != Status::ok)
    throw DriverError(std::string("the driver refused ") + what + " on device " + std::to_string(device_) + ": " +
                      driver_.last_error());
}

void Copier::each_piece(const std::vector<SavedBytes>& parts,
                        const std::function<void(const SavedBytes&, Buffer&)>& step) {
  std::size_t number = 0;
  for (const SavedBytes& part : parts)
    for (Bytes done = 0; done < part.bytes; done += kBufferBytes)
      step({part.address + done, std::min(kBufferBytes, part.bytes - done), part.at + done}, buffers_[number++ % 2]);
}

void Copier::record(const Buffer& buffer) {
  check(driver_.record_event(device_, buffer.event, stream_), "an event behind a copy");
}

void Copier::await(const Buffer& buffer) {
  check(driver_.synchronize_event(token_, device_, buffer.event), "to finish a copy");
}

// A piece is written to the contents once the next copy is under way.
void Copier::save(const std::vector<SavedBytes>& parts, Contents* contents) {
  std::optional<SavedBytes> before;
  Buffer* before_in = nullptr;
  const auto write_before = [&] {
    if (!before) return;
    await(*before_in);
    if (!contents->write(before->at, before_in->memory, before->bytes))
      throw DriverError("the file that keeps the contents of sleeping memory cannot be written");
  };
  each_piece(parts, [&](const SavedBytes& piece, Buffer& buffer) {
    check(driver_.copy_to_host(device_, buffer.memory, piece.address, piece.bytes, stream_), "a copy to the host");
    record(buffer);
    write_before();
    before = piece;
    before_in = &buffer;
  });
  write_before();
}

void Copier::restore(const std::vector<SavedBytes>& parts, const Contents& contents) {
  each_piece(parts, [&](const SavedBytes& piece, Buffer& buffer) {
    await(buffer);  // the copy before the last has read it
    if (!contents.read(piece.at, buffer.memory, piece.bytes))
      throw DriverError("the file that keeps the contents of sleeping memory cannot be read");
    check(driver_.copy_from_host(device_, piece.address, buffer.memory, piece.bytes, stream_), "a copy to the device");
    record(buffer);
  });
  for (const Buffer& buffer : buffers_) await(buffer);
}

}  // namespace poolalloc
