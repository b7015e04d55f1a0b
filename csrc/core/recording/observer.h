// What the engine tells whoever writes a history: physical pages that come to an address and leave it, spare pages, and
// frees that had to wait for a stream. Blocks are not told of: whoever asks for them knows them. So nothing here lies
// on the path of an allocation that finds its pages, and with no observer set it costs one branch where pages change.
//
// A physical page that is mapped at several addresses counts at one of them, where a block used it last; it comes there
// and leaves the other. So what came and has not left, with the spare pages, is what is reserved, always.
#pragma once

#include "core/base/types.h"

namespace poolalloc {

struct HeapId {
  DeviceIndex device = 0;
  StreamId stream = 0;
  PoolId pool;
};

// Called under the locks of the heap or page supply that it is about, so that the order is the true one. An observer
// takes a note and returns: it calls neither the allocator, nor Python, nor anyone who may wait. It lives as long as
// the process.
class Observer {
 public:
  virtual void pages_came(const HeapId& heap, Address address, Bytes bytes) = 0;
  virtual void pages_left(const HeapId& heap, Address address, Bytes bytes) = 0;
  // Pages held that no heap has, all of the device's.
  virtual void spare_changed(DeviceIndex device, Bytes before, Bytes now) = 0;
  // A block that was pending can be handed out again from now on.
  virtual void free_completed(const BlockInfo& block) = 0;

 protected:
  ~Observer() = default;
};

}  // namespace poolalloc
