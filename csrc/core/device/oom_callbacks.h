// Those who hold memory that they could do without: asked for it when a request finds none (ladder.h). Not for what
// happens then, and not for hearing of errors: whoever catches OutOfMemory does that.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

class POOLALLOC_API OomCallbacks {
 public:
  // True: it freed something, and could free more. Runs on the thread whose request is short of memory, under no lock.
  // It may allocate and free, on any device; its own requests call nobody back. What it throws is dropped: it has freed
  // nothing then.
  using Callback = std::function<bool(DeviceIndex device, Bytes bytes)>;
  using Id = std::uint64_t;

  Id add(Callback callback);
  // False if there is none of that name. A call of it may still be under way on another thread.
  bool remove(Id id);

  using List = std::vector<std::shared_ptr<const Callback>>;
  // In the order in which they were added; none if this thread is inside one.
  List to_call() const;
  static bool call(const Callback& callback, DeviceIndex device, Bytes bytes);

 private:
  struct Entry {
    Id id;
    std::shared_ptr<const Callback> callback;
  };
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  Id last_id_ = 0;
};

}  // namespace poolalloc
