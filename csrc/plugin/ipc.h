// Blocks shared between processes: a block's name as a string that torch sends along, and opening such a name.
//
// A block is many physical pages, and each would cost its process an open file descriptor for as long as it is shared.
// So descriptors are made when they are asked for: a thread of the exporting process listens on a socket, and whoever
// has the string, which holds a secret, gets them in batches and closes them when the pages are mapped. The thread
// starts with the first block that is shared. ipc_server.cpp is that side, ipc_client.cpp the other.
//
// Only processes that see each other's abstract sockets (one network namespace) can share.
#pragma once

#include <memory>
#include <string>

#include "core/allocator.h"

namespace poolalloc {

struct IpcName {
  std::string text;  // the same for the same block
  Bytes offset = 0;  // of the address in what opening gives
};

// Names the block that contains `address`. Throws UsageError (no such block, the device cannot share), DriverError.
POOLALLOC_API IpcName ipc_share(Address address);

// The memory behind a name of any process, this one too, on `device`: the same while somebody holds it, however often
// it is asked for. It is closed with the last holder. Throws UsageError (no name of poolalloc's), DriverError (the
// process is gone, the block was freed, the driver refuses).
POOLALLOC_API std::shared_ptr<void> ipc_open(const std::string& text, DeviceIndex device);

}  // namespace poolalloc
