#include "core/device/oom_callbacks.h"

#include <algorithm>
#include <utility>

namespace poolalloc {
namespace {

thread_local bool inside = false;

}  // namespace

OomCallbacks::Id OomCallbacks::add(Callback callback) {
  auto shared = std::make_shared<const Callback>(std::move(callback));
  std::lock_guard guard(mutex_);
  entries_.push_back({++last_id_, std::move(shared)});
  return last_id_;
}

bool OomCallbacks::remove(Id id) {
  Entry gone;  // its end may run foreign code: not under the lock
  std::lock_guard guard(mutex_);
  const auto entry = std::find_if(entries_.begin(), entries_.end(), [id](const Entry& each) { return each.id == id; });
  if (entry == entries_.end()) return false;
  gone = std::move(*entry);
  entries_.erase(entry);
  return true;
}

OomCallbacks::List OomCallbacks::to_call() const {
  List list;
  if (inside) return list;
  std::lock_guard guard(mutex_);
  for (const Entry& entry : entries_) list.push_back(entry.callback);
  return list;
}

bool OomCallbacks::call(const Callback& callback, DeviceIndex device, Bytes bytes) {
  inside = true;
  bool freed = false;
  try {
    freed = callback(device, bytes);
  } catch (...) {
    freed = false;  // out of memory stays out of memory
  }
  inside = false;
  return freed;
}

}  // namespace poolalloc
