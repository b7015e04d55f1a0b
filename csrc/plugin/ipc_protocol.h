// What the two sides of ipc.h say to each other: a request and a reply, each one packet of a SOCK_SEQPACKET connection,
// the descriptors beside the reply. Both sides are this library, of one version: kVersion says so.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "core/heap/sharing.h"

namespace poolalloc::ipc {

inline constexpr std::uint64_t kVersion = 0x322d6370692d6170;  // "pa-ipc-2"
inline constexpr std::size_t kBatch = 64;                      // descriptors in one reply; the kernel takes 253

using Secret = std::array<unsigned char, 16>;

// The bytes of a name.
struct Name {
  std::uint64_t version = kVersion;
  std::uint64_t socket = 0;  // random, in the socket's name
  std::int64_t process = 0;
  Secret secret{};
  std::int64_t device = 0;  // as the exporting process counts
  std::uint64_t pages = 0, bytes = 0, id = 0, block = 0;
};

struct Request {
  Name name;
  std::uint64_t first = 0, count = 0;  // pieces of memory from this page on, at most so many
};

enum class Answer : std::uint32_t { kPieces, kFreed, kRefused, kFailed };
struct Reply {
  Answer answer = Answer::kFailed;
  std::uint32_t count = 0;
  std::uint32_t pages[kBatch] = {};  // of each piece
  char text[248] = {};               // of kFailed
};

// An abstract address: no file, gone with its last socket.
inline socklen_t address_of(const Name& name, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  const int length = std::snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "poolalloc-%lld-%016llx",
                                   static_cast<long long>(name.process), static_cast<unsigned long long>(name.socket));
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<std::size_t>(length));
}

}  // namespace poolalloc::ipc
