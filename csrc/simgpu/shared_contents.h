// Contents of physical memory that several processes see, as exported memory is: a range of one file that the exporting
// process keeps, mapped by everyone. So what one process copies there another reads.
//
// Such contents are never forgotten (physical.h): what other processes launch is not known here. A file descriptor
// names a range by its file position, so an exported one is the file, opened once more and positioned.
//
// The simulator's lock guards everything.
#pragma once

#include <cstdint>

namespace poolalloc::simgpu {

struct Device;
struct Extent;

// Moves the contents of an extent into the shared file, if they are not there already. False if the host refuses.
bool share_contents(Extent& extent);
// A new descriptor that names a shared extent, or -1.
int name_shared(const Extent& extent);
// The number of this process's file, and where in it a shared extent is: for handles that are plain bytes.
int shared_file();

// The memory that a descriptor names: the extent itself where it was exported, else one of its own for this process,
// paid for by the other. The caller gets one reference. Null if it names nothing.
Extent* open_shared(int descriptor);
// The same for a range of another process's file, which must still be alive.
Extent* open_shared(std::int64_t process, int file, std::uint64_t position);

// The end of a shared extent in this process.
void unshare_contents(Extent& extent);

}  // namespace poolalloc::simgpu
