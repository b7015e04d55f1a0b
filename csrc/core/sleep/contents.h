// Where the contents of sleeping memory wait: one row of bytes, in the host's memory or in a file.
//
//   bytes held = what was asked for, from the moment it is made until it is destroyed
#pragma once

#include <memory>
#include <string>

#include "core/base/types.h"

namespace poolalloc {

// What becomes of the contents of memory that falls asleep.
enum class Keep { nothing, host, file };

class Contents {
 public:
  virtual ~Contents() = default;
  Contents(const Contents&) = delete;
  Contents& operator=(const Contents&) = delete;

  // Throws UsageError if the host has no such memory free. A child of fork() does not inherit it.
  static std::unique_ptr<Contents> in_host(Bytes bytes);
  // In a file of `folder` that only this user may read. It has no name, so it ends with the process, however that ends.
  // Throws UsageError if the folder cannot be written, or the disk has no room.
  static std::unique_ptr<Contents> in_file(const std::string& folder, Bytes bytes);

  // False if the file could not be written, or read.
  virtual bool write(Bytes at, const void* data, Bytes bytes) = 0;
  virtual bool read(Bytes at, void* data, Bytes bytes) const = 0;
  Bytes bytes() const { return bytes_; }
  Keep place() const { return place_; }

 protected:
  Contents(Keep place, Bytes bytes) : place_(place), bytes_(bytes) {}

 private:
  const Keep place_;
  const Bytes bytes_;
};

}  // namespace poolalloc
